"""Show what a run of the workflow would do (`make plan`): jobs by rule, why, how long, and models that it deletes.

Snakemake deletes the outputs of a job before it starts the job: a recipe that is changed in place loses its model.
"""

import argparse
import collections
import csv
import statistics
import subprocess
import sys
from pathlib import Path

from lpc.cli import UserError, fail
from lpc.config.load import load
from lpc.jobs import Job, all_jobs
from lpc.layout import Layout
from lpc.report.words import count, duration

REPLACED = "this run deletes finished models and trains them again"
WORDS = {"ok": "its inputs change", "rule implementation changed": "code changed"}
"""Plain words for a status in Snakemake's summary. The command of a rule changes with the modules that it runs."""
KEEP = "to keep models, give the changed recipe, base or dataset a new name, or sweep the changed key"


def pending(summary: str) -> dict[str, str]:
    """Return the outputs that a run would make, each with the reason.

    summary: Snakemake's `--summary`, tab-separated; for each output it states whether its job would run, and why.
    """
    rows = csv.DictReader(summary[summary.index("output_file\t") :].splitlines(), delimiter="\t")
    return {
        row["output_file"]: WORDS.get(row["status"], row["status"]) for row in rows if row["plan"] == "update pending"
    }


def replaced(outputs: dict[str, str]) -> list[str]:
    """Return a line for each finished model among `pending` outputs, with the reason."""
    return [f"{output}: {reason}" for output, reason in outputs.items() if is_finished_model(output)]


def jobs_by_rule(jobs: list[Job], outputs: dict[str, str], layout: Layout) -> list[str]:
    """Return a line for each rule with jobs among `pending` outputs, and one for all.

    A line has the number of jobs, their expected time one after the other, and the reasons. Expected of a job is the
    median time of the rule's jobs that this project has run.
    """
    reasons = collections.defaultdict(collections.Counter)
    for job in jobs:
        if of_job := [outputs[str(file)] for file in job.files if str(file) in outputs]:
            reasons[job.rule][of_job[0]] += 1
    lines, total, unknown = [], 0.0, []
    for rule, found in reasons.items():
        times = [float(_measured(file)["s"]) for file in layout.timing(rule).parent.glob("*.tsv")]
        seconds = statistics.median(times) * found.total() if times else None
        total += seconds or 0
        unknown += [] if times else [rule]
        time = "?" if seconds is None else duration(seconds)
        why = ", ".join(f"{reason} ({number})" for reason, number in found.most_common())
        lines.append(f"{rule:<20}{found.total():>6}{time:>9}  {why}")
    jobs_in_all = sum(found.total() for found in reasons.values())
    lines.append(f"{count(jobs_in_all, 'job')}, {duration(total)} of work by earlier jobs of the same rules")
    if unknown:
        lines[-1] += f"; no job of {', '.join(unknown)} has run yet"
    return lines


def _measured(file: Path) -> dict[str, str]:
    with open(file, encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))[-1]


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
    config, outputs = load(*args.configfile), pending(process.stdout)
    layout = Layout(f"results/{config.settings.project}")
    lines = replaced(outputs)
    print(*jobs_by_rule(all_jobs(config, layout), outputs, layout), *lines, sep="\n")
    print(f"{len(lines)} finished models would be deleted and trained again" + (f"; {KEEP}" if lines else ""))


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
