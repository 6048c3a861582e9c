"""What the tests of training share: settings of a small training, and the step in processes that start at once."""

import contextlib
import functools
import json
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import latents, objectives
from lpc.config.models import Training
from lpc.data.tokens import PairTokens, tokenize_pairs
from lpc.files import canonical
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.training.checkpoints import complete_checkpoints
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


# ---- steps in processes of their own


STEP_LATENT = LATENT | {"standardize": True, "codebook_init": "kmeans", "latent_first": 0.4}
"""With what a resume or a second process could break: weights that wait, and codes that start from a file."""


def arguments(
    inputs: Path,
    folder: Path,
    processes: int = 1,
    seed: int = 0,
    latent=STEP_LATENT,
    objective="dpo",
    base: Path | None = None,
    **training,
):
    """The command line of the training step on the files of the fixture `inputs`."""
    spec = {"objective": OBJECTIVES[objective], "latent": latent, "tokens": TOKENS, "seed": seed}
    spec["training"] = TRAINING | {"save_minutes": 1e-9} | training
    words = ["--base", base or inputs / "base.json", "--pairs", inputs / "pairs.parquet"]
    reference = f"reference-{spec['training']['precision']}.parquet"
    words += ["--reference", inputs / reference, "--statistics", inputs / "statistics.safetensors"]
    words += ["--checkpoints", folder / "checkpoints", "--output", folder / "model"]
    words += ["--metrics", folder / "train.jsonl", "--summary", folder / "train.json", "--processes", processes]
    return [str(word) for word in [*words, "--spec", canonical(spec)]]


def _run_step(module: str, words: list[str], environment: dict, errors: Path) -> None:
    stream = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 2)
    os.environ |= environment
    sys.argv = [module, *words]
    import importlib

    torch.set_num_threads(1)
    found = importlib.import_module(module)
    found.cli.run(found.parser(), found.main)


_context = multiprocessing.get_context("forkserver")
# Its children start with the imports done, each of which would take several seconds. No tensor is touched before a
# child starts, so that no thread of torch is lost by the fork.
_context.set_forkserver_preload(["transformers.trainer", "accelerate", "lpc.steps.train", "lpc.steps.reference"])


@functools.cache
def _start_server() -> None:
    """The server imports before it is told this process's sys.path, hence the environment."""
    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


class Step:
    """A step that runs in a process of its own, as `python -m <module>` would; `errors` is its stderr."""

    def __init__(self, module: str, words: list[str], folder: Path, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"stderr-{time.monotonic_ns()}"
        environment = {"ACCELERATE_USE_CPU": "true"} | environment
        _start_server()
        self.process = _context.Process(target=_run_step, args=(module, words, environment, self.file))
        self.process.start()

    @property
    def errors(self) -> str:
        return self.file.read_text()

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"not finished after {timeout} s: {self.errors[-2000:]}")
        return self.process.exitcode

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)


def train_step(inputs: Path, folder: Path, expect: int = 0, environment: dict | None = None, **settings) -> str:
    """Run the training step to its end; its stderr."""
    step = Step("lpc.steps.train", arguments(inputs, folder, **settings), folder, **(environment or {}))
    code = step.wait()
    assert code == expect, step.errors
    return step.errors


def train_step_together(
    inputs: Path,
    folder: Path,
    expect: int = 0,
    module: str = "lpc.steps.train",
    environment: dict | None = None,
    processes: int = 2,
    **settings,
) -> str:
    """The training step in processes of one gloo group, as torchrun starts them; the first one's stderr."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    group = {**size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | (environment or {})
    words = arguments(inputs, folder, processes=processes, **settings)
    steps = [Step(module, words, folder, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(processes)]
    for step in steps:
        assert step.wait() == expect, step.errors
    return steps[0].errors


def start_and_wait_for_step(inputs: Path, folder: Path, number: int, **settings) -> Step:
    """Start the training step and return when it has saved at that optimizer step or a later one."""
    step = Step("lpc.steps.train", arguments(inputs, folder, **(UNEVEN | settings)), folder)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and step.process.is_alive():
        done = [int(p.name.split("-")[1]) for f in folder.glob("checkpoints/*") for p in complete_checkpoints(f)]
        if done and max(done) >= number:
            return step
        time.sleep(0.005)
    step.process.kill()
    raise AssertionError(f"step {number} was not reached: {step.errors[-2000:]}")
