"""The section on preference accuracy."""

from types import SimpleNamespace

from lpc.report.sections import preference


def test_both_accuracies_are_of_the_seeds_that_both_recipes_have():
    """dpo has a second seed, far from the first: the row must not set it against dpo-lpc's only one."""
    where = {"base": "b", "variant": "world", "dataset": "world"}
    scores = [("dpo", 0, 0.74), ("dpo", 1, 0.82), ("dpo-lpc", 0, 0.75)]
    scored = [
        {**where, "recipe": recipe, "seed": seed, "accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03}
        for recipe, seed, accuracy in scores
    ]
    compared = {**where, "recipe": "dpo-lpc", "against": "dpo", "latent": "lpc", "against_latent": None}
    compared |= {"seed": "mean", "objective": "dpo"}
    results = SimpleNamespace(
        tables={"preference_accuracy": scored, "comparisons": [compared]},
        settings={"bases": {"b": {"model": None}}},
        csv=lambda name: (name, ""),
    )
    (table,) = preference.with_and_without(results, "world", scored)
    (row,) = table.rows
    assert (row["plain"]["mean"], row["plain"]["seeds"], row["ours"]["mean"]) == (74.0, [74.0], 75.0)
    assert preference.with_and_without(results, "world", scored[:2]) == []  # a recipe that is not shown
