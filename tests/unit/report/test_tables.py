import itertools

import numpy as np
import pytest
from results_tree import ABSENT, CODES, PAIRS, RUNS, SETTINGS, SOURCES, a_run
from scipy.stats import spearmanr

from lpc import files
from lpc.evaluation import statistics
from lpc.report import tables


def rows(results, name, **where):
    found = [
        row for row in tables.read(results / "tables", name) if all(row[key] == value for key, value in where.items())
    ]
    assert found, f"no row of {name} has {where}"
    return found


def test_each_run_has_its_row_and_a_missing_one_says_so(results):
    for name in ("preference_accuracy", "training"):
        table = rows(results, name)
        assert len(table) == len(RUNS)
        (absent,) = [row for row in table if row["status"] != "ok"]
        assert absent["status"] == f"missing: {ABSENT}/" + (
            "train.json" if name == "training" else "preference/world.json"
        )
        assert (absent["recipe"], absent["seed"], absent.get("accuracy")) == ("simpo-lpc", 1, None)
    (absent,) = [row for row in rows(results, "latents") if row["status"] != "ok"]
    assert absent["status"] == f"missing: {ABSENT}/latents.json"
    assert len(rows(results, "benchmarks", status=f"missing: {ABSENT}/benchmarks/sums.json")) == 1


def test_accuracy_has_the_written_number_and_an_interval_by_prompt(results):
    (row,) = rows(results, "preference_accuracy", recipe="dpo", seed=0, variant="world")
    folder = results / a_run("dpo", 0)["folder"] / "preference"
    assert row["accuracy"] == pytest.approx(files.read_json(folder / "world.json")["accuracy"])
    pairs = files.read_parquet(folder / "world.parquet")
    outcome = statistics.outcomes(pairs["chosen_reward"], pairs["rejected_reward"])
    expected = statistics.accuracy_interval(outcome, pairs["prompt_id"].to_pylist())
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx(tuple(expected), abs=1e-7)
    assert (row["objective"], row["latent"], row["n"], row["ties"]) == ("dpo", None, PAIRS, 1)


