"""Which jobs a configuration needs, each with the files that show its result; nothing here touches a disk.

The rules ask for the results of runs, and `make status` counts all jobs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lpc.config.load import Config
from lpc.config.models import CLEAN, QuantizedBase, ScratchBase, members_of, with_source
from lpc.config.runs import Run
from lpc.data.formats.mix import Mix
from lpc.data.formats.world import World
from lpc.layout import Layout
from lpc.report.tables import TABLES


@dataclass(frozen=True)
class Job:
    """A job of a rule. names: its wildcards, as in the name of its log. files: of its outputs, all that are read."""

    rule: str
    names: tuple[str, ...]
    files: tuple[Path, ...]


def results_of(config: Config, layout: Layout, runs: Iterable[Run]) -> list[Job]:
    """Return the jobs whose files tables and page show, of these runs and their bases."""
    evaluation = config.settings.evaluation
    tasks, found = evaluation.benchmarks.tasks, []
    for run in runs:
        names = (run.base, run.variant, run.recipe, str(run.seed))
        of_run = layout.run(*names)
        found.append(Job("train", names, (of_run.summary, of_run.metrics)))
        found.append(Job("evaluate", names, (of_run.evaluation,)))
        if tasks:
            found.append(Job("benchmark", names, tuple(map(of_run.benchmarks.result, tasks))))
        if evaluation.alpacaeval:
            found.append(Job("alpacaeval_judge", names, (of_run.judged,)))
        if tasks:
            of_base = layout.base(run.base).benchmarks
            found.append(Job("benchmark_base", (run.base,), tuple(map(of_base.result, tasks))))
    return list(dict.fromkeys(found))


def all_jobs(config: Config, layout: Layout) -> list[Job]:
    """Return the jobs of the target `all`, in the order of the stages."""
    inputs = dict.fromkeys(_inputs(config, layout))
    return [*inputs, *results_of(config, layout, config.runs), *_report(layout)]


def _inputs(config: Config, layout: Layout) -> Iterator[Job]:
    """What the results of all runs are made from."""
    settings, runs = config.settings, config.runs
    held_out = settings.evaluation.preference.datasets
    bases = {name: settings.bases[name] for run in runs for name in with_source(settings.bases, run.base)}
    paired = dict.fromkeys([*(run.dataset for run in runs), *held_out])
    members = dict.fromkeys(member for name in paired for member in members_of(settings.datasets, name))
    scratch = [base.scratch.dataset for base in bases.values() if isinstance(base, ScratchBase)]
    for name in dict.fromkeys([*members, *scratch]):
        data = layout.data(name)
        if isinstance(settings.datasets[name], World):
            yield Job("world", (name,), (data.world, data.record))
        else:
            yield Job("download_dataset", (name,), (data.record,))
        yield Job("split", (name,), (data.rows,))
    for name in dict.fromkeys([*members, *paired]):
        rule = "mix" if isinstance(settings.datasets[name], Mix) else "pairs"
        yield Job(rule, (name,), (layout.data(name).pairs,))
    for run in runs:
        if run.noise != CLEAN:
            yield Job("flip", (run.dataset, run.noise), (layout.data(run.variant).pairs,))
    for name, base in bases.items():
        rule = {ScratchBase: "pretrain", QuantizedBase: "quantize"}.get(type(base), "download_base")
        yield Job(rule, (name,), (layout.base(name).record,))
    for run in runs:
        for variant in (run.variant, *(name for name in held_out if name != run.dataset)):
            made = layout.reference(run.base, variant)
            yield Job("reference", (run.base, variant), (made.logps, made.statistics))
    for name, task in settings.evaluation.benchmarks.tasks.items():
        if task.questions:
            yield Job("questions", (name,), (layout.task(name).questions,))
        elif not task.data:
            yield Job("download_task", (name,), (layout.task(name).download,))
    if settings.evaluation.alpacaeval:
        yield Job("alpacaeval_download", ("alpacaeval",), (layout.alpacaeval_instructions, layout.alpacaeval_reference))
        for run in runs:
            names = (run.base, run.variant, run.recipe, str(run.seed))
            yield Job("alpacaeval_generate", names, (layout.run(*names).answers,))


def _report(layout: Layout) -> list[Job]:
    tables = tuple(layout.table(name) for name in TABLES)
    return [Job("tables", (), tables), Job("report", (), (layout.report,))]
