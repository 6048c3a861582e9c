"""One job does all benchmark tasks of a model: which of them it computes again, run for real."""

import copy
import re

import pytest
from checkout import SMALL, Checkout

from lpc.layout import Layout

LAYOUT = Layout("results/small")
RUN = ("tiny", "world", "dpo-lpc", "0")
EASY = {"task": "config/tasks/world_choice.yaml", "metric": "acc", "questions": {"kind": "easy", "count": 8}}
TRUTH = {"task": "config/tasks/world_truth.yaml", "metric": "acc", "questions": {"kind": "truth", "count": 8}}


class Project:
    """A base and a run with their benchmarks."""

    def __init__(self, folder) -> None:
        self.checkout = Checkout(folder)
        self.config = copy.deepcopy(SMALL)
        self.tasks = {"easy": copy.deepcopy(EASY), "truth": copy.deepcopy(TRUTH)}

    def evaluate(self, expect: int = 0) -> str:
        """Make the results of the tasks of base and run; return what Snakemake prints."""
        self.config["evaluation"]["benchmarks"] = {"tasks": self.tasks}
        models = (LAYOUT.base("tiny"), LAYOUT.run(*RUN))
        targets = [model.benchmarks.result(task) for model in models for task in self.tasks]
        options = ("--cores", "2", "--keep-going", "--configfile", self.checkout.write(self.config))
        return self.checkout.snakemake(*targets, *options, expect=expect)

    def log(self, rule: str, names: tuple[str, ...]) -> str:
        return (self.checkout.folder / LAYOUT.log(rule, *names)).read_text()

    def computed(self) -> list[str]:
        """The tasks that the last jobs computed, the same for base and run; they load a model for these alone."""
        found = []
        for rule, names in (("benchmark_base", ("tiny",)), ("benchmark", RUN)):
            log = self.log(rule, names)
            tasks = re.findall(r" INFO (\w+) acc = ", log)
            loaded = re.findall(r" INFO (.*): the model is loaded$", log, re.MULTILINE)
            assert loaded == ([", ".join(tasks)] if tasks else []), log
            found.append(tasks)
        assert found[0] == found[1]
        return found[0]

    def results(self) -> dict[str, bytes]:
        """Results and samples of base and run, by the task and the path."""
        folders = (LAYOUT.base("tiny").benchmarks.folder, LAYOUT.run(*RUN).benchmarks.folder)
        paths = [path for folder in folders for path in (self.checkout.folder / folder).iterdir()]
        return {f"{path.name.partition('.')[0]} {path}": path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    project.evaluate()
    assert project.computed() == ["easy", "truth"]
    assert len(project.results()) == 8
    return project


def test_each_change_computes_its_own_tasks(project):
    """One after the other, since each project takes a base and a training."""
    folder = project.checkout.folder

    def edit(file):
        path = folder / file
        path.write_bytes(path.read_bytes() + b"\n")

    changes = [
        ("limit", lambda: project.tasks["easy"].update(limit=4), ["easy"]),
        ("questions", lambda: project.tasks["truth"]["questions"].update(count=6), ["truth"]),
        ("definition", lambda: edit("config/tasks/world_truth.yaml"), ["truth"]),
        ("added", lambda: project.tasks.update(more=copy.deepcopy(EASY)), ["more"]),
        ("removed", lambda: project.tasks.pop("more"), []),
        ("added again", lambda: project.tasks.update(more=copy.deepcopy(EASY)), []),
        ("module", lambda: edit("src/lpc/evaluation/harness.py"), ["easy", "more", "truth"]),
    ]
    for what, change, expected in changes:
        before = project.results()
        change()
        assert "rule benchmark:" in project.evaluate(), what
        assert project.computed() == expected, what
        after = project.results()
        assert {name for name in before if name.split()[0] not in expected and before[name] != after.get(name)} == (
            {name for name in before if name.startswith("more ")} if what == "removed" else set()
        ), what
        assert "Nothing to be done" in project.evaluate(), what


def test_a_task_that_fails_loses_nothing_of_the_others(project):
    """Snakemake deletes all outputs of the failed job; the next one computes the failed task alone."""
    folder = project.checkout.folder
    definition = folder / "config/tasks/world_choice.yaml"
    sound = definition.read_bytes()
    (folder / "config/tasks/broken.py").write_text("def broken(*_):\n    return {}['nothing']\n")
    (folder / "config/tasks/broken.yaml").write_bytes(sound + b"process_results: !function broken.broken\n")
    project.tasks["new"] = {**copy.deepcopy(EASY), "task": "config/tasks/broken.yaml"}
    project.tasks["easy"]["limit"] = 3
    project.evaluate(expect=1)
    assert project.computed() == ["easy"]
    assert project.results() == {}
    *_, line = project.log("benchmark", RUN).splitlines()
    of = len(project.tasks)
    assert line == f"error: 1 of {of} tasks failed; task new: KeyError: 'nothing' (its traceback is in the log)"
    assert "in broken\n" in project.log("benchmark", RUN)
    project.tasks["new"]["task"] = EASY["task"]
    project.evaluate()
    assert project.computed() == ["new"]
    assert len(project.results()) == 4 * of
