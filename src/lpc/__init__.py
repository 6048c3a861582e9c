"""Latent Preference Coding (arXiv 2505.04993)."""

import importlib

__version__ = "0.1.0"

PUBLIC = {
    "train": "lpc.api",
    "make_reference": "lpc.api",
    "load": "lpc.trained",
    "Policy": "lpc.trained",
    "UserError": "lpc.cli",
    "Stopped": "lpc.cli",
}
"""What docs/python.md shows, and its module, which is imported when a name is first asked for: torch takes seconds."""


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
