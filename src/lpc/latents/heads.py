"""A mixture of K heads in place of K codes: the baseline of EM-DPO (arXiv 2510.15716), with one backbone for all.

Head k adds e_k + U_k D_k ĥ to a hidden state h, where ĥ is h over its root mean square. So its logits are
W h + W e_k + W U_k D_k ĥ, and what it adds depends on the token. The loss is that of `exact`. Its gradient weighs
the heads by their responsibilities, as EM does. Each head takes its own product with W. In bfloat16, the sum of h and
the added vector is rounded before this product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lpc.config.keys import Integer, key
from lpc.latents.base import Exported, Latent
from lpc.latents.exact import Exact, ExactSettings

if TYPE_CHECKING:
    from torch import Tensor


class HeadsSettings(ExactSettings):
    kind: Literal["heads"] = "heads"
    rank: Integer = key(8, "of the change that a head makes to the LM head", ge=1)


class Heads(Exact):
    title: ClassVar[str] = "Heads"
    Settings: ClassVar[type[HeadsSettings]] = HeadsSettings
    linear: ClassVar[tuple[str, ...]] = ("codebook", "up")
    reads_hidden: ClassVar[bool] = True
    settings: HeadsSettings

    def __init__(self, settings: HeadsSettings, features: int):
        import torch
        from torch import nn

        super().__init__(settings, features)
        shape = settings.codes, settings.rank, features
        self.down = nn.Parameter(torch.randn(shape) / features**0.5)
        self.up = nn.Parameter(torch.zeros(shape))  # U transposed

    def all_codes(self) -> Tensor:
        """Return e_k, the columns of U_k and the rows of D_k, [K, 1 + 2 rank, d]."""
        import torch

        return torch.cat([self.codebook[:, None], self.up, self.down], 1)

    def infer(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return the weights of the heads [B, K], from the prior alone: the z of `shift`."""
        return self.inferred_weights(h_x, uniform)

    def force(self, code: int, batch: int) -> Tensor:
        super().force(code, batch)  # raises where there is no such code
        weights = self.codebook.new_zeros(batch, self.settings.codes)
        weights[:, code] = 1
        return weights

    def shift(self, z: Tensor, hidden: Tensor) -> Tensor:
        from lpc.latents.parts.heads import head_shift

        shifts = (head_shift(code, hidden) for code in self.all_codes())
        return sum(weight[..., None] * shift for weight, shift in zip(z.unbind(-1), shifts, strict=True))

    def exported(self) -> Exported:
        return Latent.exported(self)  # which refuses: a table of biases cannot hold what depends on the token
