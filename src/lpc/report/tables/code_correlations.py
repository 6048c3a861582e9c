"""Table of correlations of codes with differences between chosen and rejected completions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from lpc import files
from lpc.report.runs import names
from lpc.report.tables.base import RUN, Inputs, TableDefinition

ASPECTS = ["instruction_following", "honesty", "truthfulness", "helpfulness"]


def rows(inputs: Inputs) -> list[dict]:
    found, aspects = [], {}
    columns = ["pair_id", "prior", "posterior", "chosen_tokens", "rejected_tokens"]
    for run, table in inputs.codes(columns):
        if run["dataset"] not in aspects:
            aspects[run["dataset"]] = aspect_differences(inputs.layout.data(run["dataset"]).pairs)
        length = table["chosen_tokens"].to_numpy().astype(float) - table["rejected_tokens"].to_numpy()
        ids = table["pair_id"].to_pylist()
        measures = {"length": length}
        for aspect, by_pair in aspects[run["dataset"]].items():
            measures[aspect] = np.array([by_pair.get(pair, np.nan) for pair in ids])
        for measure, values in measures.items():
            known = np.isfinite(values)
            if known.sum() < 3:
                continue
            of_prior = spearman(np.stack(table["prior"].to_numpy())[known], values[known])
            of_posterior = [None] * len(of_prior)
            if "posterior" in table.column_names:
                of_posterior = spearman(np.stack(table["posterior"].to_numpy())[known], values[known])
            for code, (prior, posterior) in enumerate(zip(of_prior, of_posterior, strict=True)):
                found.append(
                    {
                        **names(run), "code": code, "measure": measure, "n": int(known.sum()),
                        "prior_correlation": prior, "posterior_correlation": posterior,
                    }
                )  # fmt: skip
    return found


def aspect_differences(path: Path) -> dict[str, dict[str, float]]:
    """Return chosen minus rejected score of each aspect, by pair; {} without data or without aspects."""
    if not path.exists():
        return {}
    table = files.read_parquet(path, ["pair_id", "split", "chosen_aspects", "rejected_aspects"])
    found: dict[str, dict[str, float]] = {}
    for pair in table.filter(pa.compute.equal(table["split"], "test")).to_pylist():
        chosen, rejected = pair["chosen_aspects"] or {}, pair["rejected_aspects"] or {}
        for aspect in ASPECTS:
            if chosen.get(aspect) is not None and rejected.get(aspect) is not None:
                found.setdefault(aspect, {})[pair["pair_id"]] = chosen[aspect] - rejected[aspect]
    return found


def spearman(columns: np.ndarray, values: np.ndarray) -> list[float | None]:
    """Return Spearman's rank correlation of each column of [N, K] with [N]; None where either does not vary."""
    ranks, other = rankdata(columns, axis=0), rankdata(values)
    ranks, other = ranks - ranks.mean(axis=0), other - other.mean()
    scale = np.sqrt((ranks**2).sum(axis=0) * (other**2).sum())
    return [float(r @ other / s) if s > 0 else None for r, s in zip(ranks.T, scale, strict=True)]


TABLE = TableDefinition(
    caption=(
        "Spearman's rank correlation, over test pairs, of each code's prior and posterior with differences between "
        "chosen and rejected completions: in length, and in the aspect scores that the data has."
    ),
    section="codes",
    columns={
        **RUN,
        "code": "number of the code",
        "measure": "length (tokens of the chosen minus the rejected completion), or an aspect (its scores likewise)",
        "n": "test pairs with this measure",
        "prior_correlation": "rank correlation of the code's prior with the measure; empty where either is constant",
        "posterior_correlation": "the same of the code's posterior; empty for a latent without one, too",
    },
    rows=rows,
)
