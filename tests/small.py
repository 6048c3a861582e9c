"""Helpers of the training tests: a small training, its inputs and its results."""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from steps import run_step
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import latents, objectives
from lpc.config.models import Training
from lpc.data.tokens import PairTokens, tokenize_pairs
from lpc.evaluation.preference import score_pairs
from lpc.files import write_json, write_parquet
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.training.train import train

TOKENS = {"max_length": 64, "max_prompt_length": 32}
TRAINING = {
    "epochs": 2,
    "batch_size": 16,
    "micro_batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "precision": "float32",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_minutes": 60,
}
LATENT = latents.parse({"codes": 6, "learning_rate": 1e-3}).model_dump()
OBJECTIVES = {
    "dpo": {"name": "dpo", "beta": 0.1},
    "ipo": {"name": "ipo", "tau": 0.1},
    "simpo": {"name": "simpo", "beta": 2.0, "margin": 1.0},
}
UNEVEN = {"epochs": 6, "logging_steps": 4}
"""Checkpoints fall inside log windows and inside epochs of three steps."""


def make_base(seed: int = 0):
    """A tiny model in float32 whose weights are numbers of bfloat16, as those of most published models are."""
    base = make_backbone(seed=seed)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(parameter.bfloat16())
    return base


@functools.cache
def tokenised(precision: str = "float32", seed: int = 0) -> PairTokens:
    """48 pairs with their reference under the base of that seed."""
    tokens = tokenize_pairs(make_pairs(48), make_tokenizer(), **TOKENS)
    policy = LatentPolicy(make_base(seed))
    everything = np.ones(len(tokens), bool)
    tokens.reference, _ = reference_logps(policy, tokens, everything, batch_size=16, precision=precision)
    return tokens


def make_inputs(folder: Path, pairs, precisions: tuple[str, ...]) -> Path:
    """A base, pairs and their references on disk, as the workflow leaves them."""
    make_base().save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    record = {"path": str(folder / "base"), "sha256": "0", "dtype": "float32"}
    record |= {"chat_template": None, "chat_template_kwargs": {}, "trust_remote_code": False}
    write_json(folder / "base.json", record)
    write_parquet(folder / "pairs.parquet", pairs)
    for precision in precisions:
        files = ["--base", folder / "base.json", "--pairs", folder / "pairs.parquet"]
        files += ["--output", folder / f"reference-{precision}.parquet"]
        files += ["--statistics", folder / "statistics.safetensors"]
        run_step("reference", {"tokens": TOKENS, "micro_batch_size": 16, "precision": precision}, *files)
    return folder


def run(
    folder: Path, objective="dpo", latent: dict | None = None, tokens=None, policy=None, validation=None, **training
):
    """Train in this process; the trainer and its log lines."""
    policy = policy or LatentPolicy(make_base())
    if latent is not None:
        policy.latent = latents.build(latents.parse(latent), 32, 0)
    trainer = train(
        policy,
        tokens or tokenised(),
        objective=objectives.parse(OBJECTIVES[objective] if isinstance(objective, str) else objective),
        training=Training(**TRAINING | training),
        seed=0,
        checkpoints=folder / "checkpoints",
        log_file=folder / "train.jsonl",
        validation_pairs=validation,
    )
    return trainer, lines_of(folder)


def lines_of(folder: Path) -> list[dict]:
    file = folder / "train.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def scores_of(policy: LatentPolicy, pairs: PairTokens) -> dict:
    dpo = objectives.parse(OBJECTIVES["dpo"])
    return score_pairs(policy, pairs, None, dpo, batch_size=5, precision="float32")
