"""Packages of the optional extras of `pyproject.toml`, imported where they are needed."""

import importlib
from types import ModuleType

from lpc.cli import UserError


def import_extra(module: str, *, extra: str, needed_by: str) -> ModuleType:
    """Import a module of an optional package. Raises UserError where it is not installed.

    extra: of `pyproject.toml`, which installs it. needed_by: the key or the part that needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{needed_by} needs {package}, which cannot be imported ({error}); run: pip install 'lpc[{extra}]'"
        ) from None
