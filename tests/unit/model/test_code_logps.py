"""Log-probabilities under every code against full float64 logits of each code: values, gradients, extremes."""

import pytest
import torch
from test_logps import Largest, naive, problem

from lpc.model import code_logps as module
from lpc.model.code_logps import code_logps
from lpc.model.logps import token_logps


def naive_codes(hidden, weight, labels, codes, bias=None, softcap=None, scale=1.0):
    return torch.stack([naive(hidden + code, weight, labels, bias, softcap, scale) for code in codes], -1)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradients(function, hidden, weight, codes, bias, upstream):
    """[value, gradient of each input that is given], all float64, for the sum of value · upstream."""
    inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight, codes, bias) if x is not None]
    value = function(*inputs)
    gradients = torch.autograd.grad((value * upstream.to(value.dtype)).sum(), inputs)
    return [x.detach().double() for x in (value, *gradients)]


@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
@pytest.mark.parametrize("chunk", [1, 5, 64, 256])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"scale": 0.25}, {"softcap": 2.0, "scale": 1.7}])
@pytest.mark.parametrize("with_bias", [False, True])
def test_float64_values_and_gradients(tokens, chunk, options, with_bias):
    hidden, weight, labels, bias = problem(tokens, 6, 11, with_bias=with_bias)
    codes, upstream = randn(3, 6), randn(tokens, 3, seed=2)
    function = lambda h, w, e, b=None: code_logps(h, w, labels, e, b, chunk=chunk, **options)  # noqa: E731
    oracle = lambda h, w, e, b=None: naive_codes(h, w, labels, e, b, **options)  # noqa: E731
    for actual, expected in zip(
        value_and_gradients(function, hidden, weight, codes, bias, upstream),
        value_and_gradients(oracle, hidden, weight, codes, bias, upstream),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "scale": 0.5}])
def test_gradients_against_differences(options):
    hidden, weight, labels, bias = problem(5, 3, 7, with_bias=True)
    inputs = [x.requires_grad_() for x in (hidden, weight, randn(4, 3), bias)]
    function = lambda h, w, e, b: code_logps(h, w, labels, e, b, chunk=2, **options)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("codes", [2, 8, 64])
@pytest.mark.parametrize(("vocabulary", "spread"), [(2, 1.0), (1025, 1.0), (70_001, 0.3)])
def test_float32_is_as_exact_as_token_logps(codes, vocabulary, spread):
    hidden, weight, labels, _ = problem(8, 16, vocabulary)
    table, upstream = spread * randn(codes, 16), randn(8, codes, seed=2)
    inputs = [x.float() for x in (hidden, weight, table)]
    actual = value_and_gradients(lambda h, w, e: code_logps(h, w, labels, e, chunk=4), *inputs, None, upstream)
    oracle = lambda h, w, e: naive_codes(h, w, labels, e)  # noqa: E731
    expected = value_and_gradients(oracle, *(x.double() for x in inputs), None, upstream)
    plain = lambda h, w, e: torch.stack([token_logps(h + code, w, labels, chunk=4) for code in e], -1)  # noqa: E731
    usual = value_and_gradients(plain, *inputs, None, upstream)
    for ours, exact, theirs in zip(actual, expected, usual, strict=True):
        error, usual_error = (ours - exact).abs().max(), (theirs - exact).abs().max()
        assert error <= 3 * usual_error + 1e-6, (error, usual_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code_scale", [1e-6, 1.0, 30.0, 100.0, 300.0, 3000.0])
@pytest.mark.parametrize("spread", [1.0, 2500.0])
@pytest.mark.parametrize("chunk", [3, 100])
def test_extreme_codes_and_logits(dtype, code_scale, spread, chunk):
    """Codes of any length beside each other; logits of up to ±1e4 of the hidden states, of the codes or of both."""
    hidden, weight, labels, _ = problem(40, 8, 600, spread=spread)
    codes, upstream = randn(6, 8), randn(40, 6, seed=2)
    codes[:3] *= code_scale
    inputs = [x.to(dtype) for x in (hidden, weight, codes)]
    actual = value_and_gradients(lambda h, w, e: code_logps(h, w, labels, e, chunk=chunk), *inputs, None, upstream)
    oracle = lambda h, w, e: naive_codes(h, w, labels, e)  # noqa: E731
    expected = value_and_gradients(oracle, *(x.double() for x in inputs), None, upstream)
    # Logits round to within their size times the precision, and probabilities by as much.
    rounding = 4 * torch.finfo(dtype).eps * (code_scale + spread) * 30
    for value, exact in zip(actual, expected, strict=True):
        assert torch.isfinite(value).all()
        error = (value - exact).abs().max() / exact.abs().max().clamp_min(1)
        assert error < rounding, (error, rounding)


def adversary(dtype=torch.float32):
    """One token whose likely word the first code all but forbids, and the reverse: the product of the two largest
    factors is e^200 times each term of the sum. The second code is harmless."""
    hidden = torch.tensor([[200.0, 0.0]], dtype=dtype)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=dtype)
    codes = torch.tensor([[0.0, 201.0], [0.5, 0.25]], dtype=dtype)
    return hidden, weight, codes


