"""Swap chosen and rejected in a share of the training pairs."""

from lpc import cli, files
from lpc.config import specs
from lpc.data import flip, pairs


def parser():
    parser = cli.step_parser(__doc__, specs.Flip)
    parser.add_argument("--pairs", required=True, help="the clean pairs (.parquet)")
    parser.add_argument("--output", required=True, help="the pairs with noise (.parquet)")
    parser.add_argument("--summary", required=True, help="numbers of pairs (.json)")
    return parser


def main(args):
    spec = args.spec
    clean = [pair for batch in files.read_batches(args.pairs) for pair in batch.to_pylist()]
    noisy = flip.flip(clean, rate=spec.rate, marker=spec.marker, seed=spec.seed)
    summary = {"spec": spec.tracked(), "splits": pairs.describe(noisy)}
    metadata = {**files.parquet_metadata(args.pairs), "noise": spec.tracked()}
    files.write_rows(args.output, noisy, pairs.PAIRS, metadata)
    files.write_json(args.summary, summary)
    train = summary["splits"]["train"]
    cli.log.info("%d of %d training pairs flipped", train["flipped"], train["pairs"])


if __name__ == "__main__":
    cli.run(parser(), main)
