"""Bring the data sets of one benchmark task into the cache, for jobs on machines without a network, and record them.

--spec: an entry of `evaluation.benchmarks.tasks` with its name; see `lpc.evaluation.benchmarks`.
An entry with local files needs no network: they are read and their checksums recorded.
"""

from lpc import cli, files


def parser():
    parser = cli.step_parser(__doc__)
    parser.add_argument("--output", required=True, help="what was brought (.json)")
    return parser


def main(args):
    from lpc.evaluation import benchmarks

    loaded = benchmarks.load_task(args.spec)
    files.write_json(args.output, benchmarks.describe_task(loaded, args.spec))


if __name__ == "__main__":
    cli.run(parser(), main)
