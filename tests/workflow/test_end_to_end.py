"""Whole workflows, every step for real, in a small size: the generated world, and a slice of real preferences."""

import copy
import csv
import gzip
import itertools
import json
import os

import pytest
from checkout import ROOT, SECRETS, SMALL, Checkout

from lpc import verify

REAL = ROOT.parent / "shared" / "data"
SWEPT = "dpo-lpc+training.learning_rate=0.01"
TABLES = {
    "preference_accuracy": {"base", "dataset", "recipe", "objective", "latent", "seed", "n", "accuracy"},
    "benchmarks": {"base", "recipe", "seed", "task", "metric", "value", "stderr"},
}


def table(folder, name) -> list[dict]:
    with open(folder / f"tables/{name}.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def stamps(folder, pattern) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(checkout, configuration, results) of the world with noise, a sweep, recipes and two tasks, after one run."""
    checkout = Checkout(tmp_path_factory.mktemp("world"))
    config = copy.deepcopy(SMALL)
    config["recipes"]["simpo-lpc"] = {"objective": {"name": "simpo"}, "latent": {"codes": 8, "standardize": True}}
    config["recipes"]["dpo-vector"] = {"objective": {"name": "dpo"}, "latent": {"kind": "vector"}}
    config["noise"] = {"flip": {"rate": 0.5}}
    config["experiments"]["main"]["recipes"].append("simpo-lpc")
    config["experiments"]["noise"] = {**config["experiments"]["main"], "noise": ["flip"], "recipes": ["dpo-vector"]}
    config["experiments"]["search"] = {**config["experiments"]["main"], "recipes": ["dpo-lpc"]}
    config["experiments"]["search"]["sweep"] = {"training.learning_rate": [1.0e-2, 1.0e-3]}
    config["evaluation"]["benchmarks"] = {
        "tasks": {
            "world_easy": {"task": "config/tasks/world_choice.yaml", "metric": "acc", "questions": {"kind": "easy"}},
            "sums": {
                "task": "config/tasks/world_generate.yaml",
                "metric": "exact_match,sum",
                "limit": 5,
                "questions": {"kind": "generate", "count": 10},
            },
        }
    }
    config["evaluation"]["benchmarks"]["tasks"]["world_easy"]["questions"]["count"] = 20
    told = checkout.snakemake("all", "--cores", "2", "--printshellcmds", "--configfile", checkout.write(config))
    (checkout.folder / "told.txt").write_text(told)
    return checkout, config, checkout.folder / "results/small"


def test_no_secret_is_in_any_output(world):
    """Neither results nor logs, nor the commands that Snakemake shows, nor its own records."""
    folder = world[0].folder
    written = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"told.txt", "report.html", "train.json"} < {path.name for path in written}
    for path in written:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path


def test_tables_hold_every_run(world):
    _, _, results = world
    rows = table(results, "preference_accuracy")
    assert TABLES["preference_accuracy"] <= rows[0].keys()
    assert {(row["variant"], row["recipe"]) for row in rows} == {
        ("world", "dpo"),
        ("world", "dpo-lpc"),
        ("world", "simpo-lpc"),
        ("world", SWEPT),
        ("world.flip", "dpo-vector"),
    }
    assert all(row["status"] == "ok" and 0 <= float(row["accuracy"]) <= 1 and int(row["n"]) > 50 for row in rows)
    rows = table(results, "benchmarks")
    assert TABLES["benchmarks"] <= rows[0].keys()
    runs = {"base", "dpo", "dpo-lpc", SWEPT, "simpo-lpc", "dpo-vector"}
    primary = {(row["recipe"], row["task"]) for row in rows if row["primary"] == "1"}
    assert primary == set(itertools.product(runs, ["world_easy", "sums"]))


