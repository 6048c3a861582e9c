"""Settings selected on validation pairs."""

import itertools

import pytest
from results_tree import PAIRS, a_run, folder_of

from lpc import files
from lpc.evaluation import intervals
from lpc.layout import Layout
from lpc.report.tables import base, definition, selection


def swept(tmp_path, sweep, seeds=(0,), validation=None, test=None):
    """Runs of an experiment that sweeps the keys of dpo-lpc, listed in an order that is not the configuration's, with
    their results; `validation` and `test`: accuracy by (values, seed), 0.5 where it is silent."""
    runs = []
    for values in itertools.product(*sweep.values()):
        for seed in seeds:
            run = a_run("dpo-lpc", seed)
            for key, value in zip(sweep, values, strict=True):
                section, name = key.split(".")
                run[section][name] = value
            run["recipe"] += "".join(f"+{key}={value}" for key, value in zip(sweep, values, strict=True))
            run |= {"experiments": ["search"]}
            accuracy = (validation or {}).get((values, seed), 0.5)
            part = {"accuracy": accuracy, "n": 20, "low": 0.1, "high": 0.9}
            summary = {"accuracy": (test or {}).get((values, seed), 0.5), "n": PAIRS, "validation": part}
            files.write_json(tmp_path / folder_of(run) / "evaluation/preference/world.json", summary)
            runs.append(run)
    other = a_run("dpo-lpc", 0) | {"experiments": ["main"], "recipe": "of-another-experiment"}
    sweeps = {"search": [[key, sweep[key]] for key in sweep]}
    return selection.rows(base.Inputs(Layout(tmp_path), [other, *runs[::-1]], sweeps=sweeps)), runs


def test_the_highest_mean_validation_accuracy_over_seeds_is_chosen(tmp_path):
    """0.70 and 0.60 against 0.75 and 0.50: the mean decides, not the best seed; the test accuracies say otherwise."""
    validation = {((8,), 0): 0.7, ((8,), 1): 0.6, ((16,), 0): 0.75, ((16,), 1): 0.5}
    test = {((8,), 0): 0.3, ((8,), 1): 0.4, ((16,), 0): 0.9, ((16,), 1): 0.9}
    (eight, sixteen), _ = swept(tmp_path, {"latent.codes": [8, 16]}, (0, 1), validation, test)
    low, high = intervals.t_interval([0.7, 0.6])[1:]
    low, high = max(low, 0), min(high, 1)
    assert eight == {
        "experiment": "search", "base": "tiny", "variant": "world", "recipe": "dpo-lpc", "key": "latent.codes",
        "value": "8", "seeds": 2, "known_pairs": None, "n": 20, "validation_accuracy": pytest.approx(0.65),
        "low": pytest.approx(low), "high": pytest.approx(high), "chosen": 1, "test_accuracy": pytest.approx(0.35),
        "status": "ok",
    }  # fmt: skip
    assert (sixteen["value"], sixteen["chosen"]) == ("16", 0)
    assert "test_accuracy" not in sixteen, "no test accuracy by which to choose after all"
    assert set(eight) == set(definition("selection").columns)


def test_test_accuracies_have_no_say(tmp_path):
    validation = {((8,), 0): 0.7, ((16,), 0): 0.6}
    for number, better in enumerate((8, 16)):
        table, _ = swept(tmp_path / str(number), {"latent.codes": [8, 16]}, (0,), validation, {((better,), 0): 1.0})
        assert [row["chosen"] for row in table] == [1, 0]


@pytest.mark.parametrize("order", [[8, 16, 4], [16, 4, 8], [4, 8, 16]])
def test_of_equal_settings_the_first_in_the_configuration_is_chosen(tmp_path, order):
    """Equal means of the same seeds in another order are equal, too."""
    seeds = [0.1, 0.2, 0.3, 0.7]
    validation = {((4,), i): value for i, value in enumerate(seeds)}
    validation |= {((8,), i): value for i, value in enumerate(seeds[::-1])}
    validation |= {((16,), i): value for i, value in enumerate([0.2, 0.7, 0.1, 0.3])}
    table, _ = swept(tmp_path, {"latent.codes": order}, (0, 1, 2, 3), validation)
    assert [(row["value"], row["chosen"]) for row in table] == [
        (str(order[0]), 1),
        (str(order[1]), 0),
        (str(order[2]), 0),
    ]


def test_several_keys_compete_as_combinations(tmp_path):
    sweep = {"latent.codes": [8, 16], "latent.inference": ["mode", "mean"], "training.learning_rate": [0.001]}
    table, _ = swept(tmp_path, sweep, validation={((16, "mode", 0.001), 0): 0.8})
    assert {row["key"] for row in table} == {"latent.codes latent.inference training.learning_rate"}
    assert [row["value"] for row in table] == ["8 mode 0.001", "8 mean 0.001", "16 mode 0.001", "16 mean 0.001"]
    assert [row["chosen"] for row in table] == [0, 0, 1, 0]
    assert (table[0]["low"], table[0]["high"]) == (0.1, 0.9), "of one seed, the interval over pairs"


def test_a_missing_run_leaves_the_choice_open(tmp_path):
    _, runs = swept(tmp_path, {"latent.codes": [8, 16]}, (0, 1))
    path = f"{folder_of(runs[3])}/evaluation/preference/world.json"
    (tmp_path / path).unlink()
    eight, sixteen = selection.rows(base.Inputs(Layout(tmp_path), runs, sweeps={"search": [["latent.codes", [8, 16]]]}))
    assert sixteen["status"] == f"missing: {path}" and eight["status"] == "ok"
    assert all("chosen" not in row and "test_accuracy" not in row for row in (eight, sixteen))


def test_people_of_validation_are_scored_with_the_most_pairs_known(tmp_path):
    """By the prior alone 8 codes win; of people with four known pairs, 16 codes do, and their test people count."""
    validation = {((8,), 0): 0.55, ((16,), 0): 0.5}
    _, runs = swept(tmp_path, {"latent.codes": [8, 16]}, validation=validation)
    of = lambda accuracy: {"accuracy": accuracy, "low": 0.2, "high": 0.95}  # noqa: E731
    for run, better in zip(runs, (0.0, 0.2), strict=True):
        held_out = {"n": 12, "contexts": {"0": of(0.5), "4": of(0.6 + better)}}
        test = {"n": 30, "contexts": {"0": of(0.4), "2": of(0.9), "4": of(0.7 + better)}}
        person = {**test, "validation": held_out}
        files.write_json(tmp_path / folder_of(run) / "evaluation/person.json", person)
    inputs = base.Inputs(Layout(tmp_path), runs, sweeps={"search": [["latent.codes", [8, 16]]]})
    eight, sixteen = selection.rows(inputs)
    assert [row["known_pairs"] for row in (eight, sixteen)] == [4, 4]
    assert (eight["chosen"], sixteen["chosen"]) == (0, 1) and "test_accuracy" not in eight
    assert (sixteen["n"], sixteen["validation_accuracy"], sixteen["low"]) == (12, 0.8, 0.2)
    assert sixteen["test_accuracy"] == pytest.approx(0.9)

    files.write_json(tmp_path / folder_of(runs[1]) / "evaluation/person.json", {**test, "validation": None})
    eight, sixteen = selection.rows(base.Inputs(Layout(tmp_path), runs, sweeps=inputs.sweeps))
    assert (eight["chosen"], sixteen["chosen"], sixteen["known_pairs"]) == (1, 0, None), "all by the prior, or none"
