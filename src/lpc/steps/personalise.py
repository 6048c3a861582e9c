"""Accuracy of a run on pairs of unseen people whose latent it infers from some of their labelled pairs.

Test people are the result. Validation people have the same measure, by which settings can be selected.
"""

from collections import Counter

import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from lpc import cli
from lpc.config import specs
from lpc.evaluation.person import (
    code_accuracy,
    code_agreement,
    code_rewards,
    code_shares,
    context_first,
    personal_accuracy,
    score_codes,
    score_posteriors,
)
from lpc.files import read_parquet, write_json
from lpc.model.loading import load_run
from lpc.model.policy import LatentPolicy
from lpc.scoring import load_pairs, to_device


def parser():
    parser = cli.step_parser(__doc__, specs.Personalise)
    parser.add_argument("--model", required=True, help="model folder of the run, whose latent has codes or a posterior")
    parser.add_argument("--base", required=True, help="base.json")
    parser.add_argument("--pairs", required=True, help="pairs.parquet of the clean data set, with groups")
    parser.add_argument("--reference", help="reference.parquet of the same pairs; for objectives that need one")
    parser.add_argument("--output", required=True, help="accuracy by number of context pairs (.json)")
    return parser


def main(args, load=load_run):
    spec = args.spec
    if spec.objective.needs_reference and args.reference is None:
        raise cli.UserError(f"objective {spec.objective.name}: needs --reference, the reference.parquet of the pairs")
    policy, tokenizer = load(args.base, args.model)
    latent = policy.latent
    if latent is None or not (latent.has_codes or latent.has_posterior):
        raise cli.UserError(
            f"{args.model}: its latent has neither codes nor a posterior, so no person has one; use another run"
        )
    to_device(policy)
    validation = None
    if has_people(args.pairs, "validation", max(spec.contexts)):
        validation = measure(args, policy, tokenizer, "validation")
        del validation["codes"]
    result = {"spec": spec.tracked(), **measure(args, policy, tokenizer, "test"), "validation": validation}
    write_json(args.output, result)
    for size, accuracy in result["contexts"].items():
        cli.log.info("%s context pairs: accuracy %.3f", size, accuracy["accuracy"])


def has_people(pairs: str, split: str, contexts: int) -> bool:
    """Return whether a group has more than `contexts` pairs in a split of a file of pairs."""
    table = read_parquet(pairs, columns=["split", "group"])
    groups = table.filter(pc.equal(table["split"], split))["group"].drop_null()
    return max(Counter(groups.to_pylist()).values(), default=0) > contexts


def measure(args, policy: LatentPolicy, tokenizer: PreTrainedTokenizerBase, split: str) -> dict:
    """Return accuracies by number of known pairs, those of codes, and counts, on the people of a split."""
    spec, latent = args.spec, policy.latent
    rows, tokens = load_pairs(args.pairs, tokenizer, spec.tokens, split=split, reference=args.reference)
    how = {"batch_size": spec.batch_size, "precision": spec.precision}
    groups, sources = rows["group"].to_pylist(), rows["source"].to_pylist()
    which = {"contexts": spec.contexts, "seed": spec.seed, "split": split}
    by_group = context_first(groups, rows["pair_id"].to_pylist(), **which)
    people = [*by_group.values()]
    codes, agreement = None, dict.fromkeys(spec.contexts)
    if latent.has_codes:
        scores = score_codes(policy, tokens, spec.objective, **how)
        rewards = code_rewards(scores, people, spec.contexts)
        shares = code_shares(scores, people, sources, max(spec.contexts))
        codes = [
            row | {"share": shares[row["source"]][row["code"]] if row["source"] in shares else None}
            for row in code_accuracy(scores, sources)
        ]
        agreement = code_agreement(scores, people, sources, spec.contexts)
    else:
        rewards = score_posteriors(policy, tokens, spec.objective, people, spec.contexts, **how)
    found = personal_accuracy(rewards, people)
    return {
        "n": sum(len(positions) - max(spec.contexts) for positions in people),
        "groups": len(people),
        "groups_left_out": len(set(groups) - {None}) - len(people),
        "pairs_without_group": groups.count(None),
        "contexts": {str(size): accuracy | {"nmi": agreement[size]} for size, accuracy in found.items()},
        "codes": codes,
    }


if __name__ == "__main__":
    cli.run(parser(), main)
