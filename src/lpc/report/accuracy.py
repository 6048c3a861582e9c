"""Sections on scores: preference accuracy, benchmarks, AlpacaEval, statistics."""

from collections import defaultdict

import numpy as np

from lpc.report import figures, paper
from lpc.report.answer import label
from lpc.report.page import (
    Cell,
    Column,
    Figure,
    Figures,
    Missing,
    Section,
    Table,
    Text,
    cell,
    figure_column,
    name,
    text,
)
from lpc.report.results import Results, verdict
from lpc.report.words import NONE, interval, number, percent


def preference(results: Results) -> Section:
    blocks: list = [
        Text(
            "The share of test pairs in which the chosen completion gets the higher reward; a tie counts one half. z "
            "comes "
            "from the prior alone: the posterior sees who won, and no number here uses it."
        )
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in results.tables["preference_accuracy"]):
        rows = [row for row in results.accuracy() if row["dataset"] == dataset]
        rows = [row for row in rows if results.in_main(row) and results.is_clean(row)]
        if rows:
            blocks += with_and_without(results, dataset, rows)
            blocks.append(Figures([accuracy_figure(results, dataset, rows)]))
        else:
            blocks.append(Missing(f"No run of the main experiment was scored on {dataset} yet."))
    every = results.tables["preference_accuracy"]
    columns = [
        name("recipe"),
        name("base"),
        name("trained on", "variant"),
        name("tested on", "dataset"),
        figure_column("seed"),
        Column("accuracy %", accuracy_cell, "95 % Wilson interval, clustered by prompt"),
        Column(
            "longer wins %",
            lambda row: cell(percent(row["longer_accuracy"])),
            "always preferring the longer completion",
        ),
        figure_column("pairs", "n"),
        figure_column("ties"),
        figure_column("dropped", hint="pairs that tokenisation could not keep"),
        name("status"),
    ]
    csv = results.csv("preference_accuracy")
    blocks.append(Table("Every run", columns, every, csv, folded=f"All {len(every)} rows, run by run"))
    return Section("preference", "Preference accuracy", blocks)


def accuracy_cell(row: dict) -> Cell:
    return cell(percent(row["accuracy"]), detail=interval(percent(row["low"]), percent(row["high"])))


def mean_cell(row: dict) -> Cell:
    return cell(row["mean"], detail=interval(row["low"], row["high"]))


def difference_cell(row: dict) -> Cell:
    """A comparison's difference with its interval over prompts; strong where every interval excludes zero."""
    detail = interval(percent(row["low"]), percent(row["high"]), sign=True)
    strong = row["seed"] == "mean" and verdict(row) != 0
    return cell(percent(row["difference"]), detail=detail, sign=True, strong=strong)


def seeds_cell(row: dict) -> Cell:
    ends = interval(percent(row["seeds_low"]), percent(row["seeds_high"]), sign=True)
    return Cell(ends or ("one seed" if row["seed"] == "mean" else NONE), percent(row["seeds_low"]))


def with_and_without(results: Results, dataset: str, rows: list[dict]) -> list[Table]:
    """Table 2's shape: a row for each base and objective."""
    by_name = {(row["base"], row["variant"], row["recipe"]): row for row in rows}
    body = []
    for row in results.tables["comparisons"]:
        wanted = row["seed"] == "mean" and row["dataset"] == dataset
        if wanted and (row["latent"], row["against_latent"]) == ("lpc", None):
            ours = by_name.get((row["base"], row["variant"], row["recipe"]))
            plain = by_name.get((row["base"], row["variant"], row["against"]))
            base = paper.base_name(results.settings["bases"][row["base"]])
            reported = paper.PREFERENCE.get(base, {}).get(row["objective"], (None, None))
            if ours and plain:
                body.append({**row, "ours": ours, "plain": plain, "paper": reported})
    if not body:
        return []
    longer = "always preferring the longer completion, on the same pairs"
    columns = [
        Column("objective", lambda row: text(label(row)), number=False),
        name("base"),
        Column("without LPC %", lambda row: mean_cell(row["plain"])),
        Column("with LPC %", lambda row: mean_cell(row["ours"])),
        Column("difference", difference_cell, "points; 95 % paired bootstrap interval over test prompts"),
        Column("over seeds", seeds_cell, "95 % t interval of the difference over seeds"),
        Column("longer wins %", lambda row: cell(percent(row["plain"]["longer_accuracy"])), longer),
        figure_column("pairs", "n"),
    ]
    notes = ["Small: 95 % intervals, from two seeds on over seeds, otherwise over prompts. Strong: all exclude zero."]
    if any(row["paper"][0] for row in body):
        columns += [
            Column("paper: without", lambda row: cell(row["paper"][0])),
            Column("paper: with", lambda row: cell(row["paper"][1])),
            Column(
                "paper: difference", lambda row: cell(row["paper"][0] and row["paper"][1] - row["paper"][0], sign=True)
            ),
        ]
        notes.append("The paper gives no intervals.")
    caption = f"With and without LPC, test pairs of {dataset} (shape of the paper's Table 2)"
    return [Table(caption, columns, body, results.csv("preference_accuracy"), notes)]


