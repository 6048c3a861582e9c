"""Kinds of datasets, one file each. Importing this package imports neither torch nor pyarrow."""

from lpc import registry
from lpc.data.formats.base import Dataset

KINDS: dict[str, type[Dataset]] = {
    registry.literal(kind, "kind"): kind for kind in registry.discover(__name__, __path__, Dataset)
}
"""Every kind of dataset by the name that the configuration gives."""


def kind(name: str) -> type[Dataset]:
    """Return the class of the kind `name`. Raises UserError where there is none."""
    return registry.choose(KINDS, name, "kind")
