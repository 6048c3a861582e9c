"""What latents with a prior share: an MLP of the prompt, and how its inputs are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lpc.config.keys import Integer, Role, Seed, key
from lpc.latents.base import Latent, LatentSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


class PriorSettings(LatentSettings):
    width: Annotated[Integer, Field(ge=1)] | None = key(
        None, "hidden units of the MLPs; null: the backbone's hidden size"
    )
    standardize: bool = key(False, "MLP inputs by mean and deviation of the base's hidden states")
    logit_scale: float = key(1.0, "scale of the MLPs' last layer at the start", gt=0)
    inference_seed: Seed = key(0, "of rules that draw", role=Role.INFERENCE)
    detach: bool = key(False, "no gradient of the MLPs into the backbone")

    @property
    def needs_statistics(self) -> bool:
        return self.standardize


class Prior(Latent):
    settings: PriorSettings
    prior: nn.Module

    def make_prior(self, outputs: int) -> None:
        """Set the prior, an MLP with `outputs` numbers a prompt, and what standardises its inputs."""
        from lpc.latents.parts.networks import Standardizer, two_layer_mlp

        width = self.settings.width or self.features
        self.prior = two_layer_mlp(self.features, width, outputs, self.settings.logit_scale)
        self.prompt_standardizer = Standardizer(self.features)

    def prior_outputs(self, h_x: Tensor) -> Tensor:
        """Return the prior network's outputs of the prompt, h_x [B, d]."""
        return self.prior(self.prompt_standardizer(h_x))

    def exported_prior(self) -> dict[str, Tensor]:
        """Return the tensors of `Exported` that give `prior_outputs`."""
        from lpc.latents.parts.networks import exported_network

        return exported_network(self.prompt_standardizer, self.prior)
