"""Latents, one file a kind. Importing this package imports no torch: see `lpc.latents.base`."""

from lpc import registry
from lpc.latents.base import Latent, LatentSettings

DEFAULT = "lpc"

KINDS: dict[str, type[Latent]] = {
    registry.literal(kind.Settings, "kind"): kind for kind in registry.discover(__name__, __path__, Latent)
}
"""Every kind of latent by the name that a recipe gives."""


def kind(name: str) -> type[Latent]:
    """Return the class of the kind `name`. Raises UserError where there is none."""
    return registry.choose(KINDS, name, "latent.kind")


def parse(settings: dict) -> LatentSettings:
    """Return the settings of a recipe's section `latent`, by its `kind`; defaults are filled in.

    Raises UserError for an unknown kind or a faulty setting.
    """
    return registry.parse(kind(settings.get("kind", DEFAULT)).Settings, settings, "latent")


def build(settings: LatentSettings, features: int, seed: int) -> Latent:
    """Return a latent for a backbone of hidden size `features`, float32, initialised from `seed`.

    The global random state stays as it is, so that plain and latent runs see the same data order and dropout.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(settings.kind)(settings, features)
