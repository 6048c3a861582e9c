"""The vector that one head of a mixture adds to each hidden state (`lpc.latents.heads`)."""

import torch
from torch import Tensor


def head_shift(head: Tensor, hidden: Tensor) -> Tensor:
    """Return e + U D ĥ of hidden states h, float32 or wider, in the shape of h [..., d].

    head [1 + 2 rank, d]: e, the columns of U, the rows of D. ĥ is h over its root mean square, so that D means the same
    on every base.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, rank = hidden.to(torch.promote_types(hidden.dtype, torch.float32)), len(head) // 2
        scaled = hidden * hidden.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
        return head[0] + (scaled @ head[1 + rank :].t()) @ head[1 : 1 + rank]
