"""Table of accuracies with a person's latent: a row for each run that has them and each number of known pairs."""

from lpc.report.runs import latent_kind, names
from lpc.report.tables.base import RUN, Inputs, TableDefinition, select

COLUMNS = {
    **RUN,
    "known_pairs": "labelled pairs of the person from which the latent is inferred; 0: the prior alone",
    "accuracy": "preference accuracy on other test pairs of the same people, the same for each number of known pairs",
    "low": "lower end of its 95 % interval, clustered by person",
    "high": "upper end of the interval",
    "nmi": "NMI between a person's most probable code and the source of the person's pairs",
    "n": "test pairs that are scored",
    "groups": "people that they are of",
}


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        # Most projects ask for no such file, so that its absence is no gap.
        person, _ = inputs.load(inputs.layout.of(run).person) if latent_kind(run) else ({}, "")
        for known, accuracy in sorted(person.get("contexts", {}).items(), key=lambda item: int(item[0])):
            found.append(select(COLUMNS, person, accuracy, names(run), {"known_pairs": int(known)}))
    return found


TABLE = TableDefinition(
    caption=(
        "Accuracy on test pairs of people of whom some labelled pairs are known. The posterior of the codes, given "
        "these pairs, weighs the codes in scoring the others; of a latent without codes, it gives z. The known pairs "
        "are never scored."
    ),
    section="people",
    columns=COLUMNS,
    rows=rows,
)
