"""Weights on the grid of 4-bit NormalFloat, by bitsandbytes (QLoRA, arXiv 2305.14314, section 3).

A quantised base is an ordinary checkpoint whose linear layers have weights on that grid. So its reference scores, its
evaluation and the merged adapters all see the weights that a training holds in 4 bits.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from lpc.cli import UserError
from lpc.extras import import_extra
from lpc.model.policy import LatentPolicy

BLOCK = 64
"""Weights that share a scale in float32."""
NF4 = {"quant_type": "nf4", "blocksize": BLOCK, "compress_statistics": False}
"""Scales that are rounded, too, would not give the same weights twice."""


def load_bitsandbytes() -> ModuleType:
    """Import bitsandbytes. Raises UserError where it is not installed."""
    return import_extra("bitsandbytes", extra="qlora", needed_by="bases: quantize")


def linear_layers(policy: LatentPolicy) -> dict[str, nn.Linear]:
    """Return the linear layers of the backbone by name, but for the head and for weights that are the embeddings'."""
    whole = {id(module.weight) for module in (policy.head, policy.backbone.get_input_embeddings())}
    named = policy.backbone.named_modules()
    return {name: part for name, part in named if isinstance(part, nn.Linear) and id(part.weight) not in whole}


@torch.no_grad()
def round_to_4_bits(policy: LatentPolicy) -> int:
    """Round the weights of `linear_layers` to the grid in place, in their dtype; return the number of weights.

    Raises UserError unless each layer's number of inputs is a multiple of `BLOCK`. Otherwise a block spans two rows,
    and bitsandbytes 0.50 dequantises it with a wrong scale on a CPU.
    """
    layers = linear_layers(policy)
    for name, layer in layers.items():
        if layer.in_features % BLOCK:
            raise UserError(
                f"{name}: {layer.in_features} inputs cannot be held in 4 bits; must be a multiple of {BLOCK}; use "
                "another base, or this one without `quantize`"
            )
        layer.weight.copy_(_on_the_grid(layer.weight))
    return sum(layer.weight.numel() for layer in layers.values())


def hold_in_4_bits(policy: LatentPolicy, *, stored: torch.dtype, compute: torch.dtype, device: str) -> None:
    """Replace `linear_layers` by frozen ones that hold the same weights in 4 bits, on `device`.

    stored: dtype of the base's files. compute: that of the products. Raises UserError where weights are not on the
    grid, so that nothing is rounded here.
    """
    bitsandbytes = load_bitsandbytes()
    for name, layer in linear_layers(policy).items():
        weight = layer.weight.detach().to(stored)
        if not torch.equal(_on_the_grid(weight).to(layer.weight.dtype), layer.weight):
            raise UserError(
                f"{name}: its weights are not those of a quantised base, but base.json has `quantization`; delete the "
                "base's folder in results and run again"
            )
        short = bitsandbytes.nn.Linear4bit(
            *(layer.in_features, layer.out_features, layer.bias is not None), compute_dtype=compute, device="meta"
        )
        short.support_avx512bf16_for_cpu = False  # or evaluation would pack the weights as no training reads them
        short.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, module=short, **NF4).to(device)
        short.bias = layer.bias if layer.bias is None else layer.bias.requires_grad_(False)
        policy.backbone.set_submodule(name, short)


def is_held(layer: nn.Module) -> bool:
    """Return whether `hold_in_4_bits` made this layer."""
    return hasattr(getattr(layer, "weight", None), "quant_state")


def whole_weight(layer: nn.Linear) -> Tensor:
    """Return the weights of a layer that `hold_in_4_bits` made, in the dtype of the base's files."""
    return load_bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _on_the_grid(weight: Tensor) -> Tensor:
    """Return weights rounded to the grid, in their dtype."""
    functional = load_bitsandbytes().functional
    return functional.dequantize_4bit(*functional.quantize_4bit(weight.contiguous(), **NF4))
