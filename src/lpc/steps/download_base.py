"""Bring a base model into the cache, so that later steps need no network, and record it. A local checkpoint is only
recorded.

--spec: {"name", "model": name on the hub or local folder, "revision": of the hub or null, "dtype",
"chat_template": Jinja text or null, "chat_template_kwargs": variables of the template or null, "trust_remote_code"}
"""

from lpc import cli, files
from lpc.model import checkpoint


def parser():
    parser = cli.step_parser(__doc__)
    parser.add_argument("--output", required=True, help="record of the base model (base.json)")
    return parser


def main(args):
    record = checkpoint.describe_base(**args.spec)
    files.write_json(args.output, record)
    cli.log.info("%s: %d parameters, revision %s", record["path"], record["parameters"], record["revision"])


if __name__ == "__main__":
    cli.run(parser(), main)
