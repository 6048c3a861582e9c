"""The step evaluate: the files of its steps in one process, one load of the model, and what it computes again."""

import json
import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from steps import run_step
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import latents
from lpc.data.tokens import tokenize_pairs
from lpc.evaluation import finished
from lpc.files import write_json, write_parquet
from lpc.model import loading
from lpc.model.policy import LatentPolicy

TOKENS = {"max_length": 64, "max_prompt_length": 32}
ALIKE = {"tokens": TOKENS, "precision": "float32"}
DPO = {"name": "dpo", "beta": 0.1}
DRAWN = {"inference": {"inference": "sample", "inference_seed": 3}}
SPEC = {
    "datasets": ["own", "other"],
    "preference": {**ALIKE, **DRAWN, "objective": DPO, "batch_size": 8},
    "latents": {**ALIKE, **DRAWN, "seed": 0, "batch_size": 8},
    "tsne": {"perplexity": 5, "seed": 0},
    "completions": {**ALIKE, **DRAWN, "prompts": 2, "codes": 2, "max_new_tokens": 4, "seed": 0},
    "personalise": {**ALIKE, "objective": DPO, "batch_size": 8, "contexts": [0, 2], "seed": 0},
    "style": {**ALIKE, "prompts": 3, "max_new_tokens": 4, "batch_size": 3, "seed": 0},
}
PARTS = ["preference-own", "preference-other", "latents", "tsne", "completions", "personalise", "style"]
FILES = {
    "preference-own": {"preference/own.json", "preference/own.parquet"},
    "preference-other": {"preference/other.json", "preference/other.parquet"},
    "latents": {"latents.json", "latents.parquet"},
    "tsne": {"tsne.csv", *(f"tsne_{colour}.{suffix}" for colour in ("source", "code") for suffix in ("svg", "png"))},
    "completions": {"completions.json"},
    "personalise": {"person.json"},
    "style": {"style.json"},
}


class Project:
    """A run with codes, its own pairs of two groups, and another dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spec = folder, json.loads(json.dumps(SPEC))
        self.model, self.record, self.output = folder / "model", folder / "base.json", folder / "evaluation"

    def make(self, latent: dict | None) -> None:
        built = latent and latents.build(latents.parse(latent), 32, seed=0)
        LatentPolicy(make_backbone(), built).save_pretrained(self.model)
        make_tokenizer().save_pretrained(self.model)
        record = {"path": "unused", "chat_template": None, "chat_template_kwargs": {}, "trust_remote_code": False}
        write_json(self.record, record)
        for name, splits in (("own", ("train", "validation", "test")), ("other", ("test",))):
            self.write(name, make_pairs(60, splits=splits))

    def write(self, name: str, pairs: pa.Table) -> None:
        groups = [["left", "right"][i % 2] for i in range(len(pairs))]
        for column in ("source", "group"):
            if column in pairs.column_names:
                pairs = pairs.drop_columns(column)
            pairs = pairs.append_column(column, pa.array(groups))
        write_parquet(self.folder / f"{name}.parquet", pairs)
        lengths = tokenize_pairs(pairs, make_tokenizer(), **TOKENS)
        columns = {f"{side}_tokens": list(map(len, getattr(lengths, side))) for side in ("chosen", "rejected")}
        columns |= {f"{side}_logp": [-2.0 * n for n in columns[f"{side}_tokens"]] for side in ("chosen", "rejected")}
        write_parquet(self.folder / f"{name}-reference.parquet", pa.table({"pair_id": pairs["pair_id"], **columns}))

    def run(self) -> None:
        words = ["--model", self.model, "--base", self.record, "--finished", self.folder / "finished"]
        words += ["--pairs", *(self.folder / f"{name}.parquet" for name in self.spec["datasets"])]
        words += ["--reference", *(self.folder / f"{name}-reference.parquet" for name in self.spec["datasets"])]
        run_step("evaluate", self.spec, *words, "--output", self.output)

    def evaluate(self, caplog) -> tuple[list[str], int]:
        """Run the step, its outputs deleted as by Snakemake. Returns the parts that were computed, and the loads."""
        caplog.clear()
        shutil.rmtree(self.output, ignore_errors=True)
        with caplog.at_level(logging.INFO):
            self.run()
        lines = [record.getMessage() for record in caplog.records if record.name == "lpc"]
        computed = [line for line in lines if line in PARTS]
        taken = [line.split(":")[0] for line in lines if "nothing that it depends on has changed" in line]
        due = [name for name in PARTS if name in taken or name in computed]
        assert sorted(computed + taken) == sorted(due)
        assert {str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file()} == set().union(
            *(FILES[part] for part in due)
        )
        return computed, sum(line.endswith(": the model is loaded") for line in lines)

    def bytes(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.output)): p.read_bytes() for p in self.output.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder in which the step has run."""
    project = Project(tmp_path_factory.mktemp("evaluated"))
    project.make({"kind": "lpc", "codes": 4, "code_scale": 1.0})
    project.run()
    return project.folder


