"""The import closure: held against what Python really imports."""

import importlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from lpc import latents, objectives
from lpc import modules as module
from lpc.cli import UserError
from lpc.modules import PACKAGE, modules_of, modules_of_task

STEPS = sorted(file.stem for file in (PACKAGE / "steps").glob("*.py") if file.stem != "__init__")


def file_of(kind):
    return str(Path(sys.modules[kind.__module__].__file__).relative_to(PACKAGE))


KINDS = {**objectives.KINDS, **latents.KINDS}


def names(files):
    return {str(file.relative_to(PACKAGE)) for file in files}


def imported_by(modules: list[str]) -> dict[str, set[Path]]:
    """Our files that the import of each module runs, with ours unloaded before."""
    found = {}
    for wanted in modules:
        for name in [name for name in sys.modules if name.split(".")[0] == "lpc"]:
            del sys.modules[name]
        importlib.import_module(wanted)
        loaded = [m for name, m in sys.modules.items() if name.split(".")[0] == "lpc"]
        found[wanted] = {Path(m.__file__) for m in loaded if m.__file__}
    return found


def test_closure_holds_every_module_that_a_step_imports():
    """Each of our files that the import of a step runs is listed.

    But for the configuration and what it imports itself, which is every kind of objective and latent.
    """
    modules = ["lpc.config.docs", *(f"lpc.steps.{step}" for step in STEPS)]
    # What is not ours is imported here, and so once for all tests of this process; ours in a fork, to unload it there.
    for name in modules:
        importlib.import_module(name)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        imported = pool.submit(imported_by, modules).result()
    of_config = imported.pop("lpc.config.docs")
    assert set(map(file_of, KINDS.values())) <= names(of_config)
    for name, files in imported.items():
        assert len(files - of_config) > 0
        assert files - of_config <= set(modules_of(name))


@pytest.mark.parametrize("step", STEPS)
def test_closure_holds_no_other_step(step):
    parts = ("preference", "latents", "tsne", "completions", "personalise", "style") if step == "evaluate" else ()
    expected = {f"steps/{name}.py" for name in (step, *parts)}
    assert names(modules_of(f"lpc.steps.{step}")) & {f"steps/{other}.py" for other in STEPS} == expected


@pytest.mark.parametrize("step", STEPS)
def test_closure_holds_neither_configuration_nor_kinds(step):
    found = names(modules_of(f"lpc.steps.{step}"))
    assert not any(name.startswith("config/") for name in found)
    assert not found & {file_of(kind) for kind in KINDS.values()}


def test_closure_of_training_holds_what_all_kinds_share():
    found = names(modules_of("lpc.steps.train"))
    assert {"objectives/__init__.py", "objectives/base.py", "latents/__init__.py", "latents/base.py"} <= found


@pytest.mark.parametrize("name", KINDS)
def test_closure_of_a_kind_holds_its_file_and_no_kind_that_it_is_not_derived_from(name):
    files = {kind: file_of(kind) for kind in KINDS.values()}
    own = {files[kind] for kind in KINDS[name].__mro__ if kind in files}
    assert files[KINDS[name]] in own and names(modules_of(KINDS[name].__module__)) & set(files.values()) == own


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own with every form of import."""
    files = {
        "__init__.py": "",
        "a.py": "from lpc.sub import b, VALUE\n\n\ndef late():\n    import lpc.late\n    import lpc.kinds\n"
        "    import lpc.latents\n    from lpc.config import keys\n",
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
        "latents/__init__.py": "FOUND = __path__\nfrom . import base\n",
        "latents/base.py": "",
        "latents/one.py": "from lpc.latents.shared import x\nfrom lpc.config.keys import key\n",
        "latents/shared.py": "",
        "latents/two.py": "",
        "config/__init__.py": "",
        "config/keys.py": "",
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
    found = {str(file.relative_to(package)) for file in modules_of("lpc.a")}
    assert found == {
        "__init__.py",
        "a.py",
        "kinds/__init__.py",
        "kinds/one.py",
        "late.py",
        "latents/__init__.py",
        "latents/base.py",
        "other.py",
        "sub/__init__.py",
        "sub/extra.py",
        "sub/page.html",
        "sub/b.py",
        "sub/deep/__init__.py",
        "sub/deep/c.py",
    }


def test_a_kind_of_latent_brings_its_own_modules(package):
    found = {str(file.relative_to(package)) for file in modules_of("lpc.latents.one")}
    assert found == {"__init__.py", *(f"latents/{name}.py" for name in ("__init__", "base", "one", "shared"))}


def test_cycles_end(package):
    assert package / "a.py" in modules_of("lpc.cycle")


def test_result_is_sorted_and_unknown_modules_are_refused(package):
    assert list(modules_of("lpc.a")) == sorted(modules_of("lpc.a"))
    with pytest.raises(FileNotFoundError, match=r"lpc\.steps\.nothing"):
        modules_of("lpc.steps.nothing")


def test_files_of_a_benchmark_task(tmp_path):
    """The definition, what it includes, and modules of functions: of this package, and beside the file."""
    texts = {
        "own.yaml": "include: more/shared.yaml\nprocess_results: !function lpc.evaluation.benchmarks.score\n",
        "more/shared.yaml": "include: [deep.yaml]\nprocess_docs: !function functions.first\n",
        "more/deep.yaml": "output_type: multiple_choice\n",
        "more/functions.py": "",
        "other.yaml": "task: other\n",
        "other.py": "",
    }
    (tmp_path / "more").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = set(modules_of_task(tmp_path / "own.yaml"))
    assert {str(path.relative_to(tmp_path)) for path in found if path.is_relative_to(tmp_path)} == {
        "own.yaml",
        "more/shared.yaml",
        "more/deep.yaml",
        "more/functions.py",
    }
    assert found >= set(modules_of("lpc.evaluation.benchmarks"))
    assert modules_of_task(tmp_path / "other.yaml") == (tmp_path / "other.yaml",)
    # lm-eval looks for the tasks of a group in its folder.
    (tmp_path / "other.yaml").write_text("group: all\ntask: [own]\n")
    assert set(modules_of_task(tmp_path / "other.yaml")) == found | {tmp_path / "other.yaml", tmp_path / "other.py"}


@pytest.mark.parametrize("text", ["task: [", "- a list", "include: gone.yaml", None])
def test_a_faulty_definition_is_named(tmp_path, text):
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"(?s)(own|gone)\.yaml: not the definition of a task \(.*\); correct it"):
        modules_of_task(path)
