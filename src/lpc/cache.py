"""Results that projects share: a folder in which a step finds what it made before from the same inputs.

Snakemake's caching between workflows could not be made right (9.27). Its key (`caching/hash.py`) is taken before the
job starts, so it knows no GPU. It has no content of inputs that other jobs make, and no version of torch. It leaves
links to files that everyone may write (`caching/local.py`), and forbids a rule's `benchmark` (`caching/rules.py`).
"""

import logging
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from lpc.cli import UserError
from lpc.files import atomic, fingerprint, read_json, sha256, write_json
from lpc.images import current
from lpc.modules import PACKAGE, modules_of

log = logging.getLogger("lpc")

VARIABLE = "LPC_CACHE"
"""Environment variable: the folder."""

KERNELS = ("CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE", "TORCH_CUDNN_SDPA_DEPRIORITIZED")
"""Environment variables by which libraries choose between kernels, which round differently."""


def folder() -> Path | None:
    """Return the absolute path of the folder; None where results are not shared.

    Raises UserError if VARIABLE names no folder that this process may write.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    for holds, is_not in ((os.path.isdir, "a folder"), (lambda path: os.access(path, os.W_OK), "writable")):
        if not holds(name):
            raise UserError(
                f"{VARIABLE}={name} is not {is_not} on {socket.gethostname()}; name a folder that you may write, on a "
                f"file system that all nodes share, or unset {VARIABLE}"
            )
    return Path(name).absolute()


def surroundings(step: str) -> dict:
    """Return what the results of `lpc.steps.<step>` depend on beside its arguments, down to their last bits.

    That is its code, the image, all installed packages, the device, the number of threads, and `KERNELS`.
    """
    import torch  # Snakemake's process reads `folder` alone

    return {
        "modules": {str(file.relative_to(PACKAGE)): sha256(file) for file in modules_of(f"lpc.steps.{step}")},
        "image": current(),
        "packages": sorted({f"{found.name}=={found.version}" for found in distributions()}),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ.get(name) for name in KERNELS},
    }


def _processor() -> str:
    """The processor's name: kernels are chosen by what it offers."""
    cpuinfo = Path("/proc/cpuinfo")
    named = cpuinfo.exists() and re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    return named[1] if named else platform.machine()


def fetch(identity: dict, outputs: Iterable[str | os.PathLike]) -> bool:
    """Copy the `outputs` of a job with this identity from the folder, and return whether they were there.

    identity: all that the files depend on, as JSON; outputs: their paths, of which the last part tells them apart.
    Raises UserError where a copy is not what was kept.
    """
    if (shared := folder()) is None:
        return False
    record = _record(shared, identity)
    if not record.exists():
        log.info("not in %s: %s", shared, record.name)
        return False
    kept = read_json(record)["files"]
    for output in map(Path, outputs):
        source = shared / f"{kept[output.name]}{output.suffix}"
        with atomic(output) as temporary:
            if source.exists():
                shutil.copyfile(source, temporary)
            if not source.exists() or sha256(temporary) != kept[output.name]:
                raise UserError(f"{source}: missing or damaged; delete {record}, then rerun")
    log.info("taken from %s", record)
    return True


def keep(identity: dict, outputs: Iterable[str | os.PathLike]) -> None:
    """Copy the `outputs` of a job into the folder, for `fetch`. The record comes last, so that it names whole files."""
    if (shared := folder()) is None:
        return
    kept = {}
    for output in map(Path, outputs):
        kept[output.name] = sha256(output)
        # Named by content, so that jobs that keep the same at once do not mix their files.
        with atomic(shared / f"{kept[output.name]}{output.suffix}") as temporary:
            shutil.copyfile(output, temporary)
    write_json(_record(shared, identity), {"identity": identity, "files": kept})


def _record(shared: Path, identity: dict) -> Path:
    return shared / f"{fingerprint(identity)}.json"
