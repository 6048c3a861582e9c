"""A project's results as the sections of the page need them.

A difference counts only where every interval excludes zero: over test prompts and, with several seeds, over seeds as
well. Any other difference is called not measurable, however large it is.
"""

import functools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from lpc import files
from lpc.data import world
from lpc.evaluation import intervals
from lpc.layout import Layout, dataset_of
from lpc.report.runs import has_codes, resolve
from lpc.report.tables import TABLES, base
from lpc.report.words import number, percent

# Recipes of which a section shows figures or completions, and codes of a figure.
MOST_RECIPES = 6
MOST_CODES = 24
VERDICTS = {1: "higher than", 0: "not measurably different from", -1: "lower than"}


class Results:
    """Settings, runs and tables of a project.

    spec: what the steps report and cards track, `settings`, `runs` and `recipes`. commit: of the workflow.
    """

    def __init__(self, root: Path, spec: dict, commit: str) -> None:
        self.layout, self.commit = Layout(root), commit
        self.settings = spec["settings"]  # without the keys that no result depends on
        self.recipes = spec["recipes"]
        self.tasks = self.settings["evaluation"]["benchmarks"]["tasks"]
        held_out = self.settings["evaluation"]["preference"]["datasets"]
        self.runs = resolve(spec["runs"], self.recipes, held_out)
        # What the page compares first: the experiment of that name, or everything.
        self.main = [run for run in self.runs if "main" in run["experiments"]] or self.runs
        self.main_recipes = {(run["base"], run["variant"], run["recipe"]) for run in self.main}
        self.tables = {name: base.read(self.layout.tables, name) for name in TABLES}

    def csv(self, name: str) -> tuple[str, str]:
        return f"{name}.csv", self.layout.table(name).read_text(encoding="utf-8")

    def json(self, path: Path) -> dict:
        """Return a JSON file of the results; {} where it is absent."""
        return files.read_json(path) if path.exists() else {}

    def in_main(self, row: dict) -> bool:
        return (row["base"], row["variant"], row["recipe"]) in self.main_recipes

    def is_clean(self, row: dict) -> bool:
        """Tell whether a row is of training on unflipped labels."""
        return row["variant"] in self.settings["datasets"]

    def accuracy(self) -> list[dict]:
        """Return preference accuracy over seeds in per cent: the first seed's row with `mean`, `low`, `high`, `seeds`.

        `seeds` lists the accuracy of each. The interval is over seeds if there are two or more, else over test prompts.
        """
        groups = defaultdict(list)
        for row in self.tables["preference_accuracy"]:
            if row["accuracy"] is not None:
                groups[row["base"], row["dataset"], row["variant"], row["recipe"]].append(row)
        return [over_seeds(rows) for rows in groups.values()]

    def own_accuracy(self) -> dict[tuple[str, str, str], dict]:
        """Return accuracy over seeds by (base, variant, recipe), on test pairs of the dataset trained on."""
        return {
            (row["base"], row["variant"], row["recipe"]): row
            for row in self.accuracy()
            if row["dataset"] == dataset_of(row["variant"])
        }

    def comparisons(self, *, controls: bool = False) -> list[dict]:
        """Return rows of comparisons.csv over seeds: LPC against plain runs, or against controls.

        They are of main recipes, trained on clean data, on the test pairs of that data.
        """
        return [
            row
            for row in self.tables["comparisons"]
            if row["seed"] == "mean"
            and has_codes(row["latent"])
            and row["against_latent"] != "zero"
            and (row["against_latent"] is not None) == controls
            and row["dataset"] == row["variant"]
            and self.in_main(row)
        ]

    def benchmark_changes(self) -> list[dict]:
        """Return each recipe's mean benchmark score minus that of its base model: {base, variant, recipe, change,
        error}, in points.

        They are of training on clean data, where base and recipe have a score of every task: means over seeds, then
        over tasks. `error` is the standard error as if base and recipe had answered different questions; None where
        the harness computes none. Seeds answer the same questions, so a mean over them does not shrink it.
        """
        models = defaultdict(lambda: defaultdict(list))
        for row in self.tables["benchmarks"]:
            if (row["recipe"] == "base" or self.is_clean(row)) and row["primary"] == 1:
                models[row["base"], row["variant"], row["recipe"]][row["task"]].append(row)
        whole = {name: mean_score(by_task) for name, by_task in models.items() if by_task.keys() == self.tasks.keys()}
        found = []
        for name, (mean, error) in whole.items():
            row = dict(zip(("base", "variant", "recipe"), name, strict=True))
            of_base = whole.get((row["base"], None, "base"))
            if row["recipe"] != "base" and of_base is not None:
                both = None if None in (error, of_base[1]) else float(np.hypot(error, of_base[1]))
                found.append({**row, "change": mean - of_base[0], "error": both})
        return found

    @functools.cached_property
    def step_ratios(self) -> dict[tuple, float]:
        """Time of a step relative to that of the plain run compared with, by (base, variant, recipe, seed)."""
        names = ("base", "variant", "recipe", "seed")
        seconds = {tuple(row[name] for name in names): row["seconds_per_step"] for row in self.tables["training"]}
        found = {}
        for row in self.tables["comparisons"]:
            alike = row["against"] and row["against_latent"] is None and not row["differs"]
            mine = tuple(row[name] for name in names)
            plain = (row["base"], row["variant"], row["against"], row["seed"])
            if alike and has_codes(row["latent"]) and seconds.get(mine) and seconds.get(plain):
                found[mine] = seconds[mine] / seconds[plain]
        return found

    def ceilings(self, dataset: str) -> dict[str, float]:
        """Return the accuracies of simple rules and an oracle on a generated dataset's test pairs; {} for others."""
        path = self.layout.data(dataset).pairs
        if self.settings["datasets"][dataset]["kind"] != "world" or not path.exists():
            return {}
        pairs = files.read_parquet(path, ["split", "source", "chosen", "rejected"])
        return world.ceilings(pairs.filter(pa.compute.equal(pairs["split"], "test")).to_pylist())

    def training_log(self, run: dict) -> list[dict]:
        path = self.layout.of(run).metrics
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line]

    def evaluations(self, run: dict) -> list[dict]:
        """Return the results on validation pairs between steps; none where the run was not evaluated (or trained)."""
        path = self.layout.of(run).summary
        return files.read_json(path).get("evaluations", []) if path.exists() else []

    def seeds(self) -> tuple[str, str]:
        """Return the number of seeds, and which they are."""
        seeds = sorted({run["seed"] for run in self.runs})
        which = ", ".join(map(str, seeds)) if len(seeds) <= 6 else f"{seeds[0]} to {seeds[-1]}"
        return str(len(seeds)), f"seed: {which}" if len(seeds) == 1 else f"seeds: {which}"


