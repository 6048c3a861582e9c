"""One training from its settings: the arguments of transformers' Trainer, and the call that trains or resumes."""

import logging
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PrinterCallback, TrainingArguments

from lpc.cli import UserError
from lpc.config.models import LOW_WEIGHTS, Training
from lpc.data.tokens import PairTokens, collate
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective
from lpc.training.activations import recompute
from lpc.training.checkpoints import Checkpointing, latest
from lpc.training.micro_batches import MicroBatches
from lpc.training.optimizers import load_torchao, restore_weights
from lpc.training.trainer import PreferenceTrainer

log = logging.getLogger("lpc")


def training_arguments(
    training: Training, *, seed: int, output_dir: Path, processes: int, sharded: bool = False
) -> TrainingArguments:
    """Return the Trainer's arguments from the recipe's `training` section.

    The global batch is the recipe's; micro-batches and accumulation follow from the number of processes. A `sharded`
    training reduces gradients after each micro-batch: else FSDP keeps those of all weights in float32 on each GPU.
    """
    batch_size, micro = training.batch_size, training.micro_batch_size
    if batch_size % processes:
        raise UserError(f"training.batch_size: {batch_size} pairs cannot be shared evenly by {processes} processes")
    per_process = batch_size // processes
    if training.micro_batch_tokens is not None:
        if sharded:
            raise UserError(
                "training.micro_batch_tokens: not with FSDP, whose processes take as many micro-batches each; set it "
                "to null, or resources.train.launch to config/accelerate/ddp.yaml"
            )
        micro = per_process  # the trainer splits it
    micro = min(micro, per_process)
    if per_process % micro:
        raise UserError(
            f"training.micro_batch_size: {micro} does not divide the {per_process} pairs that each of {processes} "
            f"processes takes of training.batch_size {batch_size}"
        )
    for name in training.trackers:
        if find_spec(name) is None:
            raise UserError(f"training.trackers: {name} is not installed; run: pip install {name}")
    wandb = ["wandb"] if os.environ.get("WANDB_API_KEY") else []
    report_to = list(dict.fromkeys(["tensorboard", *wandb, *training.trackers]))
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_process // micro,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        logging_steps=training.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",  # see Checkpointing
        seed=seed,
        data_seed=seed,
        average_tokens_across_devices=False,
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": sharded}},
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        report_to=report_to,
        use_cpu=not torch.cuda.is_available(),
    )


