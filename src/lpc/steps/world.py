"""Generate a preference world: rows in the UltraFeedback schema whose hidden preferences are known."""

import gzip
import io
import json
from pathlib import Path

from lpc import cli, files
from lpc.config import specs
from lpc.data import world


def parser():
    parser = cli.step_parser(__doc__, specs.World)
    parser.add_argument("--output", required=True, help="the rows (.jsonl.gz)")
    parser.add_argument("--record", required=True, help="record of the rows (.json), as download_dataset writes it")
    return parser


def main(args):
    spec = args.spec
    rows = world.generate(**spec.tracked())
    # No name and no time in the gzip header, so that equal rows are equal bytes.
    with (
        files.atomic(args.output) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as stream,
    ):
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    record = {"kind": "world", "path": Path(args.output).name, "files": [args.output], "revision": None}
    record["group"] = None if spec.people is None else "person"
    files.write_json(args.record, {**record, "sha256": {args.output: files.sha256(args.output)}})


if __name__ == "__main__":
    cli.run(parser(), main)
