"""What the page says: each section from the tables and files of a project.

Words follow numbers. A difference counts as one only where its interval excludes zero, over test prompts and, with
several seeds, over seeds as well; everything else is called not measurable, however large it looks.
"""

import functools
import json
import os
import platform
import subprocess
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import sklearn
import yaml
from markupsafe import Markup

from lpc import files
from lpc.data import world
from lpc.evaluation import statistics
from lpc.report import figures, paper, tables
from lpc.report.page import Cell, Code, Column, Figure, Figures, Missing, Points, Section, Table, Text, drawn

OBJECTIVES = {"dpo": "DPO", "ipo": "IPO", "simpo": "SimPO"}
# Below this many nats the prior is called unused: it tells prompts apart no better than 1.05 equally likely groups.
UNUSED = 0.05
MOST_CODES, MOST_FIGURES = 24, 6


class Results:
    """A project's settings, runs and tables, and what several sections need of them."""

    def __init__(self, root: Path, spec: dict) -> None:
        self.root = root
        self.settings = {key: value for key, value in spec.items() if key not in ("runs", "recipes")}
        self.recipes = spec["recipes"]
        held_out = self.settings["evaluation"]["preference"]["datasets"]
        self.runs = tables.resolve(spec["runs"], self.recipes, held_out)
        self.tables = {name: tables.read(root / "tables", name) for name in tables.COLUMNS}
        # The comparison that the page opens with: the experiment of that name, or everything.
        self.main = [run for run in self.runs if "main" in run["experiments"]] or self.runs

    def csv(self, name: str) -> tuple[str, str]:
        return f"{name}.csv", (self.root / "tables" / f"{name}.csv").read_text(encoding="utf-8")

    def json(self, path: str) -> dict:
        """A JSON file of the results, {} where it is absent."""
        return files.read_json(self.root / path) if (self.root / path).exists() else {}

    def accuracy(self, **where) -> list[dict]:
        """Preference accuracy over seeds: rows of preference_accuracy.csv grouped by all but the seed, in per cent.

        Each has mean, low and high (over seeds from two on, otherwise over test prompts) and the list `seeds`.
        """
        groups = defaultdict(list)
        for row in self.tables["preference_accuracy"]:
            if row["accuracy"] is not None and all(row[key] == value for key, value in where.items()):
                groups[row["base"], row["dataset"], row["variant"], row["recipe"]].append(row)
        return [over_seeds(rows) for rows in groups.values()]

    def main_comparisons(self) -> list[dict]:
        """LPC against plain, means over seeds, for the main experiment's recipes on clean data and its own test pairs."""
        wanted = {(run["base"], run["variant"], run["recipe"]) for run in self.main if run["noise"] == "clean"}
        return [
            row
            for row in self.tables["comparisons"]
            if row["seed"] == "mean"
            and (row["latent"], row["against_latent"]) == ("lpc", None)
            and (row["base"], row["variant"], row["recipe"]) in wanted
            and row["dataset"] == row["variant"]
        ]


def over_seeds(rows: list[dict]) -> dict:
    """One row for the seeds of a recipe: the first row's names, mean, interval in per cent."""
    values = [100 * row["accuracy"] for row in rows]
    interval = statistics.t_interval(values)
    if interval:
        low, high = max(interval.low, 0.0), min(interval.high, 100.0)
    else:
        low, high = percent(rows[0]["low"]), percent(rows[0]["high"])
    return {**rows[0], "mean": float(np.mean(values)), "low": low, "high": high, "seeds": values}


def percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def verdict(row: dict) -> int:
    """1 for higher, −1 for lower, 0 for no measurable difference, of a row of comparisons.csv."""
    low, high, _ = decisive(row)
    return int(low > 0) - int(high < 0)


def decisive(row: dict) -> tuple[float, float, str]:
    """The wider of a row's intervals, over test prompts or over seeds, and its name: both must exclude zero."""
    if row["seeds_low"] is None or row["high"] - row["low"] > row["seeds_high"] - row["seeds_low"]:
        return row["low"], row["high"], "over test prompts"
    return row["seeds_low"], row["seeds_high"], f"over {row['seeds']} seeds"


VERDICTS = {1: "higher than", 0: "not measurably different from", -1: "lower than"}


def in_words(row: dict) -> str:
    """One comparison with its difference and the interval that decides."""
    low, high, over = decisive(row)
    return (
        f"{row['recipe']} is {VERDICTS[verdict(row)]} {row['against']} ({number(100 * row['difference'], sign=True)} "
        f"points, "
        f"95 % interval {over} {number(100 * low, sign=True)} to {number(100 * high, sign=True)})"
    )


# Cells

NONE = "–"