def test_report_is_there_and_needs_nothing_else(world):
    page = (world[2] / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert 'src="http' not in page and "@import" not in page


def test_codes_are_forced_in_runs_that_have_some(world):
    found = {path.parts[-3] for path in world[2].glob("runs/*/*/*/*/completions.json")}
    assert found == {"dpo-lpc", SWEPT, "simpo-lpc"}


def test_a_sweep_chooses_on_validation(world):
    rows = table(world[2], "selection")
    assert [(row["experiment"], row["recipe"], row["key"], row["value"], row["status"]) for row in rows] == [
        ("search", "dpo-lpc", "training.learning_rate", value, "ok") for value in ("0.01", "0.001")
    ]
    (chosen,) = [row for row in rows if row["chosen"] == "1"]
    assert float(chosen["validation_accuracy"]) == max(float(row["validation_accuracy"]) for row in rows)
    assert [bool(row["test_accuracy"]) for row in rows] == [row is chosen for row in rows]


def test_every_job_has_its_log_and_its_timing(world):
    _, _, results = world
    logs = {path.relative_to(results / "logs").with_suffix("") for path in (results / "logs").rglob("*.log")}
    timings = {path.relative_to(results / "timing").with_suffix("") for path in (results / "timing").rglob("*.tsv")}
    assert logs == timings
    downloads = {"download_dataset", "download_base", "download_task"}
    alpacaeval = {"alpacaeval_download", "alpacaeval_generate", "alpacaeval_judge"}
    others = downloads | alpacaeval | {"personalise", "style"}  # the demo has no groups
    others |= {"cards"}  # a target of its own
    assert {path.parts[0] for path in logs} == Checkout.rules(ROOT) - others


def test_results_carry_what_made_them(world):
    _, _, results = world
    summary = json.loads((results / "runs/tiny/world/dpo-lpc/seed-0/train.json").read_text())
    assert summary["identity"]["spec"]["latent"]["codes"] == 8
    assert summary["torch"] and summary["transformers"]


def verified(checkout, config, capsys) -> tuple[int, list[str]]:
    code = verify.main(verify.parser().parse_args(["--configfile", str(checkout.write(config))]))
    return code, capsys.readouterr().out.splitlines()


def test_verify_finds_every_file_as_recorded(world, monkeypatch, capsys):
    checkout, config, results = world
    monkeypatch.chdir(checkout.folder)
    code, lines = verified(checkout, config, capsys)
    assert code == 0 and len(lines) == 1 and lines[0].endswith(" files: all as recorded")
    models = sum(len(list(folder.iterdir())) for folder in results.glob("runs/*/*/*/*/model"))
    assert int(lines[0].split()[0]) > models > 5


@pytest.mark.parametrize(
    "name",
    [
        "data/world/world.jsonl.gz",
        "data/world/pairs.parquet",
        "data/world.flip/pairs.parquet",
        "bases/tiny/model/model.safetensors",
        "reference/tiny/world/reference.parquet",
        "reference/tiny/world/statistics.safetensors",
        "runs/tiny/world/dpo-lpc/seed-0/model/latent.safetensors",
        "tasks/sums/questions.jsonl",
    ],
)
def test_verify_names_a_file_of_which_a_byte_changed(world, monkeypatch, capsys, name):
    checkout, config, results = world
    monkeypatch.chdir(checkout.folder)
    path = results / name
    original, times = path.read_bytes(), path.stat()
    content = bytearray(original)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    try:
        verify.content.cache_clear()
        verify.checkpoint.cache_clear()
        code, lines = verified(checkout, config, capsys)
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        verify.content.cache_clear()
        verify.checkpoint.cache_clear()
    named = path.parent if "bases" in name else path
    assert code == 1 and lines[-1].startswith(f"{len(lines) - 1} of ") and len(lines) > 1
    for line in lines[:-1]:
        assert line.startswith(f"{named.relative_to(checkout.folder)}: not the file that was used (its digest is ")
        assert line.endswith("and rerun") or line.endswith(verify.MAKE_AGAIN)


def test_verify_names_a_file_that_is_gone(world, monkeypatch, capsys):
    checkout, config, results = world
    monkeypatch.chdir(checkout.folder)
    path = results / "runs/tiny/world/dpo/seed-0/model/config.json"
    path.rename(path.with_suffix(".away"))
    try:
        code, (line, count) = verified(checkout, config, capsys)
    finally:
        path.with_suffix(".away").rename(path)
    assert code == 1 and count.startswith("1 of ")
    assert line.startswith(f"{path.relative_to(checkout.folder)}: no such file or directory, but ")


def test_nothing_to_do_afterwards(world):
    checkout, config, _ = world
    output = checkout.snakemake("all", "--cores", "2", "--configfile", checkout.write(config))
    assert "Nothing to be done" in output


def test_changed_key_really_reruns_its_chain_alone(world):
    checkout, config, results = world
    before = stamps(results, "runs/**/*.json") | stamps(results, "runs/**/*.svg")
    changed = copy.deepcopy(config)
    changed["evaluation"]["tsne"]["perplexity"] = 5
    checkout.snakemake("all", "--cores", "2", "--configfile", checkout.write(changed))
    after = stamps(results, "runs/**/*.json") | stamps(results, "runs/**/*.svg")
    assert {path.name for path in before if before[path] != after[path]} == {"tsne_source.svg", "tsne_code.svg"}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real preferences in {REAL}")
def test_real_preferences(checkout):
    """UltraFeedback-schema rows, of which prompts repeat, for training; flat pairs as a further held-out dataset."""
    with gzip.open(REAL / "alpacaeval_preferences.jsonl.gz", "rt", encoding="utf-8") as stream:
        (checkout.folder / "real.jsonl").write_text("".join(itertools.islice(stream, 400)))
    with gzip.open(REAL / "hh_rlhf_harmless_test.jsonl.gz", "rt", encoding="utf-8") as stream:
        (checkout.folder / "flat.jsonl").write_text("".join(itertools.islice(stream, 120)))
    config = copy.deepcopy(SMALL)
    config["datasets"] = {
        "real": {"kind": "ultrafeedback", "path": "real.jsonl", "split": {"validation": 40, "test": 80}},
        "harmless": {
            "kind": "pairs",
            "path": "flat.jsonl",
            "split": {"validation": 10, "test": 90},
            "max_rejected_rows": 0.05,  # one has no text
        },
    }
    config["bases"]["tiny"]["scratch"]["dataset"] = "real"
    config["experiments"]["main"]["datasets"] = ["real"]
    config["evaluation"] = {"preference": {"datasets": ["harmless"]}, "tsne": {"perplexity": 5}}
    checkout.snakemake("all", "--cores", "2", "--configfile", checkout.write(config))
    rows = table(checkout.folder / "results/small", "preference_accuracy")
    assert {(row["dataset"], row["recipe"]) for row in rows} == set(
        itertools.product(["real", "harmless"], ["dpo", "dpo-lpc"])
    )
    assert all(int(row["n"]) > 50 for row in rows)
    # Longer completions win more often than not in these data.
    assert all(float(row["longer_accuracy"]) > 0.5 for row in rows if row["dataset"] == "real")
