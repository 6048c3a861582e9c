"""The instructions of AlpacaEval and the reference outputs that answers are judged against.

--spec {"instructions": local JSON file or null, "reference": local JSON file or null}; both null: the 805 instructions
and GPT-4 Turbo's outputs, from the hub.
"""

from lpc import cli, files


def parser():
    parser = cli.step_parser(__doc__)
    parser.add_argument("--instructions", required=True, help="list of {instruction, dataset} (.json)")
    parser.add_argument("--reference", required=True, help="list of {instruction, output, generator} (.json)")
    return parser


def main(args):
    from lpc.evaluation import alpacaeval

    instructions, reference = alpacaeval.prepare(args.spec["instructions"], args.spec["reference"])
    files.write_json(args.reference, reference)
    files.write_json(args.instructions, instructions)


if __name__ == "__main__":
    cli.run(parser(), main)
