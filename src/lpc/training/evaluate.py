"""Evaluation on the validation pairs while a run is trained: when, what is best, and when to stop.

Functions import torch, the module does not, since the configuration reads the settings. A training imports this module
through its settings alone: without them it depends on no module of `lpc.evaluation`.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from lpc.cli import UserError
from lpc.config.keys import REQUIRED, Integer, Section, fault, key
from lpc.files import atomic

if TYPE_CHECKING:
    from lpc.data.tokens import PairTokens
    from lpc.training.trainer import PreferenceTrainer

log = logging.getLogger("lpc")


class Evaluate(Section):
    """Evaluation on the validation pairs while a run is trained, with z from the prior; not with FSDP."""

    steps: Integer = key(REQUIRED, "steps between two evaluations; the last step has one, too", ge=1)
    best_by: Literal["accuracy", "loss"] | None = key(
        None,
        "the finished model is that of the evaluation with the highest `accuracy` or the lowest `loss` of the "
        "objective, the first of equals; null: that of the last step",
    )
    patience: Integer | None = key(
        None, "training stops after so many evaluations in a row that are not the best by `best_by`; null: never", ge=1
    )

    @model_validator(mode="after")
    def _patience_for_the_best(self):
        if self.patience is not None and self.best_by is None:
            raise fault("patience", f"{self.patience} needs best_by, which is null; set it to accuracy or loss")
        return self

    def validation(self, pairs: PairTokens, *, batch_size: int, precision: str) -> Validation:
        """Return the evaluation on validation `pairs`; `batch_size`: pairs that a device scores at once."""
        return Validation(self, pairs, batch_size=batch_size, precision=precision)


class Validation:
    """Evaluates a trainer's policy every `settings.steps` steps.

    The measures are those of the step `preference` on these pairs: `score_pairs`, with z from the prior. The
    evaluations so far are a list in the trainer's totals, and everything else follows from it. So a checkpoint, which
    holds the totals and a link to the best weights, holds all of the state.
    """

    def __init__(self, settings: Evaluate, pairs: PairTokens, *, batch_size: int, precision: str):
        self.settings, self.pairs = settings, pairs
        self.scoring = {"batch_size": batch_size, "precision": precision, "losses": True}

    def evaluate(self, trainer: PreferenceTrainer) -> dict[str, float]:
        """Score all pairs, shared by the processes; add the result to the trainer's totals, and keep the best weights.

        Return the result: `step`, `pairs`, `accuracy` and `loss`.
        """
        import safetensors.torch
        import torch

        from lpc.evaluation.preference import score_pairs
        from lpc.training.checkpoints import BEST

        started, args, policy = time.monotonic(), trainer.args, trainer.policy
        policy.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        if len(own := self.pairs.part(args.process_index, args.world_size)):
            scores = score_pairs(policy, own, None, trainer.objective, **self.scoring)
            chosen, rejected = scores["chosen_reward"], scores["rejected_reward"]
            right = (chosen > rejected) + 0.5 * (chosen == rejected)
            sums = torch.tensor([len(own), right.sum(), scores["loss"].sum()], dtype=torch.float64)
        policy.train()
        count, right, loss = trainer.accelerator.reduce(sums.to(args.device), "sum").tolist()
        result = {"step": trainer.state.global_step, "pairs": int(count), "accuracy": right / count}
        result["loss"] = loss / count
        if not math.isfinite(loss):
            raise UserError(f"step {result['step']}: the loss of validation pairs is {loss}; lower the learning rate")
        evaluations = trainer.totals.setdefault("evaluations", [])
        evaluations.append(result)
        is_best = self.settings.best_by is not None and self.best(evaluations) is result
        if is_best and args.should_save:
            with atomic(Path(args.output_dir) / BEST) as temporary:
                safetensors.torch.save_file(policy.trained_parameters(), temporary)
        trainer.clock += time.monotonic() - started  # the time of training alone is in its speed
        log.info(
            "step %d/%d  validation: accuracy %.3f  loss %.4f%s",
            *(result["step"], trainer.state.max_steps, result["accuracy"], result["loss"]),
            "  the best so far" if is_best else "",
        )
        return result

    def best(self, evaluations: list[dict]) -> dict:
        """Return the best evaluation by `settings.best_by`, the first of equals."""
        if self.settings.best_by == "accuracy":
            return max(evaluations, key=lambda result: result["accuracy"])
        return min(evaluations, key=lambda result: result["loss"])

    def is_over(self, evaluations: list[dict]) -> bool:
        """Return whether `settings.patience` evaluations in a row were not the best."""
        if self.settings.patience is None:
            return False
        return len(evaluations) - 1 - evaluations.index(self.best(evaluations)) >= self.settings.patience

    def load_best(self, trainer: PreferenceTrainer) -> None:
        """Give a finished training's policy its best weights, and name their step in the totals."""
        from lpc.training.checkpoints import BEST

        if self.settings.best_by is None:
            return
        trainer.totals["best_step"] = self.best(trainer.totals["evaluations"])["step"]
        trainer.accelerator.wait_for_everyone()  # the first process has written them
        trainer.policy.load_trained_parameters(Path(trainer.args.output_dir) / BEST)
        log.info("finished model: that of step %d, the best by %s", trainer.totals["best_step"], self.settings.best_by)
