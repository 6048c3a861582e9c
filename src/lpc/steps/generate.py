"""Answer prompts with a trained run, plain or latent; one prompt a line from standard input, or as arguments."""

import argparse
import sys
from pathlib import Path

import torch

from lpc import cli
from lpc.data.tokens import encode_prompts, load_tokenizer
from lpc.evaluation.completions import answer
from lpc.model.policy import LatentPolicy
from lpc.scoring import to_device


def parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="*", help="prompts; none: lines of standard input")
    parser.add_argument("--model", type=Path, required=True, help="model folder of a run, or any checkpoint")
    parser.add_argument("--code", type=int, help="force this code in place of the prior")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    return parser


def main(args):
    prompts = args.prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    policy = to_device(LatentPolicy.from_pretrained(args.model))
    tokenizer = load_tokenizer(args.model)
    if args.code is not None and (policy.latent is None or not policy.latent.has_codes):
        raise cli.UserError(f"--code: {args.model} has no codes to force")
    torch.manual_seed(args.seed)
    for prompt in prompts:
        ids = encode_prompts(tokenizer, [[{"role": "user", "content": prompt}]])[0]
        sampling = (
            {"do_sample": True, "temperature": args.temperature} if args.temperature > 0 else {"do_sample": False}
        )
        print(answer(policy, tokenizer, ids, code=args.code, max_new_tokens=args.max_new_tokens, **sampling))


if __name__ == "__main__":
    cli.run(parser(), main)
