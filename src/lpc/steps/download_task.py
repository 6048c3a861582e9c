"""Download the data sets of one benchmark task to the cache, so that later steps can run offline, and record them."""

from lpc import cli, files
from lpc.config import specs


def parser():
    parser = cli.step_parser(__doc__, specs.DownloadTask)
    parser.add_argument("--output", required=True, help="download record (.json)")
    return parser


def main(args):
    from lpc.evaluation import tasks

    entry = args.spec.model_dump()
    loaded = tasks.load_task(entry)
    files.write_json(args.output, tasks.describe_task(loaded, entry))


if __name__ == "__main__":
    cli.run(parser(), main)
