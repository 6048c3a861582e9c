"""Answer prompts with a trained run, plain or latent; one prompt a line from standard input, or as arguments."""

import argparse
import sys
from pathlib import Path

import torch

from lpc import cli
from lpc.data.read import records
from lpc.trained import Policy, context_of, load


def parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="*", help="prompts; none: lines of standard input")
    parser.add_argument("--model", type=Path, required=True, help="model folder of a run, or any checkpoint")
    parser.add_argument("--code", type=int, help="force this code in place of the prior")
    parser.add_argument(
        "--context",
        type=Path,
        help="labelled pairs of one person (.jsonl with prompt, chosen, rejected): force their most probable code",
    )
    parser.add_argument("--base", help="base.json of the run's base, for --context; needed outside of results/")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    return parser


def main(args):
    prompts = args.prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    policy = load(args.model, args.base)
    latent = policy.model.latent
    if args.code is not None and (latent is None or not latent.has_codes):
        raise cli.UserError(f"--code: {args.model} has no codes to force")
    if args.code is not None and args.context is not None:
        raise cli.UserError("--code and --context: both choose the code; use one of them")
    codes = [args.code] * len(prompts)
    if args.context is not None:
        codes = person_codes(policy, prompts, args.context)
    torch.manual_seed(args.seed)
    sampling = {"do_sample": True, "temperature": args.temperature} if args.temperature > 0 else {"do_sample": False}
    for prompt, code in zip(prompts, codes, strict=True):
        print(policy.generate(prompt, code=code, max_new_tokens=args.max_new_tokens, **sampling))


def person_codes(policy: Policy, prompts: list[str], file: Path) -> list[int]:
    """Return the most probable code of each prompt, given the pairs in `file`."""
    if not file.is_file():
        raise cli.UserError(f"--context: {file}: no such file; use a .jsonl file of pairs")
    names, pairs = [], []
    for _, number, pair in records({"revision": None, "files": [str(file)]}):
        names.append(f"{file}: row {number}")
        pairs.append(pair)
    found = policy.infer_codes(prompts, context_of(pairs, names)).max(-1)
    for code, probability in zip(*map(torch.Tensor.tolist, (found.indices, found.values)), strict=True):
        cli.log.info("code %d, of probability %.3f given %d pairs", code, probability, len(pairs))
    return found.indices.tolist()


if __name__ == "__main__":
    cli.run(parser(), main)
