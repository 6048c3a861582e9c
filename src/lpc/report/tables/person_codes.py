"""Table of single codes and the people of each source: a row for each code and each source."""

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
        "Accuracy of each code alone on the test pairs of each source, such as the population of a person, and the "
        "code's probability for people of this source. A code that stands for a source is right on its pairs, and "
        "probable for its people."
    ),
    section="people",
    columns={
        **RUN,
        "code": "number of the code",
        "source": "source of the pairs",
        "pairs": "test pairs of this source",
        "accuracy": "preference accuracy with this code alone",
        "share": "mean probability of the code for a person of this source, given the most known pairs; empty: none is "
        "known, or a person's pairs are of several sources",
    },
    rows=rows,
)
