"""Download the data sets of one benchmark task to the cache, so that later steps can run offline, and record them.

--spec: an entry of `evaluation.benchmarks.tasks` with its name; see `lpc.evaluation.tasks`.
An entry with local files needs no network: they are read and their checksums recorded.
"""

from lpc import cli, files


def parser():
    parser = cli.step_parser(__doc__)
    parser.add_argument("--output", required=True, help="download record (.json)")
    return parser


def main(args):
    from lpc.evaluation import tasks

    loaded = tasks.load_task(args.spec)
    files.write_json(args.output, tasks.describe_task(loaded, args.spec))


if __name__ == "__main__":
    cli.run(parser(), main)
