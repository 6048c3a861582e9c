"""Round the linear layers of a base model to 4-bit NormalFloat: a base whose weights QLoRA holds exactly."""

from pathlib import Path

from lpc import cli, files
from lpc.config import specs
from lpc.model import checkpoint
from lpc.model.backbone import load_backbone, stored_dtype
from lpc.model.loading import load_run_tokenizer
from lpc.model.policy import LatentPolicy
from lpc.model.quantization import round_to_4_bits

INHERITED = ("parameters", "chat_template", "chat_template_kwargs", "system", "dtype", "trust_remote_code")
"""What a rounded base's record takes from the record of its source."""


def parser():
    parser = cli.step_parser(__doc__, specs.Quantize)
    parser.add_argument("--base", required=True, help="base.json of the base to round")
    parser.add_argument("--output", required=True, help="folder of the rounded model and its tokenizer")
    parser.add_argument("--record", required=True, help="record of the rounded base (base.json)")
    return parser


def main(args):
    base, tokenizer = files.read_json(args.base), load_run_tokenizer(args.base)
    dtype = stored_dtype(base["path"])
    policy = LatentPolicy(load_backbone(base["path"], dtype=dtype, trust_remote_code=base["trust_remote_code"]))
    rounded = round_to_4_bits(policy)
    with files.atomic(args.output) as temporary:
        policy.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    record = {
        "name": args.spec.name,
        "path": args.output,
        "revision": None,
        "sha256": checkpoint.digest(Path(args.output)),
        "quantization": "nf4",
        **{name: base[name] for name in INHERITED},
    }
    files.write_json(args.record, record)
    cli.log.info("%s: %d of %d parameters rounded to 4 bits", args.output, rounded, base["parameters"])


if __name__ == "__main__":
    cli.run(parser(), main)
