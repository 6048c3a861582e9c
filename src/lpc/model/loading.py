"""Loading a base model, or a run trained on it, by the base's record `base.json`."""

import os
import sys

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lpc.data.tokens import load_tokenizer, stop_tokens
from lpc.files import read_json
from lpc.model.policy import LatentPolicy


def load_run(
    base: str | os.PathLike, model: str | os.PathLike | None = None, *, inference: dict | None = None
) -> tuple[LatentPolicy, PreTrainedTokenizerBase]:
    """The policy, in float32, and its tokenizer.

    base: path of base.json, whose chat and trust settings apply. model: the run's `model/`; None loads the base model
    itself. inference: as for `LatentPolicy.from_pretrained`.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a log file is no terminal
    record, tokenizer = read_json(base), load_run_tokenizer(base, model)
    folder = record["path"] if model is None else model
    policy = LatentPolicy.from_pretrained(folder, trust_remote_code=record["trust_remote_code"], inference=inference)
    stop_at_turn_end(policy, tokenizer)
    return policy, tokenizer


def load_run_tokenizer(base: str | os.PathLike, model: str | os.PathLike | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer alone; the arguments are those of `load_run`."""
    record = read_json(base)
    return load_tokenizer(
        record["path"] if model is None else model,
        chat_template=record["chat_template"],
        chat_template_kwargs=record["chat_template_kwargs"],
        trust_remote_code=record["trust_remote_code"],
    )


def stop_at_turn_end(policy: LatentPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the policy's generation end at the token that ends a turn, too; it is saved with the policy."""
    config = policy.backbone.generation_config
    config.eos_token_id = stop_tokens(tokenizer, config.eos_token_id)
