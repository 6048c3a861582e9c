"""Chunked log-probabilities against full float64 logits: values, gradients, every option."""

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lpc.model.logps import greedy_logps, token_logps


def naive(hidden, weight, labels, bias, softcap, scale):
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)


def problem(tokens, features, vocabulary, spread=1.0, with_bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return (
        spread * randn(tokens, features),
        randn(vocabulary, features),
        labels,
        randn(vocabulary) if with_bias else None,
    )


@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
@pytest.mark.parametrize("chunk", [1, 5, 64, 256])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"scale": 0.25}, {"softcap": 2.0, "scale": 1.7}])
@pytest.mark.parametrize("with_bias", [False, True])
def test_float64_values_and_gradients(tokens, chunk, options, with_bias):
    hidden, weight, labels, bias = problem(tokens, 6, 11, with_bias=with_bias)
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    upstream = torch.linspace(-1, 2, tokens, dtype=torch.float64)
    gradients = []
    for function in (
        lambda: token_logps(hidden, weight, labels, bias, chunk=chunk, **options),
        lambda: naive(hidden, weight, labels, bias, options.get("softcap"), options.get("scale", 1.0)),
    ):
        for x in inputs:
            x.requires_grad_().grad = None
        value = function()
        (value * upstream).sum().backward()
        gradients.append([value.detach(), *(x.grad.clone() for x in inputs)])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_extreme_logits_stay_exact():
    """Logits of about ±1e4: the log-probability of the largest is 0, of others their distance from it."""
    hidden, weight, labels, _ = problem(16, 8, 32, spread=2500.0)
    hidden.requires_grad_()
    value = token_logps(hidden, weight, labels, chunk=4)
    value.sum().backward()
    torch.testing.assert_close(value, naive(hidden, weight, labels, None, None, 1.0), rtol=1e-12, atol=1e-9)
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("vocabulary", [1, 2, 1023, 1025, 70_001])
@pytest.mark.parametrize("chunk", [2, 5])
def test_any_vocabulary_in_float32(vocabulary, chunk):
    hidden, weight, labels, _ = problem(5, 4, vocabulary)
    gradients = []
    for dtype, function in (
        (torch.float32, lambda h, w: token_logps(h, w, labels, chunk=chunk)),
        (torch.float64, lambda h, w: naive(h, w, labels, None, None, 1.0)),
    ):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
        value = function(*inputs)
        gradients.append([x.double() for x in (value, *torch.autograd.grad(value.sum(), inputs))])
    for actual, expected, tolerance in zip(*gradients, (5e-6, 5e-4, 5e-6), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_close_as_its_inputs_allow(dtype):
    hidden, weight, labels, _ = problem(40, 16, 50)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    value = token_logps(hidden, weight, labels, chunk=16)
    assert value.dtype == torch.float32
    expected = naive(hidden.double(), weight.double(), labels, None, None, 1.0)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


def test_autocast_keeps_the_gradient_of_the_head_in_float32():
    hidden, weight, labels, _ = problem(40, 16, 50)
    hidden, weight = hidden.float(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = token_logps(hidden, weight, labels, chunk=16)
    value.sum().backward()
    assert value.dtype == torch.float32 and weight.grad.dtype == torch.float32
    expected = naive(hidden.double(), weight.detach().double(), labels, None, None, 1.0)
    torch.testing.assert_close(value.double(), expected, rtol=0.05, atol=0.2)


def test_greedy_says_whether_the_label_is_the_most_likely_token():
    hidden, weight, labels, bias = problem(30, 6, 9, with_bias=True)
    best = (hidden @ weight.T + bias).argmax(-1)
    labels[::2] = best[::2]
    logps, is_argmax = greedy_logps(hidden, weight, labels, bias, chunk=7)
    torch.testing.assert_close(logps, naive(hidden, weight, labels, bias, None, 1.0))
    assert torch.equal(is_argmax, labels == best)


class Largest(TorchDispatchMode):
    """Of all tensors made, the most numbers in one."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x.numel() for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return result


def test_full_logits_never_exist():
    """No tensor larger than one chunk of logits is made, forwards or backwards."""
    hidden, weight, labels, _ = problem(100, 4, 500)
    with Largest() as largest:
        token_logps(hidden.requires_grad_(), weight.requires_grad_(), labels, chunk=10).sum().backward()
    assert largest.numbers == 10 * 500


def test_default_chunks_hold_as_many_logits_whatever_the_vocabulary(monkeypatch):
    monkeypatch.setattr("lpc.model.logps.CHUNK_LOGITS", 2_000)
    for vocabulary in (100, 500):
        hidden, weight, labels, _ = problem(64, 3, vocabulary)
        with Largest() as largest:
            token_logps(hidden.requires_grad_(), weight, labels).sum().backward()
        assert largest.numbers == 2_000


@pytest.mark.parametrize("chunk", [5, 64])
def test_a_second_backward_pass_gives_the_same(chunk):
    """What one chunk keeps for the backward pass is used up by it, and computed anew for the next."""
    hidden, weight, labels, _ = problem(30, 6, 9)
    value = token_logps(hidden.requires_grad_(), weight, labels, chunk=chunk).sum()
    (first,) = torch.autograd.grad(value, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(value, hidden)
    torch.testing.assert_close(first, second)
