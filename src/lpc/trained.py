"""A trained run, loaded to score, to generate, and to look at its codes."""

import functools
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lpc.cli import UserError
from lpc.config import specs
from lpc.data.formats.base import Malformed, field
from lpc.data.formats.pairs import pair_row
from lpc.data.tokens import encode_prompts, load_tokenizer, tokenize_context
from lpc.evaluation.completions import answer
from lpc.evaluation.preference import score_pairs
from lpc.files import read_json
from lpc.layout import Base, Layout, Run
from lpc.model.loading import load_run, stop_at_turn_end
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.scoring import to_device

Prompt = str | list[dict]
"""What is asked: the user's text, or a list of messages {"role", "content"} that ends with the user's."""


@dataclass
class Policy:
    """A run, or any checkpoint of a causal language model. `load` returns one.

    model: in evaluation mode, on the GPU if there is one. folder: of the checkpoint. base: the record of the model
    before training, base.json; None where it is not known.
    """

    model: LatentPolicy
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    base: Path | None

    @functools.cached_property
    def _identity(self) -> dict:
        """What the run depended on. Raises UserError for a checkpoint without record."""
        record = Run(self.folder.resolve().parent).summary
        if not record.exists():
            raise UserError(f"{record} is missing, which names the objective; load the folder of a run")
        return read_json(record)["identity"]

    @functools.cached_property
    def settings(self) -> specs.Train:
        """The settings of the training, such as `objective` and `tokens`. Raises UserError for another checkpoint."""
        try:
            return specs.Train.parse(self._identity["spec"], {})
        except ValueError as error:
            raise UserError(f"{self.folder}: {error}; train again, since the settings have changed") from None

    @functools.cached_property
    def reference(self) -> LatentPolicy:
        """The model before training, with which the objective compares. Raises UserError where it is not known."""
        name = self.settings.objective.name
        if self.base is None:
            raise UserError(f"base: objective {name} compares with the base model; give the path of its base.json")
        if read_json(self.base)["sha256"] != self._identity["base"]:
            raise UserError(f"base: {self.base} is of another model than the run's base; give that one")
        return to_device(load_run(self.base)[0])

    def score(self, prompt: Prompt, chosen: str, rejected: str) -> float:
        """Return the reward of `chosen` less that of `rejected`: above 0 where the policy prefers `chosen`."""
        chosen_rewards, rejected_rewards = self.rewards([{"prompt": prompt, "chosen": chosen, "rejected": rejected}])
        return float(chosen_rewards[0] - rejected_rewards[0])

    def rewards(self, pairs: Iterable[dict], batch_size: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Return the objective's rewards of the chosen and of the rejected completions, float64 [n] each.

        pairs: as for `lpc.train`, cut to the token limits of training. Each reward is given z from the prior, by the
        latent's rule; step `preference` computes the same. Raises UserError for a pair of equal completions.
        """
        spec, context = self.settings, context_of(pairs)
        tokens = tokenize_context(context, self.tokenizer, **dict(spec.tokens))
        if tokens.dropped:
            number = next(i for i in range(len(context)) if i not in tokens.rows) + 1
            raise UserError(f"pair {number}: both completions have the same {spec.tokens.max_length} tokens; drop it")
        how = {"batch_size": batch_size, "precision": spec.training.precision}
        if spec.objective.needs_reference:
            tokens.reference, _ = reference_logps(self.reference, tokens, np.zeros(len(tokens), bool), **how)
        rewards = score_pairs(self.model, tokens, None, spec.objective, **how)
        return rewards["chosen_reward"], rewards["rejected_reward"]

    @torch.no_grad()
    def codes(self, prompt: Prompt) -> torch.Tensor:
        """Return p(k | x) [K], float32 on the CPU, from the prior. Raises UserError where the latent has no codes."""
        if self.model.latent is None or not self.model.latent.has_codes:
            raise UserError(f"{self.folder}: its latent has no codes; load another run")
        ids = torch.tensor(self._ids([prompt]), device=self.model.device)
        return self.model.latent.prior_logits(self.model.hidden(ids)[:, -1]).float().softmax(-1)[0].cpu()

    def infer_code(self, prompt: Prompt, pairs: Iterable[dict]) -> torch.Tensor:
        """Return p(k | x, pairs) [K], float64 on the CPU, of a person's prompt, by Bayes' rule.

        pairs: labelled pairs of that person, as for `lpc.train`. Raises UserError as `LatentPolicy.infer_code` does.
        """
        return self.infer_codes([prompt], pairs)[0]

    def infer_codes(self, prompts: list[Prompt], pairs: Iterable[dict]) -> torch.Tensor:
        """Return `infer_code` of several prompts of one person, [N, K]; the pairs are scored once."""
        objective, context = self.settings.objective, context_of(pairs)
        reference = self.reference if objective.needs_reference else None
        limits = dict(self.settings.tokens)
        ids = self._ids(prompts)
        return self.model.infer_code(context, self.tokenizer, objective, ids, reference=reference, **limits)

    def generate(self, prompt: Prompt, *, code: int | None = None, max_new_tokens: int = 256, **options) -> str:
        """Return the answer to a prompt, greedy unless `options` say otherwise, such as do_sample=True.

        code: this code in place of the prior. options: those of transformers' `generate`.
        """
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        return answer(self.model, self.tokenizer, self._ids([prompt])[0], code=code, **options)

    def _ids(self, prompts: list[Prompt]) -> list[list[int]]:
        messages = [[{"role": "user", "content": turns}] if isinstance(turns, str) else turns for turns in prompts]
        return encode_prompts(self.tokenizer, messages)


def load(folder: str | os.PathLike, base: str | os.PathLike | None = None, *, inference: dict | None = None) -> Policy:
    """Load a run from its folder or from its `model/`; or any checkpoint, which can answer prompts alone.

    base: base.json of the model before training; None: beside the model, or where the workflow keeps it. inference: as
    for `LatentPolicy.from_pretrained`.
    """
    given = Path(folder)
    model = Run(given).model if Run(given).model.is_dir() else given
    record = _record(model.resolve().parent) if base is None else Path(base)
    trust = record is not None and read_json(record)["trust_remote_code"]
    policy = to_device(LatentPolicy.from_pretrained(model, trust_remote_code=trust, inference=inference))
    tokenizer = load_tokenizer(model, trust_remote_code=trust)
    stop_at_turn_end(policy, tokenizer)
    return Policy(policy, tokenizer, model, record)


def _record(run: Path) -> Path | None:
    """The record of a run's base: in the run's folder, or at results/<project>/bases/<base>/base.json."""
    places = [Base(run).record]
    if len(run.parts) > 5:
        places.append(Layout(run.parents[4]).base(run.parts[-4]).record)
    return next((place for place in places if place.is_file()), None)


def rows_of(pairs: Iterable[dict], names: Iterable[str] = ()) -> list[dict]:
    """Return pairs {prompt or messages, chosen, rejected, group or none} as rows of `lpc.data.formats`.

    names: what the error of a malformed pair, a UserError, calls each of them; none: by their number from 1.
    """
    rows = []
    for pair, name in zip(pairs, names or (f"pair {number}" for number in itertools.count(1)), strict=bool(names)):
        try:
            if isinstance(pair, Malformed):  # a line that is no JSON
                raise pair
            if isinstance(pair, dict) and "messages" in pair:
                pair = {"prompt": field(pair, "messages"), **{k: v for k, v in pair.items() if k != "messages"}}
            row = pair_row(pair, "python")
            if (group := pair.get("group")) is not None and not isinstance(group, str):
                raise Malformed("group is not text")
        except Malformed as error:
            raise UserError(f"{name}: {error}; a pair needs prompt, chosen and rejected") from None
        rows.append({**row, "group": group})
    return rows


def context_of(pairs: Iterable[dict], names: Iterable[str] = ()) -> list[dict]:
    """Return pairs as `tokenize_context` takes them. Raises UserError as `rows_of` does."""
    context = []
    for row in rows_of(pairs, names):
        chosen, rejected = (completion["response"] for completion in row["completions"])
        context.append({"prompt": row["messages"], "chosen": chosen, "rejected": rejected})
    return context
