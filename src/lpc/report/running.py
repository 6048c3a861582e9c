"""Sections on how the results came about: training, cost, what is missing, provenance."""

import json
import platform
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import sklearn

from lpc.images import running
from lpc.report import figures, tables
from lpc.report.page import (
    Cell,
    Code,
    Column,
    Figure,
    Figures,
    Missing,
    Points,
    Section,
    Table,
    Text,
    cell,
    figure_column,
    name,
    rough,
)
from lpc.report.results import Results
from lpc.report.words import NONE, count, duration, listed, number, objective


def training(results: Results) -> Section:
    """Curves of each base, dataset and objective of the main experiment."""
    groups = defaultdict(list)
    for run in results.main:
        if run["noise"] == "clean":
            groups[run["base"], run["dataset"], run["objective"]["name"]].append(run)
    panels = {
        "loss": {"": lambda line: line.get("loss")},
        "accuracy on training pairs": {"": lambda line: line.get("accuracy")},
        "codes (nats)": {"KL(q ‖ p)": lambda line: line.get("kl"), "I(code; prompt)": code_information},
    }
    blocks: list = []
    for (base, dataset, kind), runs in groups.items():
        logs = [(run, results.training_log(run)) for run in runs]
        drawn = []
        for title, values in panels.items():
            lines = []
            for run, log in logs:
                if title.startswith("codes") and tables.latent_kind(run) not in ("lpc", "gaussian"):
                    continue  # their KL is 0 by definition
                for label, value in values.items():
                    points = [(line["step"], value(line)) for line in log if value(line) is not None]
                    x, y = ([point[i] for point in points] for i in (0, 1))
                    if points:
                        lines.append({"name": f"{run['recipe']}: {label}" if label else run["recipe"], "x": x, "y": y})
            if lines:
                drawing = figures.curves(f"{objective(kind)}: {title}", lines)
                caption = f"{objective(kind)} on {base}, {dataset}: {title}."
                drawn.append(Figure.of(f"training-{base}-{dataset}-{kind}-{title.split()[0]}", drawing, caption))
        if drawn:
            blocks.append(Figures(drawn))
    lead = Text(
        "Training metrics by step, smoothed over nine logging steps; lines of one colour are the seeds of a recipe."
    )
    found = [lead, *blocks] if blocks else [Missing("No run of the main experiment has a training log yet.")]
    return Section("training", "Training", found)


def code_information(line: dict) -> float | None:
    """I(code; prompt) over a logging interval: H(mean p) − mean H(p), from the two perplexities."""
    if line.get("prior_perplexity") is None:
        return None
    return float(np.log(line["mean_prior_perplexity"] / line["prior_perplexity"]))


def cost(results: Results) -> Section:
    columns = [
        name("recipe"),
        name("base"),
        name("trained on", "variant"),
        figure_column("seed"),
        Column("time", lambda row: Cell(duration(row["seconds"]) if row["seconds"] else NONE, row["seconds"])),
        Column("s / step", lambda row: rough(row["seconds_per_step"])),
        Column(
            "to plain",
            lambda row: ratio_cell(results, row),
            "time of a step relative to the plain run it is compared with",
        ),
        figure_column("tokens / s", "tokens_per_second"),
        Column("peak GiB", lambda row: rough(row["peak_memory_gib"])),
        Column("extra", extra_cell, "parameters of the latent"),
        Column("note", lambda row: Cell("" if row["status"] == "ok" else "missing", row["status"]), number=False),
    ]
    notes = [
        "A run that shared its machine with other jobs is slower for that: small differences in time mean nothing."
    ]
    blocks: list = [Table("Training", columns, results.tables["training"], results.csv("training"), notes)]
    by_rule = defaultdict(list)
    for job in results.tables["cost"]:
        by_rule[job["rule"]].append(job)
    if not by_rule:
        blocks.append(Missing("Snakemake wrote no benchmark files, so there is no cost by rule."))
        return Section("cost", "Cost", blocks)
    rows = []
    for rule, jobs in by_rule.items():
        sums = {key: sum(job[key] or 0 for job in jobs) for key in ("seconds", "cpu_seconds")}
        peak = max((job["max_rss_mib"] for job in jobs if job["max_rss_mib"] is not None), default=None)
        rows.append({"rule": rule, "jobs": len(jobs), **sums, "peak": peak})
    columns = [
        name("rule"),
        figure_column("jobs"),
        Column("wall time", lambda row: Cell(duration(row["seconds"]), row["seconds"]), "sum over its jobs"),
        Column(
            "processor time", lambda row: Cell(duration(row["cpu_seconds"]), row["cpu_seconds"]), "sum over its jobs"
        ),
        figure_column("peak memory MiB", "peak", hint="of its largest job"),
    ]
    notes = ["As Snakemake measured the jobs; the CSV has each of them."]
    blocks.append(Table("Every rule", columns, rows, results.csv("cost"), notes))
    return Section("cost", "Cost", blocks)


