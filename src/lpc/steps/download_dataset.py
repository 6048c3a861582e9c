"""Bring a dataset into the cache, so that later steps need no network, and record its files. Local files are only
recorded.

--spec: {"kind", "path": name on the hub or local file or folder, "revision": of the hub or null, "hub_split", "group":
column of the rows' group, "prompt" or null}
"""

from lpc import cli, files
from lpc.data import hub


def parser():
    parser = cli.step_parser(__doc__)
    parser.add_argument("--output", required=True, help="record of the data (source.json)")
    return parser


def main(args):
    record = hub.describe_dataset(**args.spec)
    files.write_json(args.output, record)
    cli.log.info("%s: %d files, revision %s", record["path"], len(record["files"]), record["revision"])


if __name__ == "__main__":
    cli.run(parser(), main)
