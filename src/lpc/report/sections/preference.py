"""Section on preference accuracy: with and without LPC (shape of the paper's Table 2), then every run."""

from collections import defaultdict

from lpc.report import figures, paper
from lpc.report.answer import label
from lpc.report.cells import difference_cell, mean_cell, seeds_cell
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
    number_column,
    text,
    text_column,
)
from lpc.report.results import Results, over_seeds
from lpc.report.runs import has_codes
from lpc.report.words import interval, percent


def section(results: Results) -> Section:
    blocks: list = [
        Text(
            "Preference accuracy is the share of test pairs in which the chosen completion has the higher reward. A "
            "tie counts one half. z comes from the prior alone: the posterior sees the chosen completion, so no "
            "number here uses it."
        )
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in results.tables["preference_accuracy"]):
        rows = [row for row in results.accuracy() if row["dataset"] == dataset]
        rows = [row for row in rows if results.in_main(row) and results.is_clean(row)]
        if rows:
            blocks += with_and_without(results, dataset, rows)
            blocks.append(Figures([accuracy_figure(results, dataset, rows)]))
        elif any(dataset in run["heldout"] for run in results.main):
            blocks.append(Missing(f"No run of the main experiment is scored on {dataset} yet."))
    every = results.tables["preference_accuracy"]
    columns = [
        text_column("recipe"),
        text_column("base"),
        text_column("trained on", "variant"),
        text_column("tested on", "dataset"),
        number_column("seed"),
        Column("accuracy %", accuracy_cell, "95 % Wilson interval, clustered by prompt"),
        Column(
            "longer wins %",
            lambda row: cell(percent(row["longer_accuracy"])),
            "always preferring the longer completion",
        ),
        Column(
            "prefers longer %",
            lambda row: cell(percent(row["prefers_longer"])),
            "how often this run gives the longer completion the higher reward",
        ),
        Column(
            "the same, z = 0",
            lambda row: cell(percent(row["prefers_longer_zero"])),
            "far above the column before it: z makes the run prefer short completions",
        ),
        number_column("pairs", "n"),
        number_column("ties"),
        number_column("dropped", hint="pairs that tokenisation could not keep"),
        text_column("status"),
    ]
    csv = results.csv("preference_accuracy")
    blocks.append(Table("Every run", columns, every, csv, folded=f"All {len(every)} rows, run by run"))
    return Section("preference", "Preference accuracy", blocks)


def accuracy_cell(row: dict) -> Cell:
    return cell(percent(row["accuracy"]), detail=interval(percent(row["low"]), percent(row["high"])))


def with_and_without(results: Results, dataset: str, rows: list[dict]) -> list[Table]:
    """Return a table in the shape of the paper's Table 2: a row for each base and objective.

    rows: of the recipes to show. Both accuracies are of the seeds that both recipes have, as their difference is.
    """
    shown = {(row["base"], row["variant"], row["recipe"]) for row in rows}
    seeds = defaultdict(dict)
    for row in results.tables["preference_accuracy"]:
        if row["dataset"] == dataset and row["accuracy"] is not None:
            seeds[row["base"], row["variant"], row["recipe"]][row["seed"]] = row
    body = []
    for row in results.tables["comparisons"]:
        wanted = row["seed"] == "mean" and row["dataset"] == dataset
        if wanted and has_codes(row["latent"]) and row["against_latent"] is None:
            names = [(row["base"], row["variant"], row[name]) for name in ("recipe", "against")]
            both = sorted(seeds[names[0]].keys() & seeds[names[1]].keys())
            base = paper.base_name(results.settings["bases"][row["base"]])
            reported = paper.PREFERENCE.get(base, {}).get(row["objective"], (None, None))
            if both and shown.issuperset(names):
                ours, plain = (over_seeds([seeds[name][seed] for seed in both]) for name in names)
                body.append({**row, "ours": ours, "plain": plain, "paper": reported})
    if not body:
        return []
    longer = "always preferring the longer completion, on the same pairs"
    columns = [
        Column("objective", lambda row: text(label(row)), number=False),
        text_column("base"),
        Column("without LPC %", lambda row: mean_cell(row["plain"])),
        Column("with LPC %", lambda row: mean_cell(row["ours"])),
        Column("difference", difference_cell, "points; 95 % paired bootstrap interval over test prompts"),
        Column("over seeds", seeds_cell, "95 % t interval of the difference over seeds"),
        Column("longer wins %", lambda row: cell(percent(row["plain"]["longer_accuracy"])), longer),
        number_column("pairs", "n"),
    ]
    notes = [
        "Small: 95 % intervals, over seeds if there are two or more, otherwise over prompts. "
        "Strong: every interval excludes zero."
    ]
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
    dots = [
        {**row, "label": f"{row['base']}, " * several + row["recipe"], "group": group_of(row["latent"])} for row in rows
    ]
    known = {"longer": rows[0]["longer_accuracy"], **results.ceilings(dataset)}
    labels = {"longer": "longer wins", "source_blind": "blind to source", "score_oracle": "oracle"}
    references = {labels[key]: percent(value) for key, value in known.items() if value is not None}
    caption = (
        f"Accuracy on the test pairs of {dataset}. Round: plain; square: LPC; diamond: a control without codes. Lines "
        "are 95 % intervals and ticks are single seeds. Dotted verticals are the accuracies of simple rules and an "
        "oracle on the same pairs."
    )
    return Figure.of(f"accuracy-{dataset}", figures.dots(dots, references), caption)


def group_of(latent: str | None) -> str:
    """Return the look of a kind of latent in the figure: plain, codes or control."""
    if latent is None:
        return "plain"
    return "codes" if has_codes(latent) else "control"
