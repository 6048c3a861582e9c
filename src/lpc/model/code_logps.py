"""Log-probabilities of given tokens under every code, from one product of the hidden states with the LM head.

The logits under code e are W(h + e) = Wh + We, so they are a sum of a row for the token and a row for the code. With
L = Wh and C = We, the normalisers of all tokens and codes are one product of matrices:

    Z_nk = Σ_v exp(L_nv + C_kv) = (exp(L) exp(C)ᵀ)_nk

and so are their gradients. Each code then costs one column of this product and no pass over the vocabulary of its own.
As in `lpc.model.logps`, tokens come in chunks, so that logits of all tokens never exist.
"""

import torch
from torch import Tensor

from lpc.model.logps import chunk_logits, default_chunk, log_normaliser, product_dtype


def _with_code(logits: Tensor, code_logits: Tensor, softcap: float | None, out: Tensor) -> Tensor:
    """Logits [n, V] of one code into `out`, from those without a code [n, V] and the code's own [V]."""
    torch.add(logits, code_logits, out=out)
    return out if softcap is None else out.div_(softcap).tanh_().mul_(softcap)


def _sum_products(a: Tensor, b: Tensor, block: int = 512) -> Tensor:
    """a bᵀ [n, K] of a [n, V] and b [K, V], summed in blocks of the vocabulary.

    A plain product adds up a vocabulary of 128,256 positive numbers in float32 with an error of up to 7e-6; in blocks
    it is 3e-7, as with torch.sum, in the same time.
    """
    whole = a.shape[1] // block * block
    blocks_a, blocks_b = (x[:, :whole].unflatten(1, (-1, block)) for x in (a, b))
    sums = torch.bmm(blocks_a.transpose(0, 1), blocks_b.permute(1, 2, 0)).sum(0)
    return sums.addmm_(a[:, whole:], b[:, whole:].t())


def _smallest_exact_sum(vocabulary: int, dtype: torch.dtype) -> float:
    """The smallest Z_nk that the product of matrices is trusted with, where each factor is divided by its maximum.

    Then every term is at most 1, and the terms lost to underflow sum to at most `vocabulary` times the smallest normal
    number. Above this bound they are less than the rounding error of the sum. The logarithm of a small sum rounds by
    its own size: by up to 4e-6 in float32, where it is −59.
    """
    return vocabulary * torch.finfo(dtype).tiny / torch.finfo(dtype).eps


