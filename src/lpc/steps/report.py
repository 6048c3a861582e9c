"""Write the report of a project: one HTML page that needs no other file."""

from pathlib import Path

from lpc import cli, files
from lpc.config import specs
from lpc.report import page
from lpc.report.answer import answer
from lpc.report.results import Results
from lpc.report.sections import (
    alpacaeval,
    benchmarks,
    codes,
    comparisons,
    completions,
    cost,
    factors,
    missing,
    people,
    preference,
    provenance,
    selection,
    sweeps,
    training,
)
from lpc.report.whole_tables import whole_tables

# In the order of the page.
SECTIONS = [
    preference,
    people,
    benchmarks,
    alpacaeval,
    sweeps,
    selection,
    comparisons,
    codes,
    completions,
    factors,
    training,
    cost,
    missing,
    provenance,
]


def parser():
    parser = cli.step_parser(__doc__, specs.Report)
    parser.add_argument("--results", type=Path, required=True, help="folder of the project's results")
    parser.add_argument("--commit", required=True, help="commit of the workflow, for the page's provenance")
    parser.add_argument("--output", required=True, help="HTML file to write")
    return parser


def main(args) -> None:
    results = Results(args.results, args.spec.tracked(), args.commit)
    sections = [section for module in SECTIONS if (section := module.section(results)) is not None]
    for section in sections:
        section.blocks += whole_tables(results, section)
    html = page.render(results.settings["project"], answer(results), sections)
    files.write_text(args.output, html)
    cli.log.info("%s: %d kB", args.output, len(html.encode()) // 1024)


if __name__ == "__main__":
    cli.run(parser(), main)
