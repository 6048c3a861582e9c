"""Table of swept settings: each with its accuracy on validation pairs, and which one is selected by it.

For a latent that is inferred per person, the table has the accuracy on validation people with the largest number of
known pairs. The prior alone does not measure such a latent.
"""

import itertools
import json
import math
from collections import defaultdict

from lpc.evaluation import intervals
from lpc.report.runs import latent_kind, setting
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
    known = known_pairs(inputs, settings)
    found = [validation(inputs, runs, known) for runs in settings]
    complete = all(row["status"] == "ok" for row in found)
    best = highest([row["validation_accuracy"] for row in found]) if complete else None
    for i, (row, runs) in enumerate(zip(found, settings, strict=True)):
        row |= {"key": " ".join(keys), "value": " ".join(written(setting(runs[0], key)) for key in keys)}
        if complete:
            row["chosen"] = int(i == best)
        if i == best:
            row["test_accuracy"] = mean([results(inputs, run, known)[0]["test"]["accuracy"] for run in runs])
    return found


def highest(accuracies: list[float]) -> int:
    """Return the position of the highest accuracy; of equal ones, the first."""
    return accuracies.index(max(accuracies))


def known_pairs(inputs: Inputs, settings: list[list[dict]]) -> int | None:
    """Return the most pairs of a person that are known in every run's validation; None where a run has no people."""
    sizes = []
    for run in (run for runs in settings for run in runs):
        person, _ = inputs.load(inputs.layout.of(run).person) if latent_kind(run) else ({}, "")
        sizes.append({int(size) for size in (person.get("validation") or {}).get("contexts", {})})
    return max(set.intersection(*sizes), default=None)


def results(inputs: Inputs, run: dict, known: int | None) -> tuple[dict, str]:
    """Return a run's results on `validation` and `test`, {accuracy, low, high, n} each, and the status of their file.

    known: pairs of a person that are known; None: accuracies with z from the prior, of all pairs.
    """
    if known is None:
        summary, status = inputs.load(inputs.layout.of(run).preference(run["dataset"]))
        return {"test": summary, "validation": summary.get("validation")}, status
    person, status = inputs.load(inputs.layout.of(run).person)
    parts = {"test": person, "validation": person["validation"]}
    return {name: part["contexts"][str(known)] | {"n": part["n"]} for name, part in parts.items()}, status


def validation(inputs: Inputs, runs: list[dict], known: int | None) -> dict:
    """Return the mean validation accuracy of one setting over its seeds; without it where a run is missing."""
    found, states = zip(*(results(inputs, run, known) for run in runs), strict=True)
    missing = [status for status in states if status != "ok"]
    if missing:
        return {"seeds": len(runs), "status": missing[0]}
    parts = [summary["validation"] for summary in found]
    accuracies = [part["accuracy"] for part in parts]
    over_seeds = intervals.t_interval(accuracies)
    low, high = parts[0]["low"], parts[0]["high"]
    if over_seeds:
        low, high = max(over_seeds.low, 0.0), min(over_seeds.high, 1.0)
    row = {"seeds": len(runs), "known_pairs": known, "n": parts[0]["n"], "validation_accuracy": mean(accuracies)}
    return {**row, "low": low, "high": high, "status": "ok"}


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
        "selection: their accuracy is given for the selected setting alone. Where people have a latent of their own, "
        "both are of unseen people with the most of their pairs known."
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
        "known_pairs": "pairs of a person from which its latent is inferred; empty: z from the prior",
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