def accuracy_figure(results: Results, dataset: str, rows: list[dict]) -> Figure:
    several = len({row["base"] for row in rows}) > 1
    rows = sorted(rows, key=lambda row: (row["base"], row["objective"], row["latent"] is not None, row["recipe"]))
    dots = [{**row, "label": f"{row['base']}, " * several + row["recipe"], "kind": row["latent"]} for row in rows]
    known = {"longer": rows[0]["longer_accuracy"], **results.ceilings(dataset)}
    labels = {"longer": "longer wins", "source_blind": "blind to source", "score_oracle": "oracle"}
    references = {labels[key]: percent(value) for key, value in known.items() if value is not None}
    caption = (
        f"Accuracy on the test pairs of {dataset}. Round: plain; square: LPC; diamond: a control without codes. Lines "
        f"are 95 % "
        "intervals, ticks single seeds, dotted verticals what simple judges and an oracle reach on the same pairs."
    )
    return Figure.of(f"accuracy-{dataset}", figures.dots(dots, references), caption)


# Benchmarks


def benchmarks(results: Results) -> Section:
    if not results.tasks:
        how = "No benchmark is configured: add entries under evaluation.benchmarks.tasks."
        return Section("benchmarks", "Benchmarks", [Missing(how)])
    scores = defaultdict(lambda: defaultdict(list))
    first = {}
    for row in results.tables["benchmarks"]:
        if row["primary"] == 1 and (row["recipe"] == "base" or results.in_main(row)):
            key = (row["base"], row["variant"], row["recipe"])
            scores[key][row["task"]].append(row)
            first.setdefault(key, row)
    body = [benchmark_row(results, first[key], by_task) for key, by_task in scores.items()]
    columns = [Column("model", lambda row: text(row["model"]), number=False), name("base")]
    for task, entry in results.tasks.items():
        columns.append(Column(task, lambda row, task=task: row[task], f"{entry['task']}, {entry.get('metric', '')}"))
    columns.append(
        Column("mean", lambda row: row["mean"], "over the tasks; standard error as if they were independent")
    )
    notes = ["Small: standard error of the harness."]
    if any(paper.base_name(entry) for entry in results.settings["bases"].values()):
        notes.append("Then the paper's number for the same base and task; with LPC only its averages survived in text.")
    lead = (
        "The Language Model Evaluation Harness on each run's checkpoint, z from the prior, means over seeds. Read a "
        "difference "
        "against the standard errors before reading anything into it."
    )
    table = Table("Benchmark scores, % (shape of the paper's Table 1)", columns, body, results.csv("benchmarks"), notes)
    return Section("benchmarks", "Benchmarks", [Text(lead), table])


def benchmark_row(results: Results, first: dict, by_task: dict[str, list[dict]]) -> dict:
    """Cells by task, and their mean. Seeds answer the same questions, so their standard errors do not average out."""
    base = paper.base_name(results.settings["bases"][first["base"]])
    method = (first["objective"] or "base", first["latent"] == "lpc")
    reported = dict(zip([*paper.TASKS.values(), "mean"], paper.BENCHMARKS.get(base, {}).get(method, ()), strict=False))
    theirs = {task: paper.TASKS.get(entry["task"]) for task, entry in results.tasks.items()}
    noise = "" if first["variant"] is None or results.is_clean(first) else f", {first['variant'].split('.')[1]}"
    row = {"model": "base model" if first["recipe"] == "base" else first["recipe"] + noise, "base": first["base"]}
    means, errors = [], []
    for task in results.tasks:
        values = [percent(score["value"]) for score in by_task[task]]
        known = [percent(score["stderr"]) for score in by_task[task] if score["stderr"] is not None]
        means.append(float(np.mean(values)) if values else None)
        errors.append(float(np.mean(known)) if known else None)
        row[task] = cell(means[-1], detail=score_detail(errors[-1], reported.get(theirs[task])))
    whole = None not in means
    error = float(np.linalg.norm(errors)) / len(errors) if whole and None not in errors else None
    alike = set(theirs.values()) == set(paper.TASKS.values())
    detail = score_detail(error, reported.get("mean") if alike else None)
    return {**row, "mean": cell(float(np.mean(means)) if whole else None, detail=detail)}


