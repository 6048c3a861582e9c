"""The training step in processes of its own, which start at once."""

import contextlib
import functools
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import torch
from small import LATENT, OBJECTIVES, TOKENS, TRAINING, UNEVEN, lines_of

from lpc.files import canonical, sha256
from lpc.training.checkpoints import complete_checkpoints

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


def assert_same_run(a: Path, b: Path):
    """Bit-equal weights and log lines, but for the clock and the memory."""
    for name in ("model.safetensors", "latent.safetensors"):
        assert sha256(a / "model" / name) == sha256(b / "model" / name), name
    volatile = {"tokens_per_second", "memory_gib"}
    strip = lambda lines: [{k: v for k, v in line.items() if k not in volatile} for line in lines]  # noqa: E731
    assert strip(lines_of(a)) == strip(lines_of(b)) and lines_of(a)
