"""Table of preference accuracy: a row for each run and each data set that it was tested on."""

from lpc.evaluation import intervals
from lpc.report.runs import names
from lpc.report.tables.base import ACCURACIES, RUN, STATUS, Inputs, TableDefinition, select

COLUMNS = {
    "base": RUN["base"],
    "dataset": "data set tested on",
    **{name: RUN[name] for name in ("variant", "recipe", "objective", "latent", "seed")},
    "n": "test pairs",
    "accuracy": "share of pairs in which the chosen completion has the higher reward; a tie counts one half",
    "low": "lower end of the 95 % Wilson interval, clustered by prompt",
    "high": "upper end of that interval",
    "accuracy_log_ratio": (
        "accuracy of the log-ratio to the reference (equation 4), where the objective's own reward has no reference"
    ),
    "longer_accuracy": "accuracy of always preferring the longer completion",
    "prefers_longer": "share of pairs of unequal length in which the longer completion has the higher reward",
    "prefers_longer_zero": "the same with z = 0",
    "ties": "pairs with equal rewards",
    "dropped": "pairs that tokenisation could not keep",
    "mean_margin": "mean reward of chosen minus rejected completions",
    **ACCURACIES,
    **STATUS,
}


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        for dataset in run["heldout"]:
            summary, status = inputs.load(inputs.layout.of(run).preference(dataset))
            interval, pairs = {}, inputs.outcomes(run, dataset)
            if pairs is not None and len(pairs):
                ends = intervals.accuracy_interval(pairs["outcome"].to_numpy(), pairs["prompt_id"].to_pylist())
                interval = {"low": ends.low, "high": ends.high}
            found.append(select(COLUMNS, summary, interval, names(run), {"dataset": dataset, "status": status}))
    return found


TABLE = TableDefinition(
    caption=(
        "Share of test pairs in which the chosen completion has the higher reward, one row for each run and held-out "
        "data set. z comes from the prior. Accuracies with z = 0, with z of another prompt and with the posterior are "
        "diagnostics, not results: the posterior sees the chosen completion."
    ),
    section="preference",
    columns=COLUMNS,
    rows=rows,
)
