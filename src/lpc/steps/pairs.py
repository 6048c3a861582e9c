"""Build preference pairs: the best completion of each row against a random other one."""

from lpc import cli, files
from lpc.config import specs
from lpc.data import pairs


def parser():
    parser = cli.step_parser(__doc__, specs.Pairs)
    parser.add_argument("--rows", required=True, help="rows with their split (rows.parquet)")
    parser.add_argument("--output", required=True, help="the pairs (.parquet)")
    parser.add_argument("--summary", required=True, help="numbers of pairs (.json)")
    return parser


def main(args):
    spec = args.spec
    rows = (row for batch in files.read_batches(args.rows) for row in batch.to_pylist())
    built, dropped = pairs.build(rows, **dict(spec))
    summary = {"spec": spec.tracked(), "dropped": dropped, "splits": pairs.describe(built)}
    metadata = {**files.parquet_metadata(args.rows), "pairs": spec.tracked()}
    files.write_rows(args.output, built, pairs.PAIRS, metadata)
    files.write_json(args.summary, summary)
    cli.log.info("%d pairs, dropped: %s", len(built), dropped)


if __name__ == "__main__":
    cli.run(parser(), main)
