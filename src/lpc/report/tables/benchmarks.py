"""Table of benchmark scores: a row for each metric of each task, of base models and runs."""

from lpc.report.runs import names
from lpc.report.tables.base import RUN, STATUS, Inputs, TableDefinition

COLUMNS = {
    **RUN,
    "recipe": "recipe; base for the base model itself",
    "task": "benchmark task",
    "metric": "metric, by lm-eval's name",
    "primary": "1 for the metric that the page shows",
    "value": "score, between 0 and 1",
    "stderr": "the harness's standard error; empty: it computes none",
    "n": "questions",
    **STATUS,
}


def rows(inputs: Inputs) -> list[dict]:
    found = []
    bases = dict.fromkeys(run["base"] for run in inputs.runs)
    models = [({"base": base, "recipe": "base"}, inputs.layout.base(base)) for base in bases]
    models += [(names(run), inputs.layout.of(run)) for run in inputs.runs]
    for which, of_model in models:
        for task, shown in inputs.tasks.items():
            scores, status = inputs.load(of_model.benchmarks.result(task))
            common = {**which, "task": task, "n": scores.get("n"), "status": status}
            if not scores:
                found.append(common)
            for metric, score in scores.get("metrics", {}).items():
                values = {"metric": metric, "value": score["value"], "stderr": score.get("stderr")}
                found.append({**common, **values, "primary": int(metric == shown)})
    return found


TABLE = TableDefinition(
    caption="Scores of the Language Model Evaluation Harness, of each base model and of each run.",
    section="benchmarks",
    columns=COLUMNS,
    rows=rows,
)
