"""The finished benchmark tasks of a model, each with everything on which its result depends.

One job has the results of all tasks as outputs, and Snakemake deletes them before the job. So the step also keeps each
finished task in a folder that is no output of a rule. The next job copies a result from there if its identity is the
same. Under `results/<project>/benchmarked/<run>/` each task has a folder with identity.json, result.json and
samples.jsonl. A task that is computed again replaces its folder. The folder of a removed task is not deleted.
"""

import os
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from lpc import files, images, latents
from lpc.evaluation import benchmarks, tasks
from lpc.model.policy import LATENT_CONFIG
from lpc.modules import PACKAGE, modules_of, modules_of_task

IDENTITY, RESULT, SAMPLES = "identity.json", "result.json", "samples.jsonl"


def identity_of_model(base: dict, model: Path | None, inference: dict | None) -> dict:
    """Return what the results of all tasks depend on: the model, how it draws z, code, image and library versions.

    base: the record base.json. model: a run's folder, every file of which is read; None: the base itself, whose files
    the record has the digest of.
    """
    modules = set(modules_of("lpc.steps.benchmark"))
    if model and (model / LATENT_CONFIG).exists():
        kind = files.read_json(model / LATENT_CONFIG).get("kind", latents.DEFAULT)
        modules |= set(modules_of(latents.kind(kind).__module__))
    # Hidden files are Snakemake's timestamps, which no library reads.
    contents = model and [path for path in model.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {
        # Not `training`, which has the seconds that it took: the digest of the files stands for its result.
        "base": {name: value for name, value in base.items() if name != "training"},
        "model": model and _digests(contents, model),
        "inference": inference,
        "modules": _digests(modules, PACKAGE),
        "container": images.current(),  # under the key by which `write_json` records it
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lm_eval": version("lm_eval"),
        },
    }


def identity_of_task(tracked: dict, entry: dict) -> dict:
    """Return what the result of a task depends on besides the model: its settings, data, definition and functions.

    tracked: of a `lpc.config.specs.BenchmarkTask`. entry: the task as in `lpc.evaluation.tasks`.
    """
    own = modules_of_task(entry["task"]) if entry["task"].endswith(".yaml") else ()
    return {
        "task": tracked,
        "data": tasks.describe_files(entry),
        "download": tracked["download"] and files.sha256(tracked["download"]),
        "definition": _digests(own, Path(entry["task"]).parent),
    }


def _digests(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """Digests by names that stay when the checkout moves: relative to `folder`, or to the package for its modules."""
    return {
        os.path.relpath(path, PACKAGE if path.is_relative_to(PACKAGE) else folder): files.sha256(path) for path in paths
    }


def holds(folder: Path, identity: dict) -> bool:
    """Return whether a task's folder has the result of exactly this identity."""
    if not all((folder / name).exists() for name in (IDENTITY, RESULT, SAMPLES)):
        return False
    return files.read_json(folder / IDENTITY) == identity


def keep(folder: Path, identity: dict, result: dict, samples: list[dict]) -> None:
    """Write a task's folder, in place of an earlier one."""
    with files.atomic(folder) as temporary:
        temporary.mkdir()
        files.write_json(temporary / RESULT, result)
        benchmarks.write_samples(temporary / SAMPLES, samples)
        files.write_json(temporary / IDENTITY, identity)


def copy(folder: Path, output: Path, name: str) -> None:
    """Copy a task's result and samples to `<name>.json` and `<name>.samples.jsonl` in `output`.

    These are the paths of `lpc.layout`, which is not imported: an edit of it would compute every benchmark again.
    """
    for source, target in ((RESULT, f"{name}.json"), (SAMPLES, f"{name}.samples.jsonl")):
        with files.atomic(output / target) as temporary:
            shutil.copyfile(folder / source, temporary)
