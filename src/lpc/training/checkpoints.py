"""When a training saves, and the folder of its checkpoints: durable, verified, and never of another run."""

import logging
import os
import shutil
import signal
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback

from lpc.cli import UserError
from lpc.files import fingerprint, read_json, write_json
from lpc.training.identity import MAY_CHANGE, another_run, changes

log = logging.getLogger("lpc")

COMPLETE = "complete.json"
"""Written last into a checkpoint: without it, the checkpoint is a torn one and is never resumed."""
IDENTITY = "identity.json"
"""In the folder of the checkpoints: what the weights depended on when their training began."""
TOKENS = "tokens"
"""In the folder of the checkpoints: the training pairs' tokens, which each attempt writes anew."""
VALIDATION = "validation"
"""In `TOKENS`: those of the validation pairs, where they are evaluated."""
BEST = "best.safetensors"
"""Beside the checkpoints, and a hard link in each: the trained weights of the best evaluation, in float32."""


class Checkpointing(TrainerCallback):
    """Decides at the end of each step whether to save, and whether to stop after that.

    By the clock: every `save_minutes`, and once before the end of the SLURM job, because under cgroup tracking the
    scheduler's signal reaches only the top process of a job step. By signal, where one arrives: SIGTERM, SIGUSR1, and
    the first SIGINT (Ctrl-C); a second one interrupts at once.
    """

    def __init__(self, trainer: Trainer, save_minutes: float, validation=None):
        """`validation`: an `lpc.training.evaluate.Validation`, or None. Not imported here: see that module."""
        self.trainer, self.save_seconds, self.validation = trainer, 60 * save_minutes, validation
        self.stop_reason: str | None = None
        self.signalled: str | None = None
        self.last_save = self.last_step = time.monotonic()
        self.longest_step = self.longest_save = 0.0
        end = os.environ.get("SLURM_JOB_END_TIME")  # empty in a container outside of a job
        self.deadline = float(end) if end else None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame) -> None:
        self.signalled = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.info("saving a checkpoint after this step; interrupt again to stop without one")

    def on_train_begin(self, args, state, control, **kwargs):
        state.logging_steps = args.logging_steps  # a resumed state brings its own

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        self.longest_step, self.last_step = max(self.longest_step, now - self.last_step), now
        reason = self.signalled
        # Room for a step and a save that both take twice as long as ever before, and for SLURM's coarse clock.
        margin = 10 + 2 * (self.longest_step + self.longest_save)
        if self.deadline is not None and time.time() > self.deadline - margin:
            reason = reason or "the end of the job's time"
        save = reason is not None or now - self.last_save > self.save_seconds
        if args.world_size > 1:
            # All processes must do the same, and each has its own clock: the first request counts.
            wishes = torch.tensor([float(save), float(reason is not None)], device=args.device)
            wishes = self.trainer.accelerator.reduce(wishes, "sum").tolist()
            save, reason = wishes[0] > 0, reason or ("another process" if wishes[1] > 0 else None)
        if self._is_over(args, state, control):
            control.should_training_stop = True
            control.should_log = True  # the last step's line; the finished model is saved by the caller
            return control
        if save:
            control.should_save = True
        if reason is not None:
            self.stop_reason = reason
            control.should_training_stop = True
        self.save_started = time.monotonic()
        return control

    def _is_over(self, args, state, control) -> bool:
        """Return whether this step is the last. A due evaluation comes first, so that a checkpoint holds it."""
        last = state.global_step >= state.max_steps
        if self.validation is None or not (last or state.global_step % self.validation.settings.steps == 0):
            return last
        result = self.validation.evaluate(self.trainer)
        should_log = control.should_log
        measures = {f"eval_{name}": result[name] for name in ("accuracy", "loss")}
        self.trainer.callback_handler.on_log(args, state, control, measures)
        control.should_log = should_log  # on_log takes it for the line of the training
        return last or self.validation.is_over(self.trainer.totals["evaluations"])

    def on_save(self, args, state, control, **kwargs):
        self.last_save = self.last_step = time.monotonic()
        self.longest_save = max(self.longest_save, self.last_save - self.save_started)
        log.info("step %d: checkpoint saved", state.global_step)


# ---- the folder of one run's checkpoints: <fingerprint of the identity>/{checkpoint-<step>/,tokens/,identity.json}


