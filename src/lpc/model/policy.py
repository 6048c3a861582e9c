"""A decoder-only model of transformers with a latent that is added to its last hidden state (equation 10)."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lpc import latents
from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_context
from lpc.latents.base import Latent, LatentStep
from lpc.latents.parts.draws import prompt_uniform
from lpc.latents.parts.heads import head_shift
from lpc.latents.parts.mixture import infer_code
from lpc.model import packing
from lpc.model.attention import LAYOUTS
from lpc.model.code_logps import code_logps
from lpc.model.logps import greedy_logps, product_dtype, token_logps

log = logging.getLogger("lpc")

LATENT_CONFIG = "latent.json"
LATENT_WEIGHTS = "latent.safetensors"


@dataclass
class Encoded:
    """Hidden states of a batch of B pairs that later steps need; N is the number of completion tokens.

    tokens [N, d]: at the position before each completion token; token_rows [N]: whose token it is, 0..B−1 for the
    chosen completions, B..2B−1 for the rejected; token_columns [N]: its number in the completion; labels [N]. h_x,
    h_chosen, h_rejected [B, d]. length: tokens of the longest completion.
    """

    tokens: Tensor
    token_rows: Tensor
    token_columns: Tensor
    labels: Tensor
    h_x: Tensor
    h_chosen: Tensor
    h_rejected: Tensor
    length: int


class LatentPolicy(nn.Module):
    """`backbone` (a causal LM of transformers) and `latent` (see `lpc.latents`), or None for a plain run.

    z enters after the backbone, so a training step needs one pass of it, and the saved backbone is an ordinary
    checkpoint that transformers loads without this package.
    """

    def __init__(
        self, backbone: PreTrainedModel, latent: Latent | None = None, *, logit_covariance: Tensor | None = None
    ):
        """`logit_covariance`: what the method of that name returns, where the backbone has no weights yet."""
        super().__init__()
        self.backbone, self.latent, self._logit_covariance = backbone, latent, logit_covariance
        text_config = backbone.config.get_text_config()
        self.softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self.scale = float(getattr(text_config, "logit_scale", None) or 1.0)  # Cohere
        self.scale /= float(getattr(text_config, "logits_scaling", None) or 1.0)  # Granite
        self.obstacle = packing.obstacle(backbone)
        """Why pairs are not packed; None where they are."""
        self.attention = "loop"
        """How attention over packed pairs is computed: a key of `lpc.model.attention.LAYOUTS`."""
        self.windows = {None, getattr(text_config, "sliding_window", None)}

    # ---- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        dtype: torch.dtype | str = torch.float32,
        trust_remote_code: bool = False,
        device_map=None,
        inference: dict | None = None,
    ) -> "LatentPolicy":
        """Load a run's `model/`, or any checkpoint of transformers (then `latent` is None).

        `inference`: settings of the latent with that role, such as {"inference": "sample", "inference_seed": 1}, in
        place of those that it was trained with. They change no weight.
        """
        from lpc.model.backbone import load_backbone  # which checks a backbone by policies

        backbone = load_backbone(folder, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device_map)
        policy = cls(backbone)
        why = f"padded, two sequences each, since {policy.obstacle}" if policy.obstacle else "packed"
        log.info("%s: pairs are %s", backbone.config.model_type, why)
        config = Path(folder) / LATENT_CONFIG
        if config.exists():
            settings = json.loads(config.read_text(encoding="utf-8"))
            try:
                settings = latents.parse(settings | (inference or {}))
            except UserError as error:
                raise UserError(f"{config}: {error}; train again, or use the settings of this latent") from None
            policy.latent = latents.build(settings, policy.head.weight.shape[1], seed=0)
            try:
                safetensors.torch.load_model(policy.latent, Path(folder) / LATENT_WEIGHTS)
            except (OSError, RuntimeError, safetensors.SafetensorError) as error:
                raise UserError(
                    f"{folder}/{LATENT_WEIGHTS}: does not fit {LATENT_CONFIG} ({error}); train again"
                ) from None
            policy.latent.to(policy.head.weight.device)
        return policy

    def trained_parameters(self) -> dict[str, Tensor]:
        """Return the trained parameters by name, tied ones once: adapters and latent alone where there are adapters."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def load_trained_parameters(self, file: str | os.PathLike) -> None:
        """Take them from a file of safetensors. Raises UserError where it is of others."""
        own, weights = self.trained_parameters(), safetensors.torch.load_file(file)
        if others := sorted(own.keys() ^ weights.keys()):
            raise UserError(f"{file}: not of the parameters that are trained, {others[0]} first; delete its folder")
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def save_pretrained(self, folder: str | os.PathLike, state_dict: dict | None = None) -> None:
        """Write the backbone as transformers does, and beside it latent.json and latent.safetensors.

        `state_dict`: this module's full weights where they are sharded over devices; else its own are taken.
        """
        state = self.state_dict() if state_dict is None else state_dict
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}  # noqa: E731
        once, often = (dict(self.backbone.named_parameters(remove_duplicate=again)) for again in (True, False))
        backbone = {name: value for name, value in part("backbone.").items() if name not in often.keys() - once.keys()}
        dtype = next(value.dtype for value in backbone.values() if value.is_floating_point())
        self.backbone.save_pretrained(folder, state_dict=backbone)
        # transformers writes the type of the model in memory, which need not be that of `state_dict`.
        self.backbone.config.dtype = dtype
        self.backbone.config.save_pretrained(folder)
        if self.latent is not None:
            text = json.dumps(self.latent.settings.model_dump(), indent=2, sort_keys=True) + "\n"
            (Path(folder) / LATENT_CONFIG).write_text(text, encoding="utf-8")
            tensors = {k: v.detach().cpu().contiguous() for k, v in part("latent.").items()}
            safetensors.torch.save_file(tensors, Path(folder) / LATENT_WEIGHTS)

    # ---- pieces

    @property
    def config(self):
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def head(self) -> nn.Linear:
        return self.backbone.get_output_embeddings()

    @torch.no_grad()
    def logit_covariance(self) -> Tensor:
        """Return the covariance [d, d], float32, of the rows of the head over the vocabulary, times the square of the
        scale.

        v · C v is the variance over the vocabulary of the logits that v adds: less what all tokens share, which the
        softmax drops. Caps of logits are left out, since they bend large logits alone.
        """
        if self._logit_covariance is not None:
            return self._logit_covariance
        weight = self.head.weight
        mean = weight.float().mean(0)
        products = weight.new_zeros(len(mean), len(mean), dtype=torch.float32)
        for rows in weight.split(8192):
            rows = rows.float() - mean
            products.addmm_(rows.t(), rows)
        return products * (self.scale**2 / len(weight))

    @torch.no_grad()
    def logit_unit(self) -> float:
        """Return the root mean square of a coordinate of z at which a random z adds logits of variance 1 over the
        vocabulary."""
        return self.logit_covariance().trace().rsqrt().item()

    @property
    def decoder(self) -> PreTrainedModel:
        """The backbone without its head."""
        base = self.backbone.base_model
        return self.backbone.model if base is self.backbone else base  # the name that Llama 4 gives is wrong

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the last hidden states [B, T, d], after the final norm, as the LM head sees them.

        Right-padded batches need no mask: a causal model's real tokens never see what stands to their right.
        """
        outputs = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return outputs.last_hidden_state

    def _head_input(self, hidden: Tensor, z: Tensor | None) -> Tensor:
        if z is None:
            return hidden
        return hidden + (z if self.latent is None else self.latent.shift(z, hidden)).to(hidden.dtype)

    @torch.no_grad()
    def z_logits(self, z: Tensor) -> Tensor:
        """Return W·z [..., V] of z [..., d], float32 or wider, before any scale or cap of the logits."""
        weight = self.head.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(z.device.type, enabled=False):
            # In pieces: in float32 the whole of W may be large.
            return torch.cat([z.to(dtype) @ part.to(dtype).t() for part in weight.split(8192)], -1)

    def token_logps(self, hidden: Tensor, labels: Tensor, z: Tensor | None = None) -> Tensor:
        """Return log π(label) [N] of hidden states [N, d] before each label, given z [N, d] or none. Differentiable."""
        head = self.head
        return token_logps(
            self._head_input(hidden, z), head.weight, labels, head.bias, softcap=self.softcap, scale=self.scale
        )

    @torch.no_grad()
    def greedy_logps(
        self, hidden: Tensor, labels: Tensor, z: Tensor | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `token_logps` without gradient, and [N] bool: whether the label is the most likely token.

        z [B, d], and rows [N], which of them each token has. Where the head's products are in less than float32, h + z
        would be rounded to their type, and most of a small z lost. There W·z is computed in float32, once for each z,
        and added to the logits.
        """
        head, added = self.head, None
        if z is not None and product_dtype(head.weight).itemsize < 4:
            if self.latent is not None and self.latent.reads_hidden:
                z, rows = self.latent.shift(z[rows], hidden), torch.arange(len(hidden), device=hidden.device)
            added = self.z_logits(z), rows
        elif z is not None:
            hidden = self._head_input(hidden, z[rows])
        options = {"softcap": self.softcap, "scale": self.scale, "added": added}
        return greedy_logps(hidden, head.weight, labels, head.bias, **options)

    def prior_z(self, h_x: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor | None:
        """Return z [B, d] from the prior at the end of the prompt, h_x [B, d]; None for a plain model.

        `prompts`: their token ids, which a latent that samples draws by: one prompt has the same z wherever it is
        asked for (see `lpc.latents.parts.draws`).
        """
        if self.latent is None:
            return None
        with torch.autocast(h_x.device.type, enabled=False):
            return self.latent.infer(h_x, self._uniform(h_x, prompts))

    def prior_weights(self, h_x: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return the weights [B, K] of the codes in `prior_z`, whose arguments these are. The latent must have
        codes."""
        with torch.autocast(h_x.device.type, enabled=False):
            return self.latent.inferred_weights(h_x, self._uniform(h_x, prompts))

    def _uniform(self, h_x: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor | None:
        if not self.latent.draw_size:
            return None
        return prompt_uniform(self.latent.settings.inference_seed, prompts, self.latent.draw_size, h_x.device)

    # ---- pairs

    def encode(
        self,
        input_ids: Tensor,
        positions: Tensor,
        lengths: list[tuple[int, int, int]],
        prompt_ends: Tensor,
        ends: Tensor,
        states: Tensor,
        token_rows: Tensor,
        token_columns: Tensor,
        labels: Tensor,
    ) -> Encoded:
        """Pass B pairs in a row through the backbone once (see `lpc.data.tokens.collate`)."""
        if self.obstacle:
            hidden = packing.padded(self.hidden, input_ids, lengths)
        else:
            hidden = self.decoder(
                input_ids=input_ids,
                position_ids=positions,
                attention_mask=packing.no_mask(input_ids.device),
                use_cache=False,
                layout=LAYOUTS[self.attention](lengths, input_ids.device, self.windows),
            ).last_hidden_state[0]
        h_chosen, h_rejected = hidden[ends].chunk(2)
        return Encoded(
            tokens=hidden[states],
            token_rows=token_rows,
            token_columns=token_columns,
            labels=labels,
            h_x=hidden[prompt_ends],
            h_chosen=h_chosen,
            h_rejected=h_rejected,
            length=max(max(chosen, rejected) for _, chosen, rejected in lengths),
        )

    def pair_logps(self, encoded: Encoded, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return sums over completion tokens of log π(y | x, z), (chosen [B], rejected [B]), given z [B, d] or none."""
        if z is None:
            return _completion_sums(encoded, self.token_logps(encoded.tokens, encoded.labels))
        rows = encoded.token_rows % len(encoded.h_x)
        if torch.is_grad_enabled():
            logps = self.token_logps(encoded.tokens, encoded.labels, z[rows])
        else:
            logps, _ = self.greedy_logps(encoded.tokens, encoded.labels, z, rows)
        return _completion_sums(encoded, logps)

    def code_pair_logps(self, encoded: Encoded, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of `pair_logps` under each of the codes, (chosen [B, K], rejected [B, K]).

        Codes [K, d] take one pass of the head. Those of `lpc.latents.heads`, [K, 1 + 2 rank, d], take one each.
        """
        head, options = self.head, {"softcap": self.softcap, "scale": self.scale}
        if codes.dim() == 2:
            logps = code_logps(encoded.tokens, head.weight, encoded.labels, codes, head.bias, **options)
        else:
            shifts = (head_shift(code, encoded.tokens).to(encoded.tokens.dtype) for code in codes)
            of_heads = [
                token_logps(encoded.tokens + shift, head.weight, encoded.labels, head.bias, **options)
                for shift in shifts
            ]
            logps = torch.stack(of_heads, -1)
        return _completion_sums(encoded, logps)

    def score_codes(self, encoded: Encoded, batch: dict[str, Tensor], objective) -> dict[str, Tensor]:
        """Return log p(k|x), and losses and rewards of pairs under each code: float64 [B, K] each.

        The names are `log_prior`, `losses`, `chosen_rewards` and `rejected_rewards`. objective, an
        `lpc.objectives.Objective`, and batch: as for its `evaluate`. The latent must have codes.
        """
        with torch.autocast(encoded.h_x.device.type, enabled=False):
            log_prior = self.latent.prior_logits(encoded.h_x).double().log_softmax(-1)
        values = objective.evaluate(*self.code_pair_logps(encoded, self.latent.all_codes()), batch)
        names = ("losses", "chosen_rewards", "rejected_rewards")
        return {"log_prior": log_prior} | {name: value.double() for name, value in zip(names, values, strict=True)}

    @torch.no_grad()
    def infer_code(
        self,
        context: Sequence[dict],
        tokenizer: PreTrainedTokenizerBase,
        objective,
        prompts: Sequence[Sequence[int]],
        *,
        reference: "LatentPolicy | None" = None,
        **lengths: int,
    ) -> Tensor:
        """Return p(k | x, context) [N, K], float64 on the CPU, of N prompts of one person, by Bayes' rule.

        context: labelled pairs of the person (see `tokenize_context`); with none the result is the prior. objective:
        that of training, whose loss weighs the codes. prompts: token ids. reference: the base model that this policy
        was trained from, for objectives that compare with it. z = 0 of this policy cannot replace it, since training
        moved the backbone. lengths: `max_length` and `max_prompt_length` of training, to which pairs are cut.

        Raises UserError where the latent has no codes, the reference is missing, or no pair can be used.
        """
        if self.latent is None or not self.latent.has_codes:
            raise UserError("context: this policy's latent has no codes, so a person has none; load another run")
        if objective.needs_reference and reference is None:
            raise UserError(
                f"reference: objective {objective.name} compares with the base model of the training; load it as well"
            )
        tokens, scores = tokenize_context(context, tokenizer, **lengths), []
        for i in range(len(tokens)):
            batch = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in collate([tokens[i]]).items()}
            inputs = {name: batch[name] for name in MODEL_INPUTS}
            if objective.needs_reference:
                of_base = {k: v.to(reference.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
                logps = reference.pair_logps(reference.encode(**of_base), None)
                for side, value in zip(("chosen", "rejected"), logps, strict=True):
                    batch[f"reference_{side}_logps"] = value.to(self.device)
            scores.append(self.score_codes(self.encode(**inputs), batch, objective))
        own = [self.hidden(torch.tensor([list(map(int, ids))], device=self.device))[:, -1] for ids in prompts]
        log_prior = self.latent.prior_logits(torch.cat(own)).double().log_softmax(-1)
        none = [log_prior[:0]]
        known = (torch.cat([score[name] for score in scores] or none) for name in ("log_prior", "losses"))
        return infer_code(log_prior, *known).exp().cpu()

    def forward(
        self, *, progress: float, noise: Tensor | None = None, use_latent: bool = True, **batch
    ) -> tuple[Tensor, Tensor, LatentStep | None, Encoded]:
        """Run a training step's forward pass: (chosen_logps [B], rejected_logps [B], latent step or None, hidden
        states).

        With a latent that is `marginal`, log-probabilities are those under each code, [B, K]. `use_latent` False leaves
        the latent out. Everything happens in this one call because data-parallel wrappers only see calls of the root
        module.
        """
        encoded = self.encode(**batch)
        if self.latent is None or not use_latent:
            return *self.pair_logps(encoded, None), None, encoded
        with torch.autocast(encoded.h_x.device.type, enabled=False):
            step = self.latent(encoded.h_x, encoded.h_chosen, encoded.h_rejected, progress=progress, noise=noise)
        if self.latent.marginal:
            return *self.code_pair_logps(encoded, step.codes), step, encoded
        return *self.pair_logps(encoded, step.z), step, encoded

    # ---- generation

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, code: int | None = None, **options):
        """Call `backbone.generate` with z from the prior at the end of each prompt, kept for all later tokens.

        Prompts [B, T] are left-padded. `code` forces one code in place of the prior. Other `options` are those of
        transformers' `generate`; those that would feed the model anything but the whole prompt first are refused.
        """
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("generate needs left padding: the last column of attention_mask must be 1 in every row")
        if self.latent is None:
            if code is not None:
                raise ValueError("code: this policy has no latent to force a code of")
            return self.backbone.generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size", "past_key_values"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name}: not supported with a latent, whose z needs the whole prompt in the first pass"
                )
        masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, masks, strict=True)]
        z = added = None

        def add_z(module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
            nonlocal z, added
            hidden = inputs[0]
            if z is None:
                # First pass: the last position is the end of the prompt. Beams and samples of one prompt are rows of
                # their own by now, one after the other. All have the z of their prompt, so reordering beams later never
                # moves z to another one.
                copies = len(hidden) // len(prompts)
                rows = [prompt for prompt in prompts for _ in range(copies)]
                z = self.prior_z(hidden[:, -1], rows) if code is None else self.latent.force(code, len(hidden))
                z = z[:, None]
            if added is None or self.latent.reads_hidden:
                added = self.z_logits(self.latent.shift(z, hidden))
            return logits + added  # in float32: a head in bfloat16 would round h + z to the grid of h

        handle = self.head.register_forward_hook(add_z)
        try:
            return self.backbone.generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        finally:
            handle.remove()


def _completion_sums(encoded: Encoded, logps: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over completions, (chosen [B, …], rejected [B, …]), of log-probabilities of their tokens [N, …]."""
    pairs = len(encoded.h_x)
    # Into a padded matrix, then a sum of each row: index_add would sum in any order on a GPU, and no run would repeat.
    padded = logps.new_zeros(2 * pairs, encoded.length, *logps.shape[1:])
    padded = padded.index_put((encoded.token_rows, encoded.token_columns), logps)
    sums = padded.sum(1)
    return sums[:pairs], sums[pairs:]