def test_comparison_of_one_seed_by_hand(results):
    """Difference of the accuracies, and wins minus losses: the first pair is a tie in both runs."""
    (row,) = rows(results, "comparisons", recipe="dpo-lpc", against="dpo", seed=0, variant="world")
    accuracy = {r["recipe"]: r["accuracy"] for r in rows(results, "preference_accuracy", seed=0, variant="world")}
    assert row["difference"] == pytest.approx(accuracy["dpo-lpc"] - accuracy["dpo"])
    assert (row["wins"] - row["losses"]) / PAIRS == pytest.approx(row["difference"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert (row["n"], row["prompts"], row["seeds"], row["status"]) == (PAIRS, PAIRS // 2, 1, "ok")


def test_comparison_over_seeds_is_their_mean_with_both_intervals(results):
    seeds = rows(results, "comparisons", recipe="dpo-lpc", against="dpo", variant="world")
    (mean,) = [row for row in seeds if row["seed"] == "mean"]
    by_seed = [row["difference"] for row in seeds if row["seed"] != "mean"]
    expected = statistics.t_interval(by_seed)
    found = (mean["difference"], mean["seeds_low"], mean["seeds_high"])
    assert found == pytest.approx(tuple(expected), abs=1e-7)
    assert (mean["seeds"], mean["n"]) == (2, PAIRS)
    flipped = rows(results, "comparisons", variant="world.flip50", against="dpo")
    (single,) = [row for row in flipped if row["seed"] == "mean"]
    assert (single["seeds"], single["seeds_low"]) == (1, None), "one seed has no interval over seeds"


def test_codes_are_held_against_the_plain_run_the_control_and_themselves_without_z(results):
    found = {row["against"] for row in rows(results, "comparisons", recipe="dpo-lpc", seed=0, variant="world")}
    assert found == {"dpo", "dpo-mlp", "dpo-lpc with z = 0"}
    assert {row["against_latent"] for row in rows(results, "comparisons", recipe="dpo-mlp")} == {None, "zero"}
    for absent in rows(results, "comparisons", recipe="simpo-lpc", seed=1):
        assert absent["status"] == "missing: rewards of this run"


def test_gain_of_z_is_the_accuracy_with_it_minus_that_without(results):
    (row,) = rows(results, "comparisons", recipe="dpo-lpc", against_latent="zero", seed=0, variant="world")
    (latent,) = rows(results, "latents", recipe="dpo-lpc", seed=0, variant="world")
    assert row["difference"] == pytest.approx(latent["accuracy"] - latent["accuracy_zero"])


def test_a_run_is_held_against_the_closest_plain_run_and_the_rest_is_named():
    lpc, plain, other = a_run("dpo-lpc", 0), a_run("dpo", 0), a_run("dpo", 0)
    other["recipe"], other["training"] = "a-dpo-of-two-epochs", {"epochs": 2, "learning_rate": 0.001}
    assert tables.opponents(lpc, [lpc, other, plain]) == [(plain, [])]
    assert tables.opponents(lpc, [lpc, other]) == [(other, ["training.epochs"])]
    assert tables.opponents(lpc, [lpc, a_run("simpo", 0), a_run("dpo", 1), a_run("dpo", 0, "flip50")]) == []
    assert tables.opponents(plain, [lpc, plain]) == []


def test_a_latent_run_without_a_plain_one_has_a_row_that_says_so(results):
    lpc = a_run("dpo-lpc", 0)
    row = next(row for row in tables.comparisons(results, [lpc], tables.Rewards(results)) if not row.get("against"))
    assert row["status"] == "no plain run of the same base, data, objective and seed"


def test_pairs_scored_in_one_run_only_are_counted(tmp_path):
    import pyarrow as pa

    runs = [a_run("dpo", 0), a_run("dpo-lpc", 0)]
    for run, ids in zip(runs, (["a", "b", "c"], ["b", "c", "d", "e"]), strict=True):
        names = [f"{side}_reward{kind}" for side in ("chosen", "rejected") for kind in ("", "_zero")]
        table = pa.table({"pair_id": ids, "prompt_id": ids, **{name: [1.0] * len(ids) for name in names}})
        files.write_parquet(tmp_path / run["folder"] / "preference" / "world.parquet", table)
    found = tables.comparisons(tmp_path, runs, tables.Rewards(tmp_path))
    row, mean = (row for row in found if row["against"] == "dpo")
    assert (row["n"], row["difference"], row["status"]) == (2, 0, "ok but 3 pairs scored in one run only")
    assert mean["n"] == 2


def test_benchmarks_hold_each_metric_of_bases_and_runs(results):
    base = rows(results, "benchmarks", recipe="base")
    assert [(row["task"], row["metric"], row["primary"], row["value"], row["stderr"]) for row in base] == [
        ("sums", "acc", 1, 0.4, 0.03),
        ("sums", "acc_norm", 0, 0.41, None),
        ("truths", "acc", 1, 0.4, 0.03),
        ("truths", "acc_norm", 0, 0.41, None),
    ]
    (row,) = rows(results, "benchmarks", recipe="dpo-mlp", task="truths", metric="acc", seed=1)
    assert (row["value"], row["n"], row["latent"]) == (0.85, 200, "mlp")


def test_latents_carry_accuracy_beside_the_diagnostics(results):
    (row,) = rows(results, "latents", recipe="dpo-lpc", seed=0, variant="world")
    written = files.read_json(results / a_run("dpo-lpc", 0)["folder"] / "latents.json")
    assert row["mutual_information"] == pytest.approx(written["mutual_information"])
    assert None not in (row["accuracy"], row["accuracy_zero"], row["accuracy_shuffled"], row["accuracy_posterior"])
    (control,) = rows(results, "latents", recipe="dpo-mlp", seed=0)
    assert (control["codes"], control["mutual_information"]) == (None, None)
    assert control["probe_z_source"] > 0.9


def test_usage_of_codes_by_source(results):
    """The prior of source i is 0.7 on code i and 0.3/7 on each other, whatever the prompt."""
    found = rows(results, "codes", recipe="dpo-lpc", seed=0, variant="world")
    assert len(found) == len(SOURCES) * CODES
    for row in found:
        own = SOURCES.index(row["source"]) == row["code"]
        assert row["mean_prior"] == pytest.approx(0.7 if own else 0.3 / (CODES - 1), abs=1e-6)
        assert (row["strongest"], row["prompts"]) == (own, 10)


def test_correlations_with_length_and_aspects(results):
    run = a_run("dpo-lpc", 0)
    latents = files.read_parquet(results / run["folder"] / "latents.parquet")
    length = latents["chosen_tokens"].to_numpy() - latents["rejected_tokens"].to_numpy()
    expected = spearmanr(np.stack(latents["posterior"].to_numpy())[:, 2], length).statistic
    (row,) = rows(results, "code_correlations", recipe="dpo-lpc", seed=0, variant="world", code=2, measure="length")
    assert row["posterior_correlation"] == pytest.approx(expected)
    assert row["n"] == PAIRS
    (row,) = rows(results, "code_correlations", recipe="dpo-lpc", seed=0, variant="world", code=2, measure="honesty")
    assert row["n"] == PAIRS // 3, "a pair counts where chosen and rejected both have the aspect"


def test_spearman_of_a_constant_does_not_exist():
    assert tables.spearman(np.array([[1.0, 1], [1, 2], [1, 3]]), np.array([1.0, 2, 3])) == [None, 1.0]


def test_cost_reads_snakemakes_benchmark_files(results):
    assert rows(results, "cost") == [
        {"rule": "split", "job": "world", "seconds": 0.5, "cpu_seconds": 0, "max_rss_mib": None},
        {"rule": "train", "job": "tiny~world~dpo~0", "seconds": 41.5, "cpu_seconds": 40.1, "max_rss_mib": 900.25},
    ]


def test_tables_of_nothing_have_their_columns(tmp_path):
    for name, columns in tables.COLUMNS.items():
        tables.write(tmp_path, name, [])
        assert (tmp_path / f"{name}.csv").read_text() == ",".join(columns) + "\n"
        assert tables.read(tmp_path, name) == []


def test_a_missing_table_names_the_cure(tmp_path):
    with pytest.raises(files.UserError, match=r"cost.csv: no such file; run the tables step"):
        tables.read(tmp_path, "cost")


def test_settings_that_differ_are_named():
    run, other = a_run("dpo-lpc", 0), a_run("dpo", 0)
    other["objective"]["beta"] = 0.2
    other["training"] = {**SETTINGS["training"], "epochs": 3}
    assert tables.differences(run, other) == ["objective.beta", "training.epochs"]
    run, control = a_run("dpo-lpc", 0), a_run("dpo-mlp", 0)
    run["latent"] |= {"standardize": False, "gamma": {"start": 0, "end": 1}}
    control["latent"] |= {"standardize": True, "codes": 64}
    assert tables.differences(run, control) == ["latent.standardize"], "the number of codes says nothing of a control"


# Settings chosen on validation


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
            run |= {"folder": f"runs/{run['recipe']}/{seed}", "experiments": ["search"]}
            accuracy = (validation or {}).get((values, seed), 0.5)
            part = {"accuracy": accuracy, "n": 20, "low": 0.1, "high": 0.9}
            summary = {"accuracy": (test or {}).get((values, seed), 0.5), "n": PAIRS, "validation": part}
            files.write_json(tmp_path / run["folder"] / "preference/world.json", summary)
            runs.append(run)
    other = a_run("dpo-lpc", 0) | {"experiments": ["main"], "folder": "runs/of another experiment"}
    table = tables.selection(tmp_path, [other, *runs[::-1]], {"search": [[key, sweep[key]] for key in sweep]})
    return table, runs


def test_the_highest_mean_validation_accuracy_over_seeds_is_chosen(tmp_path):
    """0.70 and 0.60 against 0.75 and 0.50: the mean decides, not the best seed; the test accuracies say otherwise."""
    validation = {((8,), 0): 0.7, ((8,), 1): 0.6, ((16,), 0): 0.75, ((16,), 1): 0.5}
    test = {((8,), 0): 0.3, ((8,), 1): 0.4, ((16,), 0): 0.9, ((16,), 1): 0.9}
    (eight, sixteen), _ = swept(tmp_path, {"latent.codes": [8, 16]}, (0, 1), validation, test)
    low, high = statistics.t_interval([0.7, 0.6])[1:]
    low, high = max(low, 0), min(high, 1)
    assert eight == {
        "experiment": "search", "base": "tiny", "variant": "world", "recipe": "dpo-lpc", "key": "latent.codes",
        "value": "8", "seeds": 2, "n": 20, "validation_accuracy": pytest.approx(0.65), "low": pytest.approx(low),
        "high": pytest.approx(high), "chosen": 1, "test_accuracy": pytest.approx(0.35), "status": "ok",
    }  # fmt: skip
    assert (sixteen["value"], sixteen["chosen"]) == ("16", 0)
    assert "test_accuracy" not in sixteen, "no test accuracy by which to choose after all"
    assert set(eight) == set(tables.COLUMNS["selection"])


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
    path = f"{runs[3]['folder']}/preference/world.json"
    (tmp_path / path).unlink()
    eight, sixteen = tables.selection(tmp_path, runs, {"search": [["latent.codes", [8, 16]]]})
    assert sixteen["status"] == f"missing: {path}" and eight["status"] == "ok"
    assert all("chosen" not in row and "test_accuracy" not in row for row in (eight, sixteen))
