"""The finished model: trained in float32, saved in `training.save_dtype`, with a record of what rounding undid."""

import logging

import numpy as np
import torch
from torch import Tensor

from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.model.policy import load_backbone
from lpc.training.trainer import PreferenceTrainer

log = logging.getLogger("lpc")

SAMPLE = 64
"""Training pairs, at most, on which the margin before and after rounding is compared."""
UNDONE = 0.1
"""Share of the moved weights that rounding may return to the base before a warning."""


def rounded_state(trainer: PreferenceTrainer, base: dict, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict]:
    """Round the trained backbone to `dtype` in place; return the full weights on the main process, and what that undid.

    Every process calls it, since sharded weights are gathered. `base` is the content of base.json. The record has the
    `dtype`; and for one below float32, the shares of weights that training `moved` and of those that rounding `undid`
    (they equal the base's again), and the mean `margin` of `pairs` training pairs without z, before and after.
    """
    policy, record = trainer.policy, {"dtype": str(dtype).removeprefix("torch.")}
    margin = None if dtype == torch.float32 else _margin(trainer)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if margin is None:
        return state, record
    if trainer.is_world_process_zero():
        record |= _undone(policy.backbone, state, base, dtype)
    with torch.no_grad():
        for parameter in policy.backbone.parameters():
            parameter.copy_(parameter.to(dtype))
    record["pairs"] = min(SAMPLE, len(trainer.train_dataset))
    record["margin"] = {"before": margin, "after": _margin(trainer)}
    if record.get("undone", 0.0) > UNDONE:
        log.warning(
            "saving in %s: %.0f %% of the weights that training moved are the base's again; set training.save_dtype "
            "to float32 to keep them",
            *(record["dtype"], 100 * record["undone"]),
        )
    return {name: value.to(dtype) if name.startswith("backbone.") else value for name, value in state.items()}, record


def _undone(backbone, state: dict[str, Tensor], base: dict, dtype: torch.dtype) -> dict[str, float]:
    """Shares of moved and undone weights; tied weights count once."""
    original = load_backbone(
        base["path"], dtype=getattr(torch, base["dtype"]), trust_remote_code=base["trust_remote_code"]
    )
    start = dict(original.named_parameters())
    total = moved = undone = 0
    for name, _ in backbone.named_parameters():
        before, after = start[name].detach().float(), state[f"backbone.{name}"].detach().cpu().float()
        changed = before != after
        total, moved = total + after.numel(), moved + int(changed.sum())
        undone += int((changed & (after.to(dtype).float() == before)).sum())
    return {"moved": moved / total, "undone": undone / max(1, moved)}


@torch.no_grad()
def _margin(trainer: PreferenceTrainer) -> float:
    """Mean reward margin, without z, of evenly spaced training pairs; every process scores all of them."""
    pairs, model = trainer.train_dataset, trainer.model
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(SAMPLE, len(pairs))).astype(int))
    margins = []
    model.eval()
    size = trainer.args.per_device_train_batch_size
    for first in range(0, len(rows), size):
        inputs = trainer._prepare_inputs(collate([pairs[row] for row in rows[first : first + size]]))
        with trainer.autocast():
            tensors = {name: inputs[name] for name in MODEL_INPUTS}
            chosen, rejected, _, _ = model(progress=1.0, use_latent=False, **tensors)
        _, chosen_rewards, rejected_rewards = trainer.objective.evaluate(chosen, rejected, inputs)
        margins += (chosen_rewards - rejected_rewards).tolist()
    return float(np.mean(margins))
