"""The report of a project: one HTML page that needs nothing but itself.

Spec keys: the whole configuration with its defaults, but for resources; runs, as in the step tables, each also with its
noise and its experiments; recipes, those of sweeps included. Reads the tables that the step tables wrote, and the runs.
"""

from pathlib import Path

from lpc import cli, files
from lpc.report import accuracy, latents, page, running, sweeps
from lpc.report.answer import answer
from lpc.report.results import Results

SECTIONS = [
    accuracy.preference,
    accuracy.benchmarks,
    accuracy.alpacaeval,
    sweeps.experiments,
    sweeps.selection,
    accuracy.statistics,
    latents.codes,
    latents.completions,
    latents.factors,
    running.training,
    running.cost,
    running.missing,
    running.provenance,
]


def parser():
    parser = cli.step_parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of the project's results")
    parser.add_argument("--commit", required=True, help="commit of the workflow, for the page's provenance")
    parser.add_argument("--output", required=True, help="HTML file to write")
    return parser


def main(args) -> None:
    results = Results(args.results, args.spec, args.commit)
    sections = [section for make in SECTIONS if (section := make(results)) is not None]
    html = page.render(results.settings["project"], answer(results), sections)
    files.write_text(args.output, html)
    cli.log.info("%s: %d kB", args.output, len(html.encode()) // 1024)


if __name__ == "__main__":
    cli.run(parser(), main)
