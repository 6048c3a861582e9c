"""Kinds of a thing, one file each: what a package such as `lpc.objectives` or `lpc.latents` holds.

A new file is enough: its class is found by its base class, and known by the one value that its `name` or `kind` takes.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lpc.cli import UserError

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)


def discover(package: str, path: Iterable[str], base: type[T]) -> list[type[T]]:
    """Import every module of `package`, found in the folders `path`, and return the classes derived from `base` that
    they define, by module name. A class without a `title` is no kind. Packages inside it are not searched."""
    found = []
    for name in sorted(info.name for info in pkgutil.iter_modules(path) if not info.ispkg):
        module = importlib.import_module(f"{package}.{name}")
        found += [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and hasattr(value, "title")
        ]
    return found


def literal(settings: type[BaseModel], field: str) -> str:
    """Return the one value that `field`, a Literal, takes in `settings`."""
    (value,) = get_args(settings.model_fields[field].annotation)
    return value


def parse(kind: type[S], settings: dict, section: str) -> S:
    """Return `settings`, checked and with defaults filled in. Raises UserError, which names the key in `section`."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, (section, *fault['loc'])))}: {fault['msg']} (it is {fault['input']!r})"
            for fault in error.errors()
        ]
        raise UserError("; ".join(faults)) from None


def choose(kinds: dict[str, T], name: str, key: str) -> T:
    """Return `kinds[name]`. Raises UserError, which names `key` of the configuration, where there is none."""
    if name in kinds:
        return kinds[name]
    close = difflib.get_close_matches(str(name), kinds, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{key}: {name!r} is not one of {', '.join(kinds)}{hint}")
