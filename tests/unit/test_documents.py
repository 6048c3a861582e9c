"""The documents: their site, their examples of configurations, and what they list."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lpc.config import load
from lpc.layout import Layout

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


MISSING = [
    name for name in ("latex2mathml", "material", "mkdocs", "mkdocstrings") if not importlib.util.find_spec(name)
]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install --editable '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    """Broken links and anchors, pages that the site leaves out, and names of the API that do not exist are warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    method = (tmp_path / "method/index.html").read_text(encoding="utf-8")
    assert method.count("<math") > 20 and "$" not in re.sub(r"<script.*?</script>", "", method, flags=re.S)
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="python/"' in home and 'href="configuration/"' in home
    assert "infer_code" in (tmp_path / "api/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["settings", "people"])
def test_configurations_of_the_pages_are_accepted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").touch()
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text(f"howto/{page}.md"), re.M | re.S)
    assert blocks
    for block in blocks:
        load.resolve(yaml.safe_load(block))


def test_the_page_of_files_lists_those_of_the_layout():
    layout = Layout("")
    dataset, base = layout.data("<dataset>"), layout.base("<base>")
    reference, task = layout.reference("<base>", "<dataset>"), layout.task("<task>")
    run = layout.run("<base>", "<dataset>", "<recipe>", "<seed>")
    paths = {
        layout.report,
        layout.configuration,
        layout.crate,
        layout.table("<table>"),
        layout.caption("<table>"),
        Path("checkpoints/<run>"),
        Path("finished/<rule>/<job>/<part>"),
    }
    assert layout.checkpoints(*"1234").parent == Path("checkpoints")
    assert layout.finished("<rule>", "<job>") / "<part>" in paths
    paths |= {layout.alpacaeval_instructions, layout.alpacaeval_reference}
    for folder in (dataset, reference, task):
        paths |= set(vars(folder).values())
    paths |= {base.record, base.model, base.benchmarks.result("<task>"), base.benchmarks.samples("<task>")}
    paths |= {layout.log("<rule>", "<job>"), layout.timing("<rule>", "<job>")}
    of_run = {path for path in vars(run).values() if isinstance(path, Path)} - {run.folder, run.evaluation}
    of_run |= {run.preference("<dataset>"), run.rewards("<dataset>")}
    of_run |= {run.benchmarks.result("<task>"), run.benchmarks.samples("<task>")}
    of_run |= {run.tsne_figure(colour, suffix) for colour in ("source", "code") for suffix in ("svg", "png")}
    expected = {str(path) for path in paths} | {str(path.relative_to(run.folder)) for path in of_run}

    rows = re.findall(r"^\| (`.*?) \|", text("files.md"), re.M)
    listed = {name.replace("[.<noise>]", "").rstrip("/") for row in rows for name in re.findall(r"`(.*?)`", row)}
    assert listed == expected | {"tensorboard"}
    assert f"`{run.folder}/`" in text("files.md").replace("[.<noise>]", "")
