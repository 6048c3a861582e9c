"""Preference objectives, one file each. Importing this package imports no torch: see `lpc.objectives.base`."""

from lpc import registry
from lpc.objectives.base import Objective

KINDS: dict[str, type[Objective]] = {
    registry.literal(kind, "name"): kind for kind in registry.discover(__name__, __path__, Objective)
}
"""Every objective by the name that a recipe gives."""


def kind(name: str) -> type[Objective]:
    """Return the class of the objective `name`. Raises UserError where there is none."""
    return registry.choose(KINDS, name, "objective.name")


def parse(settings: dict) -> Objective:
    """Return the objective of a recipe's section `objective`, by its `name`; defaults are filled in.

    Raises UserError for an unknown name or a faulty setting.
    """
    return registry.parse(kind(settings.get("name", "")), settings, "objective")
