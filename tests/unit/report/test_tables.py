import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from results_tree import ABSENT, CODES, PAIRS, RUNS, SETTINGS, SOURCES, a_run, folder_of
from scipy.stats import spearmanr

from lpc import files
from lpc.evaluation import intervals
from lpc.layout import Layout
from lpc.report import tables
from lpc.report.runs import differences, opponents
from lpc.report.tables import TABLES, base, code_correlations, comparisons, definition

GOLDEN = Path(__file__).parent / "golden"


def rows(results, name, **where):
    found = [
        row for row in base.read(results / "tables", name) if all(row[key] == value for key, value in where.items())
    ]
    assert found, f"no row of {name} has {where}"
    return found


@pytest.mark.parametrize("name", TABLES)
def test_every_byte_is_that_of_the_golden_file(results, name):
    """To renew a golden file after an intended change, copy the table that this test has found to differ."""
    assert (results / "tables" / f"{name}.csv").read_bytes() == (GOLDEN / f"{name}.csv").read_bytes()


def test_every_golden_file_is_of_a_table():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(TABLES)


def test_the_names_of_tables_are_those_of_the_files_and_import_nothing_heavy():
    """The Snakefile imports them in every job."""
    files = {path.stem for path in Path(tables.__file__).parent.glob("*.py")}
    assert set(TABLES) == files - {"__init__", "base"}
    program = "import sys; from lpc.report.tables import TABLES; print(*TABLES); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    names, modules = done.stdout.splitlines()
    assert tuple(names.split()) == TABLES
    heavy = {"numpy", "pyarrow", "pandas", "scipy", "sklearn", "matplotlib", "torch"}
    assert heavy.isdisjoint(modules.split())


def test_the_caption_and_the_meaning_of_each_column_stand_beside_the_file(results):
    """Snakemake's report renders the file as reStructuredText: a fault of it is an error here."""
    docutils = pytest.importorskip("docutils.core", reason="docutils is not installed: it comes with snakemake")
    for name in TABLES:
        text = (results / "tables" / f"{name}.rst").read_text(encoding="utf-8")
        html = docutils.publish_parts(text, writer="html", settings_overrides={"halt_level": 2})["body"]
        for column, meaning in definition(name).columns.items():
            assert f":{column}: {meaning}\n" in text and meaning, (name, column)
        assert "system-message" not in html and "{{" not in text and "{%" not in text


def test_each_run_has_its_row_and_a_missing_one_says_so(results):
    for name in ("preference_accuracy", "training"):
        table = rows(results, name)
        assert len(table) == len(RUNS)
        (absent,) = [row for row in table if row["status"] != "ok"]
        assert absent["status"] == f"missing: {ABSENT}/" + (
            "train.json" if name == "training" else "evaluation/preference/world.json"
        )
        assert (absent["recipe"], absent["seed"], absent.get("accuracy")) == ("simpo-lpc", 1, None)
    (absent,) = [row for row in rows(results, "latents") if row["status"] != "ok"]
    assert absent["status"] == f"missing: {ABSENT}/evaluation/latents.json"
    assert len(rows(results, "benchmarks", status=f"missing: {ABSENT}/benchmarks/sums.json")) == 1


def test_accuracy_has_the_written_number_and_an_interval_by_prompt(results):
    (row,) = rows(results, "preference_accuracy", recipe="dpo", seed=0, variant="world")
    folder = results / folder_of(a_run("dpo", 0)) / "evaluation/preference"
    assert row["accuracy"] == pytest.approx(files.read_json(folder / "world.json")["accuracy"])
    pairs = files.read_parquet(folder / "world.parquet")
    outcome = intervals.outcomes(pairs["chosen_reward"], pairs["rejected_reward"])
    expected = intervals.accuracy_interval(outcome, pairs["prompt_id"].to_pylist())
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
    expected = intervals.t_interval(by_seed)
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
    assert opponents(lpc, [lpc, other, plain]) == [(plain, [])]
    assert opponents(lpc, [lpc, other]) == [(other, ["training.epochs"])]
    assert opponents(lpc, [lpc, a_run("simpo", 0), a_run("dpo", 1), a_run("dpo", 0, "flip50")]) == []
    assert opponents(plain, [lpc, plain]) == []


