"""One trainer per run folder, also on network file systems and when its owner dies without releasing it.

A killed Snakemake leaves its jobs running, and the next one submits them again; both would write the same checkpoints.

The owner is the file `lock.<n>` with the highest n. It is never deleted: to release, the owner empties it; to acquire a
lock that is free or whose owner is dead is to create `lock.<n+1>`. Creating a name by `link` is exclusive on every
POSIX file system and on NFS, so of several processes that find the same owner dead, one wins. `flock` would not do: on
many clusters it is local to a node or absent. Nor would the leases of the package filelock (4.2.11): they replace a
dead owner's file by renameat2(RENAME_EXCHANGE), which NFS refuses, so the lock would never be free again there. They
also cannot tell that a requeued SLURM job has ended on its earlier node.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lpc import process
from lpc.cli import UserError, fail

log = logging.getLogger("lpc")

BEAT = 20.0
"""Seconds between refreshes of the lock file's modification time by its owner."""
STALE = 180.0
"""Seconds without a refresh after which an owner on another machine counts as dead. NFS may show a time 60 s late."""
OWNER = {
    "host": str,
    "machine": str,
    "pid": int,
    "start_time": str,
    "slurm_job": str | None,
    "slurm_step": str | None,
}
"""The content of a lock file."""


@contextlib.contextmanager
def lock(folder: str | Path, *, wait: float = 300.0, beat: float = BEAT, stale: float = STALE) -> Iterator[float]:
    """Hold the lock of `folder`, which is created if needed. Yield the seconds that it waited for another owner.

    Raises UserError, which names the owner, after `wait` seconds. They should exceed `stale`, so that a dead owner is
    told from a living one. Ends the process if the lock is lost, as by one that was suspended for longer than `stale`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generation, waited = _acquire(folder, wait, stale)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(folder, generation, beat, done), daemon=True, name="lock")
    heart.start()
    try:
        yield waited
    finally:
        done.set()
        heart.join()
        _check(folder, generation)
        os.truncate(_path(folder, generation), 0)


def owner(folder: str | Path) -> str | None:
    """Return who holds the lock of `folder`, in words; None where nobody does, or the owner is dead."""
    folder = Path(folder)
    generation = _newest(folder) if folder.is_dir() else 0
    found = _living_owner(folder, generation, STALE) if generation else None
    return found and _describe(found)


def _path(folder: Path, generation: int) -> Path:
    return folder / f"lock.{generation}"


def _generations(folder: Path) -> list[int]:
    found = (re.fullmatch(r"lock\.([1-9][0-9]*)", entry) for entry in os.listdir(folder))
    return [int(match[1]) for match in found if match]


def _newest(folder: Path) -> int:
    """Return the highest generation; 0 if the lock was never held."""
    return max(_generations(folder), default=0)


def _acquire(folder: Path, wait: float, stale: float) -> tuple[int, float]:
    begin = time.monotonic()
    told = None
    while True:
        generation = _newest(folder)
        owner = _living_owner(folder, generation, stale) if generation else None
        waited = time.monotonic() - begin
        if owner is None:
            if _create(folder, generation + 1):
                return generation + 1, waited if told else 0.0
        elif waited >= wait:
            job = f"scancel {owner['slurm_job']}" if owner["slurm_job"] else f"kill {owner['pid']} there"
            raise UserError(
                f"{folder}: in use by {_describe(owner)}; wait for it to end, or end it ({job}), then rerun"
            )
        else:
            if owner != told:
                log.info("%s: in use by %s; waiting", folder, _describe(owner))
                told = owner
            time.sleep(min(2.0, stale / 4, wait - waited))


def _living_owner(folder: Path, generation: int, stale: float) -> dict | None:
    """Who holds the lock; None if it was released or its owner is dead."""
    try:
        # Opening makes an NFS client ask the server for the file's present state; stat alone may answer from its cache.
        with open(_path(folder, generation), "rb") as stream:
            content, seen = stream.read(), os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None  # a newer owner has deleted it; to create the next generation will fail
    if not content:
        return None
    owner, me = _parse(_path(folder, generation), content), _me()
    if owner["machine"] == me["machine"]:
        dead = process.start_time(owner["pid"]) != owner["start_time"]
    elif owner["slurm_job"] and (owner["slurm_job"], owner["slurm_step"]) == (me["slurm_job"], me["slurm_step"]):
        dead = True  # the same step of the same job on another node: SLURM requeues a job only after it has ended
    else:
        dead = _file_system_time(folder) - seen > stale
    if dead:
        log.info("%s: %s has died; taking over", folder, _describe(owner))
        return None
    return owner


def _parse(path: Path, content: bytes) -> dict:
    """Return the owner in a lock file; the keys are those of `_me`."""
    try:
        owner = json.loads(content)
        valid = all(isinstance(owner[key], kind) for key, kind in OWNER.items())
    except (ValueError, TypeError, KeyError, RecursionError):
        valid = False
    if not valid:
        raise UserError(f"{path}: not a lock file, or torn; if no job uses its folder, delete the file, then rerun")
    return owner


def _create(folder: Path, generation: int) -> bool:
    """Try to become the owner of that generation."""
    temporary = folder / f".lock-{uuid.uuid4().hex}"
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(_me(), stream)
            stream.flush()
            os.fsync(stream.fileno())  # a crash of the machine must not leave a lock that names no owner
        with contextlib.suppress(FileExistsError):
            os.link(temporary, _path(folder, generation))
        # Not the call's answer: NFS may lose it, repeat the call, and report that the name exists.
        if os.stat(temporary).st_nlink != 2:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    if _newest(folder) > generation:
        # We were slow: others took the lock and tidied away the generation that we have just created again.
        _path(folder, generation).unlink()
        return False
    for older in _generations(folder):
        if older < generation:
            _path(folder, older).unlink(missing_ok=True)
    return True


def _beat(folder: Path, generation: int, beat: float, done: threading.Event) -> None:
    while not done.wait(beat):
        try:
            _check(folder, generation)
            os.utime(_path(folder, generation))
        except OSError as error:
            # The file server is away for a moment. If for long, others take over, which a later beat finds.
            log.warning("%s: could not refresh the lock: %s", folder, error)


def _check(folder: Path, generation: int) -> None:
    """End this process if the lock is no longer its own: another one is writing where it would write."""
    try:
        newest = _newest(folder)
    except FileNotFoundError:
        newest = 0
    if newest != generation:
        how = "another process has taken" if newest > generation else "was deleted"
        fail(
            f"{folder}: lost its lock, which {how} (was this process suspended?); rerun to resume from a checkpoint", 1
        )


def _me() -> dict:
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    return {**process.me(), "slurm_job": job, "slurm_step": step}


def _file_system_time(folder: Path) -> float:
    """Now by the clock of the file system, since the clocks of machines differ."""
    probe = folder / f".lock-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _describe(owner: dict) -> str:
    job = f", SLURM job {owner['slurm_job']}" if owner["slurm_job"] else ""
    return f"process {owner['pid']} on {owner['host']}{job}"
