"""Table of comparisons: pair by pair, runs with a latent against plain runs, controls, and themselves with z = 0."""

from collections import defaultdict

import pyarrow as pa

from lpc.evaluation import intervals
from lpc.report.runs import latent_kind, names, opponents
from lpc.report.tables.base import RUN, Inputs, TableDefinition

COLUMNS = {
    "base": RUN["base"],
    "dataset": "data set tested on",
    "variant": RUN["variant"],
    "recipe": RUN["recipe"],
    "against": "recipe compared with",
    "objective": RUN["objective"],
    "latent": RUN["latent"],
    "against_latent": "kind of latent of the recipe compared with; empty: none; zero: the same run with z = 0",
    "differs": "settings other than the latent in which the two runs differ",
    "seed": "seed of both runs, or mean for the row over seeds",
    "seeds": "number of seeds",
    "n": "test pairs that both runs scored",
    "prompts": "prompts of these pairs",
    "difference": "accuracy minus that of the recipe compared with",
    "low": "lower end of the 95 % bootstrap interval over test prompts",
    "high": "upper end of that interval",
    "seeds_low": "lower end of the 95 % t interval over seeds; empty for one seed",
    "seeds_high": "upper end of that interval",
    "wins": "pairs with the higher outcome in this run",
    "losses": "pairs with the higher outcome in the other run",
    "mcnemar_p": "two-sided p-value of the exact McNemar test, which takes pairs as independent",
    "status": "ok, or why the comparison is missing or partial",
}


def rows(inputs: Inputs) -> list[dict]:
    """Return a row for each comparison and seed, then a row for each comparison's mean over seeds."""
    found, over_seeds = [], defaultdict(list)
    for run in inputs.runs:
        opposed = opponents(run, inputs.runs)
        for dataset in run["heldout"]:
            mine = inputs.outcomes(run, dataset)
            others = [
                (other["recipe"], latent_kind(other), differs, inputs.outcomes(other, dataset))
                for other, differs in opposed
            ]
            if latent_kind(run):
                others.append((f"{run['recipe']} with z = 0", "zero", [], inputs.outcomes(run, dataset, "_zero")))
            for against, against_latent, differs, theirs in others:
                which = {
                    **names(run), "dataset": dataset, "against": against, "against_latent": against_latent,
                    "differs": " ".join(differs),
                }  # fmt: skip
                row, paired = compare(mine, theirs)
                found.append({**which, "seeds": 1, **row})
                group = tuple(value for key, value in which.items() if key != "seed")
                if paired is not None:
                    over_seeds[group].append((which, paired))
            if latent_kind(run) and not any(latent_kind(other) is None for other, _ in opposed):
                status = "no plain run of the same base, data, objective and seed"
                found.append({**names(run), "dataset": dataset, "seeds": 0, "status": status})
    for group in over_seeds.values():
        which = {**group[0][0], "seed": "mean", "seeds": len(group)}
        found.append({**which, **mean_over_seeds([paired for _, paired in group])})
    return found


def compare(mine: pa.Table | None, theirs: pa.Table | None) -> tuple[dict, pa.Table | None]:
    """Return one seed's row, and its pair_id, prompt_id and difference of outcomes."""
    if mine is None or theirs is None:
        return {"status": "missing: rewards of " + ("this run" if mine is None else "the other run")}, None
    others = theirs.select(["pair_id", "outcome"]).rename_columns(["pair_id", "other"])
    both = mine.join(others, "pair_id", join_type="inner")
    if not len(both):
        return {"n": 0, "status": "no pair in common"}, None
    difference = both["outcome"].to_numpy() - both["other"].to_numpy()
    paired = both.select(["pair_id", "prompt_id"]).append_column("difference", pa.array(difference)).sort_by("pair_id")
    wins, losses, p = intervals.mcnemar(difference)
    alone = len(mine) + len(theirs) - 2 * len(both)
    status = f"ok but {alone} pairs scored in one run only" if alone else "ok"
    return {**over_prompts(paired), "wins": wins, "losses": losses, "mcnemar_p": p, "status": status}, paired


def over_prompts(paired: pa.Table) -> dict:
    """Return the mean difference with its bootstrap interval over prompts."""
    found = intervals.paired_bootstrap(paired["difference"].to_numpy(), paired["prompt_id"].to_pylist())
    prompts = len(set(paired["prompt_id"].to_pylist()))
    return {"n": len(paired), "prompts": prompts, "difference": found.estimate, "low": found.low, "high": found.high}


def mean_over_seeds(seeds: list[pa.Table]) -> dict:
    """Return the mean difference with two intervals: over prompts, of each pair's mean over seeds, and over seeds."""
    stacked = pa.concat_tables(seeds).group_by(["pair_id", "prompt_id"]).aggregate([("difference", "mean")])
    stacked = stacked.rename_columns({"difference_mean": "difference"}).sort_by("pair_id")
    row = {**over_prompts(stacked), "status": "ok"}
    over_seeds = intervals.t_interval([table["difference"].to_numpy().mean() for table in seeds])
    if over_seeds:
        row.update(difference=over_seeds.estimate, seeds_low=over_seeds.low, seeds_high=over_seeds.high)
    return row


TABLE = TableDefinition(
    caption=(
        "Runs with a latent against plain runs, controls, and themselves with z = 0, pair by pair on the test pairs "
        "that both scored: one row for each seed, then one row for the mean over seeds."
    ),
    section="comparisons",
    columns=COLUMNS,
    rows=rows,
)
