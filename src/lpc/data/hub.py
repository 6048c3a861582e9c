"""Repositories of the hub brought into the cache of huggingface_hub, and the record of a dataset's files.

HF_HOME is the folder of the cache. With HF_HUB_OFFLINE=1 only what it already holds is used.
"""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lpc import files
from lpc.cli import UserError
from lpc.data.read import list_files
from lpc.paths import is_local


def describe_dataset(
    *,
    kind: str,
    path: str,
    revision: str | None,
    hub_split: str,
    hub_config: str | None = None,
    data_dir: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    group: str | None = None,
    columns: dict[str, str] | None = None,
) -> dict:
    """Return the content of dataset.json. A hub data set is downloaded first; it adds `folder` (its copy) and what
    `datasets.load_dataset` gets to read it.

    validation, test: the data's own splits, as names on the hub or as local files; `own_splits` has the name, or the
    list of files. group: the column that names a row's group, or "prompt"; see `lpc.data.read.with_group`. columns: the
    file's column for each name that the kind reads; see `lpc.data.read.with_names`.
    """
    own = {name: split for name, split in (("validation", validation), ("test", test)) if split is not None}
    if is_local(path):
        found = [str(file) for file in list_files(path)]
        record = {"kind": kind, "path": path, "files": found, "revision": None}
        own = {name: [str(file) for file in list_files(split)] for name, split in own.items()}
        found = [*found, *(file for files_of_split in own.values() for file in files_of_split)]
    else:
        folder = download(path, "dataset", revision)
        found = sorted(str(file) for file in folder.rglob("*") if file.is_file())
        record = {"kind": kind, "path": path, "files": found, "revision": folder.name}
        record |= {"folder": str(folder), "hub_split": hub_split, "hub_config": hub_config, "data_dir": data_dir}
    return {
        **record,
        "own_splits": own,
        "group": group,
        "columns": columns or {},
        "sha256": {file: files.sha256(file) for file in found},
    }


def download(name: str, kind: str, revision: str | None, patterns: list[str] | None = None) -> Path:
    """Return the folder of a hub repository's copy in the cache; its name is the commit. kind: "model" or "dataset"."""
    where = f"{name} ({kind}, revision {revision or 'main'})"
    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise UserError(
            f"{name}: neither a file or folder here nor a name on the hub; correct the {kind}'s path"
        ) from None
    except GatedRepoError:
        raise UserError(
            f"{where}: access is restricted; request it on its page, then log in with `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"{where}: not on the hub, or private; correct the name or log in with `hf auth login`"
        ) from None
    except (OSError, HTTPError) as error:
        # Offline mode, no network and a broken transfer alike; a full disk names itself.
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise UserError(
            f"{where}: not in the cache {cache}, and the download failed ({error}); run this rule where there is a "
            "network, or set HF_HOME to a cache that holds it"
        ) from None
