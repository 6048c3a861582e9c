"""IPO: values by hand, a naive float64 version, extremes."""

from objective_checks import LOGPS, against_naive, close, stays_finite

from lpc.objectives.ipo import IPO, ipo

CASE = IPO(name="ipo", tau=0.13)


def naive(logps: list[float]) -> float:
    return ((logps[0] - logps[2]) - (logps[1] - logps[3]) - 1 / (2 * CASE.tau)) ** 2


def test_values():
    """1/(2τ) = 5; the log-ratio differences are 0, 10, 20."""
    losses, _, _ = ipo(*LOGPS, tau=0.1)
    close(losses, [25.0, 25.0, 225.0], atol=1e-3, rtol=0)


def test_rewards_are_tau_times_the_log_ratios():
    """Log-ratios (0, 0.1, −0.9) of the chosen and (0, −9.9, −20.9) of the rejected, by τ = 0.1 and by τ = 0.5."""
    for tau in (0.1, 0.5):
        _, chosen, rejected = ipo(*LOGPS, tau=tau)
        close(chosen, [0.0, 0.1 * tau, -0.9 * tau], atol=1e-6, rtol=0)
        close(rejected, [0.0, -9.9 * tau, -20.9 * tau], atol=1e-5, rtol=0)


def test_against_naive_float64():
    against_naive(CASE, naive)


def test_extremes_stay_finite():
    stays_finite(CASE)