def prepare(root: Path, now: dict) -> list[str]:
    """Make the folder of the identity `now` ready for its training; return what changed since that training began.

    Call with the lock of `root` held. Deletes all tokens and torn checkpoints, and names complete ones of other
    identities, which are never resumed by themselves and never deleted. A user may move such a folder to the place of
    this identity's own, to go on across a change of code, library versions or reference. Raises UserError across any
    other change.
    """
    own = root / fingerprint(now)
    for checkpoint in sorted(root.glob("*/checkpoint-*")):
        if not (checkpoint / COMPLETE).exists():
            log.info("%s: torn, deleted", checkpoint)
            shutil.rmtree(checkpoint)
    for tokens in root.glob(f"*/{TOKENS}"):
        shutil.rmtree(tokens)
    for folder in sorted({path.parent for path in root.glob("*/checkpoint-*")} - {own}):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        changed = changes(_begun(folder), now)
        resume = f"to resume it all the same, stop this job and run: rm -rf {own}; mv {folder} {own}"
        log.warning(
            "%s: %.1f GB of checkpoints, not resumed, because these changed: %s; %sto delete them: rm -r %s",
            *(folder, size / 1e9, ", ".join(changed), "" if another_run(changed) else f"{resume}; ", folder),
        )
    if not (own / IDENTITY).exists():
        write_json(own / IDENTITY, now)
    changed = changes(_begun(own), now)
    if another_run(changed):
        raise UserError(
            f"{own}: its checkpoints are of another run ({', '.join(changed)} differ); a training resumes only across "
            f"changes of {', '.join(MAY_CHANGE)}; move the folder away"
        )
    if changed:
        log.warning("%s: resuming on purpose, though these changed: %s", own, ", ".join(changed))
    return changed


def link_best(source: Path, target: Path) -> None:
    """Make the best weights of the folder `target` those of `source`, as a link to one file, if `source` has some."""
    if (source / BEST).exists():
        (target / BEST).unlink(missing_ok=True)
        os.link(source / BEST, target / BEST)


def _begun(folder: Path) -> dict:
    """The identity under which a folder's training began, without what `write_json` adds to it."""
    file = folder / IDENTITY
    return {key: value for key, value in read_json(file).items() if key != "container"} if file.exists() else {}


def seal(checkpoint: Path, content: dict) -> None:
    """Flush all files of a checkpoint to disk, then write `COMPLETE`: `content` with the files' sizes and
    checksums.

    Checksums are CRC-32, which finds torn and decayed files and runs at 3 GB/s a core where SHA-256 runs at 1.5: half a
    minute for the 96 GB of an 8B model, less for several files, which threads read.
    """
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
    with ThreadPoolExecutor(8) as pool:
        checks = pool.map(lambda file: _size_and_checksum(file, flush=True), files)
        listed = {str(file.relative_to(checkpoint)): check for file, check in zip(files, checks, strict=True)}
    for folder in (*(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint):
        _flush_folder(folder)
    write_json(checkpoint / COMPLETE, content | {"files": listed})
    _flush_folder(checkpoint)
    _flush_folder(checkpoint.parent)


def _size_and_checksum(file: Path, *, flush: bool = False) -> list[int]:
    size = checksum = 0
    with open(file, "rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        while part := stream.read(2**24):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return [size, checksum]


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """Return the checkpoints whose last file was written, oldest first."""
    found = [path.parent for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files are those that were written; set aside newer ones that are damaged."""
    for checkpoint in reversed(complete_checkpoints(folder)):
        listed = read_json(checkpoint / COMPLETE)["files"]
        with ThreadPoolExecutor(8) as pool:
            intact = pool.map(lambda name: _intact(checkpoint / name, *listed[name]), listed)  # noqa: B023
            damaged = [name for name, good in zip(listed, intact, strict=True) if not good]
        if not damaged:
            return checkpoint
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)  # an earlier one of this name
        checkpoint.rename(aside)
        log.warning("%s: damaged (%s), set aside; to delete it: rm -r %s", checkpoint, ", ".join(damaged), aside)
    return None


def _intact(file: Path, size: int, checksum: int) -> bool:
    return file.exists() and file.stat().st_size == size and _size_and_checksum(file)[1] == checksum
