"""Section on experiments that vary a setting: sweeps and label noise (the paper's Figure 2)."""

from collections import defaultdict

from lpc.report import figures
from lpc.report.page import Figure, Figures, Missing, Section, Text
from lpc.report.results import Results
from lpc.report.runs import opponents, setting
from lpc.report.words import count


def section(results: Results) -> Section:
    entries = results.settings["experiments"]
    panels = [panel for experiment, entry in entries.items() for panel in sweep_panel(results, experiment, entry)]
    noisy = noise_panels(results)
    blocks: list = [Figures(panels + noisy)] if panels or noisy else []
    if not any("latent.codes" in (entry.get("sweep") or {}) for entry in entries.values()):
        blocks.append(
            Missing(
                "No sweep over the number of codes (the paper's Figure 2, top left). To get it, add an experiment with "
                "an LPC recipe and sweep: {latent.codes: [8, 16, 32, 64, 128, 256]}."
            )
        )
    if not noisy:
        blocks.append(
            Missing(
                "No training on flipped labels (Figure 2, bottom left). To get it, define a variant under noise, such "
                'as flip50: {rate: 0.5, marker: "[FLIP]", seed: 0}, and add an experiment with noise: [clean, flip50].'
            )
        )
    blocks.append(Text("Figure 2's third panel, t-SNE of z by source, is under “Use of the codes”."))
    return Section("experiments", "Codebook size, noise and other sweeps (Figure 2)", blocks)


def sweep_panel(results: Results, experiment: str, entry: dict) -> list[Figure]:
    """Return the figure of an experiment that sweeps one number; other sweeps are in the tables only."""
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
            lines[run["recipe"].split("+")[0] + f", {run['base']}" * several + noise][setting(run, key)] = row
        for other, differs in opponents(run, results.runs):
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
    # More than two dashed lines are hard to tell apart; the tables have them.
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
                "labels; 95 % intervals."
            )
            panels.append(Figure.of(f"noise-{base}-{dataset}", figures.noise(list(variants), lines), caption))
    return panels
