"""Log-probabilities of given tokens without the full logits.

Hidden states meet the LM head in chunks of tokens, so that logits of shape [tokens, vocabulary] never exist as a whole,
neither forwards nor backwards: peak memory is one chunk. The backward pass recomputes a chunk's logits instead of
storing them, which costs one matrix product more and is what makes a 128k vocabulary fit. Where one chunk takes all
tokens, that would save nothing, and its probabilities are kept instead.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_LOGITS = 2**25
"""Of one chunk, unless told: 128 MiB in float32, which is 261 tokens at a vocabulary of 128,256."""


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return the type in which products with the head run: that of its weights, under autocast autocast's."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def default_chunk(weight: Tensor) -> int:
    return max(1, CHUNK_LOGITS // len(weight))


def chunk_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    chunk: int,
    added: tuple[Tensor, Tensor] | None = None,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield for each chunk of n tokens its slice, its hidden states in the weights' dtype, its logits [n, V] and a
    scratch buffer [n, V] in the weights' dtype (shared with the logits if the dtypes match).

    Logits are float32 or float64, as transformers computes them: the matrix product in the weights' dtype comes first.
    added: logits [B, V] in float32, and the number of the row that each token has added to its own, [N]. All chunks
    reuse the same memory. New memory for each chunk would cost a CPU nearly as much time as the product.
    """
    product = weight.new_empty(min(chunk, len(hidden)), len(weight))
    logits = product.to(torch.promote_types(weight.dtype, torch.float32))
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        states = hidden[part].to(weight.dtype)
        product, logits = product[: len(states)], logits[: len(states)]
        if bias is None:
            torch.mm(states, weight.t(), out=product)
        else:
            torch.addmm(bias, states, weight.t(), out=product)
        logits.copy_(product)
        if added is not None:
            logits.add_(added[0][added[1][part]])
        if scale != 1.0:
            logits.mul_(scale)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        yield part, states, logits, product


def log_normaliser(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return (logsumexp [n], sum of exp(logits − max) [n]) of logits [n, V], destroying `logits`: it then holds
    exp(logits − max).

    In place, because on CPU this is about twice as fast as torch.logsumexp, which allocates as it goes. A softmax in
    place would be twice as fast again, but adds up a row less exactly: at a vocabulary of 128,256 and in float32 its
    log-probabilities are off by 1.7e-5 where these are by 3.9e-6 (benchmarks/exactness.py).
    """
    maximum = logits.amax(dim=-1)
    total = logits.sub_(maximum[:, None]).exp_().sum(dim=-1)
    return maximum + total.log(), total


class _TokenLogps(torch.autograd.Function):
    """Products run in `dtype`; the head's weights stay in their own type, so that its gradient is not rounded to
    `dtype`."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, softcap, scale, chunk, dtype):
        low_weight, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        logps = hidden.new_empty(len(labels), dtype=torch.promote_types(dtype, torch.float32))
        normalisers = torch.empty_like(logps)
        ctx.kept = None
        for part, states, logits, product in chunk_logits(hidden, low_weight, low_bias, scale, softcap, chunk):
            chosen = logits.gather(-1, labels[part, None]).squeeze(-1)
            normalisers[part], total = log_normaliser(logits)
            logps[part] = chosen - normalisers[part]
            # With a soft cap the backward pass needs the logits themselves.
            if len(labels) <= chunk and softcap is None:
                ctx.kept = (part, states, logits, product), total
        ctx.save_for_backward(hidden, weight, bias, labels, normalisers)
        ctx.softcap, ctx.scale, ctx.chunk, ctx.dtype = softcap, scale, chunk, dtype
        return logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, labels, normalisers = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        low_weight, low_bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Sums over chunks are kept in float32: in bfloat16 they would lose most of what the later chunks add.
        grad_weight = torch.zeros_like(weight, dtype=normalisers.dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normalisers.dtype) if bias is not None and need_bias else None
        if ctx.kept:
            # What follows overwrites it: a second backward pass computes it anew.
            (piece, total), ctx.kept = ctx.kept, None
            pieces = [piece]
        else:
            pieces, total = chunk_logits(hidden, low_weight, low_bias, ctx.scale, ctx.softcap, ctx.chunk), None
        for part, states, logits, product in pieces:
            # The derivative of the capped logit in the raw one, from the capped value itself.
            slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap) ** 2
            # d logp(label) / d logits = onehot(label) − softmax
            if total is None:
                delta = logits.sub_(normalisers[part, None]).exp_().mul_(-grad[part, None])
            else:
                delta = logits.mul_(-(grad / total)[:, None])
            delta.scatter_add_(-1, labels[part, None], grad[part, None])
            if slope is not None:
                delta.mul_(slope)
            if ctx.scale != 1.0:
                delta.mul_(ctx.scale)
            if grad_bias is not None:
                grad_bias += delta.sum(0)
            delta = product.copy_(delta)
            if need_hidden:
                grad_hidden[part] = delta @ low_weight
            if need_weight:
                if grad_weight.dtype == delta.dtype:
                    grad_weight.addmm_(delta.t(), states)
                else:
                    grad_weight += delta.t() @ states
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Return log p(label) of every token, [N], float32 (float64 for float64 weights), differentiable once.

    hidden [N, d]: last hidden states at the positions *before* each label, z already added. weight [V, d], bias [V]:
    the LM head. labels [N]: int64 token ids. `scale` multiplies the logits, `softcap` c then maps them to
    c·tanh(logit/c) (Gemma). The products run in the weights' type, under autocast in autocast's. `chunk` is the
    number of tokens per piece, else as many as make `CHUNK_LOGITS`: memory is chunk × V numbers.
    """
    kind, dtype = hidden.device.type, product_dtype(weight)
    with torch.autocast(kind, enabled=False):
        return _TokenLogps.apply(hidden, weight, bias, labels, softcap, scale, chunk or default_chunk(weight), dtype)


@torch.no_grad()
def greedy_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
    added: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `token_logps` without gradient, and [N] bool: whether the label is the most likely token (greedy).

    `added`: as of `chunk_logits`.
    """
    dtype, chunk = product_dtype(weight), chunk or default_chunk(weight)
    logps = hidden.new_empty(len(labels), dtype=torch.promote_types(dtype, torch.float32))
    is_argmax = torch.empty_like(labels, dtype=torch.bool)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    for part, _, logits, _ in chunk_logits(hidden, weight, bias, scale, softcap, chunk, added):
        is_argmax[part] = logits.argmax(dim=-1) == labels[part]
        chosen = logits.gather(-1, labels[part, None]).squeeze(-1)
        logps[part] = chosen - log_normaliser(logits)[0]
    return logps, is_argmax
