"""Base models found on disk or brought into the hub's cache, checked and recorded."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lpc import files
from lpc.cli import UserError
from lpc.data.hub import download
from lpc.data.tokens import load_tokenizer
from lpc.paths import is_local

# What a checkpoint is loaded from. Some repositories hold the same weights in several formats: one is enough.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
# Never a pickle, which may run code when it is read.
WEIGHTS = ("model.safetensors.index.json", "model.safetensors")


def describe_base(
    *,
    name: str,
    model: str,
    revision: str | None,
    dtype: str,
    chat_template: str | None,
    chat_template_kwargs: dict | None = None,
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
    weight_files(folder)
    load_tokenizer(
        folder,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
        trust_remote_code=trust_remote_code,
    )
    return {
        "name": name,
        "path": str(folder),
        "revision": revision,
        "sha256": digest(folder),
        "parameters": count_parameters(folder, trust_remote_code),
        "chat_template": chat_template,
        "chat_template_kwargs": chat_template_kwargs,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }


def weight_files(folder: Path) -> list[Path]:
    """The weights of a checkpoint, all shards of them; stops where any file is missing."""
    cure = "give a folder that `save_pretrained` wrote, or a model's name on the hub"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model checkpoint (it has no config.json); {cure}")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"{folder}: no model checkpoint (it has none of {', '.join(WEIGHTS)}; pickles are not read); {cure}"
        )
    if weights.suffix == ".json":
        shards = sorted(set(files.read_json(weights)["weight_map"].values()))
        if missing := [shard for shard in shards if not os.path.isfile(folder / shard)]:
            raise UserError(
                f"{folder}: {len(missing)} of {len(shards)} shards are missing, {missing[0]} first; fetch them"
            )
        return [folder / shard for shard in shards]
    return [weights]


def digest(folder: Path) -> str:
    """What tells the weights of one checkpoint from others'; the index of shards alone would not."""
    return files.fingerprint({file.name: files.sha256(file) for file in weight_files(folder)})


def count_parameters(folder: Path, trust_remote_code: bool) -> int:
    """Parameters of a causal language model, from its configuration alone: no memory is taken."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no causal language model that transformers can load ({error})") from None
    return sum(parameter.numel() for parameter in model.parameters())