def score_detail(error: float | None, reported: float | None) -> str:
    parts = [] if error is None else [f"± {number(error)}"]
    return "; ".join(parts if reported is None else [*parts, f"paper {reported:.2f}"])


def alpacaeval(results: Results) -> Section:
    body, why = [], "it is not configured (evaluation.alpacaeval), and it needs a judge model behind an API key"
    for run in results.main:
        found = results.json(f"{run['folder']}/alpacaeval/judged.json")
        if found:
            why = found["reason"] or ""
            judge = found["judge"].get("annotator") if found["status"] == "judged" else "not judged"
            body.append({"model": run["recipe"], "base": run["base"], "judge": judge, **found["metrics"]})
    for base, entry in results.settings["bases"].items():
        for objective, methods in paper.ALPACAEVAL.get(paper.base_name(entry), {}).items():
            for model, rates in zip((objective, f"{objective}-lpc"), methods, strict=True):
                values = {key: {"value": value} for key, value in zip(RATES, rates, strict=True)}
                body.append({"model": f"{model}, in the paper", "base": base, "judge": "GPT-4", **values})
    blocks: list = [Missing(f"Not judged: {why}.")] if why else []
    if body:
        columns = [name("model"), name("base")]
        for key, title in RATES.items():
            columns.append(Column(title, lambda row, key=key: rate_cell(row.get(key, {}))))
        blocks.append(Table("AlpacaEval 2 (shape of the paper's Table 3)", [*columns, name("judge")], body))
    return Section("alpacaeval", "AlpacaEval", blocks)


RATES = {"length_controlled_winrate": "length-controlled win rate %", "win_rate": "win rate %"}


def rate_cell(rate: dict) -> Cell:
    return cell(rate.get("value"), 2, score_detail(rate.get("stderr"), None))


# Statistics


def statistics(results: Results) -> Section:
    lead = Text(
        "Two runs are compared pair by pair on the test pairs that both scored. Interval: 95 % bootstrap, 10,000 "
        "resamples of "
        "whole prompts, since pairs of one prompt are not independent. McNemar: exact, two-sided, on the pairs where "
        "one of "
        "the two is right; it ignores shared prompts. Over seeds: Student's t. Nothing is corrected for the number of "
        "comparisons."
    )
    rows = results.tables["comparisons"]
    if not rows:
        return Section("statistics", "Statistics", [lead, Missing("No run has a latent, so nothing is compared.")])
    which = [
        name("recipe"),
        name("against"),
        name("base"),
        name("trained on", "variant"),
        name("tested on", "dataset"),
    ]
    sizes = [
        Column("difference", difference_cell, "points; 95 % paired bootstrap interval over test prompts"),
        Column("over seeds", seeds_cell, "95 % t interval of the difference over seeds"),
    ]
    paired = [
        figure_column("wins"),
        figure_column("losses"),
        figure_column("McNemar p", "mcnemar_p", 3),
    ]
    rest = [figure_column("pairs", "n"), Column("note", comparison_note, number=False)]
    seed = Column("seed", lambda row: cell(row["seed"], 0))
    seeds = figure_column("seeds")
    csv = results.csv("comparisons")
    means = [row for row in rows if row["seed"] == "mean"]
    single = [row for row in rows if row["seed"] != "mean"]
    blocks: list = [lead]
    if means:
        notes = ["Strong: every interval of the row excludes zero."]
        blocks.append(Table("Means over seeds", [*which, seeds, *sizes, *rest], means, csv, notes))
    columns = [*which, seed, sizes[0], *paired, *rest]
    blocks.append(Table("Every seed", columns, single, csv, folded=f"All {len(single)} comparisons, seed by seed"))
    return Section("statistics", "Statistics", blocks)


def comparison_note(row: dict) -> Cell:
    differs = f"differs in {row['differs']}" if row["differs"] else ""
    note = differs if row["status"] == "ok" else row["status"]
    return Cell(note, note)
