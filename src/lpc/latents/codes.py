"""What latents with codes share: a codebook, a prior over its codes, and z at inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from lpc.config.keys import Integer, fault, key
from lpc.latents.base import Exported
from lpc.latents.prior import Prior, PriorSettings

if TYPE_CHECKING:
    from torch import Tensor


class CodesSettings(PriorSettings):
    codes: Integer = key(64, "K, the size of the codebook", ge=2)
    codebook_init: Literal["normal", "kmeans"] = key(
        "normal",
        "`kmeans`: codes start as centroids of the base's prompts and the prior as the nearest of them, with "
        "`logit_scale` the root mean square of its centred logits; needs `standardize`",
    )
    codebook_learning_rate: float | None = key(
        None, "peak, of the codes, in units of `code_scale`; null: as `latent.learning_rate`", gt=0
    )

    @model_validator(mode="after")
    def _clusters_are_standardised(self) -> CodesSettings:
        if self.codebook_init == "kmeans" and not self.standardize:
            raise fault("codebook_init", "kmeans needs standardize: true, or clusters are of raw features")
        return self


class Codes(Prior):
    """K codes and a prior over them from the prompt. A subclass's settings have `inference`, how z comes of both."""

    has_codes: ClassVar[bool] = True
    linear: ClassVar[tuple[str, ...]] = ("codebook",)
    settings: CodesSettings

    def __init__(self, settings: CodesSettings, features: int):
        import torch
        from torch import nn

        super().__init__(settings, features)
        self.codebook = nn.Parameter(torch.randn(settings.codes, features) * settings.code_scale)

    @property
    def draw_size(self) -> int:
        return 0 if self.settings.inference in ("mean", "mode") else self.settings.codes

    @property
    def is_mixture(self) -> bool:
        return self.settings.inference == "mixture"

    def prior_logits(self, h_x: Tensor) -> Tensor:
        """Return the prior of equation 9 before the softmax: [B, d] to [B, K]."""
        return self.prior_outputs(h_x)

    def inferred_weights(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return the weights of the codes in z [B, K], from the prior alone. Arguments: those of `infer`.

        `mean`: p; `mode`: 1 for the strongest code; else 1 for a drawn one.
        """
        from torch.nn.functional import one_hot

        logits = self.prior_logits(h_x)
        if self.settings.inference == "mean":
            return logits.softmax(-1)
        if self.settings.inference != "mode":
            logits = logits + gumbel(uniform)  # Gumbel-max: the largest falls on code k with probability p_k
        return one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)

    def infer(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        return self.inferred_weights(h_x, uniform) @ self.codebook

    def all_codes(self) -> Tensor:
        """Return the codes [K, d], as `LatentPolicy.code_pair_logps` takes them."""
        return self.codebook

    def force(self, code: int, batch: int) -> Tensor:
        if not 0 <= code < self.settings.codes:
            raise ValueError(f"code {code}: this latent has codes 0 to {self.settings.codes - 1}")
        return self.codebook[code].expand(batch, -1)

    def exported(self) -> Exported:
        rule = {"mixture": "sample"}.get(self.settings.inference, self.settings.inference)  # texts have one drawn code
        tensors = {"codebook": self.codebook, **self.exported_prior()}
        return Exported(rule, tensors, seed=self.settings.inference_seed)

    def parameter_groups(self, learning_rate: float) -> list[tuple[list[str], float]]:
        *rest, (names, rate) = super().parameter_groups(learning_rate)
        own = self.settings.codebook_learning_rate
        return [*rest, (names, rate if own is None else own * self.unit)]

    def start_from(self, statistics: dict[str, Tensor], seed: int) -> None:
        from lpc.latents.parts.clusters import start_from_clusters

        super().start_from(statistics, seed)
        if self.settings.codebook_init == "kmeans":
            start_from_clusters(self, statistics["prompt.sample"], seed)


def gumbel(uniform: Tensor) -> Tensor:
    """Return standard Gumbel noise of numbers uniform in (0, 1)."""
    return -(-uniform.log()).log()
