"""Train one run: a base model with one recipe and one seed, from its last checkpoint if an earlier attempt left one."""

import contextlib
import logging
import os
import platform
import shutil
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from lpc import cli, latents
from lpc.config import specs
from lpc.data.tokens import PairTokens
from lpc.files import atomic, fingerprint, read_json, sha256, write_json
from lpc.lock import lock
from lpc.model.backbone import stored_dtype
from lpc.model.loading import load_empty, load_run, load_run_tokenizer
from lpc.model.quantization import hold_in_4_bits
from lpc.scoring import load_pairs
from lpc.training import sharding
from lpc.training.adapters import add_adapters
from lpc.training.checkpoints import TOKENS, VALIDATION, prepare
from lpc.training.identity import identity
from lpc.training.saving import rounded_state
from lpc.training.train import train
from lpc.training.trainer import peak_memory

log = logging.getLogger("lpc")

PATIENCE = timedelta(minutes=30)
"""How long the other processes wait for the main one, which may wait for the lock and then tokenises."""


def parser():
    parser = cli.step_parser(__doc__, specs.Train)
    parser.add_argument("--base", required=True, help="base.json")
    parser.add_argument("--pairs", required=True, help="pairs.parquet")
    parser.add_argument("--reference", help="reference.parquet of the same pairs; for objectives that need one")
    parser.add_argument("--statistics", help="statistics.safetensors; for latents with standardize")
    parser.add_argument("--processes", type=int, default=1, help="processes that were launched; asserted")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints of this run")
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--metrics", type=Path, required=True, help="train.jsonl: one JSON line per log interval")
    parser.add_argument("--summary", type=Path, required=True, help="what the run was and cost, JSON")
    return parser


def main(args):
    main_process = os.environ.get("RANK", "0") == "0"
    # The other processes of this run wait for the main one in the broadcast.
    with lock(args.checkpoints) if main_process else contextlib.nullcontext(0) as waited:
        now = identity(
            args.spec, base=args.base, pairs=args.pairs, reference=args.reference, statistics=args.statistics
        )
        done, changed = [bool(waited) and finished(args, now)], []
        if main_process and not done[0]:
            changed = prepare(args.checkpoints, now)
            tokenise(args, now)
        if args.processes > 1:
            PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)  # forms the process group
            broadcast_object_list(done)
        if done[0]:
            log.info("the run was finished by the process that held the lock")
            return
        run(args, now, changed, main_process)


def finished(args, now: dict) -> bool:
    """Return whether the output of exactly this run is there: the work of a job that a killed Snakemake left behind."""
    return args.output.is_dir() and args.summary.exists() and read_json(args.summary)["identity"] == now


def tokenise(args, now: dict) -> None:
    """Write the tokens of the training pairs beside the checkpoints, for all processes on all nodes."""
    spec = args.spec
    if spec.objective.needs_reference and args.reference is None:
        raise cli.UserError(f"objective {spec.objective.name}: needs --reference, the reference.parquet of the pairs")
    load = {"split": "train", "reference": args.reference, "columns": ["pair_id"]}
    _, tokens = load_pairs(args.pairs, load_run_tokenizer(args.base), spec.tokens, **load)
    folder = args.checkpoints / fingerprint(now) / TOKENS
    tokens.save(folder)
    log.info("%d training pairs tokenised, %d dropped", len(tokens), tokens.dropped)
    if spec.training.evaluate is not None:
        _, tokens = load_pairs(args.pairs, load_run_tokenizer(args.base), spec.tokens, **load | {"split": "validation"})
        tokens.save(folder / VALIDATION)
        log.info("%d validation pairs tokenised, %d dropped", len(tokens), tokens.dropped)


