"""When a training saves, and which of its checkpoints are complete."""

import logging
import os
import signal
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback

log = logging.getLogger("lpc")

COMPLETE = "complete.json"
"""Written last into a checkpoint: without it, the checkpoint is a torn one and is never resumed."""


class Checkpointing(TrainerCallback):
    """Decides at the end of each step whether to save, and whether to stop after that.

    By the clock: every `save_minutes`, and once before the end of the SLURM job, because under cgroup tracking the
    scheduler's signal reaches only the top process of a job step. By signal, where one arrives: SIGTERM and SIGUSR1.
    """

    def __init__(self, trainer: Trainer, save_minutes: float):
        self.trainer, self.save_seconds = trainer, 60 * save_minutes
        self.stop_reason: str | None = None
        self.signalled: str | None = None
        self.last_save = self.last_step = time.monotonic()
        self.longest_step = self.longest_save = 0.0
        end = os.environ.get("SLURM_JOB_END_TIME")  # empty in a container outside of a job
        self.deadline = float(end) if end else None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame) -> None:
        self.signalled = signal.Signals(number).name

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
            # All processes must do the same, and each has its own clock: the first to want it decides.
            wishes = torch.tensor([float(save), float(reason is not None)], device=args.device)
            wishes = self.trainer.accelerator.reduce(wishes, "sum").tolist()
            save, reason = wishes[0] > 0, reason or ("another process" if wishes[1] > 0 else None)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last step's line; the finished model is saved by the caller
            return control
        if save:
            control.should_save = True
        if reason is not None:
            self.stop_reason = reason
            control.should_training_stop = True
        self.save_started = time.monotonic()
        return control

    def on_save(self, args, state, control, **kwargs):
        self.last_save = self.last_step = time.monotonic()
        self.longest_save = max(self.longest_save, self.last_save - self.save_started)
        log.info("step %d: checkpoint saved", state.global_step)


def complete_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """Checkpoints whose last file was written, oldest first."""
    found = [path.parent for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
