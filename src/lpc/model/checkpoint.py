"""Base models found on disk or brought into the hub's cache, checked and recorded."""

import math
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lpc import files
from lpc.cli import UserError
from lpc.data.hub import download
from lpc.data.tokens import (
    PROBE,
    PROBE_COMPLETION,
    check_chat_template,
    encode_completions,
    encode_prompts,
    load_tokenizer,
)
from lpc.model.backbone import LOADING_INFO, check_loading, load_config
from lpc.paths import is_local

# What a checkpoint is loaded from. Some repositories hold the same weights in several formats: one is enough.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
# Never a pickle, which may run code when it is read.
WEIGHTS = ("model.safetensors.index.json", "model.safetensors")
BLOCK = 2**22  # numbers that are checked at once


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
    """Return the content of base.json: where the model is, what it is, and how its chats are written.

    `system`: whether the chat template takes a system turn. Raises UserError where the model could not be used
    later: weights missing, not finite or of another shape, no tokenizer, or a chat template that does not fit.
    """
    if is_local(model):
        folder, revision = Path(model), None
    else:
        # The weights are large: check the configuration before they are downloaded.
        folder = download(model, "model", revision, SMALL_FILES)
        read_config(folder, trust_remote_code)
        folder = download(model, "model", folder.name, ["*.safetensors"])
        revision = folder.name
    weight_files(folder)
    tokenizer = load_tokenizer(
        folder,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
        trust_remote_code=trust_remote_code,
    )
    system = check_chat_template(tokenizer)
    network = load_on_meta(folder, trust_remote_code)
    check_vocabulary(folder, network, tokenizer)
    check_finite(folder)
    return {
        "name": name,
        "path": str(folder),
        "revision": revision,
        "sha256": digest(folder),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "chat_template": chat_template,
        "chat_template_kwargs": chat_template_kwargs,
        "system": system,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint, all shards; stop where any file is missing."""
    fix = "use a folder that `save_pretrained` wrote, or a model's name on the hub"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a model checkpoint, since it has no config.json; {fix}")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"{folder}: not a model checkpoint, since it has none of {', '.join(WEIGHTS)} (pickles are not read); {fix}"
        )
    if weights.suffix == ".json":
        index = files.read_json(weights)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
            raise UserError(f"{weights}: must have a `weight_map` from weights to files; {fix}")
        shards = sorted(set(shards.values()))
        if missing := [shard for shard in shards if not os.path.isfile(folder / shard)]:
            raise UserError(
                f"{folder}: {len(missing)} of {len(shards)} shards are missing, {missing[0]} first; fetch them"
            )
        return [folder / shard for shard in shards]
    return [weights]


def digest(folder: Path) -> str:
    """Return the digest of a checkpoint: weights, configuration, tokenizer, chat template and own code."""
    small = {file for pattern in SMALL_FILES for file in folder.glob(pattern)}
    return files.fingerprint({file.name: files.sha256(file) for file in {*weight_files(folder), *small}})


def load_on_meta(folder: Path, trust_remote_code: bool) -> PreTrainedModel:
    """Load a causal language model without memory for its weights, which must be all there, and nothing else.

    Raises UserError where transformers cannot load it, and where tensors are missing, of another shape, or unexpected.
    """
    config = read_config(folder, trust_remote_code)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            device_map="meta",
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            **LOADING_INFO,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(folder, error) from None
    check_loading(folder, loading)
    return model


def read_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """Load the configuration of a checkpoint. Raises UserError where it is none of a causal language model."""
    try:
        return load_config(folder, trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(folder, error) from None


def _not_loaded(folder: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]  # transformers lists all its classes below
    return UserError(f"{folder}: no causal language model that transformers can load ({reason})")


def check_finite(folder: Path) -> None:
    """Raise UserError where a weight is NaN or infinite. Reads tensors block by block: memory stays small."""
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                tensor = weights.get_slice(name)
                shape = tensor.get_shape()
                whole = weights.get_tensor(name)[None] if not shape else None
                step = max(1, BLOCK // max(1, math.prod(shape[1:])))
                blocks = [whole] if whole is not None else (tensor[i : i + step] for i in range(0, shape[0], step))
                if not all(block.float().isfinite().all() for block in blocks if block.numel()):
                    raise UserError(f"{file}: {name} holds NaN or infinite weights; fetch or convert the model again")


def check_vocabulary(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the tokenizer gives ids beyond the model's embeddings.

    Added tokens that no chat contains (such as a placeholder of pictures) may lie beyond them.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    added = set(tokenizer.added_tokens_decoder)
    prompts = [PROBE, [*PROBE, {"role": "assistant", "content": PROBE_COMPLETION}, *PROBE]]
    used = {token for token in tokenizer.get_vocab().values() if token not in added}
    used.update(*encode_prompts(tokenizer, prompts), *encode_completions(tokenizer, [PROBE], [PROBE_COMPLETION]))
    if max(used) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(used))
        raise UserError(
            f"{folder}: the tokenizer's token {token!r} has id {max(used)}, but the model has {rows} embeddings; "
            "resize them with `resize_token_embeddings`, or use the tokenizer of this model"
        )
