"""What a latent is: settings, and a network that gives z of a prompt.

A kind is a file of this package with one subclass of `LatentSettings` and one of `Latent`. The policy adds z [B, d] to
the backbone's last hidden states. All arithmetic is float32, whatever the backbone's type: the networks are small, and
z is a small number added to a large one. Equation numbers are those of Latent Preference Coding (arXiv 2505.04993).

Functions import torch, modules of a kind do not. The configuration reads the settings of every kind, each job of a
workflow reads the configuration, and torch takes seconds to import. What kinds share and torch defines is in `parts`.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import model_validator

from lpc.cli import UserError
from lpc.config.keys import Section, Share, fault, key

if TYPE_CHECKING:
    from torch import Tensor


class LatentSettings(Section):
    """Settings that every kind has. Defaults follow the paper, or are our choice where it gives none (scales, rates).

    A subclass adds its own, and makes `kind` a Literal of one value. It declares no key that it does not use.
    """

    kind: str
    code_scale: float = key(
        0.02, "size of z at the start: root mean square of the logits (nats) that a code adds over the vocabulary", ge=0
    )
    learning_rate: float | None = key(
        1e-4, "peak, of MLPs, and of codes in units of `code_scale`; null: the backbone's", gt=0
    )
    latent_first: Share = key(0.0, "share of the steps in which the latent learns alone, on a frozen backbone")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "init_std" in values:
            advice = "init_std times the length of a row of the head, 1.04 in the demo"
            raise fault("init_std", f"init_std is now code_scale, in nats of logits: {advice}")
        return values

    @property
    def compares_pairs(self) -> bool:
        """Whether `Latent.cost` of a pair depends on the other pairs of its micro-batch."""
        return False

    @property
    def pairs_together(self) -> int:
        """Pairs of one group that share a loss: neighbours in a micro-batch, which holds a multiple of them."""
        return 1

    @property
    def needs_statistics(self) -> bool:
        """Whether the latent starts from statistics of the base model's hidden states (`Latent.start_from`)."""
        return False


@dataclass
class LatentStep:
    """What one training step needs of the latent. z [B, d]; kl [B] in nats (0 where the kind has none); the logits
    [B, K] of kinds with codes, else None; where `Latent.marginal`, codes as `Codes.all_codes` returns them."""

    z: Tensor
    kl: Tensor
    prior_logits: Tensor | None = None
    posterior_logits: Tensor | None = None
    codes: Tensor | None = None


@dataclass
class Exported:
    """z as a program without this package computes it: a rule, and tensors by name (`lpc/export/files/latent.py`)."""

    rule: str
    tensors: dict[str, Tensor]
    temperature: float = 1.0
    seed: int = 0


@functools.cache
def _as_module(kind: type) -> type:
    from torch import nn

    return (
        kind if issubclass(kind, nn.Module) else type(kind.__name__, (kind, nn.Module), {"__module__": kind.__module__})
    )


