"""Loading a base model, or a run trained on it, by the base's record `base.json`."""

import os
import sys

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lpc.data.tokens import load_tokenizer, stop_tokens
from lpc.files import read_json
from lpc.model.policy import LatentPolicy, empty_backbone, load_backbone, stored_dtype


def load_run(
    base: str | os.PathLike,
    model: str | os.PathLike | None = None,
    *,
    inference: dict | None = None,
    device: str | None = None,
) -> tuple[LatentPolicy, PreTrainedTokenizerBase]:
    """The policy, in float32, and its tokenizer.

    base: path of base.json, whose chat and trust settings apply. model: the run's `model/`; None loads the base model
    itself. inference: as for `LatentPolicy.from_pretrained`. device: to which each weight goes as it is read, so that
    main memory never holds them all; None leaves them in main memory.
    """
    record = read_json(base)
    folder = record["path"] if model is None else model
    tokenizer = _tokenizer(record, folder)
    policy = LatentPolicy.from_pretrained(
        folder, trust_remote_code=record["trust_remote_code"], inference=inference, device_map=device and {"": device}
    )
    stop_at_turn_end(policy, tokenizer)
    return policy, tokenizer


def load_empty(
    base: str | os.PathLike, *, with_weights: bool
) -> tuple[LatentPolicy, PreTrainedTokenizerBase, dict[str, Tensor]]:
    """The policy of a base on the meta device, its tokenizer, and its weights by name, in the type they are stored in.

    For a sharded training, where only the first process needs weights (`lpc.training.sharding`); without them the dict
    is empty. Tied weights and buffers that the checkpoint stores come once.
    """
    record = read_json(base)
    folder, trust = record["path"], record["trust_remote_code"]
    tokenizer = _tokenizer(record, folder)
    policy, weights = LatentPolicy(empty_backbone(folder, trust_remote_code=trust)), {}
    if with_weights:
        source = load_backbone(folder, dtype=stored_dtype(folder), trust_remote_code=trust)
        policy.backbone.generation_config = source.generation_config
        stop_at_turn_end(policy, tokenizer)
        once, often = (dict(source.named_parameters(remove_duplicate=again)) for again in (True, False))
        weights = {name: value for name, value in source.state_dict().items() if name in once or name not in often}
    return policy, tokenizer, weights


def _tokenizer(record: dict, folder: str | os.PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, with the chat template of base.json."""
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a log file is no terminal
    return load_tokenizer(
        folder,
        chat_template=record["chat_template"],
        chat_template_kwargs=record["chat_template_kwargs"],
        trust_remote_code=record["trust_remote_code"],
    )


def stop_at_turn_end(policy: LatentPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the policy's generation end at the token that ends a turn, too; it is saved with the policy."""
    config = policy.backbone.generation_config
    config.eos_token_id = stop_tokens(tokenizer, config.eos_token_id)
