"""Container images: their names, which change with their content, and which of them a step runs in.

Imports nothing beyond the standard library, since the Snakefile reads names from it.
"""

import hashlib
import json
import os
import platform
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "containers"

# image: the one it starts from
PARENTS = {"base": None, "training": "base", "evaluation": "training", "reporting": "base"}

CHOICE = {"base": "python:3.11-slim-bookworm", "variant": "cpu"}
"""What the first image starts from, and the variant of PyTorch (cpu, cu128, rocm6.4), until `build.py` records both."""

VARIABLE = "LPC_IMAGES"
"""Variable of a job: the references of the configuration, for `current`."""


def check_reference(text: str) -> str:
    """Return an image's reference in a registry. Raises ValueError unless it names its content, by digest."""
    if not re.fullmatch(r"docker://[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)+@sha256:[0-9a-f]{64}", text):
        raise ValueError(
            f"{json.dumps(text)} must name an image by digest: use docker://host/name@sha256: and 64 hexadecimal digits"
        )
    return text


def choice() -> dict[str, str] | None:
    """Return the keys of CHOICE as `build.py` recorded them beside the images; None before its first build."""
    file = FOLDER / "images/choice.json"
    return _fields(file, CHOICE, "delete it and build the images again") if file.exists() else None


def lineage(name: str) -> list[str]:
    """Return the image and all that it starts from, first one first."""
    return [*(lineage(PARENTS[name]) if PARENTS[name] else []), name]


def version(name: str, base: str) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of all that the image is made of.

    That is its definition, its pins and its parent's version; for the first image, also what it starts from.
    """
    digest = hashlib.sha256((version(PARENTS[name], base) if PARENTS[name] else base).encode())
    for suffix in (".def", ".txt"):
        file = FOLDER / f"{name}{suffix}"
        if file.exists():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def path(name: str, chosen: dict[str, str] | None = None) -> Path:
    """Return where `build.py` puts the image: <name>-<version>-<architecture>.sif, with PyTorch also its variant.

    The name holds the version since Snakemake compares names alone, and the architecture since nodes may share a disk.
    """
    chosen = chosen or choice() or CHOICE
    variant = f"-{chosen['variant']}" if "training" in lineage(name) else ""
    return FOLDER / "images" / f"{name}-{version(name, chosen['base'])}-{platform.machine()}{variant}.sif"


def current() -> dict | None:
    """Return name and digest of the image of this process, {"image", "sha256"}; None outside of a container.

    The digest was taken when the image was built; it is None where the record beside the image is missing. An image of
    a registry has its reference as name, and the digest therein.
    """
    image = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if not image:
        return None
    for reference in os.environ.get(VARIABLE, "").split():
        if Path(image).stem == hashlib.md5(reference.encode(), usedforsecurity=False).hexdigest():  # Snakemake's name
            return {"image": reference, "sha256": reference.rpartition(":")[2]}
    record = Path(image).with_suffix(".json")
    digest = _fields(record, ["sha256"], "build that image again (--force)") if record.exists() else {"sha256": None}
    return {"image": Path(image).name, **digest}


def _fields(file: Path, names, remedy: str) -> dict:
    """Read `names` of a JSON object."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {name: record[name] for name in names}
    except (ValueError, TypeError, KeyError):
        from lpc.cli import UserError  # it imports this module

        raise UserError(f"{file}: must be a JSON object with {' and '.join(names)}; {remedy}") from None
