"""SLiC: values by hand, a naive float64 version, extremes."""

from objective_checks import LOGPS, against_naive, close, stays_finite

from lpc.objectives.slic import SLiC, slic

CASE = SLiC(name="slic", beta=0.37)


def naive(logps: list[float]) -> float:
    return max(0.0, 1 - CASE.beta * ((logps[0] - logps[2]) - (logps[1] - logps[3])))


def test_values():
    """β = 0.05: Δ = 0, 0.5, 1 from log-ratio differences of 0, 10, 20. The loss is 1 − Δ, and 0 from Δ = 1 on."""
    losses, chosen, rejected = slic(*LOGPS, beta=0.05)
    close(losses, [1.0, 0.5, 0.0], atol=1e-6, rtol=0)
    close(chosen - rejected, [0.0, 0.5, 1.0], atol=1e-6, rtol=0)
    close(slic(*LOGPS, beta=0.1)[0], [1.0, 0.0, 0.0], atol=1e-6, rtol=0)


def test_against_naive_float64():
    against_naive(CASE, naive)


def test_extremes_stay_finite():
    stays_finite(CASE)