class _CodeLogps(torch.autograd.Function):
    """`direct` lists for each chunk of tokens the codes whose normalisers are summed one code at a time: all with a
    soft cap, which does not separate into a factor of the token and one of the code; else those whose product of
    matrices underflows for one of the chunk's tokens."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, codes, labels, softcap, scale, chunk, dtype):
        low_weight, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        sums = torch.promote_types(dtype, torch.float32)
        table = (codes.to(dtype) @ low_weight.t()).to(sums).mul_(scale)
        logps = hidden.new_empty(len(labels), len(codes), dtype=sums)
        normalisers, maxima = torch.empty_like(logps), logps.new_empty(len(labels))
        ctx.kept = None
        if softcap is None:
            table_maxima = table.amax(-1)
            factor = (table - table_maxima[:, None]).exp_()
            totals = torch.empty_like(logps)
            for part, states, logits, product in chunk_logits(hidden, low_weight, low_bias, scale, None, chunk):
                maxima[part] = logits.amax(-1)
                chosen = logits.gather(-1, labels[part, None]) - maxima[part, None]
                totals[part] = _sum_products(logits.sub_(maxima[part, None]).exp_(), factor)
                logps[part] = chosen + (table[:, labels[part]] - table_maxima[:, None]).t()
                if len(labels) <= chunk:
                    ctx.kept = part, states, logits, product
            logps.sub_(totals.log())
            torch.add(totals.log(), maxima[:, None] + table_maxima, out=normalisers)
            # Negated, so that nan counts as underflow.
            underflows = ~(totals >= _smallest_exact_sum(len(weight), sums))
            # The one wait for the device.
            direct = torch.stack([rows.any(0) for rows in underflows.split(chunk)]).tolist()
            direct = [[code for code, is_direct in enumerate(row) if is_direct] for row in direct]
        else:
            direct = [list(range(len(codes)))] * -(-len(labels) // chunk)
        for number, direct_codes in enumerate(direct):
            if not direct_codes:
                continue
            ctx.kept = None
            part = slice(number * chunk, (number + 1) * chunk)
            for _, _, logits, _ in chunk_logits(hidden[part], low_weight, low_bias, scale, None, chunk):
                scratch = torch.empty_like(logits)
                for code in direct_codes:
                    coded = _with_code(logits, table[code], softcap, scratch)
                    chosen = coded.gather(-1, labels[part, None]).squeeze(-1)
                    normalisers[part, code] = log_normaliser(coded)[0]
                    logps[part, code] = chosen - normalisers[part, code]
        ctx.save_for_backward(hidden, weight, bias, codes, labels, table, normalisers, maxima)
        ctx.softcap, ctx.scale, ctx.chunk, ctx.dtype, ctx.direct = softcap, scale, chunk, dtype, direct
        return logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, codes, labels, table, normalisers, maxima = ctx.saved_tensors
        need_hidden, need_weight, need_bias, need_codes = ctx.needs_input_grad[:4]
        low_weight, low_bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Sums over chunks are kept in float32, as in token_logps.
        grad_weight = torch.zeros_like(weight, dtype=table.dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=table.dtype) if bias is not None and need_bias else None
        table_maxima = table.amax(-1)
        factor = (table - table_maxima[:, None]).exp_()
        # Of C: what the directly summed codes add, and Σ_n grad_nk / Z_nk exp(L_nv) of the others.
        grad_table, weighted = torch.zeros_like(table), torch.zeros_like(table)
        separable_grad = grad.clone()
        room = table.new_empty(min(ctx.chunk, len(labels)), len(weight))
        if ctx.kept:
            # What follows overwrites it: a second backward pass computes it anew.
            pieces, is_exponential, ctx.kept = [ctx.kept], True, None
        else:
            pieces = chunk_logits(hidden, low_weight, low_bias, ctx.scale, None, ctx.chunk)
            is_exponential = False
        # No tokens: no piece, but one empty list.
        for (part, states, logits, product), direct_codes in zip(pieces, ctx.direct, strict=False):
            onehot_grad, scratch = separable_grad[part], room[: len(logits)]
            delta = torch.zeros_like(logits) if direct_codes else None
            for code in direct_codes:
                coded = _with_code(logits, table[code], ctx.softcap, scratch)
                slope = None if ctx.softcap is None else 1 - (coded / ctx.softcap) ** 2
                coded.sub_(normalisers[part, code, None]).exp_().mul_(-grad[part, code, None])
                coded.scatter_add_(-1, labels[part, None], grad[part, code, None])
                if slope is not None:
                    coded.mul_(slope)
                grad_table[code] += coded.sum(0)
                delta += coded
                onehot_grad[:, code] = 0
            if len(direct_codes) < len(codes):
                if not is_exponential:
                    logits.sub_(maxima[part, None]).exp_()
                shares = (maxima[part, None] + table_maxima - normalisers[part]).exp_().mul_(onehot_grad)
                shares[:, direct_codes] = 0  # else 0 · inf
                weighted.addmm_(shares.t(), logits)
                # d Σ_k grad_nk logp_nk / d L_nv = onehot Σ_k grad_nk − exp(L_nv) Σ_k grad_nk / Z_nk exp(C_kv)
                mixed = torch.mm(shares, factor, out=scratch)
                delta = logits.mul_(mixed).neg_() if delta is None else delta.addcmul_(logits, mixed, value=-1)
                delta.scatter_add_(-1, labels[part, None], onehot_grad.sum(-1, keepdim=True))
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
        grad_codes = None
        if need_weight or need_codes:
            grad_table.addcmul_(factor, weighted, value=-1)
            # The sum of each label's rows. An embedding's gradient is this sum, in an order that repeats on a GPU, too.
            onehot_sums = torch.ops.aten.embedding_dense_backward(separable_grad, labels, len(weight), -1, False)
            grad_table = grad_table.add_(onehot_sums.t()).mul_(ctx.scale).to(ctx.dtype)
        if need_codes:
            grad_codes = _sum_products(grad_table, low_weight.t(), block=4096).to(codes.dtype)
        if need_weight:
            grad_weight += grad_table.t() @ codes.to(ctx.dtype)
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, grad_codes, None, None, None, None, None


def code_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    codes: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Return log p(label) of every token under every code, [N, K], float32 (float64 for float64 weights),
    differentiable once.

    Equal to `lpc.model.logps.token_logps` of hidden + code for each of the codes [K, d]; the other arguments are those
    of token_logps. hidden [N, d]: last hidden states without a code.

    Memory: two pieces of chunk × V numbers (four with a soft cap) and a few tables of K × V. The shared sum over the
    vocabulary can underflow: in float32, 59 nats below the product of the token's and the code's largest factors. Then
    the code's own logits are summed instead, which is slower and as exact.
    """
    kind, dtype = hidden.device.type, product_dtype(weight)
    with torch.autocast(kind, enabled=False):
        chunk = chunk or default_chunk(weight)
        return _CodeLogps.apply(hidden, weight, bias, codes, labels, softcap, scale, chunk, dtype)
