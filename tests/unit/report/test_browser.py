"""The page in a real browser, narrow and wide, light and dark.

A frame of the width in question holds the page; the document around it looks inside and writes down what it finds.
"""

import json
import re
import shutil
import subprocess

import pytest
from results_tree import COMMIT, report_spec
from steps import run_step

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--allow-file-access-from-files",
    "--virtual-time-budget=5000",
]
PROBE = """<!doctype html><meta name="color-scheme" content="light dark"><body style="margin:0">
<iframe src="report.html" style="border:0;width:{width}px;height:900px"></iframe><pre id="found"></pre><script>
document.querySelector("iframe").addEventListener("load", (event) => {{
  const inside = event.target.contentDocument;
  const table = [...inside.querySelectorAll("table")].find((t) => t.ariaLabel.startsWith("Training"));
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[4].dataset.sort);
  const button = table.tHead.rows[0].cells[4].querySelector("button");
  const before = column(); button.click(); const up = column(); button.click(); const down = column();
  const shown = [...inside.querySelectorAll("figure svg")].filter((s) => s.getBoundingClientRect().width > 100);
  document.getElementById("found").textContent = JSON.stringify({{
    page: inside.documentElement.scrollWidth, paper: getComputedStyle(inside.body).backgroundColor,
    ink: getComputedStyle(inside.querySelector("svg text")).fill, before, up, down,
    figures: inside.querySelectorAll("figure").length, shown: shown.length,
    boxes: [...inside.querySelectorAll(".side dl div")].map((b) => [b.getBoundingClientRect().left, b.offsetWidth]),
    spill: [...inside.querySelectorAll(".side dd")].filter((text) => text.scrollWidth > text.clientWidth).length,
  }});
}});
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: install it to check the report in a browser")


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    run_step("report", report_spec(), "--results", results, "--commit", COMMIT, "--output", folder / "report.html")
    return folder


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_the_page_fits_sorts_and_reports_no_error(folder, tmp_path, width, dark):
    probe = folder / f"probe-{width}-{dark}.html"
    probe.write_text(PROBE.format(width=width), encoding="utf-8")
    # 0 is dark, 1 is light: the numbers of Blink's enumeration.
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile, size = f"--user-data-dir={tmp_path}", f"--window-size={width},900"
    command = [CHROMIUM, *FLAGS, scheme, profile, size, "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # The page's own policy forbids whatever is not inside it: a request elsewhere would be an error here.
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert found["page"] <= width, "the page is wider than the screen"
    assert found["paper"] == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert found["ink"] == ("rgb(154, 165, 177)" if dark else "rgb(95, 104, 114)"), "figures follow the theme"
    assert found["shown"] == found["figures"] > 10
    assert found["spill"] == 0 and all(size >= 200 for _, size in found["boxes"]), "completions are readable"
    columns = {left for left, _ in found["boxes"]}
    assert len(columns) == (1 if width == 375 else 3), "boxes stand side by side where there is room"
    numbers = sorted(float(value) for value in found["before"] if value)
    empty = [""] * (len(found["before"]) - len(numbers))
    assert found["up"] == [*map(str, numbers), *empty]
    assert found["down"] == [*map(str, reversed(numbers)), *empty]
