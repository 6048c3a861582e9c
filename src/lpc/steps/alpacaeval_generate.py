"""Answers of one model to the instructions of AlpacaEval, in the file format that alpaca_eval reads.

Without --model the base itself answers.
"""

import os

from lpc import cli, files
from lpc.config import specs


def parser():
    parser = cli.step_parser(__doc__, specs.AlpacaEvalGenerate)
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

    if args.spec.engine == "vllm":
        from lpc.evaluation.vllm_engine import EngineLM as Engine
    else:
        from lpc.evaluation.harness import LatentLM as Engine

    options = {"batch_size": args.spec.batch_size, "inference": args.spec.inference and dict(args.spec.inference)}
    lm = Engine.of_base(files.read_json(args.base), args.model, **options)
    instructions = files.read_json(args.instructions)
    name, tokens = args.spec.name, args.spec.max_new_tokens
    files.write_json(args.output, alpacaeval.answer(lm, instructions, generator=name, max_new_tokens=tokens))


if __name__ == "__main__":
    cli.run(parser(), main)
