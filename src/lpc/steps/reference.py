"""Log-probabilities of the base model for every pair, once per base and pair set, shared by all recipes."""

import numpy as np
import pyarrow as pa
import safetensors.torch

from lpc import cli
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


def main(args):
    spec, base = args.spec, read_json(args.base)
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
        "pairs_sha256": sha256(args.pairs),
        "base_sha256": base["sha256"],
        "statistics_sha256": sha256(args.statistics),
        "dropped": tokens.dropped,
    }
    write_parquet(args.output, table, metadata)


if __name__ == "__main__":
    cli.run(parser(), main)
