"""What a latent that samples at inference draws for a prompt."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lpc.model.noise import counter_uniform

STEP = -1
"""In place of a training step, so that these numbers are not those of any."""


def prompt_uniform(seed: int, prompts: Sequence[Sequence[int]], count: int, device: torch.device) -> Tensor:
    """Return float32 [len(prompts), count], uniform in (0, 1), for prompts given by their token ids.

    Each row is a function of `seed` and its prompt alone: neither the batch nor the device changes it, and all answers
    to one prompt get the same z. The prompt counts as the model sees it, with special tokens and without padding.
    """
    digests = [hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest() for prompt in prompts]
    keys = [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
    return counter_uniform(seed, STEP, torch.tensor(keys, dtype=torch.int64, device=device), count)
