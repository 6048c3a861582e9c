"""z [B, d] of prompts, from the hidden states at their ends [B, d], as Latent Preference Coding trained it.

A network of the hidden state gives numbers, and a rule turns them into z. Noise is a function of the prompt alone.
"""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .noise import counter_uniform


class Latent(nn.Module):
    """`form`: its rule, the temperature and seed of rules that draw, and the shapes of its tensors by name.

    The tensors are either `constant` [n], or a two-layer network from standardised hidden states to n numbers. z is
    `scale` times these numbers (rule `value`), `scale` times a sample of their Gaussian (`normal`), or a weighted sum
    of the rows of `codebook` [n, d].
    """

    def __init__(self, form: dict):
        super().__init__()
        self.form = form
        for name, shape in form["shapes"].items():
            self.register_buffer(name, torch.zeros(shape))

    def numbers(self, h: Tensor) -> Tensor:
        if "constant" in self.form["shapes"]:
            return self.constant.expand(len(h), -1)
        hidden = F.gelu(F.linear((h.to(self.mean.dtype) - self.mean) / self.std, self.hidden_weight, self.hidden_bias))
        return F.linear(hidden, self.output_weight, self.output_bias)

    def weights(self, h: Tensor, prompts: list[list[int]]) -> Tensor:
        """Return the weights [B, K] of the codes in z. `prompts`: the token ids of each, without padding."""
        rule, numbers = self.form["rule"], self.numbers(h)
        if rule in ("sample", "gumbel"):
            numbers = numbers - (-self._uniform(prompts, numbers).log()).log()
        if rule == "mean":
            return numbers.softmax(-1)
        if rule == "gumbel":
            return (numbers / self.form["temperature"]).softmax(-1)
        return F.one_hot(numbers.argmax(-1), numbers.shape[-1]).to(numbers.dtype)

    def forward(self, h: Tensor, prompts: list[list[int]]) -> Tensor:
        if "codebook" in self.form["shapes"]:
            return self.weights(h, prompts) @ self.codebook
        numbers = self.numbers(h)
        if self.form["rule"] == "normal":
            mean, log_std = numbers.chunk(2, -1)
            numbers = mean + log_std.exp() * ((2 * self._uniform(prompts, mean) - 1).erfinv() * 2**0.5)
        return self.scale * numbers

    def force(self, code: int, batch: int) -> Tensor:
        codes = self.form["shapes"].get("codebook", [0])[0]
        if not 0 <= code < codes:
            raise ValueError(f"code {code}: this latent has {f'codes 0 to {codes - 1}' if codes else 'no codes'}")
        return self.codebook[code].expand(batch, -1)

    def _uniform(self, prompts: list[list[int]], like: Tensor) -> Tensor:
        digests = [hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest() for prompt in prompts]
        keys = [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
        keys = torch.tensor(keys, dtype=torch.int64, device=like.device)
        return counter_uniform(self.form["seed"], -1, keys, like.shape[-1])
