"""Objectives against published values, naive float64 formulas and SciPy-free first principles."""

import math

import pytest
import torch

from lpc import objectives

# Log-probabilities with known losses (values derived by hand from the formulas; see each test).
CHOSEN = torch.tensor([-0.5, -10.0, -1.0])
REJECTED = torch.tensor([-0.1, -30.0, -21.0])
REFERENCE_CHOSEN = torch.tensor([-0.5, -10.1, -0.1])
REFERENCE_REJECTED = torch.tensor([-0.1, -20.1, -0.1])
FOUR = (CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)


def close(actual, expected, **options):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **options)


def test_dpo_values():
    """Δ = 0.1·(0 − 0), 0.1·(0.1 + 9.9), 0.1·(−0.9 + 20.9) = 0, 1, 2; the loss is −log σ(Δ)."""
    losses, chosen, rejected = objectives.dpo(*FOUR, beta=0.1)
    close(losses, [0.693147, 0.313262, 0.126928], atol=1e-6, rtol=0)
    close(chosen - rejected, [0.0, 1.0, 2.0], atol=1e-5, rtol=0)


def test_dpo_label_smoothing_values():
    """ε = 0.1 adds 0.1·Δ, since −log σ(−Δ) = −log σ(Δ) + Δ."""
    losses, _, _ = objectives.dpo(*FOUR, beta=0.1, label_smoothing=0.1)
    close(losses, [0.693147, 0.413262, 0.326928], atol=1e-6, rtol=0)


def test_ipo_values():
    """1/(2τ) = 5; the log-ratio differences are 0, 10, 20."""
    losses, _, _ = objectives.ipo(*FOUR, tau=0.1)
    close(losses, [25.0, 25.0, 225.0], atol=1e-3, rtol=0)


def test_simpo_values():
    """2·(−0.5 + 0.1) − 0.5 = −1.3, and −log σ(−1.3) = 1.541008; the other pairs are 39.5 apart."""
    losses, _, _ = objectives.simpo(CHOSEN, REJECTED, beta=2, margin=0.5)
    close(losses, [1.541008, 0.0, 0.0], atol=1e-6, rtol=0)


def naive_softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def naive(name: str, values: list[float], p: dict) -> float:
    """The formula of one pair in Python's float64."""
    if name == "simpo":
        return naive_softplus(-(p["beta"] * (values[0] - values[1]) - p["margin"]))
    difference = (values[0] - values[2]) - (values[1] - values[3])
    if name == "ipo":
        return (difference - 1 / (2 * p["tau"])) ** 2
    e = p["label_smoothing"]
    return (1 - e) * naive_softplus(-p["beta"] * difference) + e * naive_softplus(p["beta"] * difference)


CASES = {
    "dpo": {"beta": 0.37, "label_smoothing": 0.2},
    "ipo": {"tau": 0.13},
    "simpo": {"beta": 2.3, "margin": 0.7},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
def test_against_naive_float64(name, scale):
    """Values and gradients (central differences of the naive formula), up to log-probabilities of ±1e4."""
    generator = torch.Generator().manual_seed(7)
    count = 2 if name == "simpo" else 4
    inputs = [(torch.randn(20, generator=generator, dtype=torch.float64) * scale) for _ in range(count)]
    inputs = [x.requires_grad_() for x in inputs]
    losses, _, _ = getattr(objectives, name)(*inputs, **CASES[name])
    losses.sum().backward()
    for i in range(20):
        row = [x[i].item() for x in inputs]
        assert losses[i].item() == pytest.approx(naive(name, row, CASES[name]), rel=1e-9, abs=1e-12)
        for j in range(count):
            step = 1e-4 * max(1, scale * 1e-3)
            up, down = row.copy(), row.copy()
            up[j] += step
            down[j] -= step
            slope = (naive(name, up, CASES[name]) - naive(name, down, CASES[name])) / (2 * step)
            assert inputs[j].grad[i].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_extremes_stay_finite_in_float32(name):
    count = 2 if name == "simpo" else 4
    for sign in (1, -1):
        inputs = [torch.full((3,), sign * 1e4 * (-1) ** i, requires_grad=True) for i in range(count)]
        losses, chosen, rejected = getattr(objectives, name)(*inputs, **CASES[name])
        losses.sum().backward()
        for value in (losses, chosen, rejected, *(x.grad for x in inputs)):
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", CASES)
def test_rewards_carry_no_gradient(name):
    count = 2 if name == "simpo" else 4
    inputs = [torch.zeros(2, requires_grad=True) for _ in range(count)]
    losses, chosen, rejected = getattr(objectives, name)(*inputs, **CASES[name])
    assert losses.shape == chosen.shape == rejected.shape == (2,)
    assert losses.requires_grad and not chosen.requires_grad and not rejected.requires_grad


def test_categorical_kl_by_hand():
    """q = (3/4, 1/4), p = (1/2, 1/2): KL = 3/4·log(3/2) + 1/4·log(1/2)."""
    q, p = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    close(objectives.categorical_kl(q, p), [0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    close(objectives.categorical_kl(q, q), [0.0])


def test_categorical_kl_against_torch_and_extremes():
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(50, 9, generator=generator, dtype=torch.float64) * 5
    p = torch.randn(50, 9, generator=generator, dtype=torch.float64) * 5
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=q), torch.distributions.Categorical(logits=p)
    )
    close(objectives.categorical_kl(q, p), expected, rtol=1e-10, atol=1e-12)
    assert (objectives.categorical_kl(q, p) >= 0).all()
    extreme = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = objectives.categorical_kl(extreme, torch.zeros(1, 3))
    value.sum().backward()
    close(value.detach(), [math.log(3)])
    assert torch.isfinite(extreme.grad).all()


def test_gaussian_kl_against_torch():
    generator = torch.Generator().manual_seed(5)
    a, b, c, d = (torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a, b.exp()), normal(c, d.exp())).sum(-1)
    close(objectives.gaussian_kl(a, b, c, d), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ([[0.25] * 4] * 3, 0.0),  # uniform for every prompt
        ([[1.0, 0.0, 0.0, 0.0]] * 3, 0.0),  # one code for every prompt
        ([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], math.log(2)),  # a code for each prompt
    ],
)
def test_code_information_values(prior, expected):
    """I(code; prompt) of a batch by hand: nothing where the prior ignores the prompt, ln 2 for two prompts."""
    close(objectives.code_information(torch.tensor(prior).log()).mean(), expected, atol=1e-6, rtol=0)


def test_code_information_is_the_difference_of_entropies():
    """Mean over the batch and gradient equal those of H(mean p) − mean H(p), and no pair's share is negative."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 5, dtype=torch.float64)).requires_grad_()
    values = objectives.code_information(logits)
    (gradient,) = torch.autograd.grad(values.mean(), logits)
    p = logits.softmax(-1)
    naive = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(-1).mean()
    (expected,) = torch.autograd.grad(naive, logits)
    close(values.mean(), naive)
    close(gradient, expected)
    assert (values > 0).all() and values.mean() < math.log(5)