def ratio_cell(results: Results, row: dict) -> Cell:
    ratio = results.step_ratios.get((row["base"], row["variant"], row["recipe"], row["seed"]))
    return Cell(f"× {number(ratio, 2)}" if ratio else NONE, ratio)


def extra_cell(row: dict) -> Cell:
    extra = row["latent_parameters"]
    return cell(extra, 0, f"{number(100 * extra / row['parameters'])} %" if extra and row["parameters"] else "")


# What is missing


def missing(results: Results) -> Section:
    rows = []
    for table in ("preference_accuracy", "comparisons", "benchmarks", "latents", "training"):
        for row in results.tables[table]:
            if row["status"] != "ok":
                names = [str(row[key]) for key in ("base", "variant", "recipe", "seed") if row[key] is not None]
                rows.append({"table": table.replace("_", " "), "run": " / ".join(names), "why": row["status"]})
    blocks: list = [Text("Every configured run has all its results.")]
    if rows:
        blocks = [Table("Results that are not there", [name("table"), name("run"), name("why")], rows)]
    limits = []
    seeds = len({run["seed"] for run in results.main})
    if seeds < 3:
        how = "not" if seeds == 1 else "hardly"
        limits.append(f"{count(seeds, 'seed')} in the main experiment: the luck of training is {how} measured.")
    absent = [kind for kind in ("mlp", "vector", "gaussian") if kind not in set(map(tables.latent_kind, results.main))]
    if absent:
        kinds = listed(absent, "or")
        limits.append(f"No control of kind {kinds}: an effect of LPC could be one of its parameters, not of its codes.")
    if results.settings["evaluation"].get("alpacaeval") is None:
        limits.append("AlpacaEval is not configured.")
    if limits:
        blocks.append(Points("What these results cannot show:", limits))
    return Section("missing", "What is missing", blocks)


# Provenance


def provenance(results: Results) -> Section:
    summaries = [results.json(f"{run['folder']}/train.json") for run in results.runs]
    facts = {"commit of the workflow": results.commit}
    for key in ("device", "processes", "threads", "torch", "transformers"):
        facts[f"training: {key}"] = values_of(key, summaries)
    facts["evaluation harness"] = values_of("harness_version", benchmark_files(results))
    facts["tables and figures"] = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}, "
        f"Matplotlib {matplotlib.__version__}"
    )
    facts["randomness"] = results.seeds()[1]
    rows = [{"what": key, "value": value} for key, value in facts.items() if value]
    blocks: list = [Table("What made these results", [name("what"), name("value")], rows)]
    inputs = []
    for dataset in results.settings["datasets"]:
        source = results.json(f"data/{dataset}/source.json")
        for file, digest in (source.get("sha256") or {}).items():
            inputs.append(
                {"input": f"dataset {dataset}", "of": source["revision"] or Path(file).name, "sha256": digest}
            )
    for base in results.settings["bases"]:
        record = results.json(f"bases/{base}/base.json")
        if record:
            of = record["revision"] or f"{record['parameters']:,} parameters"
            inputs.append({"input": f"base {base}", "of": of, "sha256": record["sha256"]})
    containers = [record.get("container") for record in records(results)]
    for image in [*containers, running()]:  # the last one made tables, figures and this page
        row = image and {"input": "container image", "of": image["image"], "sha256": image["sha256"]}
        if row and row not in inputs:
            inputs.append(row)
    if inputs:
        columns = [name("input"), name("revision or file", "of"), name("SHA-256", "sha256")]
        blocks.append(Table("Inputs", columns, inputs))
    configuration = json.dumps(results.settings, indent=2, ensure_ascii=False)
    blocks.append(Code("The configuration, with every default filled in", configuration))
    return Section("provenance", "Provenance", blocks)


def values_of(key: str, records: list[dict]) -> str:
    return ", ".join(sorted({str(record[key]) for record in records if record.get(key) is not None}))


def benchmark_files(results: Results) -> list[dict]:
    folders = [*(run["folder"] for run in results.runs), *(f"bases/{base}" for base in results.settings["bases"])]
    return [results.json(f"{folder}/benchmarks/{task}.json") for folder in folders for task in results.tasks]


def records(results: Results) -> list[dict]:
    """What the steps wrote beside the data, bases and runs of the page; {} where it is absent."""
    settings = results.settings
    paths = [f"data/{dataset}/{name}" for dataset in settings["datasets"] for name in ("source", "split")]
    paths += [f"data/{variant}/pairs" for variant in (*settings["datasets"], *(run["variant"] for run in results.runs))]
    paths += [f"bases/{base}/base" for base in settings["bases"]]
    for run in results.runs:
        names = ("train", "latents", "alpacaeval/judged", *(f"preference/{name}" for name in run["heldout"]))
        paths += [f"{run['folder']}/{name}" for name in names]
    return [*(results.json(f"{path}.json") for path in dict.fromkeys(paths)), *benchmark_files(results)]
