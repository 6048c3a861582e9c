"""The model class `lpc` of the Language Model Evaluation Harness, for plain and latent checkpoints.

It is lm-eval's own `hf` class with two changes. First, z from the prior at the end of the context is added at every
scored or generated token. Second, the LM head is applied at the continuation's tokens alone, so that logits of shape
[batch, length, vocabulary] never exist. Tokenisation, truncation, batching by length, stop strings and returned text
are those of `hf`. Without a latent, or with a codebook of zeros, its results are those of `hf`, too.
"""

import sys
from collections.abc import Iterator

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from lpc.data.tokens import set_chat_template
from lpc.model.loading import stop_at_turn_end
from lpc.model.policy import LatentPolicy


@register_model("lpc")
class LatentLM(HFLM):
    """A run's `model/` folder, or any checkpoint of transformers, as lm-eval sees it. One process, one device.

    pretrained: the folder. batch_size: sequences per forward pass. dtype, trust_remote_code, inference: as for
    `LatentPolicy.from_pretrained`. chat_template, chat_template_kwargs: see `lpc.data.tokens.set_chat_template`. Others
    go to `HFLM`.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int = 1,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        inference: dict | None = None,
        chat_template_kwargs: dict | None = None,
        **options,
    ) -> None:
        self._inference = inference
        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(
            pretrained=str(pretrained),
            backend="causal",
            batch_size=int(batch_size),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            **options,
        )
        set_chat_template(self.tokenizer, chat_template, chat_template_kwargs)
        if self.tokenizer.chat_template is not None:
            stop_at_turn_end(self.policy, self.tokenizer)

    @classmethod
    def of_base(
        cls, base: dict, model: str | None = None, *, batch_size: int, inference: dict | None = None
    ) -> "LatentLM":
        """Return the model of a record base.json, or with `model` the run's of that folder."""
        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()  # a log file is no terminal
        return cls(
            model or base["path"],
            batch_size=batch_size,
            dtype=base["dtype"],
            trust_remote_code=base["trust_remote_code"],
            chat_template=base["chat_template"],
            chat_template_kwargs=base["chat_template_kwargs"],
            inference=inference,
        )

    def _create_model(self, pretrained: str, dtype: str, trust_remote_code: bool, **_) -> None:
        self.policy = LatentPolicy.from_pretrained(
            pretrained,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            device_map=None if self.device.type == "cpu" else {"": self.device},
            inference=self._inference,
        ).eval()
        self._model = self.policy.backbone

    def _model_call(self, *args, **kwargs):
        """`hf` scores with these logits. They would be without z, so whatever still asks for them must not get them."""
        raise NotImplementedError("the lpc model has no plain logits: score through `_loglikelihood_tokens`")

    # ---- z

    def _context_end(self, request: tuple[tuple[str, str] | None, list[int], list[int]]) -> int:
        """Index, in context + continuation, of the last token of the context.

        lm-eval moves white space at the end of the context into the continuation, so as to split words as the tokenizer
        does. A chat template ends in such white space, and training computed z after it: so does this, wherever the
        whole context is still a prefix of the joint tokens.
        """
        strings, context, continuation = request
        if strings is not None and strings[0] != strings[0].rstrip() and strings[0].strip():
            whole, joint = self.tok_encode(strings[0]), context + continuation
            if len(context) < len(whole) < len(joint) and whole == joint[: len(whole)]:
                return len(whole) - 1
        return len(context) - 1

    # ---- log-likelihoods

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log π(continuation | context, z), is it the greedy one?) of every request, in the requests' order.

        requests: (the two strings, tokens of the context, tokens of the continuation). Too long a request loses tokens
        on the left, as in `hf`, and z is still computed at the end of its context. Requests with equal input tokens
        (choices of one token, say) share one forward pass; each has its own z, by where its own context ends.
        """
        # Input tokens -> [(index of the request, its continuation, position of the end of its context)].
        inputs: dict[tuple[int, ...], list[tuple[int, list[int], int]]] = {}
        for index, request in enumerate(requests):
            _, context, continuation = request
            assert context and 0 < len(continuation) <= self.max_length, "lm-eval asks for no empty and no longer text"
            cut = max(0, len(context) + len(continuation) - (self.max_length + 1))
            # The last token is only a label: nothing is predicted from it.
            tokens = tuple((context + continuation)[cut:-1])
            inputs.setdefault(tokens, []).append((index, continuation, self._context_end(request) - cut))

        results: list[tuple[float, bool]] = [None] * len(requests)
        progress = tqdm(total=len(requests), disable=disable_tqdm, desc="log-likelihoods", unit="request")
        # Longest first, so that a batch is padded little and memory runs out at once or never.
        order = sorted(inputs, key=lambda tokens: (-len(tokens), tokens))
        size = override_bs or self.batch_size
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            scored = [(row, *request) for row, tokens in enumerate(batch) for request in inputs[tokens]]
            for (_, index, *_), result in zip(scored, self._score(batch, scored), strict=True):
                results[index] = result
                if requests[index][0] is not None:  # windows of a rolling log-likelihood have no key of their own
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
            progress.update(len(scored))
        progress.close()
        return results

    def _score(
        self, batch: list[tuple[int, ...]], scored: list[tuple[int, int, list[int], int]]
    ) -> Iterator[tuple[float, bool]]:
        """Results of one forward pass over `batch`; `scored`: (row, index, continuation, end of the context)."""
        width = max(map(len, batch))
        # Padded on the right without a mask: a causal model's real tokens never see what stands to their right.
        input_ids = torch.tensor([tokens + (0,) * (width - len(tokens)) for tokens in batch], device=self.device)
        hidden = self.policy.hidden(input_ids)  # [B, T, d]

        ends = [(row, end) for row, _, _, end in scored]
        z = self.policy.prior_z(hidden[self._index(ends)], [batch[row][: end + 1] for row, end in ends])

        lengths = [len(continuation) for _, _, continuation, _ in scored]
        positions = [
            (row, column)
            for row, _, continuation, _ in scored
            for column in range(len(batch[row]) - len(continuation), len(batch[row]))
        ]
        labels = torch.tensor([token for _, _, continuation, _ in scored for token in continuation], device=self.device)
        rows = torch.arange(len(scored), device=labels.device)
        rows = rows.repeat_interleave(torch.tensor(lengths, device=labels.device))
        logps, is_argmax = self.policy.greedy_logps(hidden[self._index(positions)], labels, z, rows)
        for logp, greedy in zip(logps.double().cpu().split(lengths), is_argmax.cpu().split(lengths), strict=True):
            yield logp.sum().item(), bool(greedy.all())

    def _index(self, positions: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        return tuple(torch.tensor(positions, device=self.device).unbind(-1))

    # ---- generation

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options) -> Tensor:
        """Tokens [B, T + new] after left-padded prompts `context` [B, T], given z of each; arguments as `hf`'s."""
        if not options.get("do_sample") and not options.get("temperature"):
            options.pop("temperature", None)  # greedy: transformers warns of a temperature then
            options["do_sample"] = False
        return self.policy.generate(
            context,
            max_length=max_length,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, context.shape[1], len(context)),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **options,
        )
