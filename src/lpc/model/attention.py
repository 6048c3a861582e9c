"""Attention over a packed row of pairs (see `lpc.model.packing`), computed in one of three ways that differ by rounding
alone.

`Loop`: two calls a pair of PyTorch's own attention, on any device. `Varlen`: one call of FlashAttention, for CUDA and
16-bit numbers. `Flex`: one call of FlexAttention, which torch.compile makes for CUDA.
"""

import functools
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lpc.cli import UserError

Lengths = list[tuple[int, int, int]]
"""Tokens of prompt, chosen and rejected completion of each pair, in the order of the row."""


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    dropout: float,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Return PyTorch's attention [B, H, N, D] of query [B, H, N, D], key and value [B, H_kv, M, D]; softcap c makes
    scores c·tanh(score / c)."""
    options = {"causal": causal, "dropout": dropout, "scale": scale, "softcap": softcap}
    if query.device.type == "cpu" and (value.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu")):
        # The backward pass of PyTorch's kernel for CPUs is slower in bfloat16 than in float32.
        wide = (tensor.float() for tensor in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            return sdpa_in_own_type(*wide, mask, **options).to(value.dtype)
    return sdpa_in_own_type(query, key, value, mask, **options)


def sdpa_in_own_type(query, key, value, mask, *, causal, dropout, scale, softcap) -> Tensor:
    """Return what `sdpa` returns, computed in the type of its inputs, or in autocast's."""
    attend = F.scaled_dot_product_attention if softcap is None else partial(_softcapped, softcap=softcap)
    options = {"dropout_p": dropout, "scale": scale, "attn_mask": mask, "is_causal": causal}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and softcap is None and query.device.type == "cpu":
        options["enable_gqa"] = True  # a GPU's fast kernels with a mask take no groups of heads
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return attend(query, key, value, **options)


def _softcapped(query, key, value, *, attn_mask, is_causal, dropout_p, scale, softcap) -> Tensor:
    """Attention whose scores s become softcap·tanh(s / softcap) (Gemma 2), which no fused kernel of PyTorch has."""
    scores = softcap * (query @ key.transpose(2, 3) * scale / softcap).tanh()
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        # Not −∞: padding on the left sees nothing, and its NaN would reach the tokens that give it a weight of 0.
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    return F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout_p) @ value


