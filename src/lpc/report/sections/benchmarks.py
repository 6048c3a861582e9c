"""Section on benchmark scores (shape of the paper's Table 1)."""

from collections import defaultdict

import numpy as np

from lpc.report import paper
from lpc.report.cells import score_detail
from lpc.report.page import Column, Missing, Section, Table, Text, cell, text, text_column
from lpc.report.results import Results
from lpc.report.runs import has_codes
from lpc.report.words import percent


def section(results: Results) -> Section:
    if not results.tasks:
        how = "No benchmark is configured. To get this section, add tasks under evaluation.benchmarks.tasks."
        return Section("benchmarks", "Benchmarks", [Missing(how)])
    scores = defaultdict(lambda: defaultdict(list))
    first = {}
    for row in results.tables["benchmarks"]:
        if row["primary"] == 1 and (row["recipe"] == "base" or results.in_main(row)):
            key = (row["base"], row["variant"], row["recipe"])
            scores[key][row["task"]].append(row)
            first.setdefault(key, row)
    body = [benchmark_row(results, first[key], by_task) for key, by_task in scores.items()]
    columns = [Column("model", lambda row: text(row["model"]), number=False), text_column("base")]
    for task, entry in results.tasks.items():
        columns.append(Column(task, lambda row, task=task: row[task], f"{entry['task']}, {entry.get('metric', '')}"))
    columns.append(
        Column("mean", lambda row: row["mean"], "over the tasks; its standard error assumes independent tasks")
    )
    notes = ["Small: the harness's standard error."]
    if any(paper.base_name(entry) for entry in results.settings["bases"].values()):
        notes.append(
            "After it stands the paper's number for the same base and task. With LPC, the paper gives only averages "
            "as text."
        )
    lead = (
        "Scores come from the Language Model Evaluation Harness with z from the prior, as means over seeds. Compare a "
        "difference with the standard errors before interpreting it."
    )
    table = Table("Benchmark scores, % (shape of the paper's Table 1)", columns, body, results.csv("benchmarks"), notes)
    return Section("benchmarks", "Benchmarks", [Text(lead), table])


def benchmark_row(results: Results, first: dict, by_task: dict[str, list[dict]]) -> dict:
    """Return cells by task, and their mean.

    Seeds answer the same questions, so averaging over seeds does not shrink their standard errors.
    """
    base = paper.base_name(results.settings["bases"][first["base"]])
    method = (first["objective"] or "base", has_codes(first["latent"]))
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
