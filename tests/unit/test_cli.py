"""How a step ends: its exit code and its one line on standard error, whatever happens."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"


def run(tmp_path, body: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a step whose `main` is `body`, in a folder of its own."""
    code = "import os, signal\nfrom pathlib import Path\nfrom lpc import cli, files\n"
    code += "from lpc.config.specs import Spec\ndef main(args):\n"
    code += textwrap.indent(textwrap.dedent(body), "    ") + "\ncli.run(cli.step_parser('a step', Spec), main)\n"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        cwd=tmp_path,
        text=True,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise cli.UserError('a: wrong\\nvalue')", 1, "error: a: wrong value"),
        ("raise cli.Stopped('saved')", 85, "error: saved"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "error: interrupted; rerun to resume"),
        ("open('missing')", 1, "error: missing: No such file or directory; correct the cause, then rerun"),
        ("open('/dev/full', 'w').write('x' * 10**6)", 1, "error: input/output: No space left on device; free space"),
        ("raise OSError('no route')", 1, "error: input/output: no route; correct the cause, then rerun"),
        ("files.write_text('a', '\\ud800')", 1, "error: a: lone surrogate in the text '\\ud800'"),
        ("files.read_json('.')", 1, "error: .: must be a JSON file, but is a folder"),
    ],
)
def test_ends_with_one_line_and_the_right_code(tmp_path, body, code, line):
    result = run(tmp_path, body)
    assert result.returncode == code, result.stderr
    [error] = result.stderr.splitlines()
    assert error.startswith(line)


def test_our_own_bug_shows_its_traceback(tmp_path):
    result = run(tmp_path, "1 / 0")
    assert result.returncode == 1 and "Traceback" in result.stderr and "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize(("body", "code"), [("raise cli.Stopped('saved')", 85), ("raise KeyboardInterrupt", 130)])
def test_code_and_reason_are_seen_where_the_log_is_on_the_full_disk(tmp_path, monkeypatch, body, code):
    with open("/dev/full", "w") as full:
        assert run(tmp_path, body, stdout=full, stderr=full).returncode == code
        monkeypatch.setenv("LPC_STDERR", str(tmp_path / "seen"))
        assert run(tmp_path, body, stdout=full, stderr=full).returncode == code
    assert (tmp_path / "seen").read_text().startswith("error: ")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"[1]", "expected a JSON object"), (b"\xff", "utf-8"), (b"[" * 100_000, "recursion")]
)
def test_spec_that_cannot_be_read(tmp_path, content, reason):
    (tmp_path / "spec.json").write_bytes(content)
    result = run(tmp_path, "pass", "--spec", "@spec.json")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert reason in result.stderr.splitlines()[-1]


def test_nothing_is_writable_by_everyone_whatever_the_umask(tmp_path):
    body = "files.write_json('new/prompts.json', [])\nPath('other').mkdir()\nPath('other/log').touch()"
    assert run(tmp_path, body, umask=0).returncode == 0
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"new": 0o775, "new/prompts.json": 0o664, "other": 0o775, "other/log": 0o664}


def test_torn_record_of_the_image(tmp_path):
    (tmp_path / "training.json").write_text("{")
    os.environ["APPTAINER_CONTAINER"] = str(tmp_path / "training.sif")
    try:
        result = run(tmp_path, "pass")
    finally:
        del os.environ["APPTAINER_CONTAINER"]
    assert result.returncode == 1
    [error] = result.stderr.splitlines()
    assert "training.json: must be a JSON object with sha256" in error


def test_interrupt_from_outside(tmp_path):
    code = "import time\nfrom lpc import cli\nfrom lpc.config.specs import Spec\n"
    code += "def main(args):\n print('runs', flush=True)\n time.sleep(60)\n"
    code += "cli.run(cli.step_parser('a step', Spec), main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "runs\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "error: interrupted; rerun to resume\n")
