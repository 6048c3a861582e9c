"""List the finished models that a run of the workflow would delete and train again (`make plan`).

Snakemake deletes the outputs of a job before it starts the job: a recipe that is changed in place loses its model.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from lpc.cli import UserError, fail

REPLACED = "this run deletes finished models and trains them again"
KEEP = "to keep models, give the changed recipe, base or dataset a new name, or sweep the changed key"


def replaced(summary: str) -> list[str]:
    """Return a line for each finished model that a run would delete, with the reason.

    summary: Snakemake's `--summary`, tab-separated; for each output it states whether its job would run, and why.
    """
    header = summary.index("output_file\t")
    rows = csv.DictReader(summary[header:].splitlines(), delimiter="\t")
    return [
        f"{row['output_file']}: {'its inputs change' if row['status'] == 'ok' else row['status']}"
        for row in rows
        if row["plan"] == "update pending" and is_finished_model(row["output_file"])
    ]


def is_finished_model(output: str) -> bool:
    return Path(output).name == "model" and Path(output).is_dir()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", nargs="+", required=True, help="configuration of the run, as for Snakemake")
    return parser


def main(args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "snakemake", "all", "--summary", "--configfile", *args.configfile]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise UserError(f"snakemake all --summary failed: {process.stdout}{process.stderr}")
    lines = replaced(process.stdout)
    print(*lines, sep="\n", end="\n" if lines else "")
    print(f"{len(lines)} finished models would be deleted and trained again" + (f"; {KEEP}" if lines else ""))


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
