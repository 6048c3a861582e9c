"""Equation 6 itself: the loss of every code, weighed by the prior. No posterior, no sample, no bound.

−log Σ_k p(k|x) σ(Δ_k) has K terms, and one product with the LM head gives the log-probabilities under all codes. The
gradient weighs each code by its responsibility r_k ∝ p(k|x) σ(Δ_k), which is the true posterior. It moves p towards r,
as in the gate of a mixture of experts. So there are no settings of an approximate posterior.

Pairs that share a person can share the code, −log Σ_k p_k Π_i σ(Δ_ik) over pairs i of the person (`group_size`). One
pair a person cannot separate persons (arXiv 2510.15716); the product can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from lpc.config.keys import Integer, Role, fault, key
from lpc.latents.base import LatentStep
from lpc.latents.codes import Codes, CodesSettings

if TYPE_CHECKING:
    from torch import Tensor


class ExactSettings(CodesSettings):
    kind: Literal["exact"] = "exact"
    inference: Literal["mixture", "mean", "mode", "sample"] = key(
        "mixture",
        "`mixture`: pairs are scored by all codes, Σ_k p(k|x) σ(Δ_k), and texts are written with one that is drawn; "
        "else z from the prior: the mean of the codes, the strongest one, or one drawn",
        role=Role.INFERENCE,
    )
    group_size: Integer = key(
        1, "pairs of one group (`datasets.<name>.group`) that share a code; divides `micro_batch_size`", ge=1
    )
    prior: Literal["prompt", "shared"] = key(
        "prompt", "`prompt`: p(k|x) from an MLP; `shared`: K learned logits, the same for every prompt"
    )

    @model_validator(mode="after")
    def _shared_has_no_network(self) -> ExactSettings:
        for name in ("standardize", "detach", "width", "logit_scale"):
            if self.prior == "shared" and getattr(self, name) != type(self).model_fields[name].default:
                raise fault("prior", f"shared is without an MLP, so {name} would change nothing; drop {name}")
        return self

    @property
    def pairs_together(self) -> int:
        return self.group_size


class Exact(Codes):
    """K codes, a prior over them from the prompt, and their mixture.

    exp(−loss) takes the place of σ(Δ_k). It is the likelihood of the label in DPO and SimPO. In objectives without one
    (IPO, SLiC, DPO with label smoothing) the result is a soft minimum over the codes' losses.
    """

    title: ClassVar[str] = "LPC, exact"
    Settings: ClassVar[type[ExactSettings]] = ExactSettings
    marginal: ClassVar[bool] = True
    settings: ExactSettings

    def __init__(self, settings: ExactSettings, features: int):
        import torch
        from torch import nn

        super().__init__(settings, features)
        if settings.prior == "shared":
            self.shared_logits = nn.Parameter(torch.zeros(settings.codes))
        else:
            self.make_prior(settings.codes)

    def prior_logits(self, h_x: Tensor) -> Tensor:
        if self.settings.prior == "shared":
            return self.shared_logits.expand(len(h_x), -1)
        return super().prior_logits(h_x)

    def exported_prior(self) -> dict[str, Tensor]:
        return {"constant": self.shared_logits} if self.settings.prior == "shared" else super().exported_prior()

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        """Return the prior, the codes, and as z the prior's mean code, which no loss uses.

        The prior of a group is the softmax of the mean logits of its pairs: the normalised geometric mean of theirs.
        """
        size = self.settings.group_size
        logits = self.prior_logits(h_x.detach() if self.settings.detach else h_x)
        logits = logits.unflatten(0, (-1, size)).mean(1).repeat_interleave(size, 0)
        # A copy: FSDP gives back the memory of gathered parameters at the end of this function.
        codes = self.all_codes().clone()
        return LatentStep(logits.softmax(-1) @ self.codebook, h_x.new_zeros(len(h_x)).float(), logits, codes=codes)

    def marginalise(
        self, step: LatentStep, losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return −log Σ_k p_k exp(−Σ_i ℓ_ik) over pairs i of a group, shared equally by its pairs, and rewards pair by
        pair.

        A group here is `group_size` neighbours, not all pairs of one name. Two chunks of a person can meet in a
        micro-batch by chance; were they one product there, the loss would depend on the size of micro-batches.
        """
        from lpc.latents.parts.divergences import categorical_kl
        from lpc.latents.parts.mixture import marginal_loss, mixture_rewards

        size = self.settings.group_size
        log_prior = step.prior_logits.log_softmax(-1)
        of_group, losses = log_prior[::size], losses.unflatten(0, (-1, size)).sum(1)
        responsibilities = (of_group - losses).detach().repeat_interleave(size, 0)
        step.posterior_logits, step.kl = responsibilities, categorical_kl(responsibilities, log_prior.detach())
        losses = (marginal_loss(of_group, losses) / size).repeat_interleave(size)
        return losses, *mixture_rewards(log_prior.detach(), chosen_rewards, rejected_rewards)
