"""One job does all benchmark tasks of a model: which of them it computes again, run for real."""

import copy
import re

import pytest
from checkout import SMALL, Checkout

from lpc.layout import Layout

pytestmark = pytest.mark.timeout(1800)  # the first test trains a base and a run
LAYOUT = Layout("results/small")
RUN, BASE = ("benchmark", "tiny", "world", "dpo-lpc", "0"), ("benchmark_base", "tiny")
OUTPUTS = {RUN: LAYOUT.run(*RUN[1:]).benchmarks, BASE: LAYOUT.base(*BASE[1:]).benchmarks}
EASY = {"task": "config/tasks/world_choice.yaml", "metric": "acc", "questions": {"kind": "easy", "count": 8}}
TRUTH = {"task": "config/tasks/world_truth.yaml", "metric": "acc", "questions": {"kind": "truth", "count": 8}}


class Project:
    """A base and a run with their benchmarks."""

    def __init__(self, folder) -> None:
        self.checkout = Checkout(folder)
        self.config = copy.deepcopy(SMALL)
        self.tasks = {"easy": copy.deepcopy(EASY), "truth": copy.deepcopy(TRUTH)}

    def evaluate(self, *jobs: tuple[str, ...], expect: int = 0) -> str:
        """Make the results of these jobs; return what Snakemake prints."""
        self.config["evaluation"]["benchmarks"] = {"tasks": self.tasks}
        targets = [OUTPUTS[job].result(task) for job in jobs for task in self.tasks]
        config = self.checkout.write(self.config)
        return self.checkout.snakemake(*targets, "--cores", "2", "--configfile", config, expect=expect)

    def log(self, job: tuple[str, ...]) -> str:
        return (self.checkout.folder / LAYOUT.log(*job)).read_text()

    def computed(self, job: tuple[str, ...]) -> list[str]:
        """The tasks that the last job computed. It loads a model for these alone."""
        log = self.log(job)
        tasks = re.findall(r" INFO (\w+) acc = ", log)
        loaded = re.findall(r" INFO (.*): the model is loaded$", log, re.MULTILINE)
        assert loaded == ([", ".join(tasks)] if tasks else []), log
        return tasks

    def results(self, job: tuple[str, ...]) -> dict[tuple[str, str], bytes]:
        """Results and samples by (task, file)."""
        folder = self.checkout.folder / OUTPUTS[job].folder
        return {(path.name.partition(".")[0], path.name): path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    project.evaluate(RUN, BASE)
    for job in (RUN, BASE):
        assert project.computed(job) == ["easy", "truth"]
        assert len(project.results(job)) == 4
    return project


def test_each_change_computes_its_own_tasks(project):
    """One after the other, of the base, and the first of the run, too."""

    def edit(file):
        path = project.checkout.folder / file
        path.write_bytes(path.read_bytes() + b"\n")

    changes = [
        ([RUN, BASE], lambda: project.tasks["easy"].update(limit=4), ["easy"]),
        ([BASE], lambda: project.tasks.update(more=copy.deepcopy(EASY)), ["more"]),
        ([BASE], lambda: project.tasks.pop("more"), []),
        ([BASE], lambda: edit("src/lpc/evaluation/harness.py"), ["easy", "truth"]),
    ]
    for number, (jobs, change, expected) in enumerate(changes):
        before = {job: project.results(job) for job in jobs}
        change()
        output = project.evaluate(*jobs)
        for job in jobs:
            assert f"rule {job[0]}:" in output and project.computed(job) == expected, number
            after = project.results(job)
            assert {key for key in before[job] if key[0] not in expected and after[key] != before[job][key]} == set()
    assert "Nothing to be done" in project.evaluate(BASE)


def test_a_task_that_fails_loses_nothing_of_the_others(project):
    """Snakemake deletes all outputs of the failed job; the next one computes the failed task alone."""
    folder = project.checkout.folder / "config/tasks"
    (folder / "broken.py").write_text("def broken(*_):\n    return {}['nothing']\n")
    (folder / "broken.yaml").write_text(
        (folder / "world_choice.yaml").read_text() + "process_results: !function broken.broken\n"
    )
    project.tasks["new"] = {**copy.deepcopy(EASY), "task": "config/tasks/broken.yaml"}
    project.tasks["easy"]["limit"] = 3
    project.evaluate(BASE, expect=1)
    *_, line = project.log(BASE).splitlines()
    assert line == "error: 1 of 3 tasks failed; task new: KeyError: 'nothing' (its traceback is in the log)"
    assert "in broken\n" in project.log(BASE)
    assert not {("easy", "easy.json"), ("truth", "truth.json")} & project.results(BASE).keys()
    project.tasks["new"]["task"] = EASY["task"]
    project.evaluate(BASE)
    assert project.computed(BASE) == ["new"]
    assert {"easy", "truth", "new"} <= {task for task, _ in project.results(BASE)}
