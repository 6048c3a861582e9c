"""Table of diagnostics of the latent: a row for each run that has one."""

from lpc.report.runs import latent_kind, names
from lpc.report.tables.base import ACCURACIES, RUN, STATUS, Inputs, TableDefinition, select

COLUMNS = {
    **RUN,
    "codes": "size of the codebook",
    "prompts": "distinct test prompts",
    "kl": "nats by which the posterior, which sees the chosen completion, differs from the prior",
    "mutual_information": "nats of information that the prior's code carries about the prompt; 0: posterior collapse",
    "source_entropy": "nats that would identify a prompt's source",
    "prior_perplexity": "codes in use for one prompt",
    "mean_prior_perplexity": "codes in use over all prompts",
    "posterior_perplexity": "codes in use for one pair",
    "dead_codes": "codes with a mean prior below a tenth of the uniform one",
    "z_norm": "mean length of z",
    "h_norm": "mean length of the prompt's hidden state h",
    "z_spread": "typical distance of a prompt's z from the mean; compare with h_norm",
    "h_spread": "typical distance of a prompt's h from the mean",
    "nmi_code_source": "normalised mutual information of strongest code and source; 1: the codes identify the sources",
    "nmi_z_kmeans_source": "the same of k-means clusters of standardised z; meaningless if z barely varies",
    "nmi_h_kmeans_source": "the same of k-means clusters of standardised h",
    "probe_z_source": "cross-validated accuracy of a linear classifier of the source from z",
    "probe_h_source": "the same from h",
    "probe_chance": "share of the largest source",
    "accuracy": "preference accuracy with z from the prior",
    **ACCURACIES,
    **STATUS,
}


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        if latent_kind(run):
            measures, status = inputs.load(inputs.layout.of(run).latents_summary)
            accuracy, _ = inputs.load(inputs.layout.of(run).preference(run["dataset"]))
            found.append(select(COLUMNS, accuracy, measures, names(run), {"status": status}))
    return found


TABLE = TableDefinition(
    caption=(
        "Diagnostics of the latent over distinct test prompts: whether it is used, and whether it finds the sources of "
        "the prompts. Each measure of z stands beside that of the hidden state h from which z is computed. Entropies "
        "are in nats."
    ),
    section="codes",
    columns=COLUMNS,
    rows=rows,
)
