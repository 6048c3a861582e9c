"""A control for the latent: one learned vector for every prompt, z without any information."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.latents.base import Exported, Latent, LatentSettings, LatentStep

if TYPE_CHECKING:
    from torch import Tensor


class VectorSettings(LatentSettings):
    kind: Literal["vector"] = "vector"


class Vector(Latent):
    title: ClassVar[str] = "vector"
    Settings: ClassVar[type[VectorSettings]] = VectorSettings
    linear: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(self, settings: VectorSettings, features: int):
        import torch
        from torch import nn

        super().__init__(settings, features)
        self.vector = nn.Parameter(torch.randn(features) * settings.code_scale)

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        return LatentStep(self.infer(h_x), h_x.new_zeros(len(h_x)).float())

    def infer(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        return self.vector.expand(len(h_x), -1)

    def exported(self) -> Exported:
        return Exported("value", {"scale": self.vector.new_ones(()), "constant": self.vector})
