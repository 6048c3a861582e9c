"""Table of the style of each code: a row for each code and each source."""

from lpc.report.runs import latent_kind, names
from lpc.report.tables.base import RUN, Inputs, TableDefinition


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        style, _ = inputs.load(inputs.layout.of(run).style) if latent_kind(run) else ({}, "")
        for entry in style.get("codes", ()):
            for source, share in entry["shares"].items():
                values = {"code": entry["code"], "stands_for": entry["source"], "source": source, "share": share}
                found.append(
                    names(run) | values | {"prompts": style["prompts"], "real_accuracy": style["real_accuracy"]}
                )
    return found


TABLE = TableDefinition(
    caption=(
        "Completions of test prompts with each code forced, by the source that a classifier takes them for. The "
        "classifier was fitted on real completions of training pairs."
    ),
    section="people",
    columns={
        **RUN,
        "code": "number of the code",
        "stands_for": "source on whose test pairs the code is most often right",
        "source": "source that the classifier names",
        "share": "share of the completions under this code",
        "prompts": "test prompts",
        "real_accuracy": "share of real test completions that the classifier is right on",
    },
    rows=rows,
)
