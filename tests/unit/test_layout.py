"""Paths of results: the tree that users see, and that the rules write nothing beside it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lpc.config.load import load
from lpc.layout import Benchmarks, Layout, dataset_of, noisy
from lpc.report.tables import TABLES

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))

LAYOUT = Layout("results/p")
DATA, NOISY, BASE = LAYOUT.data("d"), LAYOUT.data(noisy("d", "n")), LAYOUT.base("b")
REFERENCE, RUN, TASK = LAYOUT.reference("b", "d.n"), LAYOUT.run("b", "d.n", "r", 3), LAYOUT.task("t")

TREE = {
    "alpacaeval/instructions.json": LAYOUT.alpacaeval_instructions,
    "alpacaeval/reference.json": LAYOUT.alpacaeval_reference,
    "bases/b/base.json": BASE.record,
    "bases/b/benchmarks/t.json": BASE.benchmarks.result("t"),
    "bases/b/benchmarks/t.samples.jsonl": BASE.benchmarks.samples("t"),
    "bases/b/model": BASE.model,
    "configuration.json": LAYOUT.configuration,
    "checkpoints/b~d.n~r~3": LAYOUT.checkpoints("b", "d.n", "r", 3),
    "data/d.n/pairs.json": NOISY.pairs_summary,
    "data/d.n/pairs.parquet": NOISY.pairs,
    "data/d/pairs.json": DATA.pairs_summary,
    "data/d/pairs.parquet": DATA.pairs,
    "data/d/rejects.jsonl": DATA.rejects,
    "data/d/rows.parquet": DATA.rows,
    "data/d/dataset.json": DATA.record,
    "data/d/split.json": DATA.split,
    "data/d/world.jsonl.gz": DATA.world,
    "finished/benchmark_base/b": LAYOUT.finished("benchmark_base", "b"),
    "finished/evaluate/b~d.n~r~3": LAYOUT.finished("evaluate", "b", "d.n", "r", 3),
    "logs/report/report.log": LAYOUT.log("report"),
    "logs/train/b~d.n~r~3.log": LAYOUT.log("train", "b", "d.n", "r", "3"),
    "reference/b/d.n/reference.parquet": REFERENCE.logps,
    "reference/b/d.n/statistics.safetensors": REFERENCE.statistics,
    "report.html": LAYOUT.report,
    "ro-crate-metadata.json": LAYOUT.crate,
    "runs/b/d.n/r/seed-3/README.md": RUN.card,
    "runs/b/d.n/r/seed-3/alpacaeval/annotations.json": RUN.annotations,
    "runs/b/d.n/r/seed-3/alpacaeval/judged.json": RUN.judged,
    "runs/b/d.n/r/seed-3/alpacaeval/outputs.json": RUN.answers,
    "runs/b/d.n/r/seed-3/benchmarks/t.json": RUN.benchmarks.result("t"),
    "runs/b/d.n/r/seed-3/benchmarks/t.samples.jsonl": RUN.benchmarks.samples("t"),
    "runs/b/d.n/r/seed-3/evaluation": RUN.evaluation,
    "runs/b/d.n/r/seed-3/evaluation/completions.json": RUN.completions,
    "runs/b/d.n/r/seed-3/evaluation/latents.json": RUN.latents_summary,
    "runs/b/d.n/r/seed-3/evaluation/latents.parquet": RUN.latents,
    "runs/b/d.n/r/seed-3/model": RUN.model,
    "runs/b/d.n/r/seed-3/evaluation/person.json": RUN.person,
    "runs/b/d.n/r/seed-3/evaluation/preference/d.json": RUN.preference("d"),
    "runs/b/d.n/r/seed-3/evaluation/preference/d.parquet": RUN.rewards("d"),
    "runs/b/d.n/r/seed-3/train.json": RUN.summary,
    "runs/b/d.n/r/seed-3/train.jsonl": RUN.metrics,
    "runs/b/d.n/r/seed-3/evaluation/tsne.csv": RUN.tsne,
    "runs/b/d.n/r/seed-3/evaluation/tsne_code.png": RUN.tsne_figure("code", "png"),
    "runs/b/d.n/r/seed-3/evaluation/tsne_source.svg": RUN.tsne_figure("source"),
    "tables/cost.csv": LAYOUT.table("cost"),
    "tasks/t/download.json": TASK.download,
    "tasks/t/questions.jsonl": TASK.questions,
    "timing/report/report.tsv": LAYOUT.timing("report"),
    "timing/train/b~d.n~r~3.tsv": LAYOUT.timing("train", "b", "d.n", "r", "3"),
}


@pytest.mark.parametrize("path", TREE)
def test_the_tree(path):
    """Results of earlier versions must be found again, so a path may only change with a word to the users."""
    assert TREE[path].as_posix() == f"results/p/{path}"


def test_a_dataset_and_its_variants():
    assert noisy("d", "n") == "d.n" and dataset_of("d.n") == dataset_of("d") == "d"


def files(thing) -> set[Path]:
    """Every path that an object of the layout names, but for folders of tables and the like."""
    found = set()
    for name, value in vars(thing).items():
        if isinstance(value, Path) and name not in ("root", "folder", "tables", "timings"):
            found.add(value)
    return found


def test_the_rules_write_nothing_else():
    """Outputs, logs and timings of a dry run of the demo are paths that the layout gives for its names."""
    config = ROOT / "config" / "demo.yaml"
    command = [sys.executable, "-m", "snakemake", "all", "--dry-run", "--forceall", "--configfile", config]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    fields = {
        kind: {path for line in re.findall(rf"^    {kind}: (.*)$", output, re.MULTILINE) for path in line.split(", ")}
        for kind in ("output", "log", "benchmark")
    }

    demo, layout = load(config), Layout("results/demo")
    tasks = demo.settings.evaluation.benchmarks.tasks

    def of_model(model) -> set[Path]:
        results: Benchmarks = model.benchmarks
        return files(model) | {path for task in tasks for path in (results.result(task), results.samples(task))}

    known = files(layout)
    known |= {path(table) for table in TABLES for path in (layout.table, layout.caption)}
    for name in tasks:
        known |= files(layout.task(name))
    for dataset in demo.settings.datasets:
        known |= files(layout.data(dataset))
    for base in demo.settings.bases:
        known |= of_model(layout.base(base))
        for dataset in demo.settings.datasets:
            known |= files(layout.reference(base, dataset))
    for item in demo.runs:
        run = layout.run(item.base, item.variant, item.recipe, item.seed)
        known |= of_model(run)
    assert len(fields["output"]) > 100
    assert fields["output"] <= {path.as_posix() for path in known}

    jobs = {path.removeprefix(f"{layout.root}/logs/").removesuffix(".log") for path in fields["log"]}
    rules = {job.split("/")[0] for job in jobs}
    assert rules >= {"world", "reference", "train", "evaluate", "tables", "report"}
    names = {rule: [job.split("/")[1].split("~") for job in jobs if job.split("/")[0] == rule] for rule in rules}
    for kind, path in (("log", layout.log), ("benchmark", layout.timing)):
        assert fields[kind] == {str(path(rule, *job)) for rule in rules for job in names[rule]}


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_no_rule_spells_a_path_of_its_own(file):
    code = re.sub(r"^#.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    spelt = re.findall(r"""["'][^"'\n]*\.(?:parquet|json|jsonl|jsonl\.gz|csv|safetensors|log|tsv|html)\b["']""", code)
    assert spelt == []
