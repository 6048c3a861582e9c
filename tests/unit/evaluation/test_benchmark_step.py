"""The step `benchmark`: all tasks of a model in one process, and which of them it computes again."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lm_eval
import pytest
from steps import run_step
from tiny import make_backbone, make_tokenizer

from lpc import latents, modules
from lpc.cli import UserError
from lpc.evaluation import finished
from lpc.model.policy import LatentPolicy
from lpc.steps import benchmark

TASKS = Path(__file__).parents[3] / "config" / "tasks"
SOURCE = Path(__file__).parents[3] / "src"
CODES = {"codes": 4, "inference": "sample"}


class Project:
    """A base, a run with a latent, and two tasks with generated questions."""

    def __init__(self, folder: Path, caplog) -> None:
        self.folder, self.caplog = folder, caplog
        self.model, self.record, self.output = folder / "model", folder / "base.json", folder / "benchmarks"
        LatentPolicy(make_backbone(), latents.build(latents.parse(CODES), 32, seed=0)).save_pretrained(self.model)
        make_tokenizer().save_pretrained(self.model)
        base = {"name": "tiny", "path": str(self.model), "dtype": "float32", "trust_remote_code": False}
        base |= {"chat_template": None, "chat_template_kwargs": {}, "sha256": "0", "training": {"seconds": 1}}
        self.record.write_text(json.dumps(base))
        self.tasks = {}
        for name, kind, task in [("easy", "easy", "world_choice"), ("truths", "truth", "world_truth")]:
            shutil.copy(TASKS / f"{task}.yaml", folder)
            run_step("questions", {"kind": kind, "count": 5, "seed": 1}, "--output", folder / f"{name}.jsonl")
            data = {"test": str(folder / f"{name}.jsonl")}
            self.tasks[name] = {"task": str(folder / f"{task}.yaml"), "metric": "acc", "data": data}
        self.spec = {"tasks": self.tasks, "batch_size": 4, "inference": {"inference": "mean"}}

    def evaluate(self, *names: str, model: bool = True) -> tuple[list[str], bool]:
        """Run the step for these tasks, all by default, on the run or the base, its outputs deleted as by Snakemake.

        Returns the tasks that were computed, and whether the model was loaded.
        """
        self.caplog.clear()
        shutil.rmtree(self.output, ignore_errors=True)
        spec = self.spec | {"tasks": {name: self.tasks[name] for name in names or self.tasks}}
        arguments = ["--base", self.record, "--finished", self.folder / "finished", "--output", self.output]
        with self.caplog.at_level(logging.INFO):
            run_step("benchmark", spec, *arguments, *(["--model", self.model] if model else []))
        assert {path.name for path in self.output.iterdir()} == {
            f"{name}{suffix}" for name in spec["tasks"] for suffix in (".json", ".samples.jsonl")
        }
        return self.computed()

    def computed(self) -> tuple[list[str], bool]:
        lines = [record.getMessage() for record in self.caplog.records if record.name == "lpc"]
        computed = [line.split()[0] for line in lines if " acc = " in line]
        taken = [line.split(":")[0] for line in lines if "nothing that it depends on has changed" in line]
        assert not set(computed) & set(taken)
        return computed, any(line.endswith(": the model is loaded") for line in lines)

    def result(self, name: str) -> dict:
        return json.loads((self.output / f"{name}.json").read_text())

    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.output.iterdir()}

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.output.iterdir()}


@pytest.fixture
def project(tmp_path, caplog):
    return Project(tmp_path, caplog)


BOTH = (["easy", "truths"], True)


def test_results_and_samples_of_all_tasks(project):
    assert project.evaluate() == BOTH
    result = project.result("truths")
    assert result["task"] == "truths" and result["base"] == "tiny" and result["n"] == 5
    samples = [json.loads(line) for line in (project.output / "truths.samples.jsonl").read_text().splitlines()]
    shares = [sample["metrics"]["acc"] for sample in samples]
    assert result["metrics"]["acc"]["value"] == pytest.approx(sum(shares) / 5)


def test_a_task_that_names_none_of_lm_eval_is_that_of_its_own_name(project, arc_rows):
    project.tasks = {"arc_easy": {"metric": "acc", "data": {"test": str(arc_rows)}}}
    assert project.evaluate() == (["arc_easy"], True)
    assert project.result("arc_easy")["harness_task"] == "arc_easy"


def test_a_task_alone_gives_what_it_gives_among_others(project):
    project.spec["inference"] = {"inference": "sample"}
    project.evaluate()
    together = {name: project.result(name) for name in project.tasks}, project.bytes()
    shutil.rmtree(project.folder / "finished")
    for name in reversed(project.tasks):
        assert project.evaluate(name) == ([name], True)
        assert project.result(name) | {"seconds": 0} == together[0][name] | {"seconds": 0}
        samples = f"{name}.samples.jsonl"
        assert project.bytes()[samples] == together[1][samples]


def test_nothing_new_computes_nothing_and_loads_no_model(project):
    project.evaluate()
    before = project.bytes()
    project.spec["batch_size"] = 2
    project.tasks["easy"]["metric"] = "acc_norm"
    for path in project.model.iterdir():
        path.touch()
    (project.model / ".snakemake_timestamp").touch()
    record = json.loads(project.record.read_text())
    project.record.write_text(json.dumps(record | {"training": {"seconds": 2}}))
    assert project.evaluate() == ([], False)
    assert project.bytes() == before


def test_a_removed_task_computes_nothing_and_neither_does_its_return(project):
    project.evaluate()
    assert project.evaluate("easy") == ([], False)
    assert project.evaluate() == ([], False)


def test_an_added_task_is_computed_alone(project):
    assert project.evaluate("easy") == (["easy"], True)
    assert project.evaluate() == (["truths"], True)


def append(path: Path, text: str) -> None:
    path.write_bytes(path.read_bytes() + text.encode())


def replace_weights(project) -> None:
    LatentPolicy(make_backbone(), latents.build(latents.parse(CODES), 32, seed=1)).save_pretrained(project.model)


def add_function(project) -> None:
    append(project.folder / "world_choice.yaml", "process_docs: !function own.first\n")
    (project.folder / "own.py").write_text("def first(rows):\n    return rows.select([0, 1])\n")


CHANGES = {
    # what: (change, tasks that it computes)
    "limit": (lambda project: project.tasks["easy"].update(limit=3), ["easy"]),
    "questions": (lambda project: append(project.folder / "easy.jsonl", "\n"), ["easy"]),
    "definition": (lambda project: append(project.folder / "world_truth.yaml", "# edited\n"), ["truths"]),
    "function beside it": (add_function, ["easy"]),
    "inference": (lambda project: project.spec.update(inference={"inference": "mode"}), ["easy", "truths"]),
    "weights": (replace_weights, ["easy", "truths"]),
    "tokenizer": (
        lambda project: append(project.model / "tokenizer_config.json", "\n"),
        ["easy", "truths"],
    ),
    "base": (
        lambda project: project.record.write_text(project.record.read_text().replace('"tiny"', '"other"')),
        ["easy", "truths"],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_computes_the_tasks_that_depend_on_it(project, what):
    change, expected = CHANGES[what]
    project.evaluate()
    before, times = project.bytes(), project.times()
    change(project)
    assert project.evaluate() == (expected, True)
    # By their times: a result may be the same, and what is not computed again keeps its time.
    rewritten = {name for name, time in project.times().items() if time != times[name]}
    assert rewritten == {f"{name}{suffix}" for name in expected for suffix in (".json", ".samples.jsonl")}
    assert all(project.bytes()[name] == before[name] for name in before.keys() - rewritten)
    assert project.evaluate() == ([], False)


def test_the_base_by_its_recorded_digest(project):
    assert project.evaluate(model=False) == BOTH
    assert project.evaluate(model=False) == ([], False)
    project.record.write_text(project.record.read_text().replace('"sha256": "0"', '"sha256": "1"'))
    assert project.evaluate(model=False) == BOTH


def test_code_versions_image_and_download_are_part_of_the_identity(project, monkeypatch, tmp_path):
    """Without an edit of the package itself: what the identity holds of each."""

    def identity():
        kinds, packages = finished.latent_module(project.model), ("torch", "transformers", "lm_eval")
        return finished.of_code("benchmark", kinds, packages)

    found = identity()
    package = {str(path.relative_to(modules.PACKAGE)) for path in modules.modules_of("lpc.steps.benchmark")}
    assert package >= {"steps/benchmark.py", "evaluation/harness.py", "model/policy.py"}
    assert (
        found["modules"].keys() - package
        == {str(path.relative_to(modules.PACKAGE)) for path in modules.modules_of("lpc.latents.lpc")} - package
        != set()
    )
    assert found["versions"].keys() == {"torch", "transformers", "lm_eval"} and found["container"] is None
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/evaluation-1.sif")
    changed = identity()
    assert changed["container"]["image"] == "evaluation-1.sif"
    record = tmp_path / "download.json"
    record.write_text("{}")
    entry = {"name": "arc", "task": "arc_easy", "data": None}
    first = benchmark.identity_of_task({"download": str(record)}, entry)
    append(record, "\n")
    assert benchmark.identity_of_task({"download": str(record)}, entry) != first


def test_the_image_is_compared(project, monkeypatch):
    """`write_json` adds the image to what it writes, so the record must still equal the identity."""
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/evaluation-1.sif")
    assert project.evaluate() == BOTH
    assert project.evaluate() == ([], False)
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/evaluation-2.sif")
    assert project.evaluate() == BOTH
    assert project.result("easy")["container"]["image"] == "evaluation-2.sif"


@pytest.mark.parametrize(
    ("fault", "message", "traceback"),
    [
        ({"metric": "f1"}, "task easy: .* has no metric 'f1'", False),
        ({"data": {"test": "gone.jsonl"}}, r"task easy: FileNotFoundError: .*gone\.jsonl", True),
        ({"task": "gone.yaml"}, r"task easy: gone\.yaml: not the definition of a task", False),
        ({"chat_template": True}, "task easy: this base's tokenizer has no chat template", False),
    ],
)
def test_a_task_that_fails_loses_nothing_of_the_others(project, fault, message, traceback):
    (project.model / "chat_template.jinja").unlink(missing_ok=True)
    config = project.model / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    sound = dict(project.tasks["easy"])
    project.tasks["easy"].update(fault)
    with pytest.raises(UserError, match=f"^1 of 2 tasks failed; {message}"):
        project.evaluate()
    assert project.computed() == (["truths"], True)
    errors = [record for record in project.caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1 and bool(errors[0].exc_info) == traceback
    with pytest.raises(UserError, match=message):
        project.evaluate()
    assert project.computed()[0] == []
    project.tasks["easy"] = sound
    assert project.evaluate() == (["easy"], True)


def test_a_group_without_the_metric_of_its_tasks_stops_no_other(project, arc_rows):
    stock = Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"
    folder = project.folder / "group"
    folder.mkdir()
    (folder / "part.yaml").write_text(
        f"include: {stock}\ntask: part\ntag: []\ndataset_path: json\ndataset_name: null\ntraining_split: null\n"
        f"validation_split: null\ndataset_kwargs: {{data_files: {{test: {arc_rows}}}}}\n"
    )
    (folder / "all.yaml").write_text("group: all\ntask: [part]\naggregate_metric_list: [{metric: acc_norm}]\n")
    project.tasks = {"all": {"task": str(folder / "all.yaml"), "metric": "acc"}, **project.tasks}
    with pytest.raises(UserError, match=r"^1 of 3 tasks failed; task all: KeyError: 'acc'"):
        project.evaluate()
    assert project.computed()[0] == ["easy", "truths"]


def test_an_unexpected_error_keeps_its_traceback_and_all_failures_are_named(project):
    (project.folder / "broken.py").write_text("def broken(*_):\n    return {}['nothing']\n")
    append(project.folder / "world_choice.yaml", "process_results: !function broken.broken\n")
    project.tasks["truths"]["metric"] = "f1"
    with pytest.raises(UserError, match=r"^2 of 2 tasks failed; task truths: .*; task easy: KeyError: 'nothing'"):
        project.evaluate()
    assert "in broken" in project.caplog.text and "Traceback" in project.caplog.text


def test_a_killed_step_keeps_its_finished_tasks(project):
    definition = project.folder / "world_truth.yaml"
    sound = definition.read_text()
    (project.folder / "slow.py").write_text("import time\n\n\ndef slow(*_):\n    time.sleep(300)\n")
    definition.write_text(sound.replace("lpc.evaluation.benchmarks.share_of_truth", "slow.slow"))
    log = project.folder / "log"
    command = [
        sys.executable,
        "-m",
        "lpc.steps.benchmark",
        "--spec",
        json.dumps(project.spec),
        "--base",
        project.record,
    ]
    command += ["--model", project.model, "--finished", project.folder / "finished", "--output", project.output]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with log.open("wb") as stream, subprocess.Popen(command, stderr=stream, env=environment) as process:
        end = time.monotonic() + 300
        while "easy acc = " not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        process.kill()
    definition.write_text(sound)
    assert project.evaluate() == (["truths"], True)


def test_an_incomplete_or_damaged_record_is_not_taken(project):
    project.evaluate()
    (project.folder / "finished/easy/easy.samples.jsonl").unlink()
    assert project.evaluate() == (["easy"], True)
    (project.folder / "finished/truths/identity.json").write_text('{"base": ')
    with pytest.raises(UserError, match=r"task truths: .*identity\.json: not valid JSON .*; delete it and rerun"):
        project.evaluate()
