"""Table of the tokens that codes raise and lower: a row for each code and each of its tokens."""

import json

from lpc.report.runs import has_codes, latent_kind, names
from lpc.report.tables.base import RUN, Inputs, TableDefinition


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        measures, _ = inputs.load(inputs.layout.of(run).latents_summary) if has_codes(latent_kind(run)) else ({}, "")
        for entry in measures.get("code_tokens") or ():
            for end in ("raised", "lowered"):
                for rank, token in enumerate(entry[end], 1):
                    values = {"end": end, "rank": rank, "token": json.dumps(token["token"], ensure_ascii=False)}
                    found.append({**names(run), "code": entry["code"], **values, "logit": token["logit"]})
    return found


TABLE = TableDefinition(
    caption=(
        "Tokens whose logits each code raises and lowers most. A logit is that of W·(e − mean e), where e is the code, "
        "the mean is over all codes, and W is the model's head, less its mean over the vocabulary."
    ),
    section="codes",
    columns={
        **RUN,
        "code": "number of the code",
        "end": "raised or lowered",
        "rank": "1: the token that is raised or lowered most",
        "token": "text of the token as JSON, so that white space is seen",
        "logit": "logit that the code adds to this token, against the mean of codes and of tokens",
    },
    rows=rows,
)
