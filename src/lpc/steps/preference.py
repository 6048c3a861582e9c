"""Preference accuracy of a run on test pairs, with z from the prior, and per-pair rewards."""

import numpy as np
import pyarrow as pa

from lpc import cli
from lpc.config import specs
from lpc.evaluation.intervals import accuracy_interval, outcomes
from lpc.evaluation.preference import accuracy, score_pairs
from lpc.files import read_parquet, write_json, write_parquet
from lpc.model.loading import load_run
from lpc.scoring import load_pairs, to_device


def parser():
    parser = cli.step_parser(__doc__, specs.Preference)
    parser.add_argument("--model", required=True, help="model folder of the run")
    parser.add_argument("--base", required=True, help="base.json")
    parser.add_argument("--pairs", required=True, help="pairs.parquet of the clean data set")
    parser.add_argument(
        "--reference", help="reference.parquet of the same pairs; without, objectives that need none have no equation 4"
    )
    parser.add_argument("--output", required=True, help="per-pair rewards, Parquet")
    parser.add_argument("--summary", required=True, help="accuracies, JSON")
    return parser


def main(args, load=load_run):
    spec = args.spec
    objective = spec.objective
    if objective.needs_reference and args.reference is None:
        raise cli.UserError(f"objective {objective.name}: needs --reference, the reference.parquet of the pairs")
    policy, tokenizer = load(args.base, args.model, inference=spec.inference and dict(spec.inference))
    to_device(policy)
    rules = () if policy.latent is None else policy.latent.inference_rules()
    summary = {}
    splits = set(read_parquet(args.pairs, ["split"])["split"].to_pylist())
    # Validation is for choosing hyperparameters; the test pairs are for the report alone.
    for split in ("validation", "test"):
        if split not in splits:
            continue  # a dataset all of whose pairs are for testing
        rows, tokens = load_pairs(args.pairs, tokenizer, spec.tokens, split=split, reference=args.reference)
        rewards = score_pairs(
            policy,
            tokens,
            rows["prompt_id"].to_pylist(),
            objective,
            batch_size=spec.batch_size,
            precision=spec.precision,
        )
        summary[split] = summarise(rows, rewards, tokens.dropped)
        if rules:
            summary[split]["inference"] = by_inference(rewards, policy.latent.settings.inference, rules)
        if split == "validation":
            # Rewards of single validation pairs are not saved, so compute their interval here.
            outcome = outcomes(rewards["chosen_reward"], rewards["rejected_reward"])
            _, low, high = accuracy_interval(outcome, rows["prompt_id"].to_pylist())
            summary[split] |= {"low": low, "high": high}
    table = pa.table({name: rows[name] for name in ("pair_id", "prompt_id", "source")} | rewards)
    write_parquet(args.output, table, {"spec": spec.tracked()})
    write_json(args.summary, summary.pop("test") | summary)


def summarise(rows: pa.Table, rewards: dict, dropped: int) -> dict:
    """Return the measures of one split; `accuracy_…` but `accuracy_log_ratio` are diagnostics of the latent, never
    results."""
    chosen, rejected = rewards["chosen_reward"], rewards["rejected_reward"]
    longer = outcomes(*(pa.compute.utf8_length(rows[side]) for side in ("chosen", "rejected")))
    summary = {
        "n": len(rows),
        "prompts": len(set(rows["prompt_id"].to_pylist())),
        "dropped": dropped,
        "ties": int((chosen == rejected).sum()),
        "mean_margin": float((chosen - rejected).mean()),
        # A trivial rule on the same pairs, in characters of the completions.
        "longer_accuracy": float(longer.mean()),
    }
    for name in rewards:
        if name.startswith("chosen_reward"):
            variant = name.removeprefix("chosen_reward")
            if variant.startswith("_by_"):
                continue  # see `by_inference`
            of_variant = rewards[name], rewards["rejected_reward" + variant]
            summary["accuracy" + variant] = accuracy(*of_variant)
            if variant in ("", "_zero"):
                summary["prefers_longer" + variant] = prefers_longer(outcomes(*of_variant), longer)
    return summary


def prefers_longer(outcome: np.ndarray, longer: np.ndarray) -> float | None:
    """Return the share of pairs whose longer completion has the higher reward; None where all lengths are equal.

    outcome, longer: [N], 1, ½ or 0 where the chosen completion has the higher reward, and where it is the longer one.
    """
    unequal = longer != 0.5
    agrees = np.where(longer == 1, outcome, 1 - outcome)[unequal]
    return float(agrees.mean()) if len(agrees) else None


def by_inference(rewards: dict, default: str, rules: tuple[str, ...]) -> dict:
    """Return the accuracy by each rule of inference, and the rule of the run's latent, whose accuracy is the run's."""
    accuracies = {
        rule: accuracy(rewards[f"chosen_reward_by_{rule}"], rewards[f"rejected_reward_by_{rule}"]) for rule in rules
    }
    return {"default": default, "accuracy": accuracies}


if __name__ == "__main__":
    cli.run(parser(), main)
