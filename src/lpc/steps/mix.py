"""Mix the pairs of several datasets."""

from lpc import cli, files
from lpc.config import specs
from lpc.data.mix import mix
from lpc.data.pairs import PAIRS, describe


def parser():
    parser = cli.step_parser(__doc__, specs.Mix)
    parser.add_argument("--pairs", required=True, nargs="+", help="pairs.parquet of each dataset, sorted by its name")
    parser.add_argument("--output", required=True, help="the pairs of the mixture (.parquet)")
    parser.add_argument("--summary", required=True, help="numbers of pairs (.json)")
    return parser


def main(args):
    spec, names = args.spec, sorted(args.spec.mix)
    if len(names) != len(args.pairs):
        raise cli.UserError(
            f"--pairs: {len(args.pairs)} files for {len(names)} datasets ({', '.join(names)}); give one each"
        )
    members = {name: files.read_parquet(path).to_pylist() for name, path in zip(names, args.pairs, strict=True)}
    mixed, dropped = mix(members, spec.mix, spec.seed)
    summary = {"spec": spec.tracked(), "dropped": dropped, "splits": describe(mixed)}
    files.write_rows(args.output, mixed, PAIRS, {"spec": spec.tracked()})
    files.write_json(args.summary, summary)
    cli.log.info("%d pairs, left out: %s", len(mixed), dropped)


if __name__ == "__main__":
    cli.run(parser(), main)
