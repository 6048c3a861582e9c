"""Which attempts of a SLURM job ran out of memory, from the logs that Snakemake's SLURM plugin keeps of failed jobs.

Snakemake tells the resources of a rule only the number of the attempt, and not how the last one ended. SLURM says in
the job's own log if it ended a process for its memory, so neither accounting nor a running controller is needed.
"""

import re
from collections.abc import Sequence
from pathlib import Path

LOGS = Path(".snakemake/slurm_logs")
"""Where the plugin writes them, seen from the working directory."""
_OUT_OF_MEMORY = re.compile(r"^(slurmstepd|srun)\S*: error: .*(oom.?kill|out of memory|exceeded .*memory)", re.I | re.M)


def memory_shares(rule: str, wildcards: Sequence[str], attempt: int, logs: Path = LOGS) -> int:
    """Return by how much the memory of a rule's first attempt is to be multiplied at its attempt, from 1.

    That is one more after each attempt that ran out of memory. An attempt without a log counts as one of them: it ran
    in a group of rules, outside of SLURM, or its log is not yet visible here.
    """
    folder = logs / f"rule_{rule}" / "_".join(wildcards).replace("/", "_")
    earlier = sorted(folder.glob("[0-9]*.log"), key=lambda log: int(log.stem))[-(attempt - 1) :] if attempt > 1 else []
    enough = [log for log in earlier if not _OUT_OF_MEMORY.search(log.read_text(encoding="utf-8", errors="replace"))]
    return attempt - len(enough)
