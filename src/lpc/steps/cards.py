"""Write the model card of each run of a project: README.md in the run's folder."""

from pathlib import Path

from lpc import cli, files
from lpc.config import specs
from lpc.report.card import card
from lpc.report.results import Results


def parser():
    parser = cli.step_parser(__doc__, specs.Report)
    parser.add_argument("--results", type=Path, required=True, help="folder of the project's results, with its tables")
    parser.add_argument("--commit", required=True, help="commit of the workflow, for the cards")
    return parser


def main(args) -> None:
    results = Results(args.results, args.spec.tracked(), args.commit)
    for run in results.runs:
        files.write_text(results.layout.of(run).card, card(results, run))
    cli.log.info("%d model cards", len(results.runs))


if __name__ == "__main__":
    cli.run(parser(), main)
