"""Export a finished latent run to programs without this package: transformers with its latent, one code, or vLLM."""

import argparse
from pathlib import Path

from lpc import cli, files
from lpc.data.tokens import load_tokenizer
from lpc.export.write import write_code, write_model, write_table
from lpc.model.backbone import stored_dtype
from lpc.model.loading import stop_at_turn_end
from lpc.model.policy import LatentPolicy

FORMS = {
    "latent": "a model of `AutoModelForCausalLM` with `trust_remote_code`, with its latent",
    "code": "an ordinary checkpoint with one code in its head's bias, where the architecture has one",
    "vllm": "biases of the logits for each code, and logits processors of vLLM, which serves the run with them",
}


def parser():
    epilog = "\n".join(["forms:", *(f"  {name:8}{text}" for name, text in FORMS.items())])
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder of a run with a latent")
    parser.add_argument("--form", choices=FORMS, required=True, help="see below")
    parser.add_argument("--code", type=int, help="the code of --form code")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    return parser


def main(args):
    if (args.form == "code") != (args.code is not None):
        raise cli.UserError("--code: names the code of --form code; give both or neither")
    if args.output.exists():
        raise cli.UserError(f"--output: {args.output} exists; name a new folder")
    policy = LatentPolicy.from_pretrained(args.model, dtype=stored_dtype(args.model))
    if policy.latent is None:
        raise cli.UserError(f"--model: {args.model} has no latent, so it is an ordinary checkpoint; use it as it is")
    tokenizer = load_tokenizer(args.model)
    stop_at_turn_end(policy, tokenizer)
    with files.atomic(args.output) as folder:
        if args.form == "vllm":
            write_table(policy, folder)
        elif args.form == "latent":
            write_model(policy, folder)
        else:
            write_code(policy, args.code, folder)
        if args.form != "vllm":
            tokenizer.save_pretrained(folder)
    cli.log.info("%s: %s", args.output, FORMS[args.form])


if __name__ == "__main__":
    cli.run(parser(), main)