@pytest.fixture
def project(evaluated, tmp_path):
    """A copy of it."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path)


def test_the_files_are_those_of_each_step_alone(project):
    """Although they share the model, whose z some steps draw, and others do not."""
    alone = project.folder / "alone"
    run = ["--model", project.model, "--base", project.record]
    own = [*run, "--pairs", project.folder / "own.parquet"]
    reference = ["--reference", project.folder / "own-reference.parquet"]
    to = lambda *names: [word for option, name in names for word in (f"--{option}", alone / name)]  # noqa: E731
    spec = project.spec
    run_step("style", spec["style"], *own, "--person", project.output / "person.json", *to(("output", "style.json")))
    run_step("personalise", spec["personalise"], *own, *reference, *to(("output", "person.json")))
    read = ["--latents", project.output / "latents.parquet"]
    run_step("completions", spec["completions"], *own, *read, *to(("output", "completions.json")))
    figures = [("coordinates", "tsne.csv"), ("by-source", "tsne_source.svg"), ("by-code", "tsne_code.svg")]
    run_step("tsne", spec["tsne"], *read, *to(*figures))
    names = [("output", "latents.parquet"), ("summary", "latents.json")]
    run_step("latents", spec["latents"], *own, *to(*names))
    for name in ("other", "own"):
        words = ["--pairs", project.folder / f"{name}.parquet"]
        words += ["--reference", project.folder / f"{name}-reference.parquet"]
        names = [("output", f"preference/{name}.parquet"), ("summary", f"preference/{name}.json")]
        run_step("preference", spec["preference"], *run, *words, *to(*names))
    project.output, together = alone, project.bytes()
    assert project.bytes() == together


@pytest.mark.parametrize(
    ("section", "key", "value", "parts", "loads"),
    [
        ("preference", "batch_size", 4, [], 0),
        ("tsne", "perplexity", 4, ["tsne"], 0),
        ("completions", "codes", 1, ["completions"], 1),
        ("personalise", "contexts", [0, 4], ["personalise", "style"], 1),
        ("style", "seed", 1, ["style"], 1),
        # t-SNE, completions and style follow what they read, and only if that really changes.
        ("latents", "seed", 1, ["latents", "tsne", "completions"], 1),
        ("preference", "inference", {"inference": "mode"}, ["preference-own", "preference-other"], 1),
    ],
)
def test_a_changed_setting_computes_its_part_and_what_reads_that(project, section, key, value, parts, loads, caplog):
    before = project.bytes()
    project.spec[section][key] = value
    assert project.evaluate(caplog) == (parts, loads)
    after = project.bytes()
    assert {name for name in before if before[name] != after[name]} <= set().union(*(FILES[part] for part in parts))
    assert project.evaluate(caplog) == ([], 0)


def test_changed_files_compute_what_reads_them(project, caplog):
    times = {path: path.stat().st_mtime_ns for path in project.output.rglob("*.json")}
    project.write("other", make_pairs(40, splits=("test",)))
    assert project.evaluate(caplog) == (["preference-other"], 1)
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"other.json"}, "what is restored is the same file, with its time"
    project.record.write_text(json.dumps(json.loads(project.record.read_text()) | {"training": {"seconds": 1}}))
    (project.model / ".snakemake_timestamp").touch()
    assert project.evaluate(caplog) == ([], 0)
    make_tokenizer().save_pretrained(project.model)
    with open(project.model / "generation_config.json", "a") as stream:
        stream.write("\n")
    computed, _ = project.evaluate(caplog)
    assert set(PARTS) - {"tsne", "style"} <= set(computed), "all that reads the model"
    del project.spec["completions"]
    project.spec["datasets"] = ["own"]
    assert project.evaluate(caplog) == ([], 0)


def test_a_part_that_fails_loses_nothing_of_the_others(project, monkeypatch, caplog):
    project.spec["completions"]["seed"] = project.spec["latents"]["seed"] = project.spec["personalise"]["seed"] = 1

    def stop(*_, **__):
        raise KeyError("nothing")

    with monkeypatch.context() as patch:
        patch.setattr("lpc.steps.completions.strongest_codes", stop)
        with pytest.raises(KeyError):
            project.evaluate(caplog)
    assert project.evaluate(caplog) == (["completions", "personalise", "style"], 1), (
        "not latents and t-SNE, which were ready"
    )


def test_a_run_without_a_latent_has_its_preference_alone(tmp_path, caplog):
    project = Project(tmp_path)
    project.make(None)
    project.spec = {"datasets": ["own"], "preference": {**ALIKE, "objective": DPO, "batch_size": 8, "inference": None}}
    assert project.evaluate(caplog) == (["preference-own"], 1)


def test_code_and_versions_are_part_of_the_identity(project):
    identity = json.loads((project.folder / "finished/latents" / finished.IDENTITY).read_text())
    assert {"steps/latents.py", "latents/lpc.py", "evaluation/diagnostics.py"} <= identity["modules"].keys()
    assert not {"steps/evaluate.py", "objectives/dpo.py", "report/figures.py"} & identity["modules"].keys()
    assert identity["versions"].keys() == {"torch", "transformers", "numpy", "scikit-learn"}
    drawn = json.loads((project.folder / "finished/tsne" / finished.IDENTITY).read_text())
    assert "report/figures.py" in drawn["modules"] and "matplotlib" in drawn["versions"] and "model" not in drawn
    of_pairs = json.loads((project.folder / "finished/preference-own" / finished.IDENTITY).read_text())
    assert {"objectives/dpo.py", "latents/lpc.py"} <= of_pairs["modules"].keys()


def test_another_model_is_never_taken_for_the_loaded_one(project, tmp_path):
    load = loading.LoadedRun()
    load(project.record, project.model)
    with pytest.raises(ValueError, match="is loaded, not"):
        load(project.record, tmp_path / "another")
