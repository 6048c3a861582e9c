"""The optimizer of a training: parameter groups, and AdamW in less memory (`training.optimizer`).

`adamw_split` keeps the weights of the decoder's linear layers in bfloat16, as autocast would round them for each
product, and apart from them the bits of float32 that this leaves out. A step puts both together. So the training is
that of `adamw` bit for bit, without autocast's copies. `adamw_8bit_bfloat16` has no such bits, and rounds at random.
Gradients are float32 everywhere.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lpc.config.models import LOW_WEIGHTS
from lpc.extras import import_extra
from lpc.model.policy import LatentPolicy
from lpc.model.quantization import linear_layers

TIE = -(2**15)
"""Of the lower half of a float32's bits, as int16: halfway between two bfloat16 numbers."""


def parameter_groups(
    policy: LatentPolicy, decayed: set[str], *, learning_rate: float, weight_decay: float
) -> list[dict]:
    """Sort the parameters into groups for AdamW, each with `params`, `lr` and `weight_decay`.

    The backbone has a group with decay, for the names in `decayed`, and one without. The latent's parameters have their
    own learning rates and no decay, which would pull the codes together.
    """
    decay, no_decay = [], []
    for name, parameter in policy.backbone.named_parameters(prefix="backbone"):
        if not parameter.requires_grad:
            continue  # of the base, beneath adapters
        (decay if name in decayed else no_decay).append(parameter)
    groups = [
        {"params": decay, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": no_decay, "lr": learning_rate, "weight_decay": 0.0},
    ]
    if policy.latent is not None:
        own = dict(policy.latent.named_parameters())
        groups += [
            {"params": [own[name] for name in names], "lr": rate, "weight_decay": 0.0}
            for names, rate in policy.latent.parameter_groups(learning_rate)
        ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str, policy: LatentPolicy, groups: list[dict], standard: type[torch.optim.Optimizer], options: dict
) -> torch.optim.Optimizer:
    """Return the optimizer of that name over `groups`.

    standard, options: class and arguments of Trainer's AdamW. The optimizers of `LOW_WEIGHTS` make linear layers'
    weights bfloat16; `restore_weights` undoes it.
    """
    low = low_weights(policy) if name in LOW_WEIGHTS else []
    if name == "adamw":
        return standard(groups, **options)
    if name == "adamw_split":
        return SplitAdamW(groups, low, **options)
    options = {key: options[key] for key in ("lr", "betas", "eps")}
    for weight in low:
        _lower(weight)
    return load_torchao().AdamW8bit(groups, **options, bf16_stochastic_round=True)


def load_torchao():
    """Import torchao's optimizers. Raises UserError where it is not installed."""
    return import_extra("torchao.optim", extra="optimizers", needed_by="training.optimizer")


def low_weights(policy: LatentPolicy) -> list[nn.Parameter]:
    """Return the weights that products alone read, which autocast rounds to bfloat16: those of the linear layers, but
    for the head, whose gradient is float32."""
    return list(dict.fromkeys(layer.weight for layer in linear_layers(policy).values()))


def restore_weights(optimizer: torch.optim.Optimizer) -> None:
    """Make all weights float32 again after the last step, with the bits that the optimizer holds; it is of no use after
    this."""
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        state = optimizer.state.pop(weight, {})
        if weight.dtype == torch.bfloat16:
            weight.data = join(weight, state["low"], state["ties"]) if "low" in state else weight.float()


class SplitAdamW(torch.optim.AdamW):
    """AdamW over float32 weights, some of which stand as bfloat16 in the model, their lower bits in the state."""

    def __init__(self, groups: list[dict], low: Iterable[nn.Parameter], **options):
        """Take the options of torch.optim.AdamW. low: the weights to split, float32; they become bfloat16."""
        super().__init__(groups, **options)
        for weight in low:
            whole = weight.detach()
            _lower(weight)
            low_bits, ties = split(whole)
            self.state[weight] = self._start(whole) | {"low": low_bits, "ties": ties}

    def _start(self, whole: Tensor) -> dict[str, Tensor]:
        step = torch.zeros((), device=whole.device if self.defaults["fused"] else "cpu")
        return {"step": step, "exp_avg": torch.zeros_like(whole), "exp_avg_sq": torch.zeros_like(whole)}

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update one weight after the other, so that only one at a time is whole."""
        for group in self.param_groups:
            names = ("lr", "weight_decay", "eps", "fused", "foreach", "amsgrad", "maximize", "capturable")
            options = {name: group[name] for name in names}
            options |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state, is_split = self.state[weight], weight.dtype == torch.bfloat16
                whole = join(weight, state["low"], state["ties"]) if is_split else weight
                if not state:
                    state.update(self._start(whole))
                moments = ([state[name]] for name in ("exp_avg", "exp_avg_sq"))
                adamw([whole], [weight.grad], *moments, [], [state["step"]], **options)
                if is_split:
                    weight.copy_(whole)
                    state["low"], state["ties"] = split(whole)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load, and keep the types of the state, which torch would make those of the weights."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, weight in zip(numbers, weights, strict=True):
            if number in state_dict["state"]:
                saved = state_dict["state"][number]
                self.state[weight] = {
                    name: value if name == "step" and not self.defaults["fused"] else value.to(weight.device)
                    for name, value in saved.items()
                }


def _lower(weight: nn.Parameter) -> None:
    """Round a weight to bfloat16 in place; its gradients are added up in float32."""
    weight.data = weight.data.bfloat16()
    weight.grad_dtype = torch.float32


def split(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Return what float32 numbers have beyond `whole.bfloat16()`, the nearest bfloat16 numbers.

    The lower 16 bits [as whole], int16. And ties [n], int64: of the flattened numbers those halfway between two
    bfloat16 numbers that were rounded away from zero, one in 2^17, which these bits do not tell from their neighbours.
    """
    bits = whole.view(torch.int32)
    low = bits.to(torch.int16)
    up = (bits >> 16).to(torch.int16) != whole.bfloat16().view(torch.int16)
    return low, ((low == TIE) & up).flatten().nonzero().squeeze(1)


def join(high: Tensor, low: Tensor, ties: Tensor) -> Tensor:
    """Return the float32 numbers that round to `high`, bfloat16; `low` and `ties` are what `split` returned."""
    below = low.int() & 0xFFFF
    up = (below > 2**15).int()
    up.view(-1)[ties] = 1
    return (high.view(torch.int16).int().sub_(up).bitwise_left_shift_(16) | below).view(torch.float32)
