"""The answer at the top of the page: which differences count, and what one seed supports."""

import pytest

from lpc.report import answer
from lpc.report.results import decisive, verdict


def comparison(low, high, seeds=1, seeds_low=None, seeds_high=None) -> dict:
    return {
        "recipe": "dpo-lpc",
        "against": "dpo",
        "base": "b",
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "seeds": seeds,
        "seeds_low": seeds_low,
        "seeds_high": seeds_high,
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (comparison(0.01, 0.05), 1),
        (comparison(-0.05, -0.01), -1),
        (comparison(-0.01, 0.05), 0),
        (comparison(0.01, 0.05, 2, -0.2, 0.3), 0),
        (comparison(-0.01, 0.05, 5, 0.01, 0.02), 0),
        (comparison(0.01, 0.05, 5, 0.01, 0.02), 1),
    ],
)
def test_a_difference_counts_only_where_every_interval_excludes_zero(row, expected):
    assert verdict(row) == expected


def test_the_wider_interval_is_the_one_told():
    assert decisive(comparison(0.01, 0.05, 2, -0.2, 0.3)) == (-0.2, 0.3, "over 2 seeds")
    assert decisive(comparison(0.01, 0.05, 5, 0.01, 0.02)) == (0.01, 0.05, "over test prompts")


UP, DOWN, SAME = comparison(1, 2, 3, 1, 2), comparison(-2, -1, 3, -2, -1), comparison(-1, 1, 3, -1, 1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([SAME], "LPC made no measurable difference to preference accuracy"),
        ([UP], "LPC raised preference accuracy"),
        ([UP] * 3, "LPC raised preference accuracy in every comparison"),
        ([DOWN], "LPC lowered preference accuracy"),
        ([UP, DOWN], "LPC raised preference accuracy in 1 and lowered it in 1 of 2 comparisons"),
        (
            [UP, SAME],
            "LPC raised preference accuracy in 1 of 2 comparisons, with no measurable difference in the other",
        ),
    ],
)
def test_headline_over_seeds(rows, expected):
    assert answer.headline(rows) == expected


@pytest.mark.parametrize(
    ("rows", "points"),
    [
        ([comparison(0.01, 0.05)], "+3.0 points"),
        ([comparison(-0.05, -0.01), comparison(0.01, 0.03)], "−3.0 to +2.0 points in 2 comparisons"),
    ],
)
def test_one_seed_is_no_effect_however_narrow_its_interval(rows, points):
    expected = f"One seed: accuracy with LPC minus without is {points}; run-to-run variance is unknown"
    assert answer.headline(rows) == expected
    assert answer.caution(rows).startswith("This is one seed. These intervals reflect which test prompts were sampled")


def test_comparisons_of_one_seed_do_not_count_in_the_headline():
    rows = [comparison(0.01, 0.05), SAME, SAME]
    assert answer.headline(rows) == "LPC made no measurable difference to preference accuracy"
    assert answer.caution(rows).startswith("1 of 3 comparisons have one seed. Their intervals")
    assert answer.caution([SAME, UP]) == "At 95 %, about 0.1 of 2 comparisons would show a difference by chance alone."
