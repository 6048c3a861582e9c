"""Loading a base model, or a run trained on it, by the base's record `base.json`."""

import os
import sys

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lpc.data.tokens import load_tokenizer
from lpc.files import read_json
from lpc.model.policy import LatentPolicy


def load_run(
    base: str | os.PathLike, model: str | os.PathLike | None = None, *, inference: dict | None = None
) -> tuple[LatentPolicy, PreTrainedTokenizerBase]:
    """The policy, in float32, and its tokenizer.

    base: path of base.json, whose chat template and trust settings apply. model: the run's `model/`; None
    loads the base model itself. inference: as for `LatentPolicy.from_pretrained`.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a log file is no terminal
    record = read_json(base)
    folder = record["path"] if model is None else model
    trust = record["trust_remote_code"]
    tokenizer = load_tokenizer(folder, chat_template=record["chat_template"], trust_remote_code=trust)
    return LatentPolicy.from_pretrained(folder, trust_remote_code=trust, inference=inference), tokenizer