def run(args, now: dict, changed: list[str], main_process: bool) -> None:
    spec, objective = args.spec, args.spec.objective
    base, weights = read_json(args.base), None
    hold = spec.training.lora is not None and "quantization" in base
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None
    if sharding.launched():
        policy, tokenizer, weights = load_empty(args.base, with_weights=main_process)
    else:
        # Weights to hold in 4 bits go to the GPU one layer after the other: all of them would not fit in float32.
        policy, tokenizer = load_run(args.base, device=None if hold else device)
    if (settings := spec.latent) is not None:
        policy.latent = latents.build(settings, policy.head.weight.shape[1], spec.seed)
        if settings.needs_statistics:
            if args.statistics is None:
                raise cli.UserError("latent.standardize: needs --statistics")
            policy.latent.start_from(safetensors.torch.load_file(args.statistics), spec.seed)
        policy.latent.rescale(policy.logit_unit())

    if spec.training.evaluate is not None and sharding.launched():
        raise cli.UserError(
            "training.evaluate: not with FSDP, which shards the weights that evaluation reads; set "
            "resources.train.launch to config/accelerate/ddp.yaml, or evaluate to null"
        )
    merge = None
    if (lora := spec.training.lora) is not None:
        if sharding.launched():
            raise cli.UserError(
                "training.lora: not with FSDP, since adapters leave little to shard; set resources.train.launch to "
                "config/accelerate/ddp.yaml, or lora to null"
            )
        if hold:
            compute = getattr(torch, spec.training.precision)
            hold_in_4_bits(policy, stored=stored_dtype(base["path"]), compute=compute, device=device or "cpu")
        merge = add_adapters(policy, lora, spec.seed)
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)

    checkpoints = args.checkpoints / fingerprint(now)
    tokens = PairTokens.load(checkpoints / TOKENS)
    validation_pairs = PairTokens.load(checkpoints / TOKENS / VALIDATION) if spec.training.evaluate else None
    trainer = train(
        policy,
        tokens,
        objective=objective,
        training=spec.training,
        seed=spec.seed,
        checkpoints=checkpoints,
        log_file=args.metrics,
        processes=args.processes,
        weights=weights,
        validation_pairs=validation_pairs,
    )
    if trainer is None:
        raise cli.Stopped("training saved a checkpoint and stopped before its end; rerun it to resume")

    if merge is not None:
        merge()
    # As large as the base unless the recipe sets it: for a 7B model half of what float32 would take.
    dtype = getattr(torch, spec.training.save_dtype or base["dtype"])
    state_dict, saved = rounded_state(trainer, base, dtype)
    pairs = len(tokens)
    for part in (tokens, validation_pairs):
        if part is not None:
            part.close()
    trainer.accelerator.wait_for_everyone()  # no process has the files open that the main one deletes below
    if not main_process:
        return
    with atomic(args.output) as temporary:
        trainer.policy.save_pretrained(temporary, state_dict=state_dict)
        tokenizer.save_pretrained(temporary)
    latent = trainer.policy.latent
    seconds, steps = trainer.totals["seconds"], trainer.state.global_step
    device = trainer.args.device
    write_json(
        args.summary,
        trainer.totals
        | {
            "identity": now,
            "changed_since_start": changed,
            "steps": steps,
            "pairs": pairs,
            "dropped": tokens.dropped,
            "cut": tokens.cut_shares(),
            "seconds_per_step": seconds / steps,
            "tokens_per_second": trainer.totals["tokens"] / seconds,
            "peak_memory_gib": peak_memory(device) / 2**30,
            "saved": saved,
            "files": digests(args.output),
            "parameters": sum(state_dict[f"backbone.{name}"].numel() for name, _ in policy.backbone.named_parameters()),
            "trained_parameters": trained,
            "latent_parameters": 0 if latent is None else sum(p.numel() for p in latent.parameters()),
            "processes": args.processes,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    shutil.rmtree(checkpoints)  # the finished model takes their place, and the tokens have served


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder by its path in it."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


if __name__ == "__main__":
    cli.run(parser(), main)
