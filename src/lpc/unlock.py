"""Snakemake's lock of a project: a record of its owner, and its removal after a kill (`make demo`).

Snakemake's lock does not name its owner. The Snakefile therefore records it at the start of each run, when Snakemake
has its lock. A lock is removed only if the record is newer than the lock and the recorded process is dead.
"""

import argparse
from pathlib import Path

from lpc import process
from lpc.cli import UserError, fail
from lpc.config.load import load
from lpc.files import read_json, write_json
from lpc.lock import lock

FOLDER = Path(".snakemake")


def record_owner(project: str) -> None:
    """Record that this process holds Snakemake's lock of a project's results."""
    write_json(_owner(project), process.me())


def _owner(project: str) -> Path:
    return FOLDER / "owners" / f"{project}.json"


def remove_lock(project: str) -> bool:
    """Remove the lock that a dead Snakemake left on a project's results; return whether there was one.

    Raises UserError where its owner is alive, or cannot be told to be dead: on another machine, or not recorded. Locks
    of other projects in the same folder stay.
    """
    # Of two that find the same dead owner, the second must not remove the lock that the first one's run takes next.
    with lock(FOLDER / "unlock"):
        locks = _locks(project)
        if not locks:
            return False
        _check_dead(project, locks)
        for path in locks:
            path.with_name(path.name.replace("output", "input")).unlink(missing_ok=True)
            path.unlink()
        return True


def running(project: str) -> str | None:
    """Return who holds Snakemake's lock of a project's results; None where nobody does, or its owner is dead here."""
    if not _locks(project):
        return None
    if not _owner(project).exists():
        return "a process that is not recorded"
    recorded = read_json(_owner(project))
    dead = recorded["machine"] == process.machine() and process.start_time(recorded["pid"]) != recorded["start_time"]
    return None if dead else f"process {recorded['pid']} on {recorded['host']}"


def _locks(project: str) -> list[Path]:
    return [path for path in FOLDER.glob("locks/*.output.lock") if f"results/{project}/" in path.read_text()]


def _check_dead(project: str, locks: list[Path]) -> None:
    where, owner = f"{Path.cwd()}/results/{project}", _owner(project)
    remedy = "if there is none, run `snakemake all --unlock` with its --configfile, then rerun"
    if len(locks) > 1 or not owner.exists() or owner.stat().st_mtime < locks[0].stat().st_mtime:
        raise UserError(f"{where}: locked by an unknown Snakemake; wait for it to end; {remedy}")
    recorded = read_json(owner)
    who = f"Snakemake, process {recorded['pid']} on {recorded['host']}"
    if recorded["machine"] != process.machine():
        raise UserError(f"{where}: locked by {who}; wait for it to end; {remedy}")
    if process.start_time(recorded["pid"]) == recorded["start_time"]:
        raise UserError(f"{where}: in use by {who}; wait for it to end, or end it, then rerun")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", nargs="+", required=True, help="configuration of the run, as for Snakemake")
    return parser


def main(args: argparse.Namespace) -> None:
    project = load(*args.configfile).settings.project
    if remove_lock(project):
        print(f"results/{project}: removed the lock that a killed Snakemake left behind")


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
