"""What every job of the workflow gets from its surroundings: environment variables, and folders seen in a container."""

import os
import socket
from pathlib import Path

from lpc import cache
from lpc.cli import UserError

# Set in the job's command itself, since a container passes none on.
VARIABLES = {
    # Only the download rules may use the network.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # On H100s PyTorch would prefer cuDNN's attention, which makes a plan for each length that it meets. Packed pairs
    # have thousands of lengths; FlashAttention needs no plan.
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    # Idle threads spin for about 50 µs before sleeping. Sleeping at once costs about 10 % on dedicated cores; never
    # sleeping slows other jobs on shared cores. docs/benchmarks.md has the figures of this and the next.
    "GOMP_SPINCOUNT": "3000",
    # glibc's malloc hands freed memory back to the system, and every training step on a CPU pays for getting it again:
    # kept up to 4 GiB, in huge pages.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the largest that it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

NETWORK = ("NCCL_", "RCCL_", "GLOO_", "FI_", "UCX_")
"""First letters of the variables by which a site tells NCCL, gloo and libfabric how its nodes are connected."""


def prepare(root: Path, *, containers: bool, main: bool) -> None:
    """Set the variables of this Snakemake process that its containers and submissions read.

    root: the checkout. main: not the process inside of a job. Raises UserError as `binds` does.
    """
    if containers:
        os.environ["APPTAINER_BIND"] = binds(root)
        for name in [name for name in os.environ if name.startswith(NETWORK)]:
            # With this prefix Apptainer passes them on, in spite of --cleanenv.
            os.environ[f"APPTAINERENV_{name}"] = os.environ[name]
    if main:
        # An sbatch that waits where SLURM refuses a job for the moment.
        os.environ["PATH"] = f"{root / 'workflow/profiles/bin'}{os.pathsep}{os.environ['PATH']}"


def variables() -> dict[str, str]:
    """Return `VARIABLES`, with the folder of shared results where there is one. Raises UserError as `cache.folder`."""
    shared = cache.folder()
    return VARIABLES | ({cache.VARIABLE: str(shared)} if shared else {})


def binds(root: Path) -> str:
    """Return the value of APPTAINER_BIND with which a container sees the checkout `root`, the cache of the hub and the
    folder of shared results.

    Apptainer shows the working directory by itself. Entries that the user has set are kept. Raises UserError if HF_HOME
    is set and is not a folder: Apptainer would end each job with a message that does not name the variable.
    """
    folders = [str(root)]
    if shared := cache.folder():
        folders.append(str(shared))
    if home := os.environ.get("HF_HOME"):
        if not Path(home).is_dir():
            raise UserError(
                f"HF_HOME={home} is not a folder on {socket.gethostname()}; create it (mkdir -p) on a file system "
                "that the login node and the compute nodes share, or set HF_HOME to one that exists"
            )
        folders.append(os.path.abspath(home))
    given = os.environ.get("APPTAINER_BIND", "").split(",")
    return ",".join(dict.fromkeys(entry for entry in [*given, *folders] if entry))
