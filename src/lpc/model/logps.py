"""Log-probabilities of given tokens without the full logits.

Hidden states meet the LM head in chunks of tokens, so that logits of shape [tokens, vocabulary] never exist as a whole,
neither forwards nor backwards: peak memory is one chunk. The backward pass recomputes a chunk's logits instead of
storing them, which costs one matrix product more and is what makes a 128k vocabulary fit.
"""

import torch
from torch import Tensor


def _chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """float32 (or float64) logits [n, V] of one chunk, as transformers computes them: matmul in the weights' type
    first."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if logits.dtype != torch.float64:
        logits = logits.float()
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _log_normaliser(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(logsumexp [n], argmax [n]) of logits [n, V], destroying `logits`: it then holds exp(logits − max).

    In place, because on CPU this is about twice as fast as torch.logsumexp, which allocates as it goes.
    """
    maximum, argmax = logits.max(dim=-1)
    total = logits.sub_(maximum[:, None]).exp_().sum(dim=-1)
    return maximum + total.log(), argmax


class _TokenLogps(torch.autograd.Function):
    """Products run in `dtype`; the head's weights stay in their own type, so that its gradient is not rounded to
    `dtype`."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, softcap, scale, chunk, dtype):
        low_weight, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        logps = hidden.new_empty(len(labels), dtype=torch.promote_types(dtype, torch.float32))
        normalisers = torch.empty_like(logps)
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            logits = _chunk_logits(hidden[part].to(dtype), low_weight, low_bias, scale, softcap)
            chosen = logits.gather(-1, labels[part, None]).squeeze(-1)
            normalisers[part], _ = _log_normaliser(logits)
            logps[part] = chosen - normalisers[part]
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
        for start in range(0, len(labels), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            low_hidden = hidden[part].to(ctx.dtype)
            logits = _chunk_logits(low_hidden, low_weight, low_bias, ctx.scale, ctx.softcap)
            # The derivative of the capped logit in the raw one, from the capped value itself.
            slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap) ** 2
            # d logp(label) / d logits = onehot(label) − softmax
            delta = logits.sub_(normalisers[part, None]).exp_().mul_(-grad[part, None])
            delta.scatter_add_(-1, labels[part, None], grad[part, None])
            if slope is not None:
                delta.mul_(slope)
            if ctx.scale != 1.0:
                delta.mul_(ctx.scale)
            if grad_bias is not None:
                grad_bias += delta.sum(0)
            delta = delta.to(ctx.dtype)
            if need_hidden:
                grad_hidden[part] = delta @ low_weight
            if need_weight:
                if grad_weight.dtype == delta.dtype:
                    grad_weight.addmm_(delta.t(), low_hidden)
                else:
                    grad_weight += delta.t() @ low_hidden
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
    chunk: int = 256,
) -> Tensor:
    """log p(label) of every token, [N], float32 (float64 for float64 weights), differentiable once.

    hidden [N, d]: last hidden states at the positions *before* each label, z already added. weight [V, d], bias [V]:
    the LM head. labels [N]: int64 token ids. `scale` multiplies the logits, `softcap` c then maps them to
    c·tanh(logit/c) (Gemma). The products run in the weights' type, under autocast in autocast's. `chunk` is the
    number of tokens per piece: memory is chunk × V numbers.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        return _TokenLogps.apply(hidden, weight, bias, labels, softcap, scale, chunk, dtype)


@torch.no_grad()
def greedy_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """As `token_logps`, without gradient, and with [N] bool: is the label the most likely token (greedy decoding)?"""
    logps = hidden.new_empty(len(labels), dtype=torch.promote_types(weight.dtype, torch.float32))
    is_argmax = torch.empty_like(labels, dtype=torch.bool)
    for start in range(0, len(labels), chunk):
        part = slice(start, start + chunk)
        logits = _chunk_logits(hidden[part].to(weight.dtype), weight, bias, scale, softcap)
        chosen = logits.gather(-1, labels[part, None]).squeeze(-1)
        normaliser, argmax = _log_normaliser(logits)
        logps[part] = chosen - normaliser
        is_argmax[part] = argmax == labels[part]
    return logps, is_argmax
