"""Hidden states of a batch that is one row of tokens, pair after pair, each as prompt, chosen, rejected.

Packed, the row is what the model reads, with an attention of this module. The prompt stands there once and serves both
completions, and no position is padding, so every other layer works on real tokens alone. A completion sees its prompt
and itself, never the other completion or another pair: the hidden states are those of two sequences of their own.

Padded, the model reads those two sequences, with its own attention: for architectures that `obstacle` names.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lpc.model.attention import Flex, Lengths, Loop, Varlen, sdpa

NAME = "lpc_packed_pairs"
"""Of this attention among those of transformers."""


class OwnMask(Exception):
    """A model gave its attention a mask of its own making, which a packed row would not honour."""


PACKABLE = {"full_attention", "sliding_attention", "mlp", "moe"}
"""Of transformers' `layer_types`; layers without attention see a token alone."""


def obstacle(backbone: PreTrainedModel) -> str | None:
    """Return why an architecture's pairs cannot be packed. None: they can, and its attention is `attention` now."""
    if measured := getattr(backbone, "packing_obstacle", None):
        return measured
    types = sorted(set(getattr(backbone.config.get_text_config(), "layer_types", None) or ()) - PACKABLE)
    if types:
        return f"its layers are of type {', '.join(types)}"
    if backbone._is_stateful:
        return "its layers carry a state from token to token"
    if any(name.endswith("sinks") for name, _ in backbone.named_parameters()):
        return "its attention has sinks"
    own = backbone.config._attn_implementation
    backbone.set_attn_implementation(NAME)
    if backbone.config._attn_implementation == own != NAME:
        return "transformers cannot exchange its attention"
    return None


def padded(hidden: Callable[[Tensor], Tensor], input_ids: Tensor, lengths: Lengths) -> Tensor:
    """Return hidden states [T, d] of a packed row `input_ids` [1, T], computed as two sequences a pair, right-padded.

    hidden: from token ids [2B, L] of a causal model to states [2B, L, d]; no token sees the padding to its right.
    The prompt's states are those before the chosen completion.
    """
    pieces = iter(input_ids[0].split([part for pair in lengths for part in pair]))
    sequences = []
    for prompt, chosen, rejected in zip(pieces, pieces, pieces, strict=True):
        sequences += [torch.cat([prompt, chosen]), torch.cat([prompt, rejected])]
    states = hidden(pad_sequence(sequences, batch_first=True)).unflatten(0, (-1, 2))
    parts = []
    for (first, second), (prompt, chosen, rejected) in zip(states, lengths, strict=True):
        parts += [first[: prompt + chosen], second[prompt : prompt + rejected]]
    return torch.cat(parts)


def no_mask(device: torch.device) -> Tensor:
    """Return a dummy mask of four dimensions. Passing one stops transformers from building its own, which would be huge
    for a packed row."""
    return torch.zeros(1, 1, 1, 1, device=device)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Loop | Varlen | Flex | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Compute attention as a function of transformers: query [B, H, N, D], key and value [B, H_kv, M, D] to [B, N, H,
    D].

    With a layout B = 1 and M = N; without one, it is transformers' own over `attention_mask`.
    Raises OwnMask where a layout comes with a mask other than `no_mask`.
    """
    if layout is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if layout is None:
        causal = attention_mask is None and query.shape[2] > 1
        options = {"causal": causal, "dropout": dropout, "scale": scaling, "softcap": softcap}
        return sdpa(query, key, value, attention_mask, **options).transpose(1, 2), None
    if attention_mask is not None and attention_mask.numel() > 1:
        raise OwnMask
    options = {"dropout": dropout, "scale": scaling, "window": sliding_window, "softcap": softcap}
    return layout.attend(query, key, value, **options), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
