"""Have the package alpaca_eval judge one model's answers against the reference outputs.

Without package, key or network the result is "not judged" with a reason, and the step succeeds.
"""

import logging
from pathlib import Path

from lpc import cli, files
from lpc.config import specs


def parser():
    parser = cli.step_parser(__doc__, specs.AlpacaEvalJudge)
    parser.add_argument("--outputs", required=True, help="the model's answers (.json)")
    parser.add_argument("--reference", required=True, help="the reference outputs (.json)")
    parser.add_argument("--output", required=True, help="the result (.json)")
    parser.add_argument("--annotations", required=True, help="the judge's answer to each pair (.json)")
    return parser


def main(args):
    from lpc.evaluation import alpacaeval

    log = logging.getLogger("lpc")
    log.setLevel(logging.INFO)
    logging.getLogger().setLevel(logging.ERROR)  # the package logs four lines a request
    judge = args.spec.judge and args.spec.judge.model_dump()
    # Undeclared, so that Snakemake keeps it when this job fails; another judge has another one.
    cache = Path(args.output).with_name(f".judge-{files.fingerprint(judge)}.json")
    cache.parent.mkdir(parents=True, exist_ok=True)
    outputs, reference = files.read_json(args.outputs), files.read_json(args.reference)
    result, annotations = alpacaeval.judge(outputs, reference, judge, cache)
    files.write_text(args.annotations, alpacaeval.annotations_json(annotations))
    files.write_json(args.output, result)
    log.info("%s%s", result["status"], f": {result['reason']}" if result["reason"] else "")


if __name__ == "__main__":
    cli.run(parser(), main)
