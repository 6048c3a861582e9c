"""The sharded training step up to its first micro-batch: peaks of main memory, and where the gradients are then."""

import json
import os
import re
from pathlib import Path

from sharded_step import cli, parser
from torch import distributed
from torch.distributed.tensor import DTensor

from lpc.steps import train as step
from lpc.training.train import Checkpointing

__all__ = ["cli", "main", "parser"]


def _mebibytes(key: str) -> float:
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def main(args):
    found, begin_training, begin = {}, step.train, Checkpointing.on_train_begin
    start = _mebibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def train(*arguments, **options):
        found["loaded"] = _mebibytes("VmHWM") - start
        return begin_training(*arguments, **options)

    def on_train_begin(self, *state, **options):
        found["sharded"] = _mebibytes("VmHWM") - start
        return begin(self, *state, **options)

    def on_substep_end(self, *state, model, **options):
        gradients = [parameter.grad for parameter in model.parameters()]
        found["gradients"] = "sharded" if all(isinstance(g, DTensor) for g in gradients) else "elsewhere"
        args.summary.with_name(f"memory-{os.environ['RANK']}.json").write_text(json.dumps(found))
        distributed.barrier()
        raise cli.Stopped("measured")

    step.train = train
    Checkpointing.on_train_begin, Checkpointing.on_substep_end = on_train_begin, on_substep_end
    step.main(args)