def test_a_latent_run_without_a_plain_one_has_a_row_that_says_so(results):
    lpc = a_run("dpo-lpc", 0)
    row = next(row for row in comparisons.rows(base.Inputs(Layout(results), [lpc])) if not row.get("against"))
    assert row["status"] == "no plain run of the same base, data, objective and seed"


def test_pairs_scored_in_one_run_only_are_counted(tmp_path):
    import pyarrow as pa

    runs = [a_run("dpo", 0), a_run("dpo-lpc", 0)]
    for run, ids in zip(runs, (["a", "b", "c"], ["b", "c", "d", "e"]), strict=True):
        names = [f"{side}_reward{kind}" for side in ("chosen", "rejected") for kind in ("", "_zero")]
        table = pa.table(
            {"pair_id": ids, "prompt_id": ids, "source": ids, **{name: [1.0] * len(ids) for name in names}}
        )
        files.write_parquet(tmp_path / folder_of(run) / "evaluation/preference/world.parquet", table)
    found = comparisons.rows(base.Inputs(Layout(tmp_path), runs))
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
    written = files.read_json(results / folder_of(a_run("dpo-lpc", 0)) / "evaluation/latents.json")
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
    latents = files.read_parquet(results / folder_of(run) / "evaluation/latents.parquet")
    length = latents["chosen_tokens"].to_numpy() - latents["rejected_tokens"].to_numpy()
    expected = spearmanr(np.stack(latents["posterior"].to_numpy())[:, 2], length).statistic
    (row,) = rows(results, "code_correlations", recipe="dpo-lpc", seed=0, variant="world", code=2, measure="length")
    assert row["posterior_correlation"] == pytest.approx(expected)
    assert row["n"] == PAIRS
    (row,) = rows(results, "code_correlations", recipe="dpo-lpc", seed=0, variant="world", code=2, measure="honesty")
    assert row["n"] == PAIRS // 3, "a pair counts where chosen and rejected both have the aspect"


def test_correlations_of_a_latent_without_a_posterior(tmp_path):
    import pyarrow as pa

    run = {**a_run("dpo-lpc", 0), "latent": {"kind": "exact", "codes": 2}}
    columns = {"pair_id": ["a", "b", "c"], "prior": [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]}
    columns |= {"chosen_tokens": [1, 2, 3], "rejected_tokens": [0, 0, 0]}
    files.write_parquet(tmp_path / folder_of(run) / "evaluation/latents.parquet", pa.table(columns))
    found = code_correlations.rows(base.Inputs(Layout(tmp_path), [run]))
    assert [(row["prior_correlation"], row["posterior_correlation"]) for row in found] == [(1.0, None), (-1.0, None)]


def test_spearman_of_a_constant_does_not_exist():
    assert code_correlations.spearman(np.array([[1.0, 1], [1, 2], [1, 3]]), np.array([1.0, 2, 3])) == [None, 1.0]


def test_cost_reads_snakemakes_benchmark_files(results):
    assert rows(results, "cost") == [
        {"rule": "split", "job": "world", "seconds": 0.5, "cpu_seconds": 0, "max_rss_mib": None},
        {"rule": "train", "job": "tiny~world~dpo~0", "seconds": 41.5, "cpu_seconds": 40.1, "max_rss_mib": 900.25},
    ]


def test_tables_of_nothing_have_their_columns(tmp_path):
    for name in TABLES:
        base.write(tmp_path, name, definition(name), [])
        assert (tmp_path / f"{name}.csv").read_text() == ",".join(definition(name).columns) + "\n"
        assert base.read(tmp_path, name) == []


def test_a_missing_table_names_the_cure(tmp_path):
    with pytest.raises(files.UserError, match=r"cost.csv: no such file; run the tables step"):
        base.read(tmp_path, "cost")


def test_settings_that_differ_are_named():
    run, other = a_run("dpo-lpc", 0), a_run("dpo", 0)
    other["objective"]["beta"] = 0.2
    other["training"] = {**SETTINGS["training"], "epochs": 3}
    assert differences(run, other) == ["objective.beta", "training.epochs"]
    run, control = a_run("dpo-lpc", 0), a_run("dpo-mlp", 0)
    run["latent"] |= {"standardize": False, "gamma": {"start": 0, "end": 1}}
    control["latent"] |= {"standardize": True, "codes": 64}
    assert differences(run, control) == ["latent.standardize"], "the number of codes says nothing of a control"
