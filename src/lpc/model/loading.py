"""Loading a base model, or a run trained on it, by the base's record `base.json`."""

import logging
import os
import sys

from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lpc.data.tokens import load_tokenizer, stop_tokens
from lpc.files import read_json
from lpc.model.backbone import empty_backbone, load_backbone, stored_dtype
from lpc.model.policy import LatentPolicy

log = logging.getLogger("lpc")


def load_run(
    base: str | os.PathLike,
    model: str | os.PathLike | None = None,
    *,
    inference: dict | None = None,
    device: str | None = None,
) -> tuple[LatentPolicy, PreTrainedTokenizerBase]:
    """Load the policy, in float32, and its tokenizer.

    base: path of base.json, whose chat and trust settings apply. model: the run's `model/`; None loads the base model
    itself. inference: as for `LatentPolicy.from_pretrained`. device: to which each weight goes as it is read, so that
    main memory never holds them all; None leaves them in main memory.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a log file is no terminal
    record, tokenizer = read_json(base), load_run_tokenizer(base, model)
    folder = record["path"] if model is None else model
    policy = LatentPolicy.from_pretrained(
        folder, trust_remote_code=record["trust_remote_code"], inference=inference, device_map=device and {"": device}
    )
    stop_at_turn_end(policy, tokenizer)
    return policy, tokenizer


class LoadedRun:
    """`load_run` for several steps in one process: it reads the model once, at the first call."""

    def __init__(self):
        self._loaded: tuple[LatentPolicy, PreTrainedTokenizerBase] | None = None
        self._latent, self._of = None, None

    def __call__(
        self, base: str | os.PathLike, model: str | os.PathLike, *, inference: dict | None = None
    ) -> tuple[LatentPolicy, PreTrainedTokenizerBase]:
        """Return the policy, the same at each call, with this `inference`, and its tokenizer; see `load_run`."""
        if self._loaded is None:
            log.info("%s: the model is loaded", model)
            self._loaded, self._of = load_run(base, model), (base, model)
            self._latent = self._loaded[0].latent
        if self._of != (base, model):
            raise ValueError(f"{self._of} is loaded, not {(base, model)}")
        if self._latent is not None:
            self._loaded[0].latent = self._latent.with_inference(**inference or {})
        return self._loaded


def load_empty(
    base: str | os.PathLike, *, with_weights: bool
) -> tuple[LatentPolicy, PreTrainedTokenizerBase, dict[str, Tensor]]:
    """Return the policy of a base on the meta device, its tokenizer, and its weights by name, in the dtype they are
    stored in.

    For a sharded training, where only the first process needs weights (`lpc.training.sharding`); without them the dict
    is empty. Tied weights and buffers that the checkpoint stores come once. The first process tells the others what
    it has measured of the weights.
    """
    record, tokenizer = read_json(base), load_run_tokenizer(base)
    folder, trust = record["path"], record["trust_remote_code"]
    empty, weights, measured = empty_backbone(folder, trust_remote_code=trust), {}, [None]
    if with_weights:
        source = LatentPolicy(load_backbone(folder, dtype=stored_dtype(folder), trust_remote_code=trust))
        stop_at_turn_end(source, tokenizer)
        backbone = source.backbone
        once, often = (dict(backbone.named_parameters(remove_duplicate=again)) for again in (True, False))
        weights = {name: value for name, value in backbone.state_dict().items() if name in once or name not in often}
        measured = [(source.obstacle, source.logit_covariance(), backbone.generation_config)]
    broadcast_object_list(measured)
    empty.packing_obstacle, covariance, empty.generation_config = measured[0]
    return LatentPolicy(empty, logit_covariance=covariance), tokenizer, weights


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
