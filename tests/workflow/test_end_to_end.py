"""Whole workflows, every step for real, in a small size: the generated world, and a slice of real preferences."""

import copy
import csv
import gzip
import itertools
import json
import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import transformers
import yaml
from checkout import ROOT, SECRETS, SMALL, Checkout

from lpc import crate, files, modules, verify
from lpc.cli import UserError
from lpc.config.load import load

REAL = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.timeout(1800)  # the first test runs the workflow
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


def test_snakemakes_own_report_holds_tables_figures_and_the_page(world):
    checkout, config, results = world
    file = checkout.folder / "own.html"
    checkout.snakemake("--report", file, "--configfile", checkout.write(config))
    page = file.read_text(encoding="utf-8")
    of_runs = results.glob("runs/*/*/*/*/evaluation/**/*")
    shown = [path for path in of_runs if path.match("tsne_*.svg") or path.match("preference/*.json")]
    captioned = [*results.glob("tables/*.csv"), *shown, results / "report.html"]
    assert len(captioned) > 20
    for path in captioned:
        assert f"results/small/{path.relative_to(results)}" in page, path
    assert "Tokens whose logits each code raises" in page, "captions of tables are rendered"


def test_tokens_of_each_code_are_in_the_table(world):
    rows = table(world[2], "code_tokens")
    assert {row["recipe"] for row in rows} == {"dpo-lpc", SWEPT, "simpo-lpc"}
    assert len(rows) == 3 * 8 * 2 * 10
    assert all(
        (float(row["logit"]) > 0) == (row["end"] == "raised") and isinstance(json.loads(row["token"]), str)
        for row in rows
    )


def test_codes_are_forced_in_runs_that_have_some(world):
    found = {path.parts[-4] for path in world[2].glob("runs/*/*/*/*/evaluation/completions.json")}
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
    others = downloads | alpacaeval | {"cards", "mix", "quantize"}  # a target of its own; mixtures; quantised bases
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


