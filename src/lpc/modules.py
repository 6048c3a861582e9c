"""Which files of this package a step really runs, found from its imports without executing them; and their commit.

A rule lists them as input, so that an edit reruns the rules that use the edited module and no others.
"""

import ast
import functools
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from lpc.cli import UserError
from lpc.files import fingerprint, sha256

PACKAGE = Path(__file__).parent
BY_KIND = ("lpc.data.formats", "lpc.latents", "lpc.objectives")
"""Packages of which a job uses what its recipe or dataset names: a rule adds that, and a new kind reruns nothing."""
FILE_NAME = re.compile(r"[\w/-]+(\.\w+)+")


@functools.cache  # asked for by every job
def modules_of(module: str) -> tuple[Path, ...]:
    """Return the files that `python -m module` (such as "lpc.steps.train") may run, sorted.

    They are the module, all modules that it imports (inside functions too), and their packages. A package that looks
    for its modules (its `__init__.py` reads `__path__`) adds all of them. Files beside a module that it names in a
    string, such as a template, count too. Left out are `lpc.config`, from which a step gets nothing but its tracked
    parameter, and the modules that the packages `BY_KIND` find. Raises FileNotFoundError where `module` is none of
    ours.
    """
    if _file(module) is None:
        raise FileNotFoundError(f"no module {module} under {PACKAGE}")
    found: set[Path] = set()
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        file = _file(name)
        if file is not None:
            names, beside = _read(file, name)
            found.add(file)
            found.update(beside)
            waiting |= names - seen
    return tuple(sorted(found))


def digest(files: Iterable[Path]) -> str:
    """Return a digest of the contents of files of this package, and of their places in it."""
    return fingerprint({str(file.relative_to(PACKAGE)): sha256(file) for file in files})


def modules_of_task(definition: str | Path) -> tuple[Path, ...]:
    """Return the files that define one of our own benchmark tasks, sorted.

    They are its YAML file, those that it includes, and the modules of its functions, of this package or beside the
    file. A group counts all YAML and Python files of its folder, in which lm-eval looks for its tasks. Raises UserError
    for a file that is missing or no definition.
    """
    found: set[Path] = set()
    waiting = {Path(definition)}
    while waiting:
        file = waiting.pop()
        found.add(file)
        if file.suffix != ".yaml":
            continue
        try:
            text = file.read_text(encoding="utf-8")
            config = dict(_Definition(text).get_single_data())
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"{file}: not the definition of a task ({error}); correct it") from None
        for module in re.findall(r"!function\s+([\w./]+)\.\w+", text):
            beside = file.parent / f"{module.replace('.', '/')}.py"
            if beside.is_file():
                found.add(beside)
            elif _file(module):
                found.update(modules_of(module))
        include = config.get("include", [])
        waiting |= {file.parent / name for name in ([include] if isinstance(include, str) else include)} - found
        if "group" in config:
            waiting |= {path for pattern in ("*.yaml", "*.py") for path in file.parent.rglob(pattern)} - found
    return tuple(sorted(found))


class _Definition(yaml.SafeLoader):
    """Reads a task's definition without its functions."""


_Definition.add_constructor("!function", lambda loader, node: node.value)


def _file(module: str) -> Path | None:
    """The file of a module of this package; None for anything else, such as a name inside a module."""
    first, *parts = module.split(".")
    if first != PACKAGE.name:
        return None
    place = PACKAGE.joinpath(*parts)
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def commit() -> str:
    """Return the checked-out commit of this package, and whether tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout, or no git here"
    return found.stdout.strip().replace("-dirty", ", with uncommitted changes")


@functools.cache
def _read(file: Path, module: str) -> tuple[frozenset[str], frozenset[Path]]:
    """Names that `file` may import, and files beside it that it names. A name inside a module is no module: it has no
    file, and is dropped later."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names, named = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from ..model import policy": one dot is the package itself, each further one its parent.
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names.add(origin)
            names.update(f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Name) and node.id == "__path__" and module not in BY_KIND:
            names.update(f"{module}.{found.stem}" for found in file.parent.glob("*.py") if found != file)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and FILE_NAME.fullmatch(node.value):
            named.add(file.parent / node.value)
    names.add(module)
    # Importing a.b.c runs a and a.b first.
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    ours = {name for name in names | parents if name.split(".")[0] == PACKAGE.name}
    ours = {name for name in ours if name != "lpc.config" and not name.startswith("lpc.config.")}
    return frozenset(ours), frozenset(path for path in named if path.is_file())
