"""Generated questions of one of the demo's own benchmark tasks, as JSON lines."""

import json

from lpc import cli, files
from lpc.config import specs
from lpc.evaluation import questions


def parser():
    parser = cli.step_parser(__doc__, specs.Questions)
    parser.add_argument("--output", required=True, help="the questions (.jsonl)")
    return parser


def main(args):
    rows = questions.generate(args.spec.kind, count=args.spec.count, seed=args.spec.seed)
    files.write_text(args.output, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    cli.run(parser(), main)
