"""Which files of this package a step really runs, found from its imports without executing them.

A rule lists them as input, so that an edit reruns the rules that use the edited module and no others.
"""

import ast
import functools
from pathlib import Path

PACKAGE = Path(__file__).parent


def sources(module: str) -> tuple[Path, ...]:
    """Files that `python -m module` (such as "lpc.steps.train") may run, sorted: the module, what it imports anywhere in its
    code (inside functions too), their packages, and files beside a module that it names in a string (templates, styles).

    Raises FileNotFoundError where `module` is none of ours.
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


@functools.cache
def _read(file: Path, module: str) -> tuple[frozenset[str], frozenset[Path]]:
    """Names that `file` may import (a name inside a module is harmless: it has no file), and files beside it that it names."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names, beside = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from ..model import policy": one dot is the package itself, each further one its parent.
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names.add(origin)
            names.update(f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 100:
            if "\n" not in node.value and (file.parent / node.value).is_file():
                beside.add(file.parent / node.value)
    names.add(module)
    # Importing a.b.c runs a and a.b first.
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    ours = {name for name in names | parents if name.split(".")[0] == PACKAGE.name}
    return frozenset(ours), frozenset(beside)