@pytest.mark.skipif(not find_spec("rocrate"), reason="not installed: rocrate; pip install 'lpc[crate]'")
def test_the_crate_describes_the_results(world, monkeypatch, capsys, tmp_path):
    """Read by rocrate: what the specification requires, each file as it is, and the same again but for the date."""
    from rocrate.rocrate import ROCrate

    checkout, config, results = world
    monkeypatch.chdir(checkout.folder)
    words = ["--configfile", str(checkout.write(config))]
    crate.main(crate.parser().parse_args(words))
    graph = files.read_json(results / "ro-crate-metadata.json")["@graph"]
    found = ROCrate(results)
    assert found.metadata.get("conformsTo") == "https://w3id.org/ro/crate/1.1"
    root = found.root_dataset
    assert root["name"] == "Results of project small" and root.datePublished.tzinfo and len(root["description"]) > 20
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert [entity.id for entity in root["license"]] == [f"https://spdx.org/licenses/{cited['license']}"]
    assert [entity["name"] for entity in root["author"]] == [author["name"] for author in cited["authors"]]

    ids = {entity["@id"] for entity in graph}
    pointed = {value["@id"] for entity in graph for values in entity.values() for value in _references(values)}
    assert len(ids) == len(graph) and pointed - ids == {"https://w3id.org/ro/crate/1.1"}
    named = {unquote(entity.id): entity for entity in root["hasPart"]}
    assert named.keys() >= {"report.html", "configuration.json", "tables/preference_accuracy.csv"}
    assert sum(name.endswith("/model/model.safetensors") for name in named) == 5
    digests = 0
    for name, entity in named.items():
        path = results / name
        assert path.is_dir() if name.endswith("/") else path.stat().st_size == int(entity["contentSize"]), name
        if digest := entity.get("sha256"):
            assert files.sha256(path) == digest
            digests += 1
    assert digests > 30
    model = named[f"runs/tiny/world/{SWEPT}/seed-0/model/"]
    assert {Path(unquote(part.id)).name for part in model["hasPart"]} == {
        path.name for path in (results / unquote(model.id)).iterdir() if not path.name.startswith(".snakemake")
    }
    (run,) = root["mentions"]
    workflow = run["instrument"]
    assert (
        run.type == "CreateAction"
        and model in run["result"]
        and [part.id for part in run["object"]] == ["configuration.json"]
    )
    assert workflow["identifier"] == modules.commit() and workflow["license"] == root["license"]
    assert {entity["name"]: entity["version"] for entity in workflow["softwareRequirements"]} == {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    assert load(results / "configuration.json") == load(words[1])

    (tmp_path / "mine.cff").write_text(
        "title: Mine\nlicense: CC-BY-4.0\nauthors: [{family-names: Doe, given-names: Jo, orcid: 'https://orcid.org/0'}]\n"
    )
    crate.main(crate.parser().parse_args([*words, "--citation", str(tmp_path / "mine.cff")]))
    mine = ROCrate(results).root_dataset
    (author,) = mine["author"]
    assert (author.id, author.type, author["name"]) == ("https://orcid.org/0", "Person", "Jo Doe")
    assert mine["license"][0]["name"] == "CC-BY-4.0" and mine["mentions"][0]["instrument"]["license"] == root["license"]

    crate.main(crate.parser().parse_args(words))
    again = files.read_json(results / "ro-crate-metadata.json")["@graph"]
    for entities in (graph, again):
        assert [entity.pop("datePublished") for entity in entities if entity["@id"] == "./"]
    assert again == graph


def _references(values) -> list[dict]:
    return [value for value in (values if isinstance(values, list) else [values]) if isinstance(value, dict)]


def test_a_crate_of_an_unfinished_project_or_without_licence_is_refused(world, monkeypatch, tmp_path):
    pytest.importorskip("rocrate", reason="not installed: rocrate; pip install 'lpc[crate]'")
    checkout, config, _ = world
    monkeypatch.chdir(checkout.folder)
    larger = copy.deepcopy(config)
    larger["experiments"]["main"]["seeds"] = [0, 1]
    with pytest.raises(UserError, match=r"results/small: \d+ of \d+ jobs have no results, train first; finish"):
        crate.main(crate.parser().parse_args(["--configfile", str(checkout.write(larger))]))
    words = ["--configfile", str(checkout.write(config)), "--citation"]
    (tmp_path / "none.cff").write_text("title: Mine\nauthors: [{name: Us}]\n")
    with pytest.raises(
        UserError, match=r"none\.cff: cannot be read \(KeyError: 'license'\); it must be in the Citation"
    ):
        crate.main(crate.parser().parse_args([*words, str(tmp_path / "none.cff")]))


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
    # Trained on a mixture of which one part is all of the other data set, and scored on a third one.
    config["datasets"]["both"] = {"kind": "mix", "mix": {"real": 1.0, "harmless": 0.5}}
    config["datasets"]["unseen"] = {**SMALL["datasets"]["world"], "rows": 60, "split": {"test": "all"}}
    config["experiments"]["main"]["datasets"] = ["both"]
    config["evaluation"] = {"preference": {"datasets": ["harmless", "unseen"]}, "tsne": {"perplexity": 5}}
    checkout.snakemake("all", "--cores", "2", "--configfile", checkout.write(config))
    rows = table(checkout.folder / "results/small", "preference_accuracy")
    assert {(row["dataset"], row["recipe"]) for row in rows} == set(
        itertools.product(["both", "harmless", "unseen"], ["dpo", "dpo-lpc"])
    )
    assert all(int(row["n"]) > 50 for row in rows)
    # Longer completions win more often than not in these data.
    assert all(float(row["longer_accuracy"]) > 0.5 for row in rows if row["dataset"] == "both")
    sources = {(row["dataset"], row["source"]) for row in table(checkout.folder / "results/small", "source_accuracy")}
    assert {("both", "real"), ("both", "harmless")} <= sources and ("both", "evol_instruct") not in sources
