"""The instructions of AlpacaEval and the reference outputs that answers are judged against."""

from lpc import cli, files
from lpc.config import specs


def parser():
    parser = cli.step_parser(__doc__, specs.AlpacaEvalDownload)
    parser.add_argument("--instructions", required=True, help="list of {instruction, dataset} (.json)")
    parser.add_argument("--reference", required=True, help="list of {instruction, output, generator} (.json)")
    return parser


def main(args):
    from lpc.evaluation import alpacaeval

    instructions, reference = alpacaeval.prepare(args.spec.instructions, args.spec.reference)
    files.write_json(args.reference, reference)
    files.write_json(args.instructions, instructions)


if __name__ == "__main__":
    cli.run(parser(), main)
