"""The finished model: trained in float32, saved in `training.save_dtype`, with a record of what rounding undid."""

import logging

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.model.backbone import load_backbone
from lpc.training.trainer import PreferenceTrainer

log = logging.getLogger("lpc")

SAMPLE = 64
"""Training pairs, at most, on which the margin before and after rounding is compared."""
UNDONE = 0.1
"""Share of the moved weights that rounding may return to the base before a warning."""


def rounded_state(trainer: PreferenceTrainer, base: dict, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict]:
    """Round the trained backbone to `dtype` in place; return the full weights on the main process, and what that
    undid.

    Every process calls it, since sharded weights are gathered. `base` is the content of base.json. The record has the
    `dtype`. Below float32 it also has the share of weights that training `moved`, and the share of those that rounding
    `undid` (they equal the base's again). `margin` is the mean over `pairs` training pairs without z, before and after.
    """
    policy, record = trainer.policy, {"dtype": str(dtype).removeprefix("torch.")}
    main, rounds = trainer.is_world_process_zero(), dtype != torch.float32
    margin = _margin(trainer) if rounds else None
    start = _start(base) if rounds and main else {}
    state, counts = {}, np.zeros(3, int)
    # One after the other: the whole weights in float32 would take twice the memory of the finished model.
    for name, value in policy.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if not main:
            continue
        before = start.pop(name.removeprefix("backbone."), None)
        rounded = whole.to(dtype) if name.startswith("backbone.") else whole
        if before is not None:
            counts += _count(before, whole.cpu(), rounded.cpu())
        state[name] = rounded.cpu() if isinstance(value, DTensor) else rounded
    if not rounds:
        return state, record
    if main:
        total, moved, undone = counts.tolist()
        record |= {"moved": moved / total, "undone": undone / max(1, moved)}
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
    return state, record


def _start(base: dict) -> dict[str, Tensor]:
    """The base's parameters by name; tied ones come once."""
    backbone = load_backbone(
        base["path"], dtype=getattr(torch, base["dtype"]), trust_remote_code=base["trust_remote_code"]
    )
    return {name: parameter.detach() for name, parameter in backbone.named_parameters()}


def _count(before: Tensor, after: Tensor, rounded: Tensor) -> tuple[int, int, int]:
    """Numbers of a parameter: all, those that training moved, and those of them that rounding made the base's again."""
    before = before.float()
    changed = before != after.float()
    return after.numel(), int(changed.sum()), int((changed & (rounded.float() == before)).sum())


@torch.no_grad()
def _margin(trainer: PreferenceTrainer) -> float:
    """Mean reward margin, without z, of evenly spaced training pairs; every process scores all of them."""
    pairs, model = trainer.train_dataset, trainer.model
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(SAMPLE, len(pairs))).astype(int))
    margins = []
    model.eval()
    # A trainer that makes micro-batches by tokens has a device's whole part of a batch as its batch size.
    size = trainer.args.per_device_train_batch_size if trainer.data_collator is collate else 1
    for first in range(0, len(rows), size):
        inputs = trainer._prepare_inputs(collate([pairs[row] for row in rows[first : first + size]]))
        with trainer.autocast():
            tensors = {name: inputs[name] for name in MODEL_INPUTS}
            chosen, rejected, _, _ = model(progress=1.0, use_latent=False, **tensors)
        _, chosen_rewards, rejected_rewards = trainer.objective.evaluate(chosen, rejected, inputs)
        margins += (chosen_rewards - rejected_rewards).tolist()
    return float(np.mean(margins))
