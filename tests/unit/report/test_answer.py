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


class Changes:
    """Results with these changes of benchmarks: (base, recipe, change, error)."""

    def __init__(self, *changes):
        self.tasks = {"a": {}, "b": {}}
        names = ("base", "recipe", "change", "error")
        self.rows = [{"variant": "world", **dict(zip(names, row, strict=True))} for row in changes]

    def benchmark_changes(self):
        return self.rows


def test_recipes_that_lost_abilities_are_named():
    found = answer.abilities(Changes(("b", "dpo", 1.0, 1.5), ("b", "ipo", -2.9, 1.5), ("b", "simpo", -3.1, 1.5)))
    assert found == (
        "Points against the base model, mean of 2 benchmarks (standard error 1.5): simpo −3.1; ipo −2.9; dpo +1.0."
        " More than two standard errors below the base model: simpo."
    )
    found = answer.abilities(Changes(("b", "dpo", -9.0, None), ("c", "dpo", -8.0, None)))
    assert found == "Points against the base model, mean of 2 benchmarks: dpo on b −9.0; dpo on c −8.0."
    many = [("b", f"r{i}", -float(i), 0.5) for i in range(9)]
    assert answer.abilities(Changes(*many)).endswith(
        "−8.0 to 0.0 for 9 recipes. More than two standard errors below the base model: 7 of 9 recipes."
    )
    assert answer.abilities(Changes()) == ""


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


def test_the_noise_of_training_stands_beside_differences_of_one_seed():
    """Of plain recipes the one whose seeds differ most; a latent recipe or one seed says nothing of it."""
    rows = [
        {"recipe": "dpo", "latent": None, "seeds": [82.0, 79.5, 80.0]},
        {"recipe": "ipo", "latent": None, "seeds": [81.0, 80.0]},
        {"recipe": "simpo", "latent": None, "seeds": [70.0]},
        {"recipe": "dpo-lpc", "latent": "lpc", "seeds": [60.0, 90.0]},
    ]
    assert (spread := answer.seed_spread(rows)) == ("dpo", 3, 2.5)
    assert answer.headline([comparison(0.01, 0.05)], spread) == (
        "One seed: accuracy with LPC minus without is +3.0 points; 3 seeds of dpo alone differ by 2.5"
    )
    assert answer.seed_spread(rows[2:]) is None


def test_what_knowing_a_person_is_worth(results_of_people):
    assert answer.people(results_of_people) == (
        "Of people who disagree: dpo ranks 50.2 % of their pairs right; dpo-exact 50.0 to 75.5 % with 0 to 8 pairs of "
        "a person known (2 seeds)."
    )


def test_the_title_says_that_no_person_is_known_where_all_data_are_of_people(results_of_people):
    person = results_of_people.tables["person"]
    assert answer.of_people_alone([{"variant": "v"}], person)
    assert not answer.of_people_alone([{"variant": "v"}, {"variant": "world"}], person)


@pytest.fixture
def results_of_people():
    class Made:
        def __init__(self):
            run = {"base": "b", "variant": "v", "recipe": "dpo-exact"}
            accuracies = [(0, 0, 0.51), (0, 8, 0.81), (1, 0, 0.49), (1, 8, 0.7)]
            person = [run | {"seed": s, "known_pairs": k, "accuracy": a} for s, k, a in accuracies]
            self.tables = {"person": person}

        def own_accuracy(self):
            rows = [("v", "dpo", None, 50.2), ("w", "dpo", None, 80.0), ("v", "dpo-exact", "exact", 50.9)]
            return {
                ("b", variant, recipe): {
                    "base": "b", "variant": variant, "recipe": recipe, "latent": latent, "mean": mean,
                }
                for variant, recipe, latent, mean in rows
            }  # fmt: skip

    return Made()


def test_comparisons_of_one_seed_do_not_count_in_the_headline():
    rows = [comparison(0.01, 0.05), SAME, SAME]
    assert answer.headline(rows) == "LPC made no measurable difference to preference accuracy"
    assert answer.caution(rows).startswith("1 of 3 comparisons have one seed. Their intervals")
    assert answer.caution([SAME, UP]) == "At 95 %, about 0.1 of 2 comparisons would show a difference by chance alone."
