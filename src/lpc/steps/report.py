"""The report of a project: one HTML page that needs nothing but itself.

Spec keys: the whole configuration with its defaults (all sections but resources); runs, as in the step tables, each
also with its noise and its experiments; recipes, those of sweeps included. Reads the tables of the step tables and
the files of the runs.
"""

from pathlib import Path

from lpc import cli, files
from lpc.report import page, sections


def parser():
    parser = cli.step_parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of the project's results")
    parser.add_argument("--output", required=True, help="HTML file to write")
    return parser


def main(args) -> None:
    results = sections.Results(args.results, args.spec)
    headline, findings, facts, forest = sections.answer(results)
    project = results.settings["project"]
    html = page.render(
        title=f"{project}: Latent Preference Coding",
        subtitle=f"Latent Preference Coding · project {project}",
        headline=headline,
        findings=findings,
        facts=facts,
        forest=forest,
        sections=sections.all_sections(results),
    )
    files.write_text(args.output, html)
    cli.log.info("%s: %d kB", args.output, len(html.encode()) // 1024)


if __name__ == "__main__":
    cli.run(parser(), main)
