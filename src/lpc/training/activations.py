"""Activations that a step computes anew in its backward pass, in place of keeping them."""

import ast
import inspect
from functools import cache
from textwrap import dedent
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from lpc.model.policy import LatentPolicy

_GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"


def recompute(policy: LatentPolicy, *, layers: bool) -> None:
    """Compute anew, in the backward pass, whole decoder layers, or of their gated MLPs what costs no matrix product.

    In float32, both leave all gradients as they are, bit for bit. layers: what `training.gradient_checkpointing` asks
    for.
    """
    if layers:
        policy.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        recompute_gates(policy.backbone)


def recompute_gates(backbone: nn.Module) -> int:
    """Keep two tensors [tokens, intermediate size] of each MLP down(silu(gate(x)) · up(x)) in place of four.

    silu(gate(x)) and the product are computed anew. MLPs of another form stay as they are, and those whose `down_proj`
    has adapters; outside training, all do. Returns the number of MLPs that keep less.
    """
    gated = [module for module in backbone.modules() if _is_gated(module)]
    for module in gated:
        module.forward = MethodType(_forward, module)
    return len(gated)


def _is_gated(module: nn.Module) -> bool:
    if type(getattr(module, "down_proj", None)) is not nn.Linear:
        return False
    return isinstance(getattr(module, "act_fn", None), SiLUActivation) and _computes_gated(type(module))


@cache
def _computes_gated(kind: type[nn.Module]) -> bool:
    """Return whether a class's `forward` returns `_GATED` and does nothing else.

    This reads the source code, because FSDP has the weights on the meta device, where no outputs can be compared.
    """
    try:
        (function,) = ast.parse(dedent(inspect.getsource(kind.forward))).body
    except OSError:  # a class without a source file
        return False
    body = "; ".join(map(ast.unparse, function.body))
    return not function.decorator_list and body in (f"return {_GATED}", f"down_proj = {_GATED}; return down_proj")


def _forward(self: nn.Module, x: Tensor) -> Tensor:
    if not self.training or type(self.down_proj) is not nn.Linear:  # such as adapters that were added since
        return type(self).forward(self, x)
    return _Gated.apply(self.gate_proj(x), self.up_proj(x), self.down_proj.weight, self.down_proj.bias)


class _Gated(torch.autograd.Function):
    """down(silu(gate) · up), with the operations of autograd in its order, and in place where it makes new tensors."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return functional.linear(functional.silu(gate).mul_(up), weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gate, up, weight = ctx.saved_tensors
        rows, act = gradient.flatten(0, -2), functional.silu(gate)
        of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_weight = ((act * up).flatten(0, -2).t() @ rows).t().to(weight.dtype)
        if ctx.needs_input_grad[3]:
            of_bias = rows.sum(0).to(weight.dtype)
        of_product = gradient @ weight.to(gradient.dtype)
        of_up = act.mul_(of_product)
        return torch.ops.aten.silu_backward(of_product.mul_(up), gate), of_up, of_weight, of_bias
