"""Data sets and base models brought into the cache of huggingface_hub, or found on disk, and recorded with their
checksums.

The cache is where HF_HOME says. With HF_HUB_OFFLINE=1 only what it already holds is used.
"""

import os
from pathlib import Path

import httpx
import huggingface_hub
import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM

from lpc import files
from lpc.cli import UserError
from lpc.config import is_local
from lpc.data.read import list_files
from lpc.data.tokens import load_tokenizer

# What a checkpoint is loaded from. Some repositories hold the same weights in several formats: one is enough.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


def describe_dataset(*, kind: str, path: str, revision: str | None, hub_split: str) -> dict:
    """The content of source.json. A hub data set is downloaded first; it adds `folder` (its copy) and `hub_split`."""
    if is_local(path):
        found = [str(file) for file in list_files(path)]
        record = {"kind": kind, "path": path, "files": found, "revision": None}
    else:
        folder = download(path, "dataset", revision)
        found = sorted(str(file) for file in folder.rglob("*") if file.is_file())
        record = {"kind": kind, "path": path, "files": found, "revision": folder.name}
        record |= {"folder": str(folder), "hub_split": hub_split}
    return {**record, "sha256": {file: files.sha256(file) for file in found}}


def describe_base(
    *,
    name: str,
    model: str,
    revision: str | None,
    dtype: str,
    attention: str,
    chat_template: str | None,
    trust_remote_code: bool,
) -> dict:
    """The content of base.json. Stops where the model could not be used later: no checkpoint, no tokenizer, no
    template."""
    if is_local(model):
        folder, revision = Path(model), None
    else:
        folder = download(model, "model", revision, [*SMALL_FILES, "*.safetensors"])
        if not any((folder / weights).is_file() for weights in WEIGHTS):
            folder = download(model, "model", revision, ["*.bin"])
        revision = folder.name
    weights = weights_file(folder)
    load_tokenizer(folder, chat_template=chat_template, trust_remote_code=trust_remote_code)
    return {
        "name": name,
        "path": str(folder),
        "revision": revision,
        "sha256": files.sha256(weights),
        "parameters": count_parameters(folder, trust_remote_code),
        "chat_template": chat_template,
        "dtype": dtype,
        "attention": attention,
        "trust_remote_code": trust_remote_code,
    }


def download(name: str, kind: str, revision: str | None, patterns: list[str] | None = None) -> Path:
    """The folder of a hub repository's copy in the cache; its name is the commit. kind: "model" or "dataset"."""
    where = f"{name} ({kind}, revision {revision or 'main'})"
    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise UserError(
            f"{name}: neither a file or folder here nor a name on the hub; correct the {kind}'s path"
        ) from None
    except GatedRepoError:
        raise UserError(f"{where}: access must be asked for on its page; then log in with `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"{where}: not on the hub, or private; correct the name or log in with `hf auth login`"
        ) from None
    except (OSError, httpx.HTTPError) as error:
        # Offline mode, no network and a broken transfer alike; a full disk names itself.
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise UserError(
            f"{where}: not in the cache {cache} and not to be had from the hub ({error}); run this rule where "
            "there is a network, or set HF_HOME to a cache that holds it"
        ) from None


def weights_file(folder: Path) -> Path:
    """The weights of a checkpoint, or their index where they are in shards; stops where any file is missing."""
    cure = "give a folder that `save_pretrained` wrote, or a model's name on the hub"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model checkpoint (it has no config.json); {cure}")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: no model checkpoint (it has none of {', '.join(WEIGHTS)}); {cure}")
    if weights.suffix == ".json":
        shards = set(files.read_json(weights)["weight_map"].values())
        if missing := sorted(shard for shard in shards if not os.path.isfile(folder / shard)):
            raise UserError(
                f"{folder}: {len(missing)} of {len(shards)} shards are missing, {missing[0]} first; fetch them"
            )
    return weights


def count_parameters(folder: Path, trust_remote_code: bool) -> int:
    """Parameters of a causal language model, from its configuration alone: no memory is taken."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no causal language model that transformers can load ({error})") from None
    return sum(parameter.numel() for parameter in model.parameters())
