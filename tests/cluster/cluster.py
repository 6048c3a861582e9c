"""What the cluster tests share: Snakemake in a checkout with SLURM and Apptainer, and the wait for something."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from lpc import images

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("tests/cluster")
REQUIRED = os.environ.get("LPC_REQUIRE_CLUSTER") == "1"

# Of the host, and never to be seen by a rule: ranks would make the training wait for processes that do not exist.
POISON = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "PYTHONPATH": "/host/python", "LPC_POISON": "1"}


def missing(what: str):
    if REQUIRED:
        pytest.fail(f"LPC_REQUIRE_CLUSTER=1, but {what}", pytrace=False)
    pytest.skip(f"{what} (LPC_REQUIRE_CLUSTER=1 makes this a failure)")


def wait_for(condition, what: str, seconds: float = 180.0):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.3)
    return value


def image_path(checkout: Path, name: str) -> Path:
    """An image of the checkout, whose choice of base and variant is its own."""
    folder = checkout / "containers/images"
    return folder / images.path(name, json.loads((folder / "choice.json").read_text())).name


class Cluster:
    """A checkout of the working tree, SLURM's folder, and the environment in which Snakemake finds its programs."""

    def __init__(self, checkout: Path, slurm: Path, environment: dict[str, str]):
        self.checkout, self.slurm, self.environment, self.started = checkout, slurm, environment, []

    def start(
        self,
        *arguments: str,
        config: tuple[str, ...] = (),
        profile: tuple[str, ...] = ("--profile", "slurm"),
        variables: dict[str, str] | None = None,
    ):
        """Start Snakemake; its output is in the file `output` of the returned process."""
        configfiles = ["--configfile", str(HERE / "config.yaml"), *config]
        # The file system is local, and jobs take seconds: polls come after 6 s, 16 s later, 26 s later and so on.
        fast = ["--slurm-init-seconds-before-status-checks", "6", "--latency-wait", "5"] if profile else []
        output = tempfile.NamedTemporaryFile("w", prefix="snakemake-", dir=self.checkout.parent, delete=False)  # noqa: SIM115
        process = subprocess.Popen(
            ["snakemake", *profile, *arguments, *configfiles, *fast],
            cwd=self.checkout,
            env={**self.environment, **(variables or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.output = Path(output.name)
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what a failed test left behind."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def snakemake(self, *arguments: str, timeout: float = 840.0, **options) -> tuple[int, str]:
        """Run Snakemake to its end: exit code and output."""
        process = self.start(*arguments, **options)
        return self.finish(process, timeout)

    def finish(self, process, timeout: float = 840.0) -> tuple[int, str]:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"Snakemake did not end in {timeout:.0f} s:\n{process.output.read_text()[-6000:]}")
        return code, process.output.read_text()

    def command(self, *words: str) -> str:
        """Output of a SLURM command."""
        return subprocess.run(words, env=self.environment, check=True, capture_output=True, text=True).stdout

    def jobs(self) -> dict[str, str]:
        """State of each job that waits or runs, by number."""
        lines = self.command("squeue", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def job(self, output: Path) -> str:
        """Number of the last job that this Snakemake submitted."""

        def submitted():
            return re.findall(r"submitted with SLURM jobid (\d+)", output.read_text())

        return wait_for(submitted, "a submitted job")[-1]