def test_an_underflowing_sum_is_never_used(monkeypatch):
    hidden, weight, codes = adversary()
    labels = torch.tensor([0])
    upstream = torch.tensor([[1.0, 2.0]])
    function = lambda h, w, e: code_logps(h, w, labels, e)  # noqa: E731
    actual = value_and_gradients(function, hidden, weight, codes, None, upstream)
    oracle = lambda h, w, e: naive_codes(h, w, labels, e)  # noqa: E731
    expected = value_and_gradients(oracle, hidden.double(), weight.double(), codes.double(), None, upstream)
    assert expected[0][0, 0] == pytest.approx(-1.3132617)
    for value, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)
    # Without the bound the shared sum is 0 and the result infinite: the case is what it is meant to be.
    monkeypatch.setattr(module, "_smallest_exact_sum", lambda *_: 0.0)
    assert not torch.isfinite(function(hidden, weight, codes)).all()


def test_sums_just_above_the_bound_are_exact():
    """Growing codes cross the bound: on both sides the result is as exact, and no sum below it is trusted."""
    _, weight, _ = adversary()
    for size in torch.linspace(1, 120, 240).tolist():
        h, codes = torch.tensor([[size, 0.0]]), torch.tensor([[0.0, size + 1]])
        actual = value_and_gradients(
            lambda h, w, e: code_logps(h, w, torch.tensor([0]), e), h, weight, codes, None, torch.ones(1, 1)
        )
        expected = value_and_gradients(
            lambda h, w, e: naive_codes(h, w, torch.tensor([0]), e),
            *(x.double() for x in (h, weight, codes)), None, torch.ones(1, 1),
        )  # fmt: skip
        for value, exact in zip(actual, expected, strict=True):
            torch.testing.assert_close(value, exact, rtol=2e-5, atol=2e-5)


def test_many_terms_below_the_smallest_number_are_not_lost():
    """1,000 words of e^-88 each, which a device may round to 0, outweigh the two of e^-86 that are left."""
    hidden, codes = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    weight = torch.tensor([[86.0, 0.0], [0.0, 86.0]] + [[42.0, 42.0]] * 1000).sub_(86)
    assert torch.set_flush_denormal(True)
    try:
        value = code_logps(hidden, weight, torch.tensor([5]), codes)
    finally:
        torch.set_flush_denormal(False)
    expected = naive_codes(hidden.double(), weight.double(), torch.tensor([5]), codes.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_as_close_as_its_inputs_allow():
    hidden, weight, labels, _ = problem(40, 16, 50)
    hidden, weight, codes = (x.bfloat16() for x in (hidden, weight, 0.3 * randn(5, 16)))
    value = code_logps(hidden, weight, labels, codes, chunk=16)
    assert value.dtype == torch.float32
    expected = naive_codes(*(x.double() for x in (hidden, weight)), labels, codes.double())
    torch.testing.assert_close(value.double(), expected, rtol=0.05, atol=0.1)


def test_autocast_keeps_gradients_of_parameters_in_float32():
    hidden, weight, labels, _ = problem(40, 16, 50)
    inputs = [x.float() for x in (hidden, weight, 0.3 * randn(5, 16))]
    upstream = randn(40, 5, seed=2).abs()

    def function(h, w, e):
        with torch.autocast("cpu", torch.bfloat16):
            return code_logps(h, w, labels, e, chunk=16)

    leaves = [x.clone().requires_grad_() for x in inputs]
    function(*leaves).sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in leaves)
    actual = value_and_gradients(function, *inputs, None, upstream)
    oracle = lambda h, w, e: naive_codes(h, w, labels, e)  # noqa: E731
    expected = value_and_gradients(oracle, *(x.double() for x in inputs), None, upstream)
    for value, exact in zip(actual, expected, strict=True):
        assert (value - exact).norm() < 0.02 * exact.norm()


def test_only_the_gradients_that_are_wanted():
    hidden, weight, labels, _ = problem(10, 4, 20)
    codes = randn(3, 4)
    wanted = value_and_gradients(
        lambda h, w, e: code_logps(h, w, labels, e), hidden, weight, codes, None, torch.ones(10, 3)
    )
    for index, leaf in enumerate((hidden, weight, codes)):
        leaf.requires_grad_()
        code_logps(hidden, weight, labels, codes).sum().backward()
        torch.testing.assert_close(leaf.grad, wanted[index + 1])
        leaf.requires_grad_(False)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_full_logits_never_exist(softcap):
    hidden, weight, labels, _ = problem(100, 4, 500)
    codes = randn(6, 4)
    with Largest() as largest:
        leaves = [x.requires_grad_() for x in (hidden, weight, codes)]
        code_logps(leaves[0], leaves[1], labels, leaves[2], softcap=softcap, chunk=10).sum().backward()
    assert largest.numbers == 10 * 500


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_second_backward_pass_gives_the_same(chunk, softcap):
    hidden, weight, labels, _ = problem(30, 6, 9)
    codes = randn(4, 6).requires_grad_()
    value = code_logps(hidden.requires_grad_(), weight, labels, codes, softcap=softcap, chunk=chunk).sum()
    first = torch.autograd.grad(value, [hidden, codes], retain_graph=True)
    second = torch.autograd.grad(value, [hidden, codes])
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)