class Latent:
    """A network that gives z; an `nn.Module` once it is made.

    A subclass has an `__init__(settings, features)`, which calls this one and then sets its parameters, `forward` and
    `infer`. Where `has_codes` it also has `prior_logits` and `force`, where `has_posterior` `posterior_z`.
    """

    title: ClassVar[str]
    """Its name in tables and figures. A class without one is no kind but a base of some."""
    Settings: ClassVar[type[LatentSettings]]
    has_codes: ClassVar[bool] = False
    """Whether z is a mixture of codes, with logits [B, K] of prior and posterior."""
    has_posterior: ClassVar[bool] = False
    """Whether training draws z from a posterior too, a network named `posterior`, which sees both completions."""

    linear: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that z is a linear function of: they are as large as z."""

    reads_hidden: ClassVar[bool] = False
    """Whether what z adds depends on the hidden state (`shift`), so that it is not one bias of the logits a prompt."""

    marginal: ClassVar[bool] = False
    """Whether a pair's loss is that of every code of `LatentStep.codes`, weighed (`marginalise`), and not of one z."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Latent:
        # nn.Module joins the bases here, not in the class statement, which would import torch with the settings.
        return object.__new__(_as_module(cls))

    def __init__(self, settings: LatentSettings, features: int):
        super().__init__()
        self.settings, self.features, self.unit = settings, features, 1.0

    @classmethod
    def inference_rules(cls) -> tuple[str, ...]:
        """Return the rules by which z can come from the prior: the values of the setting `inference`, if any."""
        field = cls.Settings.model_fields.get("inference")
        return () if field is None else get_args(field.annotation)

    def with_inference(self, **settings: Any) -> Latent:
        """Return this latent, its weights shared, with other settings of how z comes from the prior.

        settings: `inference`, one of `inference_rules`, and `inference_seed`. Raises pydantic.ValidationError for
        others.
        """
        other = copy.copy(self)
        other.settings = type(self.settings).model_validate(self.settings.model_dump() | settings)
        return other

    def rescale(self, unit: float) -> None:
        """Multiply z by `unit`, in place; before training, on a latent of unit 1.

        unit: the size of z that changes logits of the base by 1 (`LatentPolicy.logit_unit`). Hidden states of other
        bases are larger or smaller, and so must z be, and each step of what z is made of.
        """
        import torch

        self.unit = unit
        with torch.no_grad():
            for name in self.linear:
                self.get_parameter(name).mul_(unit)

    @property
    def noise_size(self) -> int:
        """Uniform numbers per pair and network that `forward` takes; 0 where training is without noise."""
        return 0

    @property
    def draw_size(self) -> int:
        """Uniform numbers per prompt that `infer` takes; 0 unless it samples."""
        return 0

    @property
    def is_mixture(self) -> bool:
        """Whether pairs are scored under every code, weighed by the prior, in place of one z."""
        return False

    def forward(
        self, h_x: Tensor, h_chosen: Tensor, h_rejected: Tensor, *, progress: float, noise: Tensor | None = None
    ) -> LatentStep:
        """Return z for a training step.

        h_x, h_chosen, h_rejected [B, d]: last hidden states at the end of the prompt, of prompt + chosen and of
        prompt + rejected. `progress` in [0, 1] is the share of training done. noise [B, 2, `noise_size`]: uniform in
        (0, 1), for prior and posterior; None where that size is 0.
        """
        raise NotImplementedError

    def marginalise(
        self, step: LatentStep, losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(losses, chosen_rewards, rejected_rewards)` [B] of those under each code [B, K]; where `marginal`.

        Each `settings.pairs_together` neighbours are of one group. Also sets in `step` the posterior of the
        codes and its KL to the prior.
        """
        raise NotImplementedError

    def infer(self, h_x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return z [B, d] of the prompt alone, as at inference.

        uniform [B, `draw_size`]: in (0, 1), see `lpc.latents.parts.draws.prompt_uniform`; None where that size is 0.
        """
        raise NotImplementedError

    def shift(self, z: Tensor, hidden: Tensor) -> Tensor:
        """Return what z [..., D] adds to the last hidden states [..., d]: z itself, unless the kind `reads_hidden`."""
        return z

    def posterior_z(self, h_chosen: Tensor, h_rejected: Tensor) -> Tensor:
        """Return z [B, d] of the posterior, without noise. It sees which completion won: never for a result."""
        raise NotImplementedError

    def force(self, code: int, batch: int) -> Tensor:
        """Return z [batch, d] of one code alone. Raises ValueError where there is no such code."""
        raise ValueError(f"code {code}: a latent of kind {self.settings.kind} has no codes to force")

    def exported(self) -> Exported:
        """Return what other programs need to compute `infer`. Raises UserError for a kind that does not say it."""
        raise UserError(
            f"latent.kind {self.settings.kind}: cannot be exported, since its class has no method `exported`; write one"
        )

    def cost(self, step: LatentStep, progress: float) -> Tensor | float:
        """Return what the latent adds to the objective of each pair [B]."""
        return 0.0

    def schedules(self, progress: float) -> dict[str, float]:
        """Return what changes with `progress` and is worth a column of the training log."""
        return {}

    def parameter_groups(self, learning_rate: float) -> list[tuple[list[str], float]]:
        """Return names of parameters with their peak learning rate, where `learning_rate` is the backbone's.

        The rate of `linear` ones is in units of z: AdamW moves a parameter by about its rate, whatever its size.
        """
        rate = self.settings.learning_rate or learning_rate
        rest = [name for name, _ in self.named_parameters() if name not in self.linear]
        groups = [(rest, rate), (list(self.linear), rate * self.unit)]
        return [(names, rate) for names, rate in groups if names]

    def start_from(self, statistics: dict[str, Tensor], seed: int) -> None:
        """Start from statistics of the base model's hidden states, in place; only where `settings.needs_statistics`.

        statistics: as `lpc.reference.reference_logps` returns them.
        """
        for name in ("prompt", "completion"):
            if (standardizer := getattr(self, f"{name}_standardizer", None)) is not None:
                standardizer.mean.copy_(statistics[f"{name}.mean"])
                standardizer.std.copy_(statistics[f"{name}.std"])
