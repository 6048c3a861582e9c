"""Show on one screen how far a project is (`make status`): by rule the jobs that are done, running, failed or waiting.

It reads the files of the results and the logs, and starts no Snakemake. A training runs while its lock is held; any
other job while Snakemake has its outputs marked as incomplete and is alive. A job without results that has a log and
does not run has failed, or was interrupted.
"""

import argparse
import base64
import collections
from pathlib import Path

from lpc import lock, unlock
from lpc.cli import UserError, fail
from lpc.config.load import load
from lpc.jobs import Job, all_jobs
from lpc.layout import Layout

STATES = ("done", "running", "failed", "waiting")
SHOWN = 8
"""Jobs of one state that are named, at most."""
WIDTH = 160
"""Characters of a log's last line that are shown."""


def incomplete() -> list[Path]:
    """Return the outputs of jobs that Snakemake has started and not ended, by its own marks, whose names encode them.

    A job on a cluster is marked from its submission on.
    """
    root = unlock.FOLDER / "incomplete"
    found = []
    for file in root.rglob("*"):
        if file.is_file() and file.name != "migration_underway":
            name = "".join(part.removeprefix("@") for part in file.relative_to(root).parts)
            found.append(Path(base64.urlsafe_b64decode(name).decode()))
    return found


def state(job: Job, layout: Layout, marked: set[Path]) -> str:
    """Return the state of a job, one of `STATES`. marked: outputs of the jobs of a living Snakemake."""
    if not marked.isdisjoint(job.files) or (job.rule == "train" and lock.owner(layout.checkpoints(*job.names))):
        return "running"
    if all(file.exists() for file in job.files):
        return "done"
    return "failed" if layout.log(job.rule, *job.names).exists() else "waiting"


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank, cut to `WIDTH` characters."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not lines:
        return "its log is empty"
    return lines[-1] if len(lines[-1]) <= WIDTH else lines[-1][: WIDTH - 3] + "..."


def lines(jobs: list[Job], layout: Layout, running: str | None) -> list[str]:
    """Return the screen's lines. running: the Snakemake of the project, None where none runs."""
    marked = set(incomplete() if running else [])
    states = {job: state(job, layout, marked) for job in jobs}
    total = collections.Counter(states.values())
    counts = ", ".join(f"{total[name]} {name}" for name in STATES[1:] if total[name])
    found = [f"{layout.root}: {total['done']} of {len(jobs)} jobs done" + (f", {counts}" if counts else "")]
    found.append(f"Snakemake: {running or 'not running'}")
    rules = dict.fromkeys(job.rule for job in jobs)
    width = max(map(len, rules))
    found.append(f"{'rule':{width}}  {'done':>9}" + "".join(f"  {name:>7}" for name in STATES[1:]))
    for rule in rules:
        own = collections.Counter(states[job] for job in jobs if job.rule == rule)
        done = f"{own['done']}/{own.total()}"
        found.append(f"{rule:{width}}  {done:>9}" + "".join(f"  {own[name] or '':>7}" for name in STATES[1:]))
    for name in ("running", "failed"):
        named = [job for job in jobs if states[job] == name]
        found += [f"{name}:"] if named else []
        for job in named[:SHOWN]:
            log = layout.log(job.rule, *job.names)
            said = f": {last_line(log)}" if log.exists() else ""
            found.append(f"  {job.rule} {' '.join(job.names)}{said}")
            found += [f"    {log}"] if name == "failed" else []
        found += [f"  and {len(named) - SHOWN} more"] if len(named) > SHOWN else []
    return [line.rstrip() for line in found]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", nargs="+", required=True, help="configuration of the project, as for Snakemake")
    return parser


def main(args: argparse.Namespace) -> None:
    config = load(*args.configfile)
    project = config.settings.project
    layout = Layout(f"results/{project}")
    print(*lines(all_jobs(config, layout), layout, unlock.running(project)), sep="\n")


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
