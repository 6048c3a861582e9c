import numpy as np
import pytest
from scipy import stats
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from lpc.cli import UserError
from lpc.evaluation.intervals import accuracy_interval, mcnemar, outcomes, paired_bootstrap, t_interval


def clustered_outcomes(seed: int, prompts: int = 300):
    """0/1 outcomes whose chance of being right belongs to the prompt, and the prompt of each pair."""
    generator = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(prompts), generator.integers(1, 9, size=prompts))
    return (generator.random(len(clusters)) < generator.beta(1, 1, size=prompts)[clusters]).astype(float), clusters


def test_outcomes_count_a_tie_as_half():
    assert outcomes([2, 1, 1, -np.float64(3)], [1, 2, 1, -4]).tolist() == [1, 0, 0.5, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outcomes_refuse_a_reward_that_is_no_number(bad):
    with pytest.raises(UserError, match=r"^1 of 2 pairs .* not finite; train the model with a lower"):
        outcomes([bad, 0], [0, 0])


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (3, 7), (770, 1000)])
def test_accuracy_interval_is_wilsons_when_each_prompt_has_one_pair(right, n):
    outcome = np.arange(n) < right
    interval = accuracy_interval(outcome, np.arange(n))
    assert interval.estimate == right / n
    assert interval[1:] == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-12)


def test_accuracy_interval_has_the_clustered_standard_error():
    """Wilson's half-width tends to z·SE; SE² is then p(1−p)/n_eff = the cluster-robust variance of statsmodels, but for
    n/(n−1).
    """
    outcome, clusters = clustered_outcomes(0, prompts=4000)
    interval = accuracy_interval(outcome, clusters)
    fit = OLS(outcome, np.ones(len(outcome))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert (interval.high - interval.low) / 2 == pytest.approx(1.959964 * fit.bse[0], rel=2e-3)


def test_accuracy_interval_of_copies_is_that_of_the_prompts():
    """Ten copies of each outcome hold no more than one: the design effect is 10 · (100/99) / (1000/999)."""
    outcome = np.arange(100) < 70
    copied = accuracy_interval(np.repeat(outcome, 10), np.repeat(np.arange(100), 10))
    assert copied == pytest.approx(accuracy_interval(outcome, np.arange(100)), abs=1e-3)
    all_right = accuracy_interval(np.ones(50), np.repeat(np.arange(5), 10))
    assert all_right == pytest.approx(accuracy_interval(np.ones(5), np.arange(5)))


def test_accuracy_interval_of_copies_by_hand():
    """Ten copies of 70 of 100: the design effect is 10 · (100/99) / (1000/999), then Wilson's at 1000 / effect."""
    outcome = np.arange(100) < 70
    copied = accuracy_interval(np.repeat(outcome, 10), np.repeat(np.arange(100), 10))
    effective = 1000 / (10 * (100 / 99) / (1000 / 999))
    assert copied[1:] == pytest.approx(proportion_confint(0.7 * effective, effective, method="wilson"), abs=1e-12)


def test_accuracy_interval_is_never_narrower_than_without_clusters():
    """One right and one wrong pair a prompt: the clustered variance is 0, yet the interval is that over pairs."""
    outcome = np.tile([1.0, 0.0], 50)
    interval = accuracy_interval(outcome, np.repeat(np.arange(50), 2))
    assert interval[1:] == pytest.approx(proportion_confint(50, 100, method="wilson"), abs=1e-12)


def test_accuracy_interval_covers_the_truth():
    """Of 400 samples with true accuracy 1/2 and clusters, about 95 % of intervals hold it; an interval over pairs holds
    it in about 80 %.
    """
    held = {"prompts": 0, "pairs": 0}
    for seed in range(400):
        outcome, clusters = clustered_outcomes(seed, prompts=80)
        held["prompts"] += not accuracy_interval(outcome, clusters).excludes(0.5)
        held["pairs"] += not accuracy_interval(outcome, np.arange(len(outcome))).excludes(0.5)
    assert 0.92 * 400 <= held["prompts"] <= 0.98 * 400
    assert held["pairs"] < 0.88 * 400


def test_paired_bootstrap_agrees_with_scipy():
    """With one pair a prompt it is the percentile bootstrap of the mean."""
    difference = np.random.default_rng(1).choice([-1.0, 0.0, 0.5, 1.0], size=500)
    ours = paired_bootstrap(difference, np.arange(500), resamples=20_000)
    theirs = stats.bootstrap((difference,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert ours.estimate == difference.mean()
    assert ours[1:] == pytest.approx(tuple(theirs), abs=4e-3)


def test_paired_bootstrap_has_the_clustered_standard_error():
    outcome, clusters = clustered_outcomes(3)
    fit = OLS(outcome, np.ones(len(outcome))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    interval = paired_bootstrap(outcome, clusters)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * fit.bse[0], rel=0.04)
    assert interval == paired_bootstrap(outcome, clusters), "the same seed gives the same interval"
    order = np.random.default_rng(0).permutation(len(outcome))
    assert interval == pytest.approx(paired_bootstrap(outcome[order], clusters[order])), "in any order of the pairs"
    assert interval != paired_bootstrap(outcome, clusters, seed=1)


def test_paired_bootstrap_of_a_constant_has_no_width():
    assert paired_bootstrap(np.full(9, 0.5), list("aabbccdde")) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("statistic", [accuracy_interval, paired_bootstrap])
def test_no_pairs_is_an_error(statistic):
    with pytest.raises(ValueError, match="no "):
        statistic([], [])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 9), (40, 25), (1, 0)])
def test_mcnemar_agrees_with_statsmodels(wins, losses):
    difference = np.array([1.0] * wins + [-0.5] * losses + [0.0] * 30)
    expected = statsmodels_mcnemar([[17, wins], [losses, 13]], exact=True).pvalue if wins + losses else 1.0
    assert mcnemar(difference) == (wins, losses, pytest.approx(expected))


def test_t_interval_agrees_with_statsmodels_and_needs_two_seeds():
    values = [0.773, 0.743, 0.789]
    expected = DescrStatsW(values).tconfint_mean()
    assert t_interval(values) == pytest.approx((np.mean(values), *expected))
    assert t_interval([0.7]) is None
    assert t_interval([0.7, 0.7]) == pytest.approx((0.7, 0.7, 0.7))
