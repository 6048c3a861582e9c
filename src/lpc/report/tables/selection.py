"""Table of swept settings: each with its accuracy on validation pairs, and which one is selected by it."""

import itertools
import json
import math
from collections import defaultdict
from pathlib import Path

from lpc.evaluation import intervals
from lpc.report.runs import setting
from lpc.report.tables.base import RUN, STATUS, Inputs, TableDefinition


def rows(inputs: Inputs) -> list[dict]:
    """Return a row for each setting of each sweep, in the configuration's order.

    Settings compete within one base, data variant and recipe. None is selected while a run is missing.
    """
    found = []
    for experiment, sweep in inputs.sweeps.items():
        keys = [key for key, _ in sweep]
        groups = defaultdict(lambda: defaultdict(list))
        for run in inputs.runs:
            if experiment in run["experiments"]:
                names = (run["base"], run["variant"], run["recipe"].split("+")[0])
                groups[names][tuple(setting(run, key) for key in keys)].append(run)
        for (base, variant, recipe), runs_of in groups.items():
            names = {"experiment": experiment, "base": base, "variant": variant, "recipe": recipe}
            values = itertools.product(*(values for _, values in sweep))
            found += [{**names, **row} for row in group_rows(inputs, keys, [runs_of[value] for value in values])]
    return found


def group_rows(inputs: Inputs, keys: list[str], settings: list[list[dict]]) -> list[dict]:
    """Return a row for each of the competing settings, given as its runs (one for each seed).

    Only the selected setting's test accuracy is read.
    """
    found = [validation(inputs, runs) for runs in settings]
    complete = all(row["status"] == "ok" for row in found)
    best = highest([row["validation_accuracy"] for row in found]) if complete else None
    for i, (row, runs) in enumerate(zip(found, settings, strict=True)):
        row |= {"key": " ".join(keys), "value": " ".join(written(setting(runs[0], key)) for key in keys)}
        if complete:
            row["chosen"] = int(i == best)
        if i == best:
            row["test_accuracy"] = mean([inputs.load(summary_file(inputs, run))[0]["accuracy"] for run in runs])
    return found


def highest(accuracies: list[float]) -> int:
    """Return the position of the highest accuracy; of equal ones, the first."""
    return accuracies.index(max(accuracies))


def validation(inputs: Inputs, runs: list[dict]) -> dict:
    """Return the mean validation accuracy of one setting over its seeds; without it where a run is missing."""
    found, states = zip(*(inputs.load(summary_file(inputs, run)) for run in runs), strict=True)
    missing = [status for status in states if status != "ok"]
    if missing:
        return {"seeds": len(runs), "status": missing[0]}
    parts = [summary["validation"] for summary in found]
    accuracies = [part["accuracy"] for part in parts]
    over_seeds = intervals.t_interval(accuracies)
    low, high = parts[0]["low"], parts[0]["high"]
    if over_seeds:
        low, high = max(over_seeds.low, 0.0), min(over_seeds.high, 1.0)
    row = {"seeds": len(runs), "n": parts[0]["n"], "validation_accuracy": mean(accuracies), "low": low, "high": high}
    return {**row, "status": "ok"}


def summary_file(inputs: Inputs, run: dict) -> Path:
    return inputs.layout.of(run).preference(run["dataset"])


def mean(values: list[float]) -> float:
    """Return the mean, summed exactly: the order of seeds does not matter, and equal settings tie."""
    return math.fsum(values) / len(values)


def written(value) -> str:
    """Return a value as it stands in the names of recipes."""
    return value if isinstance(value, str) else json.dumps(value)


TABLE = TableDefinition(
    caption=(
        "Every setting of each experiment's sweep with its mean accuracy over seeds on validation pairs. The setting "
        "with the highest mean is selected; of equal ones, the first in the configuration. Test pairs are not used for "
        "selection: their accuracy is given for the selected setting alone."
    ),
    section="selection",
    columns={
        "experiment": "experiment that sweeps",
        "base": RUN["base"],
        "variant": RUN["variant"],
        "recipe": "recipe whose keys are swept",
        "key": "swept keys, separated by spaces",
        "value": "their values in the same order",
        "seeds": "number of seeds",
        "n": "validation pairs",
        "validation_accuracy": "mean accuracy over seeds on validation pairs",
        "low": "lower end of the 95 % t interval over seeds; with one seed, of the interval over validation pairs",
        "high": "upper end of that interval",
        "chosen": "1 for the selected setting, 0 for others; empty while runs of the sweep are missing",
        "test_accuracy": "the selected setting's mean accuracy over seeds on test pairs",
        **STATUS,
    },
    rows=rows,
)
