"""Log-probabilities of the base model for every pair, once per base and pair set, shared by all recipes.

Where LPC_CACHE names a folder, they are shared by projects, too.
"""

import numpy as np
import pyarrow as pa
import safetensors.torch

from lpc import cache, cli
from lpc.config import specs
from lpc.files import atomic, read_json, sha256, write_parquet
from lpc.model.loading import load_run
from lpc.reference import reference_logps
from lpc.scoring import load_pairs, to_device


def parser():
    parser = cli.step_parser(__doc__, specs.Reference)
    parser.add_argument("--base", required=True, help="base.json")
    parser.add_argument("--pairs", required=True, help="pairs.parquet")
    parser.add_argument("--output", required=True, help="reference.parquet")
    parser.add_argument("--statistics", required=True, help="statistics.safetensors: of h_x and h_{x,y}")
    return parser


BASE = ("sha256", "chat_template", "chat_template_kwargs", "trust_remote_code")
"""What scores depend on of a base's record. Not its `dtype`: weights are loaded as float32."""


def main(args):
    spec, base, outputs = args.spec, read_json(args.base), (args.statistics, args.output)
    identity = {
        "spec": spec.tracked(),
        "execution": spec.execution(),
        "base": {name: base[name] for name in BASE},
        "pairs": sha256(args.pairs),
        **cache.surroundings("reference"),
    }
    if cache.fetch(identity, outputs):
        return
    policy, tokenizer = load_run(args.base)
    to_device(policy)
    rows, tokens = load_pairs(args.pairs, tokenizer, spec.tokens, columns=["pair_id", "split"])
    train = np.array(rows["split"].to_pylist()) == "train"
    logps, statistics = reference_logps(
        policy, tokens, train, batch_size=spec.micro_batch_size, precision=spec.precision
    )
    table = pa.table(
        {
            "pair_id": rows["pair_id"],
            "chosen_logp": logps[:, 0],
            "rejected_logp": logps[:, 1],
            "chosen_tokens": [len(c) for c in tokens.chosen],
            "rejected_tokens": [len(r) for r in tokens.rejected],
        }
    )
    with atomic(args.statistics) as temporary:
        safetensors.torch.save_file(statistics, temporary)
    metadata = {
        "spec": spec.tracked(),
        "pairs_sha256": identity["pairs"],
        "base_sha256": base["sha256"],
        "statistics_sha256": sha256(args.statistics),
        "dropped": tokens.dropped,
    }
    write_parquet(args.output, table, metadata)
    cache.keep(identity, outputs)


if __name__ == "__main__":
    cli.run(parser(), main)
