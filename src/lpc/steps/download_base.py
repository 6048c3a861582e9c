"""Download a base model to the cache, so that later steps can run offline, and record it. A local checkpoint is only
recorded.
"""

from lpc import cli, files
from lpc.config import specs
from lpc.model import checkpoint


def parser():
    parser = cli.step_parser(__doc__, specs.DownloadBase)
    parser.add_argument("--output", required=True, help="record of the base model (base.json)")
    return parser


def main(args):
    record = checkpoint.describe_base(**dict(args.spec))
    files.write_json(args.output, record)
    cli.log.info("%s: %d parameters, revision %s", record["path"], record["parameters"], record["revision"])


if __name__ == "__main__":
    cli.run(parser(), main)