class Loop:
    """Two calls a pair: its prompt with the chosen completion, then the rejected completion after the same prompt."""

    def __init__(self, lengths: Lengths, device: torch.device, windows: Iterable[int | None] = (None,)):
        """Take the pairs of a row. windows: all that the model's layers ask for; `Flex` makes its masks by them."""
        self.lengths = lengths
        self.masks: dict[tuple, Tensor] = {}  # fills up in use: all layers share it

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        dropout: float,
        scale: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Return [1, T, H, D] of query [1, H, T, D], key and value [1, H_kv, T, D].

        A token sees itself and the tokens before it of its own sequence, at most `window` of them.
        """
        pieces = [n for prompt, chosen, rejected in self.lengths for n in (prompt + chosen, rejected)]
        queries, keys, values = (tensor.split(pieces, 2) for tensor in (query, key, value))
        options = {"dropout": dropout, "scale": scale, "softcap": softcap}
        outputs = []
        for i, (prompt, _, _) in enumerate(self.lengths):
            first, second = 2 * i, 2 * i + 1
            for piece, k, v in (
                (first, keys[first], values[first]),
                (second, *(torch.cat([t[first][:, :, :prompt], t[second]], 2) for t in (keys, values))),
            ):
                mask = self._mask(pieces[piece], k.shape[2], window, query.device)
                outputs.append(sdpa(queries[piece], k, v, mask, causal=mask is None, **options))
        return torch.cat(outputs, 2).transpose(1, 2).contiguous()

    def _mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
        """Return [queries, keys] bool: the last `queries` of `keys` positions, each seeing itself and at most `window`
        − 1 before it; None where that is plain causal attention."""
        window = None if window is None or window >= keys else window
        if queries == keys and window is None:
            return None
        if (queries, keys, window) not in self.masks:
            behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
            self.masks[queries, keys, window] = (behind >= 0) & (behind < (window or keys))
        return self.masks[queries, keys, window]


class Varlen:
    """One call for all pairs. Each has two sequences: queries [prompt + chosen] with their own keys, and queries
    [rejected], the last of the keys [prompt + rejected].

    Queries stand in the row as they are. Keys and values are gathered, each prompt twice. All that depends on the
    batch is in tensors and two integers, so a compiled layer serves every batch.
    """

    def __init__(self, lengths: Lengths, device: torch.device, windows: Iterable[int | None] = (None,)):
        from torch.nn.attention.varlen import varlen_attn

        self.varlen_attn = varlen_attn  # since PyTorch 2.10
        prompts, chosen, rejected = np.array(lengths).T
        first = prompts + chosen
        totals = first + rejected
        starts = np.cumsum(totals) - totals
        queries, keys = np.stack([first, rejected], 1).ravel(), np.stack([first, prompts + rejected], 1).ravel()
        gather = [
            np.concatenate(
                [np.arange(start, start + own), np.arange(start, start + prompt), np.arange(start + own, end)]
            )
            for start, prompt, own, end in zip(starts, prompts, first, starts + totals, strict=True)
        ]
        self.gather = torch.from_numpy(np.concatenate(gather)).to(device)
        self.query_ends, self.key_ends = (
            torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)).to(device)
            for sizes in (queries, keys)
        )
        self.longest_query, self.longest_key = int(queries.max()), int(keys.max())

    def attend(self, query, key, value, *, dropout, scale, window, softcap) -> Tensor:
        """Return what `Loop.attend` returns. Raises UserError for a soft cap, which the kernel does not have."""
        _no_dropout(dropout)
        if softcap is not None:
            raise UserError(
                f"training.attention: varlen has no soft cap of scores, but this model's is {softcap:g}; use flex"
            )
        query, key, value = (tensor[0].transpose(0, 1) for tensor in _in_one_type(query, key, value))
        # Of a prompt's key, two gradients are added to 0, which gives the same sum in either order.
        key, value = key.index_select(0, self.gather), value.index_select(0, self.gather)
        return self.varlen_attn(
            query,
            key,
            value,
            self.query_ends,
            self.key_ends,
            self.longest_query,
            self.longest_key,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),  # tokens before itself, tokens after it
            enable_gqa=query.shape[1] != key.shape[1],
        )[None]


class Flex:
    """One call for all pairs over the row as it stands, with a mask of blocks for each window."""

    def __init__(self, lengths: Lengths, device: torch.device, windows: Iterable[int | None] = (None,)):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        sizes = np.array(lengths)
        parts = np.tile(np.arange(3), len(sizes))
        positions = [
            n
            for prompt, chosen, rejected in lengths
            for n in (*range(prompt + chosen), *range(prompt, prompt + rejected))
        ]
        pair, part, position = (
            torch.from_numpy(np.asarray(value, np.int32)).to(device)
            for value in (np.repeat(np.arange(len(sizes)), sizes.sum(1)), np.repeat(parts, sizes.ravel()), positions)
        )

        def sees(window: int | None) -> Callable[..., Tensor]:
            def mask(batch, head, query, key):
                behind = position[query] - position[key]
                own = (pair[query] == pair[key]) & ((part[key] == 0) | (part[key] == part[query]))
                return own & (behind >= 0) & (behind < (window or len(position)))

            return mask

        self.flex_attention = _compiled(flex_attention, device.type)
        make, size = _compiled(create_block_mask, device.type), len(position)
        self.masks = {window: make(sees(window), None, None, size, size, device=device) for window in windows}

    def attend(self, query, key, value, *, dropout, scale, window, softcap) -> Tensor:
        """Return what `Loop.attend` returns."""
        _no_dropout(dropout)
        query, key, value = _in_one_type(query, key, value)
        cap = None if softcap is None else _cap(softcap)
        options = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
        output = self.flex_attention(query, key, value, cap, self.masks[window], **options)
        return output.transpose(1, 2).contiguous()


LAYOUTS = {"loop": Loop, "varlen": Varlen, "flex": Flex}
"""By the value of `training.attention`."""


@functools.cache
def _compiled(function: Callable, device: str) -> Callable:
    """On CUDA a compiled function. Without compilation FlexAttention makes all scores of the row."""
    return torch.compile(function) if device == "cuda" else function


@functools.cache  # the same function for all layers, so that compilation is not repeated
def _cap(softcap: float) -> Callable:
    return lambda score, *place: softcap * torch.tanh(score / softcap)


def _in_one_type(*tensors: Tensor) -> list[Tensor]:
    """Cast as autocast does before PyTorch's own attention; a norm of queries and keys may have made them float32."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


def _no_dropout(rate: float) -> None:
    if rate:
        raise ValueError(f"dropout of {rate} in packed attention; a policy has none")
