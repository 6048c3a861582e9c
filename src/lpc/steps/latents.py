"""Prior, posterior and z of the test pairs of a run, diagnostics of whether the latent is used, and tokens of codes."""

import pyarrow as pa

from lpc import cli
from lpc.config import specs
from lpc.evaluation.code_tokens import code_tokens
from lpc.evaluation.diagnostics import latent_diagnostics
from lpc.evaluation.preference import pair_latents
from lpc.files import write_json, write_parquet
from lpc.model.loading import load_run
from lpc.scoring import load_pairs, to_device


def parser():
    parser = cli.step_parser(__doc__, specs.Latents)
    parser.add_argument("--model", required=True, help="model folder of the run")
    parser.add_argument("--base", required=True, help="base.json")
    parser.add_argument("--pairs", required=True, help="pairs.parquet of the clean data set")
    parser.add_argument("--output", required=True, help="latents.parquet")
    parser.add_argument("--summary", required=True, help="latents.json")
    return parser


def main(args, load=load_run):
    spec = args.spec
    policy, tokenizer = load(args.base, args.model, inference=spec.inference and dict(spec.inference))
    to_device(policy)
    if policy.latent is None:
        raise cli.UserError(f"{args.model}: a plain model without a latent; nothing to extract")
    rows, tokens = load_pairs(args.pairs, tokenizer, spec.tokens, split="test")
    latents = pair_latents(policy, tokens, batch_size=spec.batch_size, precision=spec.precision)
    columns = {name: rows[name] for name in ("pair_id", "prompt_id", "source")}
    columns |= {name: pa.array(list(values)) for name, values in latents.items()}
    columns["chosen_tokens"] = [len(c) for c in tokens.chosen]
    columns["rejected_tokens"] = [len(r) for r in tokens.rejected]
    write_parquet(args.output, pa.table(columns), {"spec": spec.tracked()})
    diagnostics = latent_diagnostics(
        latents.get("prior"),
        latents.get("posterior"),
        latents["z"],
        latents["h_x"],
        rows["source"].to_pylist(),
        prompt_id=rows["prompt_id"].to_pylist(),
        seed=spec.seed,
    )
    tokens_of_codes = code_tokens(policy, tokenizer) if policy.latent.has_codes else None
    write_json(args.summary, diagnostics | {"code_tokens": tokens_of_codes})


if __name__ == "__main__":
    cli.run(parser(), main)
