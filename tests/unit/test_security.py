"""Files of others run no code: no pickle is read, and text from data stays text."""

import ast
import inspect
from pathlib import Path

import pytest
import torch.distributed.checkpoint.filesystem
import transformers.trainer

from lpc.report import svg

SOURCE = Path(__file__).resolve().parents[2] / "src"
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"}


def unsafe(code: str) -> list[str]:
    """What may run code that stands in a file: imports, calls, and loads without the argument that forbids it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            forbidden = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}.get(name)
            wrong = forbidden and given.get(forbidden[0]) != forbidden[1]
            if name in CALLS or wrong or given.get("shell") == "True":
                found.append(f"{name} in line {node.lineno}")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "yaml.load(text, Loader)",
        "subprocess.run(words, shell=True)",
        "eval(text)",
    ],
)
def test_the_check_finds(code):
    assert len(unsafe(code)) == 1


def test_no_module_reads_a_pickle_or_runs_text():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 50
    assert {str(file): found for file in files if (found := unsafe(file.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize("module", [transformers.trainer, torch.distributed.checkpoint.filesystem])
def test_a_resume_reads_tensors_alone(module):
    """Optimizer, schedule and random numbers, by Trainer and by torch's sharded checkpoints. A sharded one has a
    pickle besides, its table of contents; see docs/reliability.md."""
    found = [name for name in unsafe(inspect.getsource(module)) if name.startswith("torch.load")]
    assert found == [] and "torch.load(" in inspect.getsource(module)


def test_names_from_the_data_are_text_in_figures():
    drawing = svg.figure(2, 2)
    with svg.style():
        axes = drawing.subplots()
        axes.plot([0, 1], [0, 1], label="<script>alert(1)</script>")
        axes.legend()
        markup = svg.markup(drawing, "a")
    assert "&lt;script&gt;alert(1)" in markup and "<script" not in markup
