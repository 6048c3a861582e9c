"""A language model with a latent of Latent Preference Coding, for `AutoModelForCausalLM` with `trust_remote_code`.

z comes from the hidden state h at the end of the prompt. The logits of all later tokens are W(h + z), computed as
Wh + Wz with the second term in float32: in bfloat16 h + z would be rounded to the grid of h.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .architecture import Backbone, BackboneConfig
from .latent import Latent


class LatentConfig(BackboneConfig):
    # Not the architecture's own name: without this file transformers would load the model and drop z.
    model_type = f"lpc-{BackboneConfig.model_type}"


class LatentForCausalLM(Backbone):
    config_class = LatentConfig
    _keep_in_fp32_modules_strict = frozenset({"latent", *(Backbone._keep_in_fp32_modules_strict or ())})

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.latent = Latent(config.lpc)
        self._added: Callable[[Tensor], Tensor] | None = None
        self._hook_head()
        self.post_init()

    def _hook_head(self) -> None:
        self.get_output_embeddings().register_forward_hook(self._add_z)

    def set_output_embeddings(self, head: nn.Module) -> None:
        super().set_output_embeddings(head)
        self._hook_head()

    def _add_z(self, head: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
        if self._added is None:
            raise RuntimeError(
                "the latent needs the end of the prompt: use `generate`, or call the model within "
                "`with model.with_z(model.prompt_z(prompt_ids)):`"
            )
        return logits + self._added(inputs[0])[:, None]

    @contextlib.contextmanager
    def _adding(self, added: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Add to the logits of calls of the model what `added` returns of the head's inputs: [B, T, d] to [B, V]."""
        outer, self._added = self._added, added
        try:
            yield
        finally:
            self._added = outer

    def with_z(self, z: Tensor) -> contextlib.AbstractContextManager:
        """Return a context in which calls of the model add z [B, d] to the hidden states of all tokens."""
        logits = self._z_logits(z)
        return self._adding(lambda hidden: logits)

    @torch.no_grad()
    def _z_logits(self, z: Tensor) -> Tensor:
        return torch.cat([z.float() @ rows.float().t() for rows in self.get_output_embeddings().weight.split(8192)], 1)

    @torch.no_grad()
    def prompt_z(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return z [B, d] of left-padded prompts [B, T]."""
        return self.latent(*self._prompt_ends(input_ids, attention_mask))

    @torch.no_grad()
    def code_weights(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the weights [B, K] of the codes in z of left-padded prompts [B, T]. The latent must have codes."""
        return self.latent.weights(*self._prompt_ends(input_ids, attention_mask))

    def _prompt_ends(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, list[list[int]]]:
        kept = []

        def keep(hidden: Tensor) -> Tensor:
            kept.append(hidden[:, -1])
            return hidden.new_zeros(len(hidden), 1)

        inputs = self.prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, use_cache=False)
        if self._supports_logits_to_keep():
            inputs["logits_to_keep"] = 1
        with self._adding(keep):
            self(**inputs)
        return kept[0], _prompts(input_ids, attention_mask)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *args,
        attention_mask: Tensor | None = None,
        code: int | None = None,
        **options,
    ):
        """As of every model of transformers, on left-padded prompts. `code` forces one code in place of the prior."""
        input_ids = options.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None:
            raise ValueError("generate needs input_ids: z is of a prompt's tokens")
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("generate needs left padding: the last column of attention_mask must be 1 in every row")
        for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size", "past_key_values"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name}: not supported with a latent, whose z needs the whole prompt in the first pass"
                )
        prompts, found = _prompts(input_ids, attention_mask), []

        def added(hidden: Tensor) -> Tensor:
            if not found:
                # Beams and samples of one prompt are rows of their own, one after the other, and have the same z.
                copies = len(hidden) // len(prompts)
                rows = [prompt for prompt in prompts for _ in range(copies)]
                z = self.latent(hidden[:, -1], rows) if code is None else self.latent.force(code, len(hidden))
                found.append(self._z_logits(z))
            return found[0]

        with self._adding(added):
            return super().generate(input_ids, *args, attention_mask=attention_mask, **options)


def _prompts(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, masks, strict=True)]
