"""What the weights of a run depend on, so that a training never goes on from, or accepts, the work of another one."""

from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from lpc.config.specs import Train
from lpc.files import read_json, sha256
from lpc.model.quantization import load_bitsandbytes
from lpc.modules import PACKAGE, modules_of
from lpc.training.adapters import load_peft
from lpc.training.optimizers import load_torchao

MAY_CHANGE = ("modules", "versions", "reference", "statistics")
"""Parts of an identity across which a user may resume on purpose. Across the others, it would be another run."""


def identity(
    spec: Train, *, base: str | Path, pairs: str | Path, reference: str | Path | None, statistics: str | Path | None
) -> dict:
    """Return everything that the weights depend on: settings, contents of the inputs, code, and library versions."""
    used = {"lpc.steps.train", type(spec.objective).__module__}
    used |= {type(settings).__module__ for settings in (spec.latent, spec.training.evaluate) if settings}
    modules = sorted({file for module in used for file in modules_of(module)})
    record = read_json(base)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if spec.training.lora is not None:
        versions["peft"] = load_peft().__version__
        if "quantization" in record:
            versions["bitsandbytes"] = load_bitsandbytes().__version__
    if spec.training.optimizer.startswith("adamw_8bit"):
        load_torchao()
        versions["torchao"] = version("torchao")
    return {
        "spec": spec.tracked(),
        "base": record["sha256"],
        "loading": {name: record[name] for name in ("dtype", "chat_template", "chat_template_kwargs")},
        "pairs": sha256(pairs),
        "reference": None if reference is None else sha256(reference),
        "statistics": None if statistics is None else sha256(statistics),
        "modules": {str(file.relative_to(PACKAGE)): sha256(file) for file in modules},
        "versions": versions,
    }


def changes(before: dict, now: dict) -> list[str]:
    """Return the names of what differs between two identities, such as `spec.seed` or `modules.model/policy.py`."""
    a, b = _flat(before), _flat(now)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def another_run(changed: list[str]) -> bool:
    """Return whether names of `changes` make another run, not one that a user may resume."""
    return any(name.partition(".")[0] not in MAY_CHANGE for name in changed)


def _flat(value: dict, prefix: str = "") -> dict:
    flat = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
