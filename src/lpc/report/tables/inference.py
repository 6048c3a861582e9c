"""Table of accuracy by inference: a row for each run with a choice, each data set and each rule."""

from lpc.evaluation import intervals
from lpc.report.runs import names
from lpc.report.tables.base import RUN, Inputs, TableDefinition, select

COLUMNS = {
    "base": RUN["base"],
    "dataset": "data set tested on",
    **{name: RUN[name] for name in ("variant", "recipe", "objective", "latent", "seed")},
    "inference": "rule by which z comes from the prior",
    "default": "yes: the rule of the run's recipe, whose accuracy is the run's in every other table",
    "n": "test pairs",
    "accuracy": "preference accuracy by this rule",
    "low": "lower end of its 95 % interval, clustered by prompt",
    "high": "upper end of the interval",
}


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        for dataset in run["heldout"]:
            # preference_accuracy.csv says which files are missing.
            summary, _ = inputs.load(inputs.layout.of(run).preference(dataset))
            inference = summary.get("inference", {"accuracy": {}})
            for rule, accuracy in inference["accuracy"].items():
                own = {
                    "dataset": dataset,
                    "inference": rule,
                    "default": "yes" if rule == inference["default"] else "no",
                }
                pairs = inputs.outcomes(run, dataset, f"_by_{rule}")
                ends = intervals.accuracy_interval(pairs["outcome"].to_numpy(), pairs["prompt_id"].to_pylist())
                own |= {"accuracy": accuracy, "low": ends.low, "high": ends.high}
                found.append(select(COLUMNS, summary, names(run), own))
    return found


TABLE = TableDefinition(
    caption=(
        "Accuracy by inference: the same run scored by each rule that its latent has. mean: z is the mean of the "
        "codes under the prior. mode: the strongest code. sample: one drawn from the prior, as the paper's text says. "
        "gumbel: a Gumbel-softmax sample, as in training. mixture: all codes, by the sum of p(k|x) σ(Δ_k). Draws "
        "depend on the seed and the prompt alone. The default is the run's result. These are test pairs: choose no "
        "rule by them."
    ),
    section="preference",
    columns=COLUMNS,
    rows=rows,
)
