"""The finished parts of an evaluation job, each with everything on which its results depend.

One job has the results of several parts as outputs: benchmark tasks, or preference, latents and completions. Snakemake
deletes them all before the job. So a step also keeps each finished part in a folder that no rule has as output. The
next job copies the part's files from there if its identity is the same. Each part has a folder with identity.json and
copies of its files, under `results/<project>/finished/<rule>/<job>/`. A part that is computed again replaces its
folder. The folder of a removed part is not deleted.
"""

import os
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from lpc import files, images, latents
from lpc.model.policy import LATENT_CONFIG
from lpc.modules import PACKAGE, modules_of

IDENTITY = "identity.json"


def of_model(base: dict, model: Path | None) -> dict:
    """Return the identity of a model by the content of its files.

    base: the record base.json. model: a run's folder, every file of which is read; None: the base itself, whose files
    the record has the digest of.
    """
    # Hidden files are Snakemake's timestamps, which no library reads.
    contents = model and [path for path in model.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {
        # Not `training`, which has the seconds that it took: the digest of the files stands for its result.
        "base": {name: value for name, value in base.items() if name != "training"},
        "model": model and digests(contents, model),
    }


def of_code(step: str, kinds: Iterable[str], packages: Iterable[str]) -> dict:
    """Return the identity of the code of `lpc.steps.<step>`: its modules, the image, and versions of `packages`.

    kinds: further modules, such as that of the model's latent.
    """
    modules = {path for module in (f"lpc.steps.{step}", *kinds) for path in modules_of(module)}
    return {
        "modules": digests(modules, PACKAGE),
        "container": images.current(),  # under the key by which `write_json` records it
        "versions": {name: version(name) for name in packages},
    }


def latent_module(model: Path | None) -> list[str]:
    """Return the module of the latent of a run's folder; none for a plain run or a base."""
    if model is None or not (model / LATENT_CONFIG).exists():
        return []
    return [latents.kind(files.read_json(model / LATENT_CONFIG).get("kind", latents.DEFAULT)).__module__]


def digests(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """Return digests by names that stay when the checkout moves: relative to `folder`, or to the package for its
    modules."""
    return {
        os.path.relpath(path, PACKAGE if path.is_relative_to(PACKAGE) else folder): files.sha256(path) for path in paths
    }


def restore(folder: Path, identity: dict, outputs: Iterable[Path]) -> bool:
    """Copy `outputs` from a part's folder if it has them, of exactly this identity; return whether it has."""
    kept = {folder / output.name: output for output in outputs}
    if not all(path.exists() for path in (folder / IDENTITY, *kept)):
        return False
    if files.read_json(folder / IDENTITY) != identity:
        return False
    for source, output in kept.items():
        with files.atomic(output) as temporary:
            shutil.copy2(source, temporary)  # with its time: it is the same file
    return True


def keep(folder: Path, identity: dict, outputs: Iterable[Path]) -> None:
    """Copy the `outputs` of a part to its folder, in place of an earlier one."""
    with files.atomic(folder) as temporary:
        temporary.mkdir()
        for output in outputs:
            shutil.copy2(output, temporary / output.name)
        files.write_json(temporary / IDENTITY, identity)
