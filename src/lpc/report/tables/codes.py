"""Table of the use of codes: a row for each code and each source of prompts."""

import numpy as np

from lpc.evaluation import diagnostics
from lpc.report.runs import names
from lpc.report.tables.base import RUN, Inputs, TableDefinition


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run, table in inputs.codes(["prompt_id", "source", "prior"]):
        table = table.take(diagnostics.distinct(table["prompt_id"].to_pylist()))
        prior, sources = np.stack(table["prior"].to_numpy()), np.asarray(table["source"].to_pylist())
        strongest = np.eye(prior.shape[1])[prior.argmax(axis=1)]
        for source in sorted(set(sources.tolist())):
            own = sources == source
            for code, (mean, share) in enumerate(zip(prior[own].mean(0), strongest[own].mean(0), strict=True)):
                values = {"prompts": int(own.sum()), "mean_prior": float(mean), "strongest": float(share)}
                found.append({**names(run), "code": code, "source": source, **values})
    return found


TABLE = TableDefinition(
    caption="How much each source of prompts uses each code, over distinct test prompts.",
    section="codes",
    columns={
        **RUN,
        "code": "number of the code",
        "source": "source of the prompts",
        "prompts": "distinct test prompts of this source",
        "mean_prior": "mean prior probability of the code",
        "strongest": "share of prompts for which the code has the highest prior",
    },
    rows=rows,
)