def number(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """A number with a true minus sign; an en dash where there is none. A rounded zero has no sign."""
    if value is None:
        return NONE
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    elif sign and value > 0:
        text = f"+{text}"
    return text.replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; whole numbers in full."""
    if value is None:
        return NONE
    if value == 0 or (isinstance(value, int) and not isinstance(value, bool)):
        return f"{value:,}"
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return number(value, min(places, 8))


def interval(low: float | None, high: float | None, digits: int = 1, *, sign: bool = False) -> str:
    if low is None or high is None:
        return ""
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def cell(value: float | None, digits: int = 1, detail: str = "", *, sign: bool = False, strong: bool = False) -> Cell:
    return Cell(number(value, digits, sign=sign), value, detail, strong)


def text(value) -> Cell:
    return Cell(NONE if value is None else str(value), None if value is None else str(value))


def words(number_of: int, singular: str, plural: str | None = None) -> str:
    return f"{number_of:,} {singular if number_of == 1 else plural or singular + 's'}"


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def objective(name: str) -> str:
    return OBJECTIVES.get(name, name)


# The answer


def answer(results: Results) -> tuple[str, list[str], list[tuple[str, str]], Figure | None]:
    """Headline, its sentences, facts beside it, and the figure of differences."""
    rows = results.main_comparisons()
    facts = [
        (f"{len(results.runs):,}", "runs configured, " + words(done(results), "of them scored", "of them scored")),
        (listed_seeds(results), "seeds"),
    ]
    test_pairs = {row["dataset"]: row["n"] for row in results.tables["preference_accuracy"] if row["n"]}
    for dataset, n in test_pairs.items():
        facts.append((f"{n:,}", f"test pairs of {dataset}"))
    seconds = sum(row["seconds"] or 0 for row in results.tables["cost"])
    if seconds:
        facts.append((duration(seconds), "of computing, all jobs added up"))
    if not rows:
        missing = "A comparison needs one recipe with a latent of kind lpc and one without, with the same objective, base, data and seed."
        return "These results do not compare LPC with plain training", [missing], facts, None

    counts = {sign: sum(verdict(row) == sign for row in rows) for sign in (1, 0, -1)}
    findings = [effects(rows)]
    if max(row["seeds"] for row in rows) == 1:
        findings.append(
            "This is one seed. The intervals cover the choice of test prompts, not the luck of training, so a second "
            "seed may well "
            "turn a small difference round."
        )
    elif len(rows) > 1:
        findings.append(
            f"With {words(len(rows), 'comparison')} at 95 %, about {number(0.05 * len(rows), 1)} would look different "
            f"by chance alone."
        )
    findings += [
        sentence
        for sentence in (latent_in_words(results), control_in_words(results), cost_in_words(results))
        if sentence
    ]
    ends = ("difference", "low", "high", "seeds_low", "seeds_high")
    bars = [
        {"label": comparison_label(results, row), "sure": verdict(row) != 0, **{key: percent(row[key]) for key in ends}}
        for row in rows
    ]
    caption = (
        "Preference accuracy with LPC minus without, on the same test pairs. Thick: 95 % bootstrap interval over test "
        "prompts"
        + ("; thin: 95 % t interval over seeds" if any(row["seeds"] > 1 for row in rows) else "")
        + ". A filled square: every interval excludes zero; an open one: not."
    )
    return headline(counts), findings, facts, drawn("differences", figures.forest(bars), caption)


def headline(counts: dict[int, int]) -> str:
    total = sum(counts.values())
    if not counts[1] and not counts[-1]:
        return "LPC made no measurable difference to preference accuracy"
    if counts[1] == total:
        return "LPC raised preference accuracy" + (" in every comparison" if total > 1 else "")
    if counts[-1] == total:
        return "LPC lowered preference accuracy" + (" in every comparison" if total > 1 else "")
    if counts[1] and counts[-1]:
        return f"LPC raised preference accuracy in {counts[1]} and lowered it in {counts[-1]} of {total} comparisons"
    word, count = ("raised", counts[1]) if counts[1] else ("lowered", counts[-1])
    return f"LPC {word} preference accuracy in {count} of {total} comparisons; the others show no measurable difference"


def comparison_label(results: Results, row: dict) -> str:
    label = objective(row["objective"])
    if row["recipe"] != f"{row['objective']}-lpc":
        label = row["recipe"]
    return label if len({run["base"] for run in results.main}) == 1 else f"{row['base']}, {label}"


def effects(rows: list[dict]) -> str:
    if len(rows) <= 3:
        several = len({row["base"] for row in rows}) > 1
        return (
            "On the same test pairs, "
            + "; ".join((f"on {row['base']} " if several else "") + in_words(row) for row in rows)
            + "."
        )
    found = [100 * row["difference"] for row in rows]
    return (
        f"On the same test pairs, the {len(rows)} differences between LPC and plain training range from "
        f"{number(min(found), sign=True)} to {number(max(found), sign=True)} points."
    )


def latent_in_words(results: Results) -> str:
    names = {(row["base"], row["recipe"]) for row in results.main_comparisons()}
    rows = [
        row
        for row in results.tables["latents"]
        if (row["base"], row["recipe"]) in names
        and row["variant"] in results.settings["datasets"]
        and row["mutual_information"] is not None
    ]
    if not rows:
        return ""
    known = [row["mutual_information"] for row in rows]
    entropy = rows[0]["source_entropy"]
    how = (
        number(min(known), 2)
        if max(known) - min(known) < 0.005
        else f"{number(min(known), 2)} to {number(max(known), 2)}"
    )
    says = f"The codes carry {how} nats about the prompt; naming its source would take {number(entropy, 2)}."
    unused = sum(value < UNUSED for value in known)
    if unused == len(known):
        says += " In every run the prior is nearly the same for all prompts: the latent has collapsed, and z is one constant vector."
    elif unused:
        says += f" In {unused} of {len(known)} runs the prior is nearly the same for all prompts."
    change = [100 * (row["accuracy"] - row["accuracy_zero"]) for row in rows if row["accuracy_zero"] is not None]
    if change:
        says += f" Taking z away changes accuracy by {number(-max(change), sign=True)} to {number(-min(change), sign=True)} points."
    return says


def control_in_words(results: Results) -> str:
    recipes = {row["recipe"] for row in results.main_comparisons()}
    rows = [
        row
        for row in results.tables["comparisons"]
        if row["seed"] == "mean"
        and row["recipe"] in recipes
        and row["against_latent"]
        and row["dataset"] == row["variant"]
    ]
    parts = [in_words(row) for row in rows]
    if len(parts) > 3:
        counts = [sum(verdict(row) == sign for row in rows) for sign in (1, 0, -1)]
        parts = [
            f"of {len(rows)} comparisons, LPC is higher in {counts[0]}, not measurably different in {counts[1]}, lower "
            f"in {counts[2]}"
        ]
    return "Against controls with extra parameters and no codes: " + "; ".join(parts) + "." if parts else ""


def step_ratios(results: Results) -> list[tuple[dict, float]]:
    """Each run with codes and its time a step relative to the plain run that it is compared with."""
    seconds = {
        (row["base"], row["variant"], row["recipe"], row["seed"]): row["seconds_per_step"]
        for row in results.tables["training"]
    }
    found = []
    for row in results.tables["comparisons"]:
        if (
            row["seed"] != "mean"
            and row["latent"] == "lpc"
            and row["against"]
            and row["against_latent"] is None
            and not row["differs"]
        ):
            mine, plain = (
                seconds.get((row["base"], row["variant"], name, row["seed"]))
                for name in (row["recipe"], row["against"])
            )
            if mine and plain and row["dataset"] == row["variant"].split(".")[0]:
                found.append((row, mine / plain))
    return found


def cost_in_words(results: Results) -> str:
    ratios = [ratio for _, ratio in step_ratios(results)]
    if not ratios:
        return ""
    low, high = 100 * (min(ratios) - 1), 100 * (max(ratios) - 1)
    change = (
        number(low, 0, sign=True) if high - low < 1 else f"{number(low, 0, sign=True)} to {number(high, 0, sign=True)}"
    )
    added = {
        row["latent_parameters"] / row["parameters"]
        for row in results.tables["training"]
        if row["latent"] == "lpc" and row["parameters"]
    }
    return f"LPC changes the time of a training step by {change} % and adds {number(100 * max(added), 1)} % parameters."


def done(results: Results) -> int:
    return len(
        {
            (r["base"], r["variant"], r["recipe"], r["seed"])
            for r in results.tables["preference_accuracy"]
            if r["status"] == "ok"
        }
    )


def listed_seeds(results: Results) -> str:
    seeds = sorted({run["seed"] for run in results.runs})
    return ", ".join(map(str, seeds)) if len(seeds) <= 6 else f"{seeds[0]} to {seeds[-1]}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# Preference accuracy


def preference(results: Results) -> Section:
    blocks: list = [
        Text(
            [
                "The share of test pairs in which the chosen completion gets the higher reward; a tie counts one half. "
                "z comes from the "
                "prior alone: the posterior sees who won, and no number here uses it."
            ]
        )
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in results.tables["preference_accuracy"]):
        blocks += preference_on(results, dataset)
    columns = [
        *(Column(name, number=False) for name in ("recipe", "base", "trained on", "tested on")),
        Column("seed"),
        Column("accuracy %", hint="95 % Wilson interval, clustered by prompt"),
        Column("longer wins %", hint="accuracy of always preferring the longer completion, on the same pairs"),
        Column("n"),
        Column("ties"),
        Column("dropped", hint="pairs that the tokenisation could not keep"),
        Column("status", number=False),
    ]
    rows = [
        [
            text(row["recipe"]),
            text(row["base"]),
            text(row["variant"]),
            text(row["dataset"]),
            cell(row["seed"], 0),
            cell(percent(row["accuracy"]), 1, interval(percent(row["low"]), percent(row["high"]))),
            cell(percent(row["longer_accuracy"])),
            cell(row["n"], 0),
            cell(row["ties"], 0),
            cell(row["dropped"], 0),
            text(row["status"]),
        ]
        for row in results.tables["preference_accuracy"]
    ]
    blocks.append(
        Table(
            "Every run", columns, rows, results.csv("preference_accuracy"), folded=f"All {len(rows)} rows, run by run"
        )
    )
    return Section("preference", "Preference accuracy", blocks)


def preference_on(results: Results, dataset: str) -> list:
    """Table 2's shape and a figure, for one held-out dataset and training on clean data."""
    rows = [row for row in results.accuracy(dataset=dataset) if row["variant"] in results.settings["datasets"]]
    mains = {(run["base"], run["variant"], run["recipe"]) for run in results.main}
    rows = [row for row in rows if (row["base"], row["variant"], row["recipe"]) in mains]
    if not rows:
        return [Missing(f"No run of the main experiment was scored on {dataset} yet.")]
    compared = {
        (row["base"], row["variant"], row["against"], row["recipe"]): row
        for row in results.tables["comparisons"]
        if row["seed"] == "mean"
        and row["dataset"] == dataset
        and (row["latent"], row["against_latent"]) == ("lpc", None)
    }
    by_name = {(row["base"], row["variant"], row["recipe"]): row for row in rows}
    theirs = any(paper.base_name(results.settings["bases"][row["base"]]) for row in rows)
    body = []
    for (base, variant, against, recipe), row in compared.items():
        plain, with_lpc = by_name.get((base, variant, against)), by_name.get((base, variant, recipe))
        if plain is None or with_lpc is None:
            continue
        sure = verdict(row) != 0
        seeds_detail = interval(percent(row["seeds_low"]), percent(row["seeds_high"]), sign=True)
        line = [
            Cell(objective(row["objective"]), row["objective"], "" if recipe == f"{row['objective']}-lpc" else recipe),
            text(base),
            cell(plain["mean"], 1, interval(plain["low"], plain["high"])),
            cell(with_lpc["mean"], 1, interval(with_lpc["low"], with_lpc["high"])),
            cell(
                percent(row["difference"]),
                1,
                interval(percent(row["low"]), percent(row["high"]), sign=True),
                sign=True,
                strong=sure,
            ),
            Cell(seeds_detail or "one seed", row["seeds"]),
            cell(percent(plain["longer_accuracy"])),
            cell(row["n"], 0),
        ]
        if theirs:
            name = paper.base_name(results.settings["bases"][base])
            before, after = paper.PREFERENCE.get(name, {}).get(row["objective"], (None, None))
            line += [cell(before), cell(after), cell(after - before if after else None, sign=True)]
        body.append(line)
    columns = [
        Column("objective", number=False),
        Column("base", number=False),
        Column("without LPC %"),
        Column("with LPC %"),
        Column("difference", hint="points; 95 % paired bootstrap interval over test prompts"),
        Column("over seeds", hint="95 % t interval of the difference over seeds"),
        Column("longer wins %", hint="always preferring the longer completion"),
        Column("pairs"),
    ]
    notes = [
        "Small: 95 % intervals, over seeds from two seeds on, otherwise over prompts. Strong: both intervals exclude "
        "zero."
    ]
    if theirs:
        columns += [Column("paper: without"), Column("paper: with"), Column("paper: difference")]
        notes.append("The paper gives no intervals.")
    blocks: list = []
    if body:
        blocks.append(
            Table(
                f"With and without LPC, test pairs of {dataset} (shape of the paper's Table 2)",
                columns,
                body,
                results.csv("preference_accuracy"),
                notes,
            )
        )
    references = {"longer wins": percent(rows[0]["longer_accuracy"])}
    found = ceilings(results, dataset)
    labels = {"source_blind": "blind to source", "score_oracle": "oracle"}
    references |= {label: percent(found[key]) for key, label in labels.items() if key in found}
    order = sorted(rows, key=lambda row: (row["base"], row["objective"], row["latent"] is not None, row["recipe"]))
    several = len({row["base"] for row in rows}) > 1
    drawing = figures.dots(
        [
            {**row, "label": f"{row['base']}, {row['recipe']}" if several else row["recipe"], "kind": row["latent"]}
            for row in order
        ],
        {label: value for label, value in references.items() if value is not None},
    )
    caption = (
        f"Accuracy on the test pairs of {dataset}. Round: plain; square: LPC; diamond: a control without codes. Lines "
        f"are 95 % intervals, "
        "ticks single seeds, dotted verticals what simple judges and an oracle reach on the same pairs."
    )
    blocks.append(Figures([drawn(f"accuracy-{dataset}", drawing, caption)]))
    return blocks


@functools.cache
def ceilings(results: Results, dataset: str) -> dict[str, float]:
    """What judges that know the world reach on a generated dataset's test pairs; {} for any other dataset, or without
    its pairs.
    """
    path = results.root / "data" / dataset / "pairs.parquet"
    if results.settings["datasets"][dataset]["kind"] != "world" or not path.exists():
        return {}
    pairs = files.read_parquet(path, ["split", "source", "chosen", "rejected"])
    return world.ceilings(pairs.filter(pa.compute.equal(pairs["split"], "test")).to_pylist())


# Benchmarks


def benchmarks(results: Results) -> Section:
    tasks = results.settings["evaluation"]["benchmarks"]["tasks"]
    if not tasks:
        return Section(
            "benchmarks",
            "Benchmarks",
            [Missing("No benchmark is configured: add entries under evaluation.benchmarks.tasks.")],
        )
    scores = defaultdict(lambda: defaultdict(list))
    mains = {(run["base"], run["variant"], run["recipe"]) for run in results.main}
    kinds = {}
    for row in results.tables["benchmarks"]:
        key = (row["base"], row["variant"], row["recipe"])
        if row["primary"] == 1 and (row["recipe"] == "base" or key in mains):
            scores[key][row["task"]].append(row)
            kinds[key] = (row["objective"] or "base", row["latent"] == "lpc")
    theirs = {base: paper.base_name(entry) for base, entry in results.settings["bases"].items()}
    ours_to_theirs = {name: paper.TASKS.get(entry["task"]) for name, entry in tasks.items()}
    columns = [Column("model", number=False), Column("base", number=False)]
    columns += [
        Column(name, hint=f"{entry['task']}, %, with the harness's standard error") for name, entry in tasks.items()
    ]
    columns.append(Column("mean", hint="over the tasks; standard error as if the tasks were independent"))
    body = []
    for (base, variant, recipe), by_task in scores.items():
        reported = paper.BENCHMARKS.get(theirs[base], {}).get(kinds[base, variant, recipe])
        reported = dict(zip([*paper.TASKS.values(), "mean"], reported, strict=True)) if reported else {}
        cells, means, errors = [], [], []
        for name in tasks:
            rows = by_task.get(name, [])
            mean = np.mean([row["value"] for row in rows]) if rows else None
            # Seeds answer the same questions, so their errors do not average out.
            known = [row["stderr"] for row in rows if row["stderr"] is not None]
            error = float(np.mean(known)) if known and len(known) == len(rows) else None
            cells.append(cell(percent(mean), 1, score_detail(percent(error), reported.get(ours_to_theirs[name]))))
            means.append(mean)
            errors.append(error)
        whole = None not in means
        error = np.sqrt(np.sum(np.square(errors))) / len(errors) if None not in errors else None
        comparable = set(ours_to_theirs.values()) == set(paper.TASKS.values())
        detail = score_detail(percent(error) if whole else None, reported.get("mean") if comparable else None)
        cells.append(cell(percent(np.mean(means)) if whole else None, 1, detail))
        body.append([Cell("base model" if recipe == "base" else recipe, recipe), text(base), *cells])
    notes = [
        "Small: standard error of the harness"
        + ("; then the paper's number for the same base and task." if any(theirs.values()) else ".")
    ]
    if any(theirs.values()):
        notes.append("Scores per task with LPC did not survive in the text version of the paper; its averages did.")
    table = Table("Benchmark scores, % (shape of the paper's Table 1)", columns, body, results.csv("benchmarks"), notes)
    lead = (
        "The Language Model Evaluation Harness on each run's checkpoint, z from the prior. Means over seeds. Questions "
        "are few in small "
        "settings: read a difference against the standard errors before reading anything into it."
    )
    return Section("benchmarks", "Benchmarks", [Text([lead]), table])


def score_detail(error: float | None, reported: float | None) -> str:
    parts = [f"± {number(error)}"] if error is not None else []
    if reported is not None:
        parts.append(f"paper {reported:.2f}")
    return "; ".join(parts)


# AlpacaEval


def alpacaeval(results: Results) -> Section:
    columns = [
        Column("model", number=False),
        Column("base", number=False),
        Column("length-controlled win rate %"),
        Column("win rate %"),
        Column("answers"),
        Column("judge", number=False),
    ]
    body, why = [], "it is not configured (evaluation.alpacaeval), and it needs a judge model behind an API key"
    for run in results.main:
        found = results.json(f"{run['folder']}/alpacaeval/judged.json")
        if found:
            why = found["reason"] or ""
            rates = [found["metrics"].get(name, {}) for name in ("length_controlled_winrate", "win_rate")]
            scores = [cell(rate.get("value"), 2, score_detail(rate.get("stderr"), None)) for rate in rates]
            judge = (found["judge"] or {}).get("annotator") if found["status"] == "judged" else f"not judged: {why}"
            body.append([text(run["recipe"]), text(run["base"]), *scores, cell(found["n"], 0), text(judge)])
    for base, entry in results.settings["bases"].items():
        for name, methods in paper.ALPACAEVAL.get(paper.base_name(entry), {}).items():
            for label, (controlled, raw) in zip((name, f"{name}-lpc"), methods, strict=True):
                body.append(
                    [
                        text(f"{label}, in the paper"),
                        text(base),
                        cell(controlled, 2),
                        cell(raw, 2),
                        cell(805, 0),
                        text("GPT-4"),
                    ]
                )
    blocks: list = [Missing(f"Not judged: {why}.")] if why else []
    if body:
        blocks.append(Table("AlpacaEval 2 (shape of the paper's Table 3)", columns, body))
    return Section("alpacaeval", "AlpacaEval", blocks)


# Figure 2


def experiments(results: Results) -> Section:
    blocks: list = []
    panels = [
        panel for name, entry in results.settings["experiments"].items() for panel in sweep_panels(results, name, entry)
    ]
    noisy = noise_panels(results)
    if panels or noisy:
        blocks.append(Figures(panels + noisy))
    if not any("latent.codes" in (entry.get("sweep") or {}) for entry in results.settings["experiments"].values()):
        blocks.append(
            Missing(
                "No sweep over the number of codes (the paper's Figure 2, top left). To get it, add an experiment with one "
                "LPC recipe and "
                "sweep: {latent.codes: [8, 16, 32, 64, 128, 256]}."
            )
        )
    if not noisy:
        blocks.append(
            Missing(
                'No training on flipped labels (Figure 2, bottom left). To get it, define noise: {flip50: {rate: 0.5, marker: "[FLIP]"}} '
                "and add an experiment with noise: [clean, flip50]."
            )
        )
    blocks.append(Text(["Figure 2's third panel, t-SNE of z by source, stands under “What the codes learn”."]))
    return Section("experiments", "Codebook size, noise and other sweeps (Figure 2)", blocks)


def at(settings: dict, key: str):
    for part in key.split("."):
        settings = settings[part]
    return settings


def sweep_panels(results: Results, name: str, entry: dict) -> list[Figure]:
    """One figure for an experiment that sweeps one number; what sweeps several keys, or words, stands in the tables."""
    sweep = entry.get("sweep") or {}
    if len(sweep) != 1:
        return []
    ((key, values),) = sweep.items()
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return []
    runs = [run for run in results.runs if name in run["experiments"]]
    scored = {
        (row["base"], row["variant"], row["recipe"]): row
        for row in results.accuracy()
        if row["dataset"] == row["variant"].split(".")[0]
    }
    lines = defaultdict(dict)
    for run in runs:
        row = scored.get((run["base"], run["variant"], run["recipe"]))
        if row is not None:
            label = ", ".join(
                [
                    run["recipe"].split("+")[0],
                    *([run["base"]] if len({run["base"] for run in runs}) > 1 else []),
                    *([run["variant"]] if run["noise"] != "clean" else []),
                ]
            )
            lines[label][at(results.recipes[run["recipe"]], key)] = row
    drawn_lines = []
    for label, points in lines.items():
        x = sorted(points)
        drawn_lines.append(
            {
                "name": label,
                "x": x,
                "y": [points[v]["mean"] for v in x],
                "low": [points[v]["low"] for v in x],
                "high": [points[v]["high"] for v in x],
            }
        )
    if not drawn_lines:
        return []
    plain = {}
    for run in runs:
        for other, differs in tables.opponents(run, results.runs):
            row = scored.get((other["base"], other["variant"], other["recipe"]))
            if (
                tables.latent_kind(other) is None
                and row is not None
                and not differs
                and not key.startswith(("objective", "training"))
            ):
                plain[other["base"], other["variant"], other["recipe"]] = {
                    "name": f"{other['recipe']} (no latent)",
                    "y": row["mean"],
                }
    if len(plain) > 2:
        plain = {}  # More lines than a reader can tell apart; the comparison stands in the tables.
    log2 = key == "latent.codes" or (min(values) > 0 and max(values) / min(values) >= 8)
    figure = figures.sweep(key, drawn_lines, log2=log2, level=list(plain.values()))
    seeds = max(len(row["seeds"]) for points in lines.values() for row in points.values())
    caption = f"Experiment {name}: accuracy against {key}, {words(seeds, 'seed')}; bands are 95 % intervals."
    return [drawn(f"sweep-{name}", figure, caption)]


def noise_panels(results: Results) -> list[Figure]:
    panels = []
    scored = {
        (row["base"], row["variant"], row["recipe"]): row
        for row in results.accuracy()
        if row["dataset"] == row["variant"].split(".")[0]
    }
    noisy = [run for run in results.runs if run["noise"] != "clean"]
    for base, dataset in dict.fromkeys((run["base"], run["dataset"]) for run in noisy):
        chosen = [run for run in noisy if (run["base"], run["dataset"]) == (base, dataset)]
        variants = [dataset, *dict.fromkeys(run["variant"] for run in chosen)]
        lines = []
        for recipe in dict.fromkeys(run["recipe"] for run in chosen):
            rows = [scored.get((base, variant, recipe)) for variant in variants]
            lines.append(
                {
                    "name": recipe,
                    **{
                        key: [row and row[field] for row in rows]
                        for key, field in (("y", "mean"), ("low", "low"), ("high", "high"))
                    },
                }
            )
        if any(value is not None for line in lines for value in line["y"]):
            labels = ["clean", *(variant.split(".", 1)[1] for variant in variants[1:])]
            caption = f"{base}: accuracy on the unflipped test pairs of {dataset} after training on clean and on flipped labels; 95 % intervals."
            panels.append(drawn(f"noise-{base}-{dataset}", figures.noise(labels, lines), caption))
    return panels


# Statistics


def comparisons(results: Results) -> Section:
    lead = (
        "Two runs are compared pair by pair on the test pairs that both scored. Interval: 95 % bootstrap, 10,000 "
        "resamples of whole prompts, "
        "since pairs of one prompt are not independent. McNemar: exact, two-sided, on the pairs where one of the two "
        "is right; it ignores "
        "shared prompts. Over seeds: Student's t. No correction for the number of comparisons."
    )
    columns = [
        Column("recipe", number=False),
        Column("against", number=False),
        Column("base", number=False),
        Column("trained on", number=False),
        Column("tested on", number=False),
        Column("seed"),
        Column("difference", hint="percentage points; 95 % bootstrap over prompts"),
        Column("over seeds", hint="95 % t interval"),
        Column("wins"),
        Column("losses"),
        Column("McNemar p"),
        Column("pairs"),
        Column("note", number=False),
    ]
    rows = []
    for row in results.tables["comparisons"]:
        mean = row["seed"] == "mean"
        note = row["status"] if row["status"] != "ok" else f"differs in {row['differs']}" if row["differs"] else ""
        known = row["difference"] is not None
        detail = interval(percent(row["low"]), percent(row["high"]), sign=True)
        rows.append(
            [
                text(row["recipe"]),
                text(row["against"]),
                text(row["base"]),
                text(row["variant"]),
                text(row["dataset"]),
                Cell(f"mean of {row['seeds']}" if mean else str(row["seed"]), 1e9 if mean else row["seed"]),
                cell(percent(row["difference"]), 1, detail, sign=True, strong=mean and known and verdict(row) != 0),
                Cell(
                    interval(percent(row["seeds_low"]), percent(row["seeds_high"]), sign=True) or NONE,
                    percent(row["seeds_low"]),
                ),
                cell(row["wins"], 0),
                cell(row["losses"], 0),
                cell(row["mcnemar_p"], 3),
                cell(row["n"], 0),
                Cell(note, note),
            ]
        )
    if not rows:
        return Section(
            "statistics", "Statistics", [Text([lead]), Missing("No run has a latent, so nothing is compared.")]
        )
    mean_rows = [line for line, row in zip(rows, results.tables["comparisons"], strict=True) if row["seed"] == "mean"]
    blocks: list = [Text([lead])]
    if mean_rows:
        kept = [i for i, column in enumerate(columns) if column.label not in ("wins", "losses", "McNemar p")]
        blocks.append(
            Table(
                "Means over seeds",
                [columns[i] for i in kept],
                [[line[i] for i in kept] for line in mean_rows],
                results.csv("comparisons"),
                ["Strong: every interval of the row excludes zero."],
            )
        )
    blocks.append(
        Table("Every seed", columns, rows, results.csv("comparisons"), folded=f"All {len(rows)} rows, seed by seed")
    )
    return Section("statistics", "Statistics", blocks)


# Training


def training(results: Results) -> Section:
    blocks: list = [
        Text(
            [
                "Training metrics over steps, smoothed over nine logging steps; lines of one colour are the seeds of a "
                "recipe."
            ]
        )
    ]
    groups = defaultdict(list)
    for run in results.main:
        if run["noise"] == "clean":
            groups[run["base"], run["dataset"], run["objective"]["name"]].append(run)
    panels = {
        "loss": ("loss", {"": lambda line: line.get("loss")}),
        "accuracy": ("accuracy on training pairs", {"": lambda line: line.get("accuracy")}),
        "codes": ("codes, nats", {"KL(q ‖ p)": lambda line: line.get("kl"), "I(code; prompt)": code_information}),
    }
    for (base, dataset, name), runs in groups.items():
        logs = [(run, read_log(results.root / run["folder"] / "train.jsonl")) for run in runs]
        drawings = []
        for key, (title, values) in panels.items():
            lines = [
                {
                    "name": ": ".join(filter(None, (run["recipe"], label))),
                    "x": [x for x, _ in points],
                    "y": [y for _, y in points],
                }
                for run, log in logs
                for label, value in values.items()
                if (points := [(line["step"], value(line)) for line in log if value(line) is not None])
            ]
            if lines:
                figure = figures.curves(f"{objective(name)}: {title}", lines)
                caption = f"{objective(name)} on {base}, {dataset}: {title}."
                drawings.append(drawn(f"training-{base}-{dataset}-{name}-{key}", figure, caption))
        if drawings:
            blocks.append(Figures(drawings))
    if len(blocks) == 1:
        blocks = [Missing("No run has a training log yet.")]
    return Section("training", "Training", blocks)


def code_information(line: dict) -> float | None:
    """I(code; prompt) of a logged batch: H(mean p) − mean H(p), from the two perplexities."""
    if line.get("prior_perplexity") is None:
        return None
    return float(np.log(line["mean_prior_perplexity"] / line["prior_perplexity"]))


def read_log(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


# Codes

MEASURES = [
    # column of latents.csv, label, digits, what it means
    (
        "mutual_information",
        "I(code; prompt)",
        3,
        "nats that the prior's code tells about the prompt; 0: the latent has collapsed",
    ),
    ("kl", "KL(q ‖ p)", 3, "nats by which the posterior, which sees who won, differs from the prior"),
    ("accuracy", "accuracy", 3, "preference accuracy with z from the prior"),
    ("accuracy_zero", "accuracy, z = 0", 3, "the same model without its latent"),
    (
        "accuracy_shuffled",
        "accuracy, z of another prompt",
        3,
        "equal to the accuracy where z says nothing of the prompt",
    ),
    ("accuracy_posterior", "accuracy with the posterior", 3, "leaks who won: a diagnostic, never a result"),
    (
        "accuracy_posterior_swapped",
        "the same, completions swapped",
        3,
        "far below the line above: the posterior only repeats who won",
    ),
    ("z_norm", "|z|", 3, "mean length of z"),
    ("z_spread", "spread of z", 3, "how far z moves from prompt to prompt; set it against |h|"),
    ("h_norm", "|h|", 3, "mean length of the prompt's hidden state"),
    ("h_spread", "spread of h", 3, "how far h moves from prompt to prompt"),
    ("codes", "codes", 0, "size of the codebook"),
    ("prior_perplexity", "perplexity of the prior", 1, "codes in use for one prompt"),
    ("mean_prior_perplexity", "perplexity of the mean prior", 1, "codes in use over all prompts"),
    ("posterior_perplexity", "perplexity of the posterior", 1, "codes in use for one pair"),
    ("dead_codes", "dead codes", 0, "mean prior below a tenth of the uniform one"),
    ("nmi_code_source", "NMI, strongest code and source", 2, "1: the codes name the sources"),
    (
        "nmi_z_kmeans_source",
        "NMI, clusters of z and source",
        2,
        "computed after standardising: means nothing where z hardly moves",
    ),
    ("nmi_h_kmeans_source", "NMI, clusters of h and source", 2, "what z has to add to"),
    ("probe_z_source", "probe of z for the source", 3, "cross-validated accuracy of a linear classifier"),
    ("probe_h_source", "probe of h for the source", 3, "the same from the hidden state"),
    ("probe_chance", "chance of the probes", 3, "share of the largest source"),
]


def codes(results: Results) -> Section:
    mains = {(run["base"], run["variant"], run["recipe"]) for run in results.main if run["noise"] == "clean"}
    groups = defaultdict(list)
    for row in results.tables["latents"]:
        key = (row["base"], row["variant"], row["recipe"])
        if key in mains and row["status"] == "ok":
            groups[key].append(row)
    if not groups:
        return Section("codes", "What the codes learn", [Missing("No run of the main experiment has a latent.")])
    several = len({base for base, _, _ in groups}) > 1
    heads = [f"{base}, {recipe}" if several else recipe for base, _, recipe in groups]
    body = []
    for key, label, digits, meaning in MEASURES:
        cells = []
        for rows in groups.values():
            values = [row[key] for row in rows if row[key] is not None]
            ends = [number(end, digits) for end in (min(values, default=None), max(values, default=None))]
            spread = " to ".join(ends) if ends[0] != ends[1] else ""
            shown = float(np.mean(values)) if values else None
            cells.append(
                Cell(significant(shown) if key.endswith(("norm", "spread")) else number(shown, digits), shown, spread)
            )
        body.append([Cell(label, label, meaning), *cells])
    lead = (
        "Is the latent used at all, and if so, what for? Entropies in nats, over distinct test prompts. Clusters and "
        "t-SNE show structure in "
        "differences of any size, so they count only next to the spread of z, and next to the same measures of h, from "
        "which z is computed."
    )
    table = Table(
        "Diagnostics of the latent, means over seeds",
        [Column("measure", number=False), *(Column(name) for name in heads)],
        body,
        results.csv("latents"),
    )
    blocks: list = [Text([lead]), table]
    first = {}
    for run in results.main:
        key = (run["base"], run["variant"], run["recipe"])
        if key in groups:
            first.setdefault(key, run)
    maps = [drawing for run in list(first.values())[:MOST_FIGURES] for drawing in usage_maps(results, run)]
    if maps:
        blocks.append(Figures(maps))
    embedded = [drawing for run in list(first.values())[:MOST_FIGURES] for drawing in embeddings(results, run)]
    if embedded:
        blocks.append(Figures(embedded))
    if len(first) > MOST_FIGURES:
        blocks.append(
            Missing(
                f"Figures of the first {MOST_FIGURES} recipes are shown; those of the others lie in their run's folder."
            )
        )
    blocks += correlations(results, mains)
    return Section("codes", "What the codes learn", blocks)


def usage_maps(results: Results, run: dict) -> list[Figure]:
    rows = [
        row
        for row in results.tables["codes"]
        if all(row[key] == run[key] for key in ("base", "variant", "recipe", "seed"))
    ]
    if not rows:
        return []
    sources, count = sorted({row["source"] for row in rows}), 1 + max(row["code"] for row in rows)
    usage, prompts = np.zeros((len(sources), count)), np.zeros(len(sources))
    for row in rows:
        usage[sources.index(row["source"]), row["code"]] = row["mean_prior"]
        prompts[sources.index(row["source"])] = row["prompts"]
    order = np.argsort(-(prompts @ usage), kind="stable")[:MOST_CODES]
    shown = f"the {MOST_CODES} most used of {count} codes" if count > MOST_CODES else f"all {count} codes"
    caption = (
        f"{run['recipe']}, seed {run['seed']}: mean prior of each code by source, {shown}. Numbers: per cent, from 10. "
        f"Rows that look alike: "
        "the codes do not tell the sources apart."
    )
    figure = figures.heat_map(usage[:, order], sources, [str(code) for code in order])
    return [drawn(f"codes-{run['base']}-{run['recipe']}-{run['seed']}", figure, caption, wide=len(order) > 16)]


def embeddings(results: Results, run: dict) -> list[Figure]:
    drawings = []
    for kind in ("source", "code") if tables.latent_kind(run) == "lpc" else ("source",):
        path = results.root / run["folder"] / f"tsne_{kind}.svg"
        if path.exists():
            caption = {
                "source": f"{run['recipe']}, seed {run['seed']}: t-SNE of z and of the hidden state it comes from, by source (Figure 2, right).",
                "code": f"{run['recipe']}, seed {run['seed']}: t-SNE of z by strongest code.",
            }[kind]
            name = f"tsne-{kind}-{run['base']}-{run['recipe']}-{run['seed']}"
            drawings.append(Figure(name, Markup(path.read_text(encoding="utf-8")), caption, wide=kind == "source"))
    return drawings


def correlations(results: Results, mains: set) -> list:
    """For each run and measure the code whose posterior correlates most."""
    best: dict[tuple, dict] = {}
    for row in results.tables["code_correlations"]:
        key = (row["base"], row["variant"], row["recipe"], row["seed"], row["measure"])
        value = row["posterior_correlation"]
        if (
            key[:3] in mains
            and value is not None
            and (key not in best or abs(value) > abs(best[key]["posterior_correlation"]))
        ):
            best[key] = row
    if not best:
        return []
    columns = [
        Column("recipe", number=False),
        Column("base", number=False),
        Column("seed"),
        Column("measure", number=False),
        Column("code"),
        Column("posterior", hint="Spearman's rank correlation over test pairs"),
        Column("prior"),
        Column("pairs"),
    ]
    rows = [
        [
            text(row["recipe"]),
            text(row["base"]),
            cell(row["seed"], 0),
            text(row["measure"].replace("_", " ")),
            cell(row["code"], 0),
            cell(row["posterior_correlation"], 2, sign=True),
            cell(row["prior_correlation"], 2, sign=True),
            cell(row["n"], 0),
        ]
        for row in best.values()
    ]
    notes = [
        "Measures are chosen minus rejected: tokens, and scores of the aspects where the data has them. The strongest "
        "of many codes "
        "is shown, so values near 0.1 are to be expected by chance on a thousand pairs."
    ]
    return [
        Table(
            "Codes and length or aspects: the most correlated code",
            columns,
            rows,
            results.csv("code_correlations"),
            notes,
            folded="Correlation of codes with length and aspects",
        )
    ]


# The known factors of a generated world


def factors(results: Results) -> Section | None:
    """How well the codes find the sources, and how far the runs are from the ceilings, where the data was generated."""
    worlds = [name for name, entry in results.settings["datasets"].items() if entry["kind"] == "world"]
    blocks: list = []
    for name in worlds:
        found = ceilings(results, name)
        rows = []
        judges = {
            "score_oracle": "oracle: knows each source's rule, not the noise",
            "source_blind": "best rule blind to the source",
            "longer": "the longer completion wins",
        }
        for key, label in judges.items():
            if key in found:
                rows.append([text(label), cell(percent(found[key]))])
        for row in sorted(results.accuracy(dataset=name, variant=name), key=lambda row: -row["mean"]):
            if any(run["recipe"] == row["recipe"] and run["base"] == row["base"] for run in results.main):
                rows.append(
                    [text(f"{row['recipe']} on {row['base']}"), cell(row["mean"], 1, interval(row["low"], row["high"]))]
                )
        if rows:
            blocks.append(
                Table(
                    f"Between chance and oracle, test pairs of {name}",
                    [Column("judge", number=False), Column("accuracy %")],
                    rows,
                )
            )
    if not blocks:
        return None
    rows = []
    mains = {(run["base"], run["recipe"]) for run in results.main}
    for row in results.tables["latents"]:
        if row["variant"] in worlds and row["status"] == "ok" and (row["base"], row["recipe"]) in mains:
            rows.append(
                [
                    text(row["recipe"]),
                    cell(row["seed"], 0),
                    cell(row["nmi_code_source"], 2),
                    cell(row["nmi_z_kmeans_source"], 2),
                    cell(row["nmi_h_kmeans_source"], 2),
                    cell(row["probe_z_source"], 3),
                    cell(row["probe_h_source"], 3),
                    cell(row["probe_chance"], 3),
                    Cell(significant(row["z_spread"]), row["z_spread"]),
                    Cell(significant(row["h_norm"]), row["h_norm"]),
                ]
            )
    if rows:
        columns = [
            Column("recipe", number=False),
            Column("seed"),
            Column("NMI code", hint="strongest code and source"),
            Column("NMI z", hint="k-means clusters of z and source"),
            Column("NMI h", hint="k-means clusters of h and source"),
            Column("probe z"),
            Column("probe h"),
            Column("chance"),
            Column("spread of z"),
            Column("|h|"),
        ]
        blocks.append(
            Table(
                "Do the codes find the known factors?",
                columns,
                rows,
                results.csv("latents"),
                [
                    "Each source of this world judges by one hidden rule, so the sources are the true factors. z is computed "
                    "from h: a probe of z "
                    "cannot know more than one of h, and where the spread of z is tiny beside |h| a good score of z means "
                    "little."
                ],
            )
        )
    lead = "This data was generated, so what can be reached is known, and so is what the codes should find."
    return Section("factors", "Known factors and ceilings", [Text([lead]), *blocks])


# Cost


def cost(results: Results) -> Section:
    blocks: list = []
    ratio = {(row["base"], row["variant"], row["recipe"], row["seed"]): value for row, value in step_ratios(results)}
    rows = []
    for row in results.tables["training"]:
        extra = None
        if row["latent_parameters"] is not None and row["parameters"]:
            extra = 100 * row["latent_parameters"] / row["parameters"]
        key = (row["base"], row["variant"], row["recipe"], row["seed"])
        rows.append(
            [
                text(row["recipe"]),
                text(row["base"]),
                text(row["variant"]),
                cell(row["seed"], 0),
                cell(row["seconds"], 1),
                Cell(significant(row["seconds_per_step"]), row["seconds_per_step"]),
                Cell(f"× {number(ratio[key], 2)}" if key in ratio else NONE, ratio.get(key)),
                cell(row["tokens_per_second"], 0),
                Cell(significant(row["peak_memory_gib"]), row["peak_memory_gib"]),
                cell(row["latent_parameters"], 0, f"{number(extra)} %" if extra else ""),
                Cell("" if row["status"] == "ok" else "missing", row["status"]),
            ]
        )
    columns = [
        Column("recipe", number=False),
        Column("base", number=False),
        Column("trained on", number=False),
        Column("seed"),
        Column("seconds"),
        Column("s / step"),
        Column("to plain", hint="time of a step relative to the plain run of the same objective, base, data and seed"),
        Column("tokens / s"),
        Column("peak GiB"),
        Column("extra", hint="parameters of the latent"),
        Column("note", number=False),
    ]
    notes = [
        "Runs that shared their machine with other jobs are slower for that; small differences in time mean nothing."
    ]
    blocks.append(Table("Training", columns, rows, results.csv("training"), notes))
    by_rule = defaultdict(list)
    for row in results.tables["cost"]:
        by_rule[row["rule"]].append(row)
    if by_rule:
        total = [
            [
                text(rule),
                cell(len(jobs), 0),
                *(
                    Cell(duration(value) if value else NONE, value)
                    for value in (
                        sum(job["seconds"] or 0 for job in jobs),
                        sum(job["cpu_seconds"] or 0 for job in jobs),
                    )
                ),
                cell(max((job["max_rss_mib"] for job in jobs if job["max_rss_mib"] is not None), default=None), 0),
            ]
            for rule, jobs in by_rule.items()
        ]
        columns = [
            Column("rule", number=False),
            Column("jobs"),
            Column("wall time"),
            Column("processor time"),
            Column("peak memory MiB", hint="largest of its jobs"),
        ]
        blocks.append(
            Table(
                "Every rule",
                columns,
                total,
                results.csv("cost"),
                ["As Snakemake measured the jobs; the CSV has each one."],
            )
        )
    else:
        blocks.append(Missing("Snakemake wrote no benchmark files, so there is no cost by rule."))
    return Section("cost", "Cost", blocks)


# Provenance


def provenance(results: Results) -> Section:
    rows = [[text("commit of the workflow"), text(commit())]]
    summaries = [results.json(f"{run['folder']}/train.json") for run in results.runs]
    for key, label in (
        ("device", "device"),
        ("processes", "processes a run"),
        ("threads", "threads"),
        ("torch", "torch"),
        ("transformers", "transformers"),
    ):
        values = sorted({str(summary[key]) for summary in summaries if summary.get(key) is not None})
        if values:
            rows.append([text(f"training: {label}"), text(", ".join(values))])
    harness = sorted(
        {str(found["harness_version"]) for found in benchmark_files(results) if found.get("harness_version")}
    )
    if harness:
        rows.append([text("lm-evaluation-harness"), text(", ".join(harness))])
    rows += [
        [
            text("tables and figures"),
            text(
                f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn "
                f"{sklearn.__version__}, Matplotlib {matplotlib.__version__}"
            ),
        ],
        [text("seeds of the runs"), text(listed_seeds(results))],
    ]
    sums = []
    for name in results.settings["datasets"]:
        source = results.json(f"data/{name}/source.json")
        for file, digest in (source.get("sha256") or {}).items():
            sums.append([text(f"dataset {name}"), text(source.get("revision") or Path(file).name), text(digest)])
    for name in results.settings["bases"]:
        base = results.json(f"bases/{name}/base.json")
        if base:
            label = base.get("revision") or f"{base['parameters']:,} parameters"
            sums.append([text(f"base {name}"), text(label), text(base.get("sha256"))])
    blocks: list = [Table("What made these results", [Column("", number=False), Column("", number=False)], rows)]
    if sums:
        columns = [
            Column("input", number=False),
            Column("revision or file", number=False),
            Column("SHA-256", number=False),
        ]
        blocks.append(Table("Inputs", columns, sums))
    configuration = yaml.safe_dump(results.settings, sort_keys=False, allow_unicode=True, width=110)
    blocks.append(Code("The configuration, with every default filled in", configuration))
    return Section("provenance", "Provenance", blocks)


def benchmark_files(results: Results):
    for folder in [*(run["folder"] for run in results.runs), *(f"bases/{base}" for base in results.settings["bases"])]:
        for task in results.settings["evaluation"]["benchmarks"]["tasks"]:
            yield results.json(f"{folder}/benchmarks/{task}.json")


def commit() -> str:
    """The checked-out commit, marked where tracked files differ from it; or that there is none."""
    if os.environ.get("LPC_COMMIT"):
        return os.environ["LPC_COMMIT"]
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout, or no git here"
    return found.stdout.strip().replace("-dirty", ", with uncommitted changes")


# What is missing


def missing(results: Results) -> Section:
    rows = []
    for name in ("preference_accuracy", "comparisons", "benchmarks", "latents", "training"):
        for row in results.tables[name]:
            if row["status"] != "ok":
                of = " / ".join(
                    str(row[key]) for key in ("base", "variant", "recipe", "seed") if row.get(key) is not None
                )
                rows.append([text(name.replace("_", " ")), text(of), text(row["status"])])
    limits = []
    seeds = {run["seed"] for run in results.main}
    if len(seeds) < 3:
        limits.append(
            f"{words(len(seeds), 'seed').capitalize()} in the main experiment: chance in training is hardly measured; "
            f"add more under seeds."
        )
    kinds = {tables.latent_kind(run) for run in results.runs}
    absent = [kind for kind in ("mlp", "vector", "gaussian") if kind not in kinds]
    if absent:
        limits.append(
            f"No control with a latent of kind {listed(absent)}: without it, an effect of LPC could be one of its "
            f"extra parameters."
        )
    if results.settings["evaluation"].get("alpacaeval") is None:
        limits.append("AlpacaEval is not configured.")
    blocks: list = []
    if rows:
        columns = [Column("table", number=False), Column("run", number=False), Column("why", number=False)]
        blocks.append(Table("Results that are not there", columns, rows))
    else:
        blocks.append(Text(["Every configured run has all its results."]))
    if limits:
        blocks.append(Points("What these results cannot show:", limits))
    return Section("missing", "What is missing", blocks)


def all_sections(results: Results) -> list[Section]:
    made = [
        preference(results),
        benchmarks(results),
        alpacaeval(results),
        experiments(results),
        comparisons(results),
        codes(results),
        factors(results),
        training(results),
        cost(results),
        missing(results),
        provenance(results),
    ]
    return [section for section in made if section is not None]
