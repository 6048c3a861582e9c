"""Answers of one model to the instructions of AlpacaEval, in the file format that alpaca_eval reads.

--spec {"name": the generator's name in that file, "batch_size": int, "max_new_tokens": int}
Without --model the base itself answers.
"""

import os

from lpc import cli, files


def parser():
    parser = cli.step_parser(__doc__)
    parser.add_argument("--model", help="a run's model folder (default: the base)")
    parser.add_argument("--base", required=True, help="the base's record (base.json)")
    parser.add_argument("--instructions", required=True, help="list of {instruction, dataset} (.json)")
    parser.add_argument("--output", required=True, help="list of {instruction, dataset, output, generator} (.json)")
    return parser


def main(args):
    # Before the first import of these libraries, which read them once.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_MININTERVAL", "1" if os.isatty(2) else "30")
    from lpc.evaluation import alpacaeval
    from lpc.evaluation.harness import LatentLM

    options = {"batch_size": args.spec["batch_size"], "inference": args.spec.get("inference")}
    lm = LatentLM.of_base(files.read_json(args.base), args.model, **options)
    instructions = files.read_json(args.instructions)
    name, tokens = args.spec["name"], args.spec["max_new_tokens"]
    files.write_json(args.output, alpacaeval.answer(lm, instructions, generator=name, max_new_tokens=tokens))


if __name__ == "__main__":
    cli.run(parser(), main)
