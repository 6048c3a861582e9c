"""Read preference data, set malformed rows aside, and split the rest into train, validation and test."""

import json

from lpc import cli, files
from lpc.config import specs
from lpc.data import formats, read, split


def parser():
    parser = cli.step_parser(__doc__, specs.Split)
    parser.add_argument("--record", required=True, help="record of the data (dataset.json)")
    parser.add_argument("--output", required=True, help="the rows (.parquet)")
    parser.add_argument("--rejects", required=True, help="malformed rows: file, row, reason (.jsonl)")
    parser.add_argument("--summary", required=True, help="numbers of rows and prompts (.json)")
    return parser


def main(args):
    dataset = files.read_json(args.record)
    settings = args.spec.split
    rows, rejects, copies = read.read(dataset)
    # Write the rejects first, so that they can be inspected if the check below fails.
    files.write_text(args.rejects, "".join(json.dumps(reject, sort_keys=True) + "\n" for reject in rejects))
    reasons = read.check_share(len(rows), rejects, args.spec.max_rejected_rows)
    found = len(rows)
    rows = split.keep_own(rows)
    dropped, found = found - len(rows), len(rows)
    rows = split.limited(rows, settings.limit)
    beyond_limit, found = found - len(rows), len(rows)
    if settings.is_test_alone:
        rows = [{**row, "split": "test"} for row in rows]
    elif settings.by == "group":
        rows = split.split_groups(rows, settings.sizes(), settings.seed)
        dropped += found - len(rows)
    else:
        drawn = [row for row in rows if "split" not in row]
        assigned = split.split_prompts(split.count_rows(drawn), settings.sizes(), settings.seed)
        for row in drawn:
            row["split"] = assigned[row["prompt_id"]]
    if args.spec.annotators is not None:
        kind = formats.kind(dataset["kind"])
        rows = [*map(read.pack, kind.draw_annotators([*map(read.unpack, rows)], args.spec.annotators))]
    summary = {
        "spec": args.spec.tracked(),
        "rows": len(rows),
        "rejected": reasons,
        "copies": copies,
        "dropped": dropped,
        "beyond_limit": beyond_limit,
        "splits": split.describe(rows),
    }
    # Contents, but not where they lie: two projects with the same rows write the same bytes.
    told = {name: value for name, value in dataset.items() if name not in ("files", "folder")}
    told["sha256"] = sorted(dataset["sha256"].values())
    metadata = {"spec": args.spec.tracked(), "dataset": told}
    files.write_rows(args.output, map(read.unpack, rows), read.ROWS, metadata)
    files.write_json(args.summary, summary)
    for name, part in summary["splits"].items():
        cli.log.info("%s: %d rows of %d prompts", name, part["rows"], part["prompts"])


if __name__ == "__main__":
    cli.run(parser(), main)