def pairs_in_groups(pairs: PairTokens, size: int) -> int:
    """Return the number of pairs that an epoch has in chunks of `size` pairs of one group.

    Raises UserError where a pair has no group, or no group has as many pairs.
    """
    without = len(pairs) if pairs.groups is None else int((pairs.groups < 0).sum())
    if without:
        raise UserError(
            f"latent.group_size: {size} pairs share a code, but {without} of {len(pairs)} training pairs have no group;"
            " set `group` of this dataset to a column that all rows fill, or latent.group_size to 1"
        )
    sizes = np.bincount(pairs.groups)
    if sizes.max() < size:
        raise UserError(
            f"latent.group_size: no group has {size} training pairs, the largest has {sizes.max()}; lower it"
        )
    if small := int(sizes[(sizes > 0) & (sizes < size)].sum()):
        log.warning("%d training pairs are of groups of fewer than %d pairs, and are not used", small, size)
    return int((sizes // size).sum()) * size


def compiler() -> str | None:
    """Return the C compiler that torch.compile finds for kernels of a GPU."""
    return shutil.which(os.environ.get("CC", "gcc")) or shutil.which("clang")


def check_attention(training: Training, policy: LatentPolicy, device: torch.device) -> None:
    """Raise UserError where `training.attention` is for another device, precision or architecture."""
    name, fault = training.attention, None
    if name == "loop":
        return
    if policy.obstacle:
        fault = f"is for packed pairs, but those of {policy.config.model_type} are padded, since {policy.obstacle}"
    elif device.type != "cuda":
        fault = f"needs a CUDA GPU, but this training runs on {device.type}"
    elif name == "varlen" and training.precision != "bfloat16":
        fault = f"needs training.precision bfloat16, not {training.precision}"
    elif name == "varlen" and find_spec("torch.nn.attention.varlen") is None:
        fault = f"needs torch.nn.attention.varlen, which PyTorch {torch.__version__} does not have; install a newer one"
    elif name == "flex" and not compiler():
        fault = "needs a C compiler for torch.compile; install gcc, or set $CC"
    if fault:
        raise UserError(f"training.attention: {name} {fault}; or set it to loop")


def check_optimizer(training: Training, processes: int, *, sharded: bool) -> None:
    """Raise UserError where `training.optimizer` cannot run: it is tested in one process alone."""
    name = training.optimizer
    if name == "adamw":
        return
    if sharded or processes > 1:
        how = "FSDP" if sharded else f"{processes} processes"
        raise UserError(
            f"training.optimizer: {name} is for one GPU, not for {how}; set resources.train to one GPU without "
            "`launch`, or training.optimizer to adamw"
        )
    if name in LOW_WEIGHTS and not hasattr(torch.Tensor, "grad_dtype"):
        raise UserError(
            f"training.optimizer: {name} needs Tensor.grad_dtype, which PyTorch {torch.__version__} does not have; "
            "install a newer one, or set the optimizer to adamw"
        )
    if name.startswith("adamw_8bit"):
        load_torchao()
        if not compiler():
            raise UserError(
                f"training.optimizer: {name} needs a C compiler for torch.compile; install gcc, or set $CC; or set the "
                "optimizer to adamw or adamw_split"
            )


def train(
    policy: LatentPolicy,
    pairs: PairTokens,
    *,
    objective: Objective,
    training: Training,
    seed: int,
    checkpoints: Path,
    log_file: Path,
    processes: int = 1,
    weights: dict[str, Tensor] | None = None,
    validation_pairs: PairTokens | None = None,
) -> PreferenceTrainer | None:
    """Train `policy` in place, from the last complete checkpoint in `checkpoints` if there is one.

    weights: for a sharded training, whose `policy` is on the meta device: those of its backbone on the first process,
    none on the others. None where each process has a whole policy. validation_pairs: where `training.evaluate` is set.
    Returns the trainer (its `totals` and `policy` are the results), or None if it saved and stopped on a signal or
    before the end of the job: run again to go on. The folder must belong to this run alone.
    """
    if training.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
    args = training_arguments(
        training, seed=seed, output_dir=checkpoints, processes=processes, sharded=weights is not None
    )
    if args.world_size != processes or args.n_gpu > 1:
        raise UserError(
            f"{processes} processes were asked for, {args.world_size} with {args.n_gpu} GPUs each run; launch with "
            "torchrun or `accelerate launch`, one process per GPU"
        )
    check_optimizer(training, processes, sharded=weights is not None)
    check_attention(training, policy, args.device)
    policy.attention = training.attention
    log.info("attention of packed pairs: %s, on %s", training.attention, args.device.type)
    usable, what = len(pairs), "training pairs"
    together = 1 if policy.latent is None else policy.latent.settings.pairs_together
    if together > 1:
        if (micro := args.per_device_train_batch_size) % together:
            raise UserError(
                f"latent.group_size: {together} must divide the {micro} pairs that a device takes at once; change "
                "training.micro_batch_size, or training.batch_size"
            )
        usable, what = pairs_in_groups(pairs, together), f"training pairs in whole groups of {together}"
    if usable < training.batch_size:
        raise UserError(f"{usable} {what}: fewer than training.batch_size ({training.batch_size})")
    policy._no_split_modules = policy.backbone._no_split_modules  # what FSDP wraps by itself: the decoder layers
    recompute(policy, layers=training.gradient_checkpointing)
    found = [str(latest(checkpoints) or "") if args.process_index == 0 else ""]
    if processes > 1:
        broadcast_object_list(found)
    done = Path(found[0]) if found[0] else None
    curves = log_file.parent / "tensorboard"
    if done is None:
        shutil.rmtree(curves, ignore_errors=True)  # of an earlier training with other settings
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(curves)  # the one way to tell Trainer
    tokens = training.micro_batch_tokens
    collator = collate if tokens is None else MicroBatches(tokens, together)
    trainer = PreferenceTrainer(policy, args, pairs, objective, log_file, weights, collator, training.optimizer)
    validation = None
    if training.evaluate is not None:
        scoring = {"batch_size": training.micro_batch_size, "precision": training.precision}
        validation = training.evaluate.validation(validation_pairs, **scoring)
    saving = Checkpointing(trainer, training.save_minutes, validation)
    trainer.add_callback(saving)
    trainer.remove_callback(PrinterCallback)
    if done is not None:
        log.info("resuming from %s", done.name)
        trainer.restore(done)
    trainer.train(resume_from_checkpoint=None if done is None else str(done))
    if saving.stop_reason is not None:
        log.info("stopped at step %d on %s", trainer.state.global_step, saving.stop_reason)
        return None
    if training.optimizer in LOW_WEIGHTS:
        restore_weights(trainer.optimizer.optimizer)
    if validation is not None:
        validation.load_best(trainer)
    return trainer
