"""A control for the latent: z = MLP(h_x), as many parameters without discrete codes.

It answers whether a gain of LPC comes from its codes or only from its parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lpc.config.keys import Integer, key
from lpc.latents.base import Exported, Latent, LatentSettings, LatentStep

if TYPE_CHECKING:
    from torch import Tensor


class MLPSettings(LatentSettings):
    kind: Literal["mlp"] = "mlp"
    codes: Integer = key(64, "size of the codebook whose latent it matches in parameters", ge=2)
    width: Annotated[Integer, Field(ge=1)] | None = key(
        None, "hidden units of the latent that it matches; null: the backbone's hidden size"
    )
    standardize: bool = key(False, "MLP inputs by mean and deviation of the base's hidden states")
    detach: bool = key(False, "no gradient of the MLP into the backbone")

    @property
    def needs_statistics(self) -> bool:
        return self.standardize


class MLP(Latent):
    """Of the size that makes the parameter count that of LPC's latent with the same settings, or just above."""

    title: ClassVar[str] = "MLP"
    Settings: ClassVar[type[MLPSettings]] = MLPSettings
    linear: ClassVar[tuple[str, ...]] = ("mlp.2.weight", "mlp.2.bias")
    settings: MLPSettings

    def __init__(self, settings: MLPSettings, features: int):
        import torch

        from lpc.latents.parts.networks import Standardizer, two_layer_mlp

        super().__init__(settings, features)
        width = settings.width or features
        parameters = features * width * 3 + settings.codes * (2 * width + 2 + features) + 2 * width
        self.mlp = two_layer_mlp(features, -(-(parameters - features) // (2 * features + 1)), features)
        with torch.no_grad():
            # z starts as small as the codebook's would, so that the first loss is that of the plain objective.
            self.mlp[2].weight.normal_(std=settings.code_scale / self.mlp[2].in_features ** 0.5)
            self.mlp[2].bias.zero_()
        self.prompt_standardizer = Standardizer(features)

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        h_x = h_x.detach() if self.settings.detach else h_x
        return LatentStep(self.infer(h_x), h_x.new_zeros(len(h_x)).float())

    def infer(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        return self.mlp(self.prompt_standardizer(h_x))

    def exported(self) -> Exported:
        from lpc.latents.parts.networks import exported_network

        scale = self.mlp[0].weight.new_ones(())
        return Exported("value", {"scale": scale, **exported_network(self.prompt_standardizer, self.mlp)})
