"""Answer prompts with a trained run, plain or latent; one prompt a line from standard input, or as arguments."""

import argparse
import sys
from pathlib import Path

import torch

from lpc import cli
from lpc.config import specs
from lpc.data.formats.base import Malformed
from lpc.data.formats.pairs import pair_row
from lpc.data.read import records
from lpc.data.tokens import encode_prompts, load_tokenizer
from lpc.evaluation.completions import answer
from lpc.files import read_json
from lpc.model.loading import load_run, stop_at_turn_end
from lpc.model.policy import LatentPolicy
from lpc.scoring import to_device


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
    parser.add_argument("--base", help="base.json of the run's base; --context needs it where the objective does")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    return parser


def main(args):
    prompts = args.prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    policy = to_device(LatentPolicy.from_pretrained(args.model))
    tokenizer = load_tokenizer(args.model)
    stop_at_turn_end(policy, tokenizer)
    if args.code is not None and (policy.latent is None or not policy.latent.has_codes):
        raise cli.UserError(f"--code: {args.model} has no codes to force")
    if args.code is not None and args.context is not None:
        raise cli.UserError("--code and --context: both choose the code; give one of them")
    prompts = encode_prompts(tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts])
    codes = [args.code] * len(prompts)
    if args.context is not None:
        codes = person_codes(args, policy, tokenizer, prompts)
    torch.manual_seed(args.seed)
    sampling = {"do_sample": True, "temperature": args.temperature} if args.temperature > 0 else {"do_sample": False}
    for ids, code in zip(prompts, codes, strict=True):
        print(answer(policy, tokenizer, ids, code=code, max_new_tokens=args.max_new_tokens, **sampling))


def person_codes(args, policy, tokenizer, prompts) -> list[int]:
    """Return the most probable code of each prompt, given the pairs in `args.context`.

    The record of the run's training, beside the model, says by which objective pairs weigh codes, and on which base.
    """
    record = args.model.resolve().parent / "train.json"
    if not record.exists():
        raise cli.UserError(f"--context: {record} is missing, which names the objective; give --model inside its run")
    identity = read_json(record)["identity"]
    try:
        spec = specs.Train.parse(identity["spec"], {})
    except ValueError as error:
        raise cli.UserError(f"{record}: {error}; train again, since the settings have changed") from None
    reference = None
    if spec.objective.needs_reference:
        if args.base is None:
            raise cli.UserError(
                f"--context: objective {spec.objective.name} compares with the base model; give --base, its base.json"
            )
        if read_json(args.base)["sha256"] != identity["base"]:
            raise cli.UserError(f"--base: {args.base} is of another model than the run's base; give that one")
        reference = to_device(load_run(args.base)[0])
    if not args.context.is_file():
        raise cli.UserError(f"--context: {args.context}: no such file; give a .jsonl file of pairs")
    context = []
    for file, number, row in records({"revision": None, "files": [str(args.context)]}):
        try:
            if isinstance(row, Malformed):
                raise row
            pair = pair_row(row, "context")
        except Malformed as error:
            raise cli.UserError(f"{file}: row {number}: {error}; a row needs prompt, chosen and rejected") from None
        chosen, rejected = (completion["response"] for completion in pair["completions"])
        context.append({"prompt": pair["messages"], "chosen": chosen, "rejected": rejected})
    found = policy.infer_code(
        context, tokenizer, spec.objective, prompts, reference=reference, **dict(spec.tokens)
    ).max(-1)
    for code, probability in zip(*map(torch.Tensor.tolist, (found.indices, found.values)), strict=True):
        cli.log.info("code %d, of probability %.3f given %d pairs", code, probability, len(context))
    return found.indices.tolist()


if __name__ == "__main__":
    cli.run(parser(), main)
