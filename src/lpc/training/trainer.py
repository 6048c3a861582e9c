"""The trainer of a run: a thin subclass of transformers.Trainer.

Checkpoints, distribution, mixed precision and the schedule come from Trainer. Ours are the loss with the latent, its
parameter groups, what is logged, the early checks, and when a checkpoint counts as complete.
"""

import contextlib
import json
import logging
import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, PairTokens, collate
from lpc.files import read_json, write_text
from lpc.latents.base import LatentStep
from lpc.model.noise import counter_uniform
from lpc.model.policy import LatentPolicy
from lpc.objectives.base import Objective
from lpc.training.checkpoints import COMPLETE, complete_checkpoints, link_best, seal
from lpc.training.optimizers import make_optimizer, parameter_groups
from lpc.training.sampler import EpochSampler, GroupSampler
from lpc.training.sharding import shard

log = logging.getLogger("lpc")


REFERENCE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Nats per token, mean of |policy − reference| over the completions of the first micro-batch, without z.

Both are the same model in batches of other shapes. Rounding puts a token's log-probability off by about 1e-5 in float32
and 0.03 in bfloat16, with either sign, so that the mean over a completion is smaller. Deep models need the room. A
reference of another base model or chat template differs by 0.1 to 10.
"""
WEIGHTS = "model.safetensors"
"""In a checkpoint of whole copies: the trained parameters. Trainer looks for this name."""
LARGEST_Z = 1.0
"""Of `z_to_logits`, in any line of the log, before a warning: above, z outweighs the context of the next token."""
SMALLEST_Z = 2**-8
"""Of `z_to_logits`, in the last line, before a warning: below, z is less than the rounding of a logit in bfloat16."""
LARGE_Z = 0.1
"""Nats per token by which z may change log-probabilities at the start before a warning."""


class PreferenceTrainer(Trainer):
    """Trains a LatentPolicy on tokenised pairs.

    The loss is the mean over the pairs of the global batch of the objective + `kl_weight` · KL (equation 7), whatever
    the number of devices and micro-batches. Pairs of a group that share a code are always in one micro-batch. A
    latent's `information_weight` alone sees no more pairs at once than a device takes.
    """

    def __init__(
        self,
        policy: LatentPolicy,
        args: TrainingArguments,
        pairs: PairTokens,
        objective: Objective,
        log_file: Path,
        weights: dict[str, Tensor] | None = None,
        collator: Callable[[list[dict]], dict | list[dict]] = collate,
        optimizer: str = "adamw",
    ):
        """Prepare the training of `policy`.

        weights: those that a sharded one starts from (see `sharding.shard`). collator: makes one micro-batch of pairs,
        or a list of micro-batches, which then are a device's part of the global batch. optimizer: its name, as in
        `training.optimizer`.
        """
        self.objective, self.log_file, self.sharded = objective, log_file, weights is not None
        self.optimizer_name = optimizer
        # Sums over pairs since the last log line; kept on the device, since reading them would stall a GPU every step.
        self.sums: dict[str, Tensor] = {}
        self.totals = {"tokens": 0, "seconds": 0.0, "first_loss": None, "last_loss": None, "resumed_from": []}
        self.check_first_loss = self.check_gradients = True
        self.z_was_large = False
        self.without_moments: set[str] = set()  # of a checkpoint to resume: parameters that were not trained yet
        super().__init__(policy, args, data_collator=collator, train_dataset=pairs)
        # Of the base, since a resumed training starts here with its weights; sharded weights would have to be gathered.
        self.logit_covariance = None if policy.latent is None else policy.logit_covariance().to(args.device)
        if self.is_fsdp_enabled:
            shard(policy, self.accelerator, weights, bfloat16=args.bf16)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole global batch itself
        self.clock = time.monotonic()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.sharded and not self.is_fsdp_enabled:
            raise UserError(
                f"the launch file asks for FSDP, which accelerate does not run on {self.args.device.type} with "
                f"{self.args.world_size} processes; set resources.train.launch to config/accelerate/ddp.yaml"
            )

    @property
    def policy(self) -> LatentPolicy:
        return self.accelerator.unwrap_model(self.model)

    @property
    def batch_size(self) -> int:
        """Pairs per optimizer step over all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        pairs, latent = self.train_dataset, self.policy.latent
        rest = (self.batch_size, self.args.seed, lambda: self.state.global_step // (len(sampler) // self.batch_size))
        if latent is None or latent.settings.pairs_together == 1:
            sampler = EpochSampler(len(pairs), *rest)
        else:
            sampler = GroupSampler(pairs.groups, latent.settings.pairs_together, *rest)
        return sampler

    # ---- the loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        progress = self.state.global_step / max(1, self.state.max_steps - 1)
        latent = self.policy.latent
        noise = None
        if latent is not None and latent.noise_size:
            noise = counter_uniform(self.args.seed, self.state.global_step, inputs["index"], 2 * latent.noise_size)
            noise = noise.unflatten(1, (2, latent.noise_size))
        tensors = {name: inputs[name] for name in MODEL_INPUTS}
        with self.autocast():
            chosen, rejected, step, encoded = model(progress=progress, noise=noise, **tensors)
        losses, chosen_rewards, rejected_rewards = self.objective.evaluate(chosen, rejected, inputs)
        total = losses + self.objective.regularization(chosen, inputs)
        if latent is not None and latent.marginal:
            rewards = chosen_rewards, rejected_rewards
            losses, *_ = latent.marginalise(step, losses, *rewards)
            total, chosen_rewards, rejected_rewards = latent.marginalise(step, total, *rewards)
        if step is not None:
            total = total + latent.cost(step, progress)
        if self.check_first_loss:
            self._check_first_batch(model, tensors, inputs, chosen, rejected, losses)
        self._count(total.detach(), losses.detach(), chosen_rewards, rejected_rewards, step, encoded.h_x, inputs)
        # Data-parallel wrappers average gradients over processes, hence the mean over this one's part of the batch.
        return total.sum() * self.args.world_size / self.batch_size

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return autocast for a sharded model. accelerate wraps the forward of any other one in it."""
        enabled = self.is_fsdp_enabled and self.args.bf16
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def _check_first_batch(self, model, tensors: dict, inputs: dict, chosen, rejected, losses: Tensor) -> None:
        """Stop unless the policy without z is its reference; log what z adds to its log-probabilities."""
        self.check_first_loss = False
        together = 1 if self.policy.latent is None else self.policy.latent.settings.pairs_together
        if together > 1:
            groups = inputs["groups"].unflatten(0, (-1, together))
            if not bool((groups == groups[:, :1]).all()):
                raise RuntimeError(f"first batch: its pairs are not in chunks of {together} of one group")
        if not bool(torch.isfinite(losses).all()):
            raise UserError("first batch: the loss is not finite; check the base model's weights and the precision")
        self.totals["first_loss"] = losses.mean().item()
        tokens = (inputs["chosen_tokens"] + inputs["rejected_tokens"]).sum()
        without_z = chosen, rejected
        if self.policy.latent is not None:
            with self.autocast():
                without_z = model(progress=0.0, use_latent=False, **tensors)[:2]
            change = sum(_distance(*sides) for sides in zip((chosen, rejected), without_z, strict=True)) / tokens
            self.totals["first_z_nats_per_token"] = change.item()
            log.log(
                logging.WARNING if change > LARGE_Z else logging.INFO,
                "first batch: z changes log-probabilities by %.3g nats per token%s",
                change,
                "; the policy starts away from its reference (latent.code_scale sets the size of z)"
                if change > LARGE_Z
                else "",
            )
        if not self.objective.needs_reference:
            return
        pairs = zip(without_z, (inputs["reference_chosen_logps"], inputs["reference_rejected_logps"]), strict=True)
        difference = (sum((logp - reference).abs().sum() for logp, reference in pairs) / tokens).item()
        tolerance = REFERENCE_TOLERANCE["bfloat16" if self.args.bf16 else "float32"]
        if not difference <= tolerance:
            raise UserError(
                f"first batch: the policy's log-probabilities differ from the reference by {difference:.3g} nats per "
                f"token, above {tolerance:g}: base model, chat template or training.precision are not those that "
                "reference.parquet was made with; check that none of them changed since, then rerun the rule reference"
            )

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        micro_batches, loss = inputs if isinstance(inputs, list) else [inputs], 0.0
        latent = self.policy.latent
        alone = latent is not None and self.state.global_step < latent.settings.latent_first * self.state.max_steps
        with self._frozen_backbone() if alone and self.args.world_size == 1 else contextlib.nullcontext():
            for number, micro_batch in enumerate(micro_batches, 1):
                # Gradients are reduced over the processes once, and each may have another number of micro-batches.
                last = number == len(micro_batches)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    loss = loss + super().training_step(model, micro_batch, num_items_in_batch)
        if self.check_gradients:
            self.check_gradients = False
            self._check_posterior()
        if alone:
            # No gradient, not one of 0: the optimizer passes these weights over and keeps no moments of them.
            self.policy.backbone.zero_grad(set_to_none=True)
        return loss

    @contextlib.contextmanager
    def _frozen_backbone(self):
        """Skip the backward pass through the backbone. Not on several processes: their wrappers wait for gradients."""
        waiting = [parameter for parameter in self.policy.backbone.parameters() if parameter.requires_grad]
        for parameter in waiting:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in waiting:
                parameter.requires_grad_(True)

    def _check_posterior(self) -> None:
        """A posterior without gradient is cut off from the graph: the run would train without its latent."""
        latent = self.policy.latent
        if latent is None or not latent.has_posterior:
            return
        settings = latent.settings
        kl_is_free = settings.kl_weight == 0 or settings.kl_warmup > 0 or settings.free_bits > 0
        if kl_is_free and settings.gamma.start == 1:
            return  # its gradient comes later, or never
        gradients = [p.grad for p in latent.posterior.parameters() if p.grad is not None]
        parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
        found = torch.tensor(float(any(bool(part.any()) for part in parts)), device=self.args.device)
        if self.accelerator.reduce(found, "sum") == 0:  # the same for all processes, each of which may hold a part
            raise UserError("first step: no gradient reaches the posterior; check latent.kl_weight and latent.gamma")

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        policy = self.policy if model is None else self.accelerator.unwrap_model(model)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, policy)
        groups = parameter_groups(
            policy,
            set(self.get_decay_parameter_names(policy)),
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
        )
        self.optimizer = make_optimizer(self.optimizer_name, policy, groups, optimizer_class, options)
        self._optimized = [list(group["params"]) for group in self.optimizer.param_groups]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.sharded:
            # `prepare`, just before, replaces the optimizer's parameters by those of the same address. Parameters of
            # which a process holds no row have address 0, all of them. They were sharded before, so none has changed.
            for group, parameters in zip(self.optimizer.param_groups, self._optimized, strict=True):
                group["params"] = parameters
        return super().create_scheduler(num_training_steps, optimizer)

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
            values |= squared_sizes(step, h_x, self.logit_covariance)
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
        for name, z, h in (("z_to_h", "z_square", "h_square"), ("z_to_logits", "z_variance", "h_variance")):
            if z in means:
                means[name] = (means.pop(z) / means.pop(h)).sqrt()
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
        self._check_z(record)
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

    def _check_z(self, record: dict) -> None:
        """Warn, once, where z outgrows the logits, and at the end where it is too small to be seen in them."""
        size, last = record.get("z_to_logits"), self.state.global_step == self.state.max_steps
        if size is None:
            return
        if size > LARGEST_Z and not self.z_was_large:
            self.z_was_large = True
            log.warning(
                "step %d: z adds logits that deviate %.2g times as much as the model's own, above %g: text follows the "
                "latent alone; lower latent.code_scale, or the learning rate of the codes",
                *(record["step"], size, LARGEST_Z),
            )
        elif size < SMALLEST_Z and last:
            log.warning(
                "step %d: z adds logits that deviate %.2g times as much as the model's own, below %.2g: the latent is "
                "not used; raise latent.code_scale, or the learning rate of the codes",
                *(record["step"], size, SMALLEST_Z),
            )

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Trained weights alone, as safetensors; Trainer would add a pickle of its arguments."""
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            safetensors.torch.save_file(self.policy.trained_parameters(), os.path.join(output_dir, WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.policy.load_trained_parameters(Path(resume_from_checkpoint) / WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # torch's sharded checkpoints expect moments of every trained parameter, and would make up those of parameters
        # that have none yet (`latent_first`).
        waiting = [p for name, p in self.policy.named_parameters() if name in self.without_moments]
        for parameter in waiting:
            parameter.requires_grad_(False)
        super()._load_optimizer_and_scheduler(checkpoint)
        for parameter in waiting:
            parameter.requires_grad_(True)

    def _save_checkpoint(self, model, trial) -> None:
        if self.args.should_save:
            # Two stay: the newest, and the one before it in case that the newest turns out to be damaged.
            for older in complete_checkpoints(self.args.output_dir)[:-1]:
                shutil.rmtree(older)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        # Sums since the last log line belong to the state, those of each process apart: float32 sums depend on the
        # order, and the next line after a resume would differ.
        sums = {name: self.accelerator.gather(value[None]).tolist() for name, value in sorted(self.sums.items())}
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            moments = self.optimizer.optimizer.state
            trained = [(name, p) for name, p in self.policy.named_parameters() if p.requires_grad]
            waiting = [name for name, parameter in trained if parameter not in moments]
            content = {"sums": sums, "totals": self.totals, "without_moments": waiting}
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            link_best(folder.parent, folder)
            seal(folder, content | {"sharded": self.is_fsdp_enabled})
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path) -> None:
        """Restore what Trainer does not: the sums of the open log line and the totals of the whole run."""
        saved = read_json(checkpoint / COMPLETE)
        if saved["sharded"] != self.is_fsdp_enabled:
            kinds = ("one of whole copies", "a sharded one")
            raise UserError(
                f"{checkpoint}: saved by {kinds[saved['sharded']]}, but this training is "
                f"{kinds[self.is_fsdp_enabled]}; launch it as before (resources.train.launch), or delete the checkpoint"
            )
        self.totals, self.without_moments = saved["totals"], set(saved["without_moments"])
        self.totals["resumed_from"].append(int(checkpoint.name.rpartition("-")[2]))
        if self.is_world_process_zero():
            link_best(checkpoint, checkpoint.parent)
        sums = {name: torch.tensor(value, device=self.args.device) for name, value in saved["sums"].items()}
        for name, of_processes in sums.items():
            if len(of_processes) != self.args.world_size:  # the first process takes the sums of all
                others = of_processes.new_zeros(self.args.world_size - 1, *of_processes.shape[1:])
                of_processes = torch.cat([of_processes.sum(0, keepdim=True), others])
            self.sums[name] = of_processes[self.args.process_index]
        self.check_first_loss = self.check_gradients = False


def peak_memory(device: torch.device) -> int:
    """Return peak memory in bytes: of the GPU's allocations since the start, or of this process's resident memory at
    its largest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def squared_sizes(step: LatentStep, h_x: Tensor, covariance: Tensor) -> dict[str, Tensor]:
    """Return the squares of the sizes of z and h_x of each pair [B]: `z_square` and `h_square`, the mean over
    coordinates, and `z_variance` and `h_variance`, that of the logits they add, over the vocabulary
    (`LatentPolicy.logit_covariance`).

    A `marginal` latent has no single z: the squares of its codes are averaged with the prior's weights. A head
    (`lpc.latents.heads`) counts with its vector e_k alone.
    """
    squares = {}
    z = step.z if step.codes is None else step.codes
    if z.dim() == 3:
        z = z[:, 0]
    for name, vectors in (("z", z), ("h", h_x.float())):
        measures = {"square": vectors.square().mean(-1), "variance": ((vectors @ covariance) * vectors).sum(-1)}
        for measure, value in measures.items():
            is_of_codes = step.codes is not None and name == "z"
            squares[f"{name}_{measure}"] = step.prior_logits.softmax(-1) @ value if is_of_codes else value
    return squares


def _distance(logps: Tensor, plain: Tensor) -> Tensor:
    """Sum over pairs of |log-probability − that without z|; of log-probabilities under each code the codes' mean."""
    if logps.dim() == 2:
        return (logps - plain[:, None]).abs().mean(-1).sum()
    return (logps - plain).abs().sum()
