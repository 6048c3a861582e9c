"""Section on cost: training runs, and all jobs by rule."""

from collections import defaultdict

from lpc.data.cut import cut_warnings
from lpc.report.page import Cell, Column, Missing, Section, Table, cell, number_column, rough, text_column
from lpc.report.results import Results
from lpc.report.words import NONE, duration, number, percent


def section(results: Results) -> Section:
    columns = [
        text_column("recipe"),
        text_column("base"),
        text_column("trained on", "variant"),
        number_column("seed"),
        Column("time", lambda row: Cell(duration(row["seconds"]) if row["seconds"] else NONE, row["seconds"])),
        Column("s / step", lambda row: rough(row["seconds_per_step"])),
        Column(
            "to plain",
            lambda row: ratio_cell(results, row),
            "time of a step relative to the plain run it is compared with",
        ),
        number_column("tokens / s", "tokens_per_second"),
        Column("peak GiB", lambda row: rough(row["peak_memory_gib"])),
        Column(
            "undone %",
            lambda row: cell(percent(row["undone"]), detail=margin_detail(row)),
            "weights that training moved and rounding to the saved dtype returned to the base; small: reward margin of"
            " training pairs before and after",
        ),
        Column(
            "cut %",
            cut_cell,
            "chosen and rejected completions that lost their end at tokens.max_length; small: prompts cut at"
            " tokens.max_prompt_length",
        ),
        Column("extra", extra_cell, "parameters of the latent"),
        Column("note", lambda row: Cell("" if row["status"] == "ok" else "missing", row["status"]), number=False),
    ]
    notes = ["Runs that share a machine slow each other down, so small differences in time mean nothing."]
    notes += cut_notes(results)
    blocks: list = [Table("Training", columns, results.tables["training"], results.csv("training"), notes)]
    by_rule = defaultdict(list)
    for job in results.tables["cost"]:
        by_rule[job["rule"]].append(job)
    if not by_rule:
        blocks.append(Missing("Snakemake wrote no timing files, so there is no cost by rule."))
        return Section("cost", "Cost", blocks)
    rows = []
    for rule, jobs in by_rule.items():
        sums = {key: sum(job[key] or 0 for job in jobs) for key in ("seconds", "cpu_seconds")}
        peak = max((job["max_rss_mib"] for job in jobs if job["max_rss_mib"] is not None), default=None)
        rows.append({"rule": rule, "jobs": len(jobs), **sums, "peak": peak})
    columns = [
        text_column("rule"),
        number_column("jobs"),
        Column("wall time", lambda row: Cell(duration(row["seconds"]), row["seconds"]), "sum over its jobs"),
        Column(
            "processor time", lambda row: Cell(duration(row["cpu_seconds"]), row["cpu_seconds"]), "sum over its jobs"
        ),
        number_column("peak memory MiB", "peak", hint="of its largest job"),
    ]
    notes = ["Snakemake measured the jobs; the CSV has each of them."]
    blocks.append(Table("Every rule", columns, rows, results.csv("cost"), notes))
    return Section("cost", "Cost", blocks)


def ratio_cell(results: Results, row: dict) -> Cell:
    ratio = results.step_ratios.get((row["base"], row["variant"], row["recipe"], row["seed"]))
    return Cell(f"× {number(ratio, 2)}" if ratio else NONE, ratio)


def margin_detail(row: dict) -> str:
    if row["margin_before"] is None:
        return ""
    return f"{number(row['margin_before'], 3)} → {number(row['margin_after'], 3)}"


def cut_cell(row: dict) -> Cell:
    if row["cut_chosen"] is None:
        return Cell(NONE)
    prompts, chosen, rejected = (number(percent(row[f"cut_{name}"])) for name in ("prompts", "chosen", "rejected"))
    return Cell(f"{chosen} / {rejected}", row["cut_chosen"], f"prompts {prompts}")


def cut_notes(results: Results) -> list[str]:
    """Return a note for each base and data set of whose training pairs many are cut."""
    found = {}
    for row in results.tables["training"]:
        if row["cut_chosen"] is not None:
            shares = {name: row[f"cut_{name}"] for name in ("prompts", "chosen", "rejected")}
            for message in cut_warnings(shares, **results.settings["tokens"]):
                found[f"Of the training pairs of {row['variant']}, as {row['base']} reads them, {message}."] = True
    return list(found)


def extra_cell(row: dict) -> Cell:
    extra = row["latent_parameters"]
    return cell(extra, 0, f"{number(100 * extra / row['parameters'])} %" if extra and row["parameters"] else "")
