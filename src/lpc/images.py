"""Container images: their names, which change with their content, and which of them a step runs in.

Imports nothing beyond the standard library, since the Snakefile asks it for names.
"""

import hashlib
import json
import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "containers"

# image: the one it starts from
PARENTS = {"base": None, "training": "base", "evaluation": "training", "reporting": "base"}


def version(name: str) -> str:
    """12 hexadecimal digits of the SHA-256 of what makes the image: its definition, its pins, its parent's version."""
    digest = hashlib.sha256()
    if PARENTS[name]:
        digest.update(version(PARENTS[name]).encode())
    for suffix in (".def", ".txt"):
        file = FOLDER / f"{name}{suffix}"
        if file.exists():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def path(name: str) -> Path:
    """Where `containers/build.py` puts the image. Its name holds the version, as Snakemake compares names alone."""
    return FOLDER / "images" / f"{name}-{version(name)}.sif"


def running() -> dict | None:
    """Name and digest of the image that this process runs in, {"image", "sha256"}; None outside of a container.

    The digest was taken when the image was built; it is None where the record beside the image is missing.
    """
    image = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if not image:
        return None
    record = Path(image).with_suffix(".json")
    if not record.exists():
        return {"image": Path(image).name, "sha256": None}
    try:
        return {"image": Path(image).name, "sha256": json.loads(record.read_text())["sha256"]}
    except (ValueError, TypeError, KeyError):
        from lpc.cli import UserError  # which imports this module

        raise UserError(f"{record}: not an image's record; build that image again (--force)") from None
