"""Networks that several latents are made of."""

import torch
from torch import Tensor, nn


def two_layer_mlp(inputs: int, width: int, outputs: int, output_scale: float = 1.0) -> nn.Sequential:
    """Return Linear, GELU, Linear; `output_scale` multiplies the last layer's initial weights."""
    mlp = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))
    with torch.no_grad():
        mlp[2].weight.mul_(output_scale)
    return mlp


def exported_network(standardizer: "Standardizer", mlp: nn.Sequential) -> dict[str, Tensor]:
    """Return the tensors of `lpc.latents.base.Exported` that give `mlp(standardizer(h))`."""
    return {
        "mean": standardizer.mean,
        "std": standardizer.std,
        "hidden_weight": mlp[0].weight,
        "hidden_bias": mlp[0].bias,
        "output_weight": mlp[2].weight,
        "output_bias": mlp[2].bias,
    }


class Standardizer(nn.Module):
    """(h − mean) / std per feature, with statistics of the base model's training pairs; the identity until they are
    set. The result has the latent's own type, float32, whatever the backbone's.

    Why: where every prompt ends in the same template token, h_x is a large constant plus a small signal.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, h: Tensor) -> Tensor:
        return (h.to(self.mean.dtype) - self.mean) / self.std
