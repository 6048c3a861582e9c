"""Table of single codes on the pairs of each source: a row for each code and each source."""

from lpc.report.runs import latent_kind, names
from lpc.report.tables.base import RUN, Inputs, TableDefinition


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        person, _ = inputs.load(inputs.layout.of(run).person) if latent_kind(run) else ({}, "")
        found += [names(run) | row for row in person.get("codes") or ()]
    return found


TABLE = TableDefinition(
    caption=(
        "Accuracy of each code alone on the test pairs of each source, such as the population of a person. A code that "
        "stands for a source is right on its pairs."
    ),
    section="people",
    columns={
        **RUN,
        "code": "number of the code",
        "source": "source of the pairs",
        "pairs": "test pairs of this source",
        "accuracy": "preference accuracy with this code alone",
    },
    rows=rows,
)
