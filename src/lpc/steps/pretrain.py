"""Train a tiny Llama and its tokenizer from scratch on the training rows of a dataset."""

from pathlib import Path

import pyarrow.compute as pc

from lpc import cli, files
from lpc.config import specs
from lpc.model import scratch
from lpc.model.checkpoint import digest


def parser():
    parser = cli.step_parser(__doc__, specs.Pretrain)
    parser.add_argument("--rows", required=True, help="rows with their split (rows.parquet)")
    parser.add_argument("--output", required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--record", required=True, help="record of the base model (base.json)")
    return parser


def main(args):
    spec = args.spec
    table = files.read_parquet(args.rows, columns=["split", "messages", "completions"])
    rows = table.filter(pc.equal(table["split"], "train")).to_pylist()
    settings = {key: value for key, value in spec.scratch if key != "dataset"}
    with files.atomic(args.output) as temporary:
        training = scratch.train(rows, temporary, **settings, **dict(spec.tokens))
    record = {
        "name": spec.name,
        "path": args.output,
        "revision": None,
        "sha256": digest(Path(args.output)),
        "parameters": training["parameters"],
        "chat_template": None,
        "chat_template_kwargs": {},
        "system": True,
        "dtype": spec.dtype,
        "trust_remote_code": False,
        "training": training,
    }
    files.write_json(args.record, record)


if __name__ == "__main__":
    cli.run(parser(), main)
