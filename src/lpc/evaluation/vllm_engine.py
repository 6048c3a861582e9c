"""Greedy texts by vLLM, whose batch takes a new request as soon as one ends. z enters as a bias of the logits.

vLLM reads the checkpoint itself. For a latent run, the logits processor of `lpc.export` adds the biases of the codes,
times their weights in the z of the prompt. Prompts, their token ids, those weights, the tokens that end an answer, and
its text are those of `lpc.evaluation.harness.LatentLM`. vLLM's kernels round differently, so texts may differ where two
tokens are almost equally likely.
"""

import gc
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lpc.cli import UserError
from lpc.evaluation.harness import LatentLM
from lpc.export.write import table_obstacle, write_table
from lpc.model.policy import LATENT_CONFIG, LATENT_WEIGHTS, LatentPolicy

OTHERWISE = "set evaluation.alpacaeval.engine to transformers"
ENVIRONMENT = {
    # In this process requests are scheduled in the same order each time (vLLM's page on reproducibility).
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # lpc_vllm.py has the interface of the V1 runner. Plain runs use it too, or runners would differ between recipes.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # A job sends nothing to a network that it was not asked to.
    "VLLM_NO_USAGE_STATS": "1",
}
HANDLED = {"eos_token_id", "repetition_penalty"}
"""Settings of generation_config.json that requests carry."""
UNUSED = {
    *("_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "max_length"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores", "length_penalty"),
    *("use_cache", "cache_implementation", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
}
"""Those that change no greedy text of a given largest length."""


class EngineLM(LatentLM):
    """A `LatentLM` that generates, once and greedily, and scores nothing.

    Its arguments are those of `LatentLM`; batch_size: prompts of one forward pass that weighs their codes. Raises
    UserError where vLLM cannot be imported, or would write other texts than transformers.
    """

    def __init__(self, pretrained: str, *, batch_size: int = 1, trust_remote_code: bool = False, **options) -> None:
        os.environ.update(ENVIRONMENT)
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"evaluation.alpacaeval.engine: vllm cannot be imported ({error}); install it as docs/howto/vllm.md "
                f"says, or {OTHERWISE}"
            ) from None
        self._vllm, self._prompts_at_once = vllm, int(batch_size)
        self._folder, self._trust = Path(pretrained), trust_remote_code
        # By a size of 0 lm-eval gives all prompts at once, and vLLM makes its own batches.
        super().__init__(pretrained, batch_size=0, trust_remote_code=trust_remote_code, **options)
        if self.policy.latent is not None and (why := table_obstacle(self.policy)):
            raise UserError(f"{why}; {OTHERWISE}")
        settings = self.policy.backbone.generation_config.to_diff_dict()
        if others := sorted(settings.keys() - HANDLED - UNUSED):
            raise UserError(
                f"{pretrained}/generation_config.json: sets {', '.join(others)}, which is not passed on to vLLM; "
                f"remove it there, or {OTHERWISE}"
            )

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], *, attention_mask: Tensor, **options
    ) -> Tensor:
        """Return tokens [B, T + new], arguments as `LatentLM`'s. lm-eval cuts the text at `stop`, wherever it ends."""
        if options.get("do_sample") or options.get("temperature") or options.keys() - {"do_sample", "temperature"}:
            raise NotImplementedError(f"vLLM is asked for greedy texts alone, not with {options}")
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(context, attention_mask, strict=True)]
        weights = [None] * len(prompts) if self.policy.latent is None else self._weights(prompts)
        outputs = self._answers(prompts, weights, max_length - context.shape[1])
        width = max(map(len, outputs))
        new = torch.full((len(outputs), width), self.tokenizer.pad_token_id, device=context.device)
        for row, output in zip(new, outputs, strict=True):
            row[: len(output)] = torch.tensor(output, device=context.device)
        return torch.cat([context, new], 1)

    @torch.no_grad()
    def _weights(self, prompts: list[list[int]]) -> list[list[float]]:
        """Weights of the codes in the z of each prompt."""
        found = []
        for start in range(0, len(prompts), self._prompts_at_once):
            batch = prompts[start : start + self._prompts_at_once]
            width = max(map(len, batch))
            # Padded on the right without a mask: a causal model's real tokens never see what stands to their right.
            ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in batch], device=self.device)
            ends = self._index([(row, len(prompt) - 1) for row, prompt in enumerate(batch)])
            found += self.policy.prior_weights(self.policy.hidden(ids)[ends], batch).tolist()
        return found

    def _answers(self, prompts: list[list[int]], weights: list[list[float] | None], longest: int) -> list[list[int]]:
        """New tokens of each prompt. Afterwards the policy has no weights: vLLM wants the GPU's memory."""
        config, dtype = self.policy.backbone.generation_config, self.policy.backbone.dtype
        ends = [config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id
        requests = [
            self._vllm.SamplingParams(
                temperature=0,
                max_tokens=longest,
                stop_token_ids=ends,
                repetition_penalty=config.repetition_penalty or 1.0,
                detokenize=False,
                extra_args=None if row is None else {"lpc_weights": row},
            )
            for row in weights
        ]
        with _served(self.policy, self._folder) as arguments:
            self.policy.to("meta")
            gc.collect()
            torch.cuda.empty_cache()
            engine = self._vllm.LLM(
                **arguments,
                trust_remote_code=self._trust,
                dtype=str(dtype).removeprefix("torch."),
                seed=0,
                # Room for the longest prompt and answer, not for the whole context of the model.
                max_model_len=max(map(len, prompts)) + longest,
                generation_config="vllm",  # none of the checkpoint's: requests carry what counts of it
            )
            outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], requests)
        return [list(output.outputs[0].token_ids) for output in outputs]


@contextmanager
def _served(policy: LatentPolicy, folder: Path) -> Iterator[dict]:
    """Arguments of `vllm.LLM` for a checkpoint, and for the biases of its codes, which a logits processor reads.

    vLLM imports and asks the processor in this process.
    """
    if policy.latent is None:
        yield {"model": str(folder)}
        return
    with tempfile.TemporaryDirectory() as parent:
        model, codes = Path(parent) / "model", Path(parent) / "codes"
        model.mkdir()
        for file in folder.iterdir():
            # vLLM reads all safetensors of a folder, and stops at tensors that the architecture does not have.
            if file.name not in (LATENT_CONFIG, LATENT_WEIGHTS):
                (model / file.name).symlink_to(file.resolve())
        write_table(policy, codes)
        sys.path.insert(0, str(codes))
        importlib.invalidate_caches()
        try:
            yield {"model": str(model), "logits_processors": [importlib.import_module("lpc_vllm").CodeBias]}
        finally:
            sys.path.remove(str(codes))
            for name in ("lpc_vllm", "lpc_codes"):
                sys.modules.pop(name, None)
