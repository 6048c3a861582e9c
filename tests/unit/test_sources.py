"""The import closure: held against what Python really imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpc import sources as module
from lpc.sources import PACKAGE, sources

STEPS = sorted(file.stem for file in (PACKAGE / "steps").glob("*.py") if file.stem != "__init__")


def names(files):
    return {str(file.relative_to(PACKAGE)) for file in files}


def test_closure_holds_every_module_that_a_step_imports():
    """Each step is imported for real, with our modules unloaded before; each of our files that this runs is listed."""
    program = """
import importlib, json, sys
imported = {}
for step in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "lpc"]:
        del sys.modules[name]
    importlib.import_module(f"lpc.{step}")
    imported[step] = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "lpc" and m.__file__]
print(json.dumps(imported))
"""
    output = subprocess.run(
        [sys.executable, "-c", program, "config.specs", *(f"steps.{step}" for step in STEPS)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    ).stdout
    imported = json.loads(output.splitlines()[-1])
    # The configuration, a step's spec, imports every kind of a thing; what a job uses of them, its rule adds.
    of_specs = set(imported.pop("config.specs"))
    for step, files in imported.items():
        assert len(files) > 3
        assert set(map(Path, set(files) - of_specs)) <= set(sources(f"lpc.{step}"))


@pytest.mark.parametrize("step", STEPS)
def test_closure_holds_no_other_step(step):
    assert names(sources(f"lpc.steps.{step}")) & {f"steps/{other}.py" for other in STEPS} == {f"steps/{step}.py"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own with every form of import."""
    files = {
        "__init__.py": "",
        "a.py": "from lpc.sub import b, VALUE\n\n\ndef late():\n    import lpc.late\n    import lpc.kinds\n",
        "late.py": "from . import other\n",
        "other.py": "from .sub.deep import c\nimport os.path\n",
        "unused.py": "",
        "cycle.py": "import lpc.a\nimport lpc.cycle\n",
        "sub/__init__.py": "from .extra import *\nVALUE = 1\n",
        "sub/extra.py": 'PAGE = "page.html"\nNO = "no.html"\n',
        "sub/page.html": "",
        "sub/b.py": "",
        "kinds/__init__.py": "import pkgutil\nFOUND = list(pkgutil.iter_modules(__path__))\n",
        "kinds/one.py": "",
        "sub/deep/__init__.py": "",
        "sub/deep/c.py": "from ...other import x\nfrom .. import b\n",
    }
    root = tmp_path / "lpc"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(module, "PACKAGE", root)
    module._read.cache_clear()
    yield root
    module._read.cache_clear()


def test_lazy_relative_and_package_imports_and_files_beside(package):
    found = {str(file.relative_to(package)) for file in sources("lpc.a")}
    assert found == {
        "__init__.py",
        "a.py",
        "kinds/__init__.py",
        "kinds/one.py",
        "late.py",
        "other.py",
        "sub/__init__.py",
        "sub/extra.py",
        "sub/page.html",
        "sub/b.py",
        "sub/deep/__init__.py",
        "sub/deep/c.py",
    }


def test_cycles_end(package):
    assert package / "a.py" in sources("lpc.cycle")


def test_result_is_sorted_and_unknown_modules_are_refused(package):
    assert list(sources("lpc.a")) == sorted(sources("lpc.a"))
    with pytest.raises(FileNotFoundError, match=r"lpc\.steps\.nothing"):
        sources("lpc.steps.nothing")
