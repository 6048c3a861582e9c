"""Write the tables of a project: one CSV file each, and beside it what its columns mean.

Writes <table>.csv and <table>.rst into --output for each of `lpc.report.tables.TABLES`.
"""

from pathlib import Path

from lpc import cli
from lpc.config import specs
from lpc.layout import Layout
from lpc.report.runs import resolve
from lpc.report.tables import TABLES, base, definition


def parser():
    parser = cli.step_parser(__doc__, specs.Tables)
    parser.add_argument("--results", type=Path, required=True, help="folder of the project's results")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the files into")
    return parser


def main(args) -> None:
    spec = args.spec.tracked()
    runs = resolve(spec["runs"], spec["recipes"], spec["datasets"])
    inputs = base.Inputs(Layout(args.results), runs, dict(spec["tasks"]), spec["sweeps"])
    made = {name: definition(name).rows(inputs) for name in TABLES}
    for name, rows in made.items():
        base.write(args.output, name, definition(name), rows)
    missing = [row for rows in made.values() for row in rows if str(row.get("status", "ok")).startswith("missing")]
    cli.log.info("%d runs; %d rows say that a result is missing", len(runs), len(missing))


if __name__ == "__main__":
    cli.run(parser(), main)
