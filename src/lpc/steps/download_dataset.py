"""Download a dataset to the cache, so that later steps can run offline, and record its files. Local files are only
recorded.
"""

from lpc import cli, files
from lpc.config import specs
from lpc.data import hub


def parser():
    parser = cli.step_parser(__doc__, specs.DownloadDataset)
    parser.add_argument("--output", required=True, help="record of the data (dataset.json)")
    return parser


def main(args):
    record = hub.describe_dataset(**dict(args.spec))
    files.write_json(args.output, record)
    cli.log.info("%s: %d files, revision %s", record["path"], len(record["files"]), record["revision"])


if __name__ == "__main__":
    cli.run(parser(), main)
