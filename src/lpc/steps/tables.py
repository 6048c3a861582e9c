"""Tables of a project as CSV: preference accuracy, comparisons, benchmarks, latents, codes, chosen settings, training,
cost.

Spec keys: runs, each with path, base, dataset, variant, recipe, seed; recipes, by name, each with objective, latent
and training; tasks, the names of the benchmarks; datasets, the further held-out datasets; sweeps, by experiment
the [key, values] that it sweeps.

Writes into --output one file for each table of `lpc.report.tables.COLUMNS`.
"""

from pathlib import Path

from lpc import cli
from lpc.report import tables


def parser():
    parser = cli.step_parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of the project's results")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the CSV files into")
    return parser


def main(args) -> None:
    runs = tables.resolve(args.spec["runs"], args.spec["recipes"], args.spec["datasets"])
    rewards = tables.Rewards(args.results)
    made = {
        "preference_accuracy": tables.preference_accuracy(args.results, runs, rewards),
        "comparisons": tables.comparisons(args.results, runs, rewards),
        "benchmarks": tables.benchmarks(args.results, runs, args.spec["tasks"]),
        "latents": tables.latents(args.results, runs),
        "codes": tables.codes(args.results, runs),
        "code_correlations": tables.code_correlations(args.results, runs),
        "selection": tables.selection(args.results, runs, args.spec["sweeps"]),
        "training": tables.training(args.results, runs),
        "cost": tables.cost(args.results),
    }
    for name, rows in made.items():
        tables.write(args.output, name, rows)
    missing = [row for rows in made.values() for row in rows if str(row.get("status", "ok")).startswith("missing")]
    cli.log.info("%d runs; %d rows say that a result is missing", len(runs), len(missing))


if __name__ == "__main__":
    cli.run(parser(), main)
