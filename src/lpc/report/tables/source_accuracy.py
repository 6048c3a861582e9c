"""Table of preference accuracy by source: a row for each run, each dataset that it was tested on, and each source."""

import numpy as np

from lpc.evaluation import intervals
from lpc.report.runs import names
from lpc.report.tables.base import RUN, STATUS, Inputs, TableDefinition


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        for dataset in run["heldout"]:
            common, pairs = {**names(run), "dataset": dataset}, inputs.outcomes(run, dataset)
            if pairs is None:
                path = inputs.layout.of(run).rewards(dataset)
                found.append({**common, "status": f"missing: {path.relative_to(inputs.layout.root)}"})
                continue
            sources, prompts = (np.array(pairs[name].to_pylist()) for name in ("source", "prompt_id"))
            for source in sorted(set(sources.tolist())):
                own = sources == source
                accuracy, low, high = intervals.accuracy_interval(pairs["outcome"].to_numpy()[own], prompts[own])
                values = {"n": int(own.sum()), "accuracy": accuracy, "low": low, "high": high}
                found.append({**common, "source": source, **values, "status": "ok"})
    return found


TABLE = TableDefinition(
    caption=(
        "Preference accuracy on the test pairs of each source; of a mixture, the sources are its data sets. z comes "
        "from the prior."
    ),
    section="preference",
    columns={
        **RUN,
        "dataset": "data set tested on",
        "source": "source of the pairs",
        "n": "test pairs of this source",
        "accuracy": "share of pairs in which the chosen completion has the higher reward; a tie counts one half",
        "low": "lower end of the 95 % Wilson interval, clustered by prompt",
        "high": "upper end of that interval",
        **STATUS,
    },
    rows=rows,
)