def over_seeds(rows: list[dict]) -> dict:
    values = [100 * row["accuracy"] for row in rows]
    interval = intervals.t_interval(values)
    low, high = percent(rows[0]["low"]), percent(rows[0]["high"])
    if interval:
        low, high = max(interval.low, 0.0), min(interval.high, 100.0)
    return {**rows[0], "mean": float(np.mean(values)), "low": low, "high": high, "seeds": values}


def mean_score(by_task: dict[str, list[dict]]) -> tuple[float, float | None]:
    """Return the mean over tasks of a model's mean scores over seeds, and its standard error, in per cent.

    by_task: rows of benchmarks.csv, one a seed. The error assumes independent tasks; None where a task has none.
    """
    means = [np.mean([100 * row["value"] for row in rows]) for rows in by_task.values()]
    known = [[100 * row["stderr"] for row in rows if row["stderr"] is not None] for rows in by_task.values()]
    error = float(np.linalg.norm([np.mean(errors) for errors in known])) / len(known) if all(known) else None
    return float(np.mean(means)), error


def decisive(row: dict) -> tuple[float, float, str]:
    """Return the wider of a comparison's intervals, over test prompts or over seeds, and its name."""
    if row["seeds_low"] is None or row["high"] - row["low"] > row["seeds_high"] - row["seeds_low"]:
        return row["low"], row["high"], "over test prompts"
    return row["seeds_low"], row["seeds_high"], f"over {row['seeds']} seeds"


def verdict(row: dict) -> int:
    """Return 1 for higher, −1 for lower, 0 for no measurable difference, of a row of comparisons.csv.

    Every interval of the row must exclude zero on the same side.
    """
    ends = [(row["low"], row["high"])]
    if row["seeds_low"] is not None:
        ends.append((row["seeds_low"], row["seeds_high"]))
    return int(all(low > 0 for low, _ in ends)) - int(all(high < 0 for _, high in ends))


def in_words(row: dict) -> str:
    """Return one comparison in words, with its difference and its wider interval."""
    low, high, over = decisive(row)
    points = f"{number(percent(row['difference']), sign=True)} points"
    ends = f"{number(percent(low), sign=True)} to {number(percent(high), sign=True)}"
    return f"{row['recipe']} is {VERDICTS[verdict(row)]} {row['against']} ({points}, 95 % interval {over} {ends})"
