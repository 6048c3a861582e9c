"""Greedy completions of some test prompts with z from the prior, with z = 0, and with each of the strongest codes."""

import numpy as np

from lpc import cli
from lpc.config import specs
from lpc.evaluation.completions import choose_prompts, forced_completions, strongest_codes
from lpc.evaluation.diagnostics import distinct
from lpc.files import read_parquet, write_json
from lpc.model.loading import load_run
from lpc.scoring import autocast, load_pairs, to_device


def parser():
    parser = cli.step_parser(__doc__, specs.Completions)
    parser.add_argument("--model", required=True, help="model folder of the run")
    parser.add_argument("--base", required=True, help="base.json")
    parser.add_argument("--pairs", required=True, help="pairs.parquet of the clean data set")
    parser.add_argument("--latents", required=True, help="latents.parquet of the run")
    parser.add_argument("--output", required=True, help="codes with their mean prior, prompts, completions (JSON)")
    return parser


def main(args, load=load_run):
    spec = args.spec
    policy, tokenizer = load(args.base, args.model, inference=spec.inference and dict(spec.inference))
    if policy.latent is None or not policy.latent.has_codes:
        raise cli.UserError(f"{args.model}: no latent with codes; nothing to force")
    latents = read_parquet(args.latents, ["pair_id", "prompt_id", "source", "prior"])
    prompt_id, source = latents["prompt_id"].to_pylist(), latents["source"].to_pylist()
    codes = strongest_codes(np.stack(latents["prior"].to_numpy())[distinct(prompt_id)], spec.codes)
    chosen = [latents["pair_id"][i].as_py() for i in choose_prompts(prompt_id, source, spec.prompts, spec.seed)]
    rows, tokens = load_pairs(args.pairs, tokenizer, spec.tokens, pair_ids=chosen)
    prompts = []
    to_device(policy)
    for pair, ids in zip(rows.to_pylist(), tokens.prompts, strict=True):
        with autocast(policy, spec.precision):
            completions = forced_completions(policy, tokenizer, ids, [code for code, _ in codes], spec.max_new_tokens)
        entry = {key: pair[key] for key in ("prompt_id", "source", "messages")}
        prompts.append({**entry, "completions": completions})
    write_json(args.output, {"codes": [{"code": code, "mean_prior": mean} for code, mean in codes], "prompts": prompts})


if __name__ == "__main__":
    cli.run(parser(), main)
