"""Sections on experiments that vary a setting: sweeps and label noise (Figure 2), settings chosen on validation."""

from collections import defaultdict

from lpc.report import figures, tables
from lpc.report.page import (
    Cell,
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
    text,
)
from lpc.report.results import Results
from lpc.report.words import count, interval, number, percent

# Figure 2


def experiments(results: Results) -> Section:
    entries = results.settings["experiments"]
    panels = [panel for experiment, entry in entries.items() for panel in sweep_panel(results, experiment, entry)]
    noisy = noise_panels(results)
    blocks: list = [Figures(panels + noisy)] if panels or noisy else []
    if not any("latent.codes" in (entry.get("sweep") or {}) for entry in entries.values()):
        blocks.append(
            Missing(
                "No sweep over the number of codes (the paper's Figure 2, top left). To get it, add an experiment with "
                "an LPC "
                "recipe and sweep: {latent.codes: [8, 16, 32, 64, 128, 256]}."
            )
        )
    if not noisy:
        blocks.append(
            Missing(
                "No training on flipped labels (Figure 2, bottom left). To get it, define a variant under noise, such "
                "as "
                'flip50: {rate: 0.5, marker: "[FLIP]", seed: 0}, and add an experiment with noise: [clean, flip50].'
            )
        )
    blocks.append(Text("Figure 2's third panel, t-SNE of z by source, stands under “What the codes learn”."))
    return Section("experiments", "Codebook size, noise and other sweeps (Figure 2)", blocks)


def sweep_panel(results: Results, experiment: str, entry: dict) -> list[Figure]:
    """The figure of an experiment that sweeps one number; others stand in the tables only."""
    sweep = entry.get("sweep") or {}
    values = [value for values in sweep.values() for value in values]
    if len(sweep) != 1 or any(isinstance(value, (bool, str)) or value is None for value in values):
        return []
    (key,) = sweep
    scored = results.own_accuracy()
    runs = [run for run in results.runs if experiment in run["experiments"]]
    several = len({run["base"] for run in runs}) > 1
    lines, plain = defaultdict(dict), {}
    for run in runs:
        row = scored.get((run["base"], run["variant"], run["recipe"]))
        if row:
            noise = f", {run['noise']}" * (run["noise"] != "clean")
            lines[run["recipe"].split("+")[0] + f", {run['base']}" * several + noise][tables.at(run, key)] = row
        for other, differs in tables.opponents(run, results.runs):
            without = scored.get((other["base"], other["variant"], other["recipe"]))
            if other["latent"] is None and without and not differs:
                plain[without["recipe"] + f", {other['base']}" * several] = without["mean"]
    if not lines:
        return []
    drawn = []
    for title, points in lines.items():
        at_x = [points[x] for x in sorted(points)]
        drawn.append(
            {"name": title, "x": sorted(points), **{end: [p[end] for p in at_x] for end in ("mean", "low", "high")}}
        )
    # More dashed lines than two cannot be told apart; the tables have them.
    level = plain if len(plain) <= 2 and key.startswith("latent.") else {}
    seeds = max(len(row["seeds"]) for points in lines.values() for row in points.values())
    caption = f"Experiment {experiment}: accuracy against {key}, {count(seeds, 'seed')}; bands are 95 % intervals."
    log2 = min(values) > 0 and max(values) / min(values) >= 8
    return [Figure.of(f"sweep-{experiment}", figures.sweep(key, drawn, log2=log2, level=level), caption)]


def noise_panels(results: Results) -> list[Figure]:
    panels, scored = [], results.own_accuracy()
    noisy = [run for run in results.runs if run["noise"] != "clean"]
    for base, dataset in dict.fromkeys((run["base"], run["dataset"]) for run in noisy):
        runs = [run for run in noisy if (run["base"], run["dataset"]) == (base, dataset)]
        variants = {"clean": dataset, **{run["noise"]: run["variant"] for run in runs}}
        lines = []
        for recipe in dict.fromkeys(run["recipe"] for run in runs):
            rows = [scored.get((base, variant, recipe)) for variant in variants.values()]
            lines.append({"name": recipe, "points": rows})
        if any(row for line in lines for row in line["points"]):
            caption = (
                f"{base}: accuracy on the unflipped test pairs of {dataset} after training on clean and on flipped "
                f"labels; "
                "95 % intervals."
            )
            panels.append(Figure.of(f"noise-{base}-{dataset}", figures.noise(list(variants), lines), caption))
    return panels


# Settings chosen on validation


def selection(results: Results) -> Section | None:
    """Which value of each sweep validation chose; None where nothing is swept."""
    rows = results.tables["selection"]
    if not rows:
        return None
    lead = Text(
        "Of each sweep the setting with the highest mean accuracy over seeds on validation pairs, of equal ones the "
        "first in the configuration. Test pairs have no say: their accuracy stands beside the chosen setting alone."
    )
    points = [
        f"{row['experiment']}: {row['recipe']} on {row['base']}, trained on {row['variant']}, takes "
        f"{setting(row)} ({number(percent(row['validation_accuracy']))} % on validation pairs, "
        f"{number(percent(row['test_accuracy']))} % on test pairs)."
        for row in rows
        if row["chosen"] == 1
    ]
    blocks: list = [lead, Points("Chosen:", points)] if points else [lead]
    if any(row["chosen"] is None for row in rows):
        blocks.append(Missing("A sweep of which a run is missing chooses nothing yet."))
    columns = [
        name("experiment"),
        name("recipe"),
        name("base"),
        name("trained on", "variant"),
        Column("setting", lambda row: Cell(setting(row), row["value"]), number=False),
        Column("validation %", validation_cell, "95 % interval over seeds; of one seed, over validation pairs"),
        figure_column("seeds"),
        figure_column("pairs", "n"),
        Column("chosen", lambda row: text("yes" if row["chosen"] == 1 else None), number=False),
        Column("test %", lambda row: cell(percent(row["test_accuracy"]))),
        name("status"),
    ]
    blocks.append(Table("Settings of every sweep", columns, rows, results.csv("selection")))
    return Section("selection", "Settings chosen on validation", blocks)


def setting(row: dict) -> str:
    pairs = zip(row["key"].split(" "), str(row["value"]).split(" "), strict=True)
    return ", ".join(f"{key} = {value}" for key, value in pairs)


def validation_cell(row: dict) -> Cell:
    return cell(percent(row["validation_accuracy"]), detail=interval(percent(row["low"]), percent(row["high"])))
