"""Training of one run: a thin subclass of transformers.Trainer.

Checkpoints, distribution, mixed precision and the schedule come from Trainer. Ours are the loss with the latent, its
parameter groups, what is logged, the early checks, and when a checkpoint counts as complete.
"""

import json
import logging
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, PairTokens, collate
from lpc.files import read_json, write_json, write_text
from lpc.model.noise import counter_uniform
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective

log = logging.getLogger("lpc")

COMPLETE = "complete.json"
"""Written last into a checkpoint: without it, the checkpoint is a torn one and is never resumed."""


class EpochSampler(torch.utils.data.Sampler):
    """Row positions of one epoch in an order that depends on the seed and the epoch alone.

    Each epoch has whole global batches only: up to `batch_size` − 1 pairs, others each time, wait for the next epoch.
    Then every step weighs every pair alike, on any number of devices.
    """

    def __init__(self, size: int, batch_size: int, seed: int, epoch: Callable[[], int]):
        self.size, self.seed, self.epoch = size, seed, epoch
        self.length = size // batch_size * batch_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        return iter(torch.randperm(self.size, generator=generator)[: self.length].tolist())


class PreferenceTrainer(Trainer):
    """Trains a LatentPolicy on tokenised pairs.

    The loss is the mean over the pairs of the global batch of the objective + `kl_weight` · KL (equation 7), whatever
    the number of devices and micro-batches. A latent's `information_weight` alone sees no more pairs at once than a
    device takes.
    """

    def __init__(
        self, policy: LatentPolicy, args: TrainingArguments, pairs: PairTokens, objective: Objective, log_file: Path
    ):
        self.objective, self.log_file = objective, log_file
        # Sums over pairs since the last log line; kept on the device, since reading them would stall a GPU every step.
        self.sums: dict[str, Tensor] = {}
        self.totals = {"tokens": 0, "seconds": 0.0, "first_loss": None, "last_loss": None, "resumed_from": []}
        self.check_first_loss = self.check_gradients = True
        super().__init__(policy, args, data_collator=collate, train_dataset=pairs)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole global batch itself
        self.clock = time.monotonic()

    @property
    def policy(self) -> LatentPolicy:
        return self.accelerator.unwrap_model(self.model)

    @property
    def batch_size(self) -> int:
        """Pairs per optimizer step over all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        size, batch_size = len(self.train_dataset), self.batch_size
        steps_per_epoch = size // batch_size
        return EpochSampler(size, batch_size, self.args.seed, lambda: self.state.global_step // steps_per_epoch)

    # ---- the loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        progress = self.state.global_step / max(1, self.state.max_steps - 1)
        latent = self.policy.latent
        noise = None
        if latent is not None and latent.noise_size:
            noise = counter_uniform(self.args.seed, self.state.global_step, inputs["index"], 2 * latent.noise_size)
            noise = noise.unflatten(1, (2, latent.noise_size))
        tensors = {name: inputs[name] for name in MODEL_INPUTS}
        chosen, rejected, step, encoded = model(progress=progress, noise=noise, **tensors)
        losses, chosen_rewards, rejected_rewards = self.objective.evaluate(chosen, rejected, inputs)
        total = losses + self.objective.regularization(chosen, inputs)
        checked = losses
        if latent is not None and latent.marginal:
            rewards = chosen_rewards, rejected_rewards
            losses, *_ = latent.marginalise(step, losses, *rewards)
            total, chosen_rewards, rejected_rewards = latent.marginalise(step, total, *rewards)
            if self.check_first_loss:
                # Its codes may start as far apart as they like: what must equal the reference is the policy without.
                with torch.no_grad():
                    chosen, rejected, *_ = model(progress=progress, plain=True, **tensors)
                    checked, *_ = self.objective.evaluate(chosen, rejected, inputs)
        if step is not None:
            total = total + latent.cost(step, progress)
        if self.check_first_loss:
            self._check_first_loss(checked)
        self._count(total.detach(), losses.detach(), chosen_rewards, rejected_rewards, step, encoded.h_x, inputs)
        # Data-parallel wrappers average gradients over processes, hence the mean over this one's part of the batch.
        return total.sum() * self.args.world_size / self.batch_size

    def _check_first_loss(self, losses: Tensor) -> None:
        self.check_first_loss = False
        if not bool(torch.isfinite(losses).all()):
            raise UserError("first batch: the loss is not finite; check the base model's weights and the precision")
        first, expected = losses.mean().item(), self.objective.first_loss()
        self.totals["first_loss"] = first
        if expected is not None and abs(first / expected - 1) > 0.01:
            raise UserError(
                f"first batch: the {self.objective.name} loss is {first:.6g} where a policy equal to its reference "
                f"has {expected:.6g}; either the reference is not of this base and precision (delete it and rerun), or "
                "the latent starts too large (lower latent.init_std)"
            )

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.check_gradients:
            self.check_gradients = False
            self._check_posterior()
        latent = self.policy.latent
        if latent is not None and self.state.global_step < latent.settings.latent_first * self.state.max_steps:
            # No gradient, not one of 0: the optimizer passes these weights over and keeps no moments of them.
            self.policy.backbone.zero_grad(set_to_none=True)
        return loss

    def _check_posterior(self) -> None:
        """A posterior without gradient is cut off from the graph: the run would train without its latent."""
        latent = self.policy.latent
        if latent is None or not latent.has_posterior:
            return
        settings = latent.settings
        kl_is_free = settings.kl_weight == 0 or settings.kl_warmup > 0 or settings.free_bits > 0
        if kl_is_free and settings.gamma.start == 1:
            return  # its gradient comes later, or never
        gradients = [p.grad for p in latent.posterior.parameters()]
        sharded_away = any(g is not None and g.numel() == 0 for g in gradients)
        if not sharded_away and not any(g is not None and bool(g.any()) for g in gradients):
            raise UserError("first step: no gradient reaches the posterior; check latent.kl_weight and latent.gamma")

    # ---- parameter groups

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW with groups: the backbone with and without weight decay, as Trainer makes them; those of the latent,
        each with its own learning rate and no decay (which would pull the codes together)."""
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        decay, no_decay, own = [], [], {}  # the latent's, by its own names for them
        for name, parameter in model.named_parameters():
            if "latent." in name and "backbone." not in name:
                own[name.partition("latent.")[2]] = parameter
            else:
                (decay if name in decayed else no_decay).append(parameter)
        rate = self.args.learning_rate
        groups = [
            {"params": decay, "lr": rate, "weight_decay": self.args.weight_decay},
            {"params": no_decay, "lr": rate, "weight_decay": 0.0},
        ]
        if own:
            groups += [
                {"params": [own[name] for name in names], "lr": own_rate, "weight_decay": 0.0}
                for names, own_rate in self.policy.latent.parameter_groups(rate)
            ]
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class([group for group in groups if group["params"]], **options)
        return self.optimizer

    # ---- logging

    @torch.no_grad()
    def _count(self, total, losses, chosen_rewards, rejected_rewards, step, h_x, inputs) -> None:
        """Add one micro-batch to the sums of the next log line."""
        margins = chosen_rewards - rejected_rewards
        values = {
            "pairs": torch.ones_like(losses),
            "loss": total,
            "objective": losses,
            "chosen_reward": chosen_rewards,
            "rejected_reward": rejected_rewards,
            "margin": margins,
            "accuracy": (margins > 0).float() + 0.5 * (margins == 0).float(),
            "h_norm": h_x.float().norm(dim=-1),
            "tokens": inputs["tokens"],
        }
        if step is not None:
            values |= {"z_norm": step.z.norm(dim=-1), "kl": step.kl}
        if step is not None and step.prior_logits is not None:
            prior, posterior = step.prior_logits.softmax(-1), step.posterior_logits.softmax(-1)
            values |= {
                "mean_prior": prior,
                "prior_entropy": torch.special.entr(prior).sum(-1),
                "posterior_entropy": torch.special.entr(posterior).sum(-1),
            }
        for name, value in values.items():
            value = value.sum(0, dtype=torch.float32)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return  # Trainer's closing summary; ours is train.json
        sums = {name: self.accelerator.reduce(value, "sum").cpu() for name, value in sorted(self.sums.items())}
        self.sums = {}
        pairs, tokens = sums.pop("pairs"), int(sums.pop("tokens"))
        means = {name: value / pairs for name, value in sums.items()}
        seconds, self.clock = time.monotonic() - self.clock, time.monotonic()
        self.totals["tokens"] += tokens
        self.totals["seconds"] += seconds
        record = {
            "step": self.state.global_step,
            "epoch": round(self.state.epoch, 6),
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": round(tokens / seconds, 1),
            "memory_gib": round(peak_memory(self.args.device) / 2**30, 3),
        }
        if "grad_norm" in logs:
            record["grad_norm"] = logs["grad_norm"]
        latent = self.policy.latent
        if latent is not None:
            record |= latent.schedules((self.state.global_step - 1) / max(1, self.state.max_steps - 1))
        if "mean_prior" in means:
            record["mean_prior_perplexity"] = torch.special.entr(means.pop("mean_prior")).sum().exp().item()
            for network in ("prior", "posterior"):
                record[f"{network}_perplexity"] = means.pop(f"{network}_entropy").exp().item()
        record |= {name: value.item() for name, value in means.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(record.get(name, 0.0)):
                step = self.state.global_step
                raise UserError(f"step {step}: {name} is {record[name]}; lower the learning rate or check the data")
        self.totals["last_loss"] = record["loss"]
        self.state.log_history.append(record)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(record))
        if self.is_world_process_zero():
            # The whole history each time: after a resume, lines past the checkpoint must not stay.
            text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.state.log_history)
            write_text(self.log_file, text)
            log.info(
                "step %d/%d  loss %.4f  accuracy %.3f  margin %.3f",
                *(self.state.global_step, self.state.max_steps, record["loss"], record["accuracy"], record["margin"]),
            )

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights alone, as safetensors; Trainer would add a pickle of its arguments."""
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            safetensors.torch.save_model(self.policy, os.path.join(output_dir, "model.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            safetensors.torch.load_model(self.model, os.path.join(resume_from_checkpoint, "model.safetensors"))

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)  # a torn one of an earlier attempt
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        # Sums since the last log line belong to the state: without them the next line after a resume would differ.
        sums = {name: self.accelerator.reduce(value, "sum").tolist() for name, value in sorted(self.sums.items())}
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_json(folder / COMPLETE, {"sums": sums, "totals": self.totals})
            for older in complete_checkpoints(self.args.output_dir)[:-1]:
                shutil.rmtree(older)
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path) -> None:
        """What Trainer does not restore itself: the sums of the open log line and the totals of the whole run."""
        saved = read_json(checkpoint / COMPLETE)
        self.totals = saved["totals"]
        self.totals["resumed_from"].append(int(checkpoint.name.rpartition("-")[2]))
        if self.is_world_process_zero():
            self.sums = {name: torch.tensor(value, device=self.args.device) for name, value in saved["sums"].items()}
        else:
            self.sums = {
                name: torch.zeros_like(torch.tensor(value), device=self.args.device)
                for name, value in saved["sums"].items()
            }
        self.check_first_loss = self.check_gradients = False


class Checkpointing(TrainerCallback):
    """Decides at the end of each step whether to save, and whether to stop after that.

    By the clock: every `save_minutes`, and once before the end of the SLURM job, because under cgroup tracking the
    scheduler's signal reaches only the top process of a job step. By signal, where one arrives: SIGTERM and SIGUSR1.
    """

    def __init__(self, trainer: PreferenceTrainer, save_minutes: float):
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


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocations since the start, or of this process's resident memory at its largest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def complete_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """Checkpoints whose last file was written, oldest first."""
    found = [path.parent for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def training_arguments(training: dict, *, seed: int, output_dir: Path, processes: int) -> TrainingArguments:
    """Trainer's arguments from the recipe's `training` section.

    The global batch is the recipe's; micro-batches and accumulation follow from the number of processes.
    """
    batch_size, micro = training["batch_size"], training["micro_batch_size"]
    if batch_size % processes:
        raise UserError(f"training.batch_size: {batch_size} pairs cannot be shared evenly by {processes} processes")
    per_process = batch_size // processes
    micro = min(micro, per_process)
    if per_process % micro:
        raise UserError(
            f"training.micro_batch_size: {micro} does not divide the {per_process} pairs that each of {processes} "
            f"processes takes of training.batch_size {batch_size}"
        )
    report_to = ["tensorboard"] + (["wandb"] if os.environ.get("WANDB_API_KEY") else [])
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=training["epochs"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_process // micro,
        learning_rate=training["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=training["warmup_ratio"],
        weight_decay=training["weight_decay"],
        max_grad_norm=training["max_grad_norm"],
        bf16=training["precision"] == "bfloat16",
        logging_steps=training["logging_steps"],
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",  # see Checkpointing
        seed=seed,
        data_seed=seed,
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        report_to=report_to,
        use_cpu=not torch.cuda.is_available(),
    )


def train(
    policy: LatentPolicy,
    pairs: PairTokens,
    *,
    objective: Objective,
    training: dict,
    seed: int,
    checkpoints: Path,
    log_file: Path,
    processes: int = 1,
) -> PreferenceTrainer | None:
    """Train `policy` in place, from the last complete checkpoint in `checkpoints` if there is one.

    Returns the trainer (its `totals` and `policy` are the results), or None if it saved and stopped on a signal or
    before the end of the job: run again to go on. The folder must belong to this run alone.
    """
    args = training_arguments(training, seed=seed, output_dir=checkpoints, processes=processes)
    if args.world_size != processes or args.n_gpu > 1:
        raise UserError(
            f"{processes} processes were asked for, {args.world_size} with {args.n_gpu} GPUs each run; launch with "
            "torchrun or `accelerate launch`, one process per GPU"
        )
    if len(pairs) < training["batch_size"]:
        raise UserError(f"{len(pairs)} training pairs: fewer than training.batch_size ({training['batch_size']})")
    policy._no_split_modules = policy.backbone._no_split_modules  # what FSDP wraps by itself: the decoder layers
    if training["gradient_checkpointing"]:
        policy.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    done = complete_checkpoints(checkpoints)
    curves = log_file.parent / "tensorboard"
    if not done:
        shutil.rmtree(curves, ignore_errors=True)  # of an earlier training with other settings
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(curves)  # the one way to tell Trainer
    trainer = PreferenceTrainer(policy, args, pairs, objective, log_file)
    saving = Checkpointing(trainer, training["save_minutes"])
    trainer.add_callback(saving)
    trainer.remove_callback(PrinterCallback)
    if done:
        log.info("resuming from %s", done[-1].name)
        trainer.restore(done[-1])
    trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
    if saving.stop_reason is not None:
        log.info("stopped at step %d on %s", trainer.state.global_step, saving.stop_reason)
        return None
    return trainer
