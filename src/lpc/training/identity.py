"""What the weights of a run depend on, so that a training never goes on from, or accepts, the work of another one."""

from pathlib import Path

import torch
import transformers

from lpc.files import read_json, sha256
from lpc.sources import PACKAGE, sources

EXECUTION = ("micro_batch_size", "save_minutes", "logging_steps", "gradient_checkpointing")
"""Keys of `training` that say how the work is done and change no result."""
MAY_CHANGE = ("code", "versions", "reference", "statistics")
"""Parts of an identity across which a user may resume on purpose. Across the others, it would be another run."""


def identity(
    spec: dict, *, base: str | Path, pairs: str | Path, reference: str | Path | None, statistics: str | Path | None
) -> dict:
    """Return everything that the weights depend on: settings, contents of the inputs, code, and library versions."""
    micro_batches_matter = bool((spec["latent"] or {}).get("information_weight"))  # it compares pairs of a micro-batch
    execution = set(EXECUTION) - ({"micro_batch_size"} if micro_batches_matter else set())
    training = {key: value for key, value in spec["training"].items() if key not in execution}
    return {
        "spec": spec | {"training": training},
        "base": read_json(base)["sha256"],
        "pairs": sha256(pairs),
        "reference": None if reference is None else sha256(reference),
        "statistics": None if statistics is None else sha256(statistics),
        "code": {str(file.relative_to(PACKAGE)): sha256(file) for file in sources("lpc.steps.train")},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def changes(before: dict, now: dict) -> list[str]:
    """Return the names of what differs between two identities, such as `spec.seed` or `code.model/policy.py`."""
    a, b = _flat(before), _flat(now)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def _flat(value: dict, prefix: str = "") -> dict:
    flat = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
