"""A decoder-only model of transformers with a latent that is added to its last hidden state (equation 10)."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lpc import latents
from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_context
from lpc.latents.base import Latent, LatentStep
from lpc.latents.parts.draws import prompt_uniform
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
        return hidden if z is None else hidden + z.to(hidden.dtype)

    @torch.no_grad()
    def z_logits(self, z: Tensor) -> Tensor:
        """Return W·z [B, V] of z [B, d], float32 or wider, before any scale or cap of the logits."""
        weight = self.head.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(z.device.type, enabled=False):
            # In pieces: in float32 the whole of W may be large.
            return torch.cat([z.to(dtype) @ part.to(dtype).t() for part in weight.split(8192)], 1)

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
        """Return the sums of `pair_logps` under each of the codes [K, d], (chosen [B, K], rejected [B, K]), by one pass
        of the head."""
        head = self.head
        logps = code_logps(
            encoded.tokens, head.weight, encoded.labels, codes, head.bias, softcap=self.softcap, scale=self.scale
        )
        return _completion_sums(encoded, logps)

    def score_codes(self, encoded: Encoded, batch: dict[str, Tensor], objective) -> dict[str, Tensor]:
        """Return log p(k|x), and losses and rewards of pairs under each code: float64 [B, K] each.

        The names are `log_prior`, `losses`, `chosen_rewards` and `rejected_rewards`. objective, an
        `lpc.objectives.Objective`, and batch: as for its `evaluate`. The latent must have codes.
        """
        with torch.autocast(encoded.h_x.device.type, enabled=False):
            log_prior = self.latent.prior_logits(encoded.h_x).double().log_softmax(-1)
        values = objective.evaluate(*self.code_pair_logps(encoded, self.latent.codebook), batch)
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
        added = None

        def add_z(module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
            nonlocal added
            hidden = inputs[0]
            if added is None:
                # First pass: the last position is the end of the prompt. Beams and samples of one prompt are rows of
                # their own by now, one after the other. All have the z of their prompt, so reordering beams later never
                # moves z to another one.
                copies = len(hidden) // len(prompts)
                rows = [prompt for prompt in prompts for _ in range(copies)]
                z = self.prior_z(hidden[:, -1], rows) if code is None else self.latent.force(code, len(hidden))
                added = self.z_logits(z)[:, None]
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


def load_backbone(
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype | str = torch.float32,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
    device_map=None,
) -> PreTrainedModel:
    """Load a causal LM from a checkpoint folder; refuse it by name where its logits are not those of a plain linear
    head."""
    folder = Path(folder)
    config = _config(folder, trust_remote_code)
    try:
        backbone, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
            local_files_only=True,
            use_safetensors=True,
            **LOADING_INFO,
        )
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder}: cannot be loaded as a causal language model ({reason})") from None
    check_loading(folder, loading)
    _disable_dropout_layers(backbone)
    check_architecture(backbone)
    return backbone


def load_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """Load a checkpoint's configuration.

    Raises UserError by name where the model reads images or sound, unless transformers loads its text model alone.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    text = config.get_text_config()
    if text is config and not any(name.startswith(("vision", "audio")) for name in config.sub_configs):
        return config
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if causal and causal.config_class is type(text) is not type(config) and causal._keys_to_ignore_on_load_unexpected:
        return config  # Qwen 3.5, whose class of the text model leaves the others' weights out
    name = (config.architectures or [type(config).__name__])[0]
    raise UserError(
        f"{folder}: {name} ({config.model_type}) reads more than text, and only models of text alone can be trained; "
        "use a text-only checkpoint as this base's `model`"
    )


def empty_backbone(folder: str | os.PathLike, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model of `load_backbone` in float32 with its parameters on the meta device, where they take no memory.

    Buffers have their values, but those that the checkpoint stores.
    """
    config = _config(Path(folder), trust_remote_code)
    with init_empty_weights(include_buffers=False):
        backbone = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    backbone.tie_weights()  # the way to the meta device makes two of one
    _disable_dropout_layers(backbone)
    return backbone.eval()


def stored_dtype(folder: str | os.PathLike) -> torch.dtype:
    """Return the type of a checkpoint's weights as they are stored, or float32 where they have several.

    A run's latent does not count.
    """
    found = set()
    for file in set(Path(folder).glob("*.safetensors")) - {Path(folder) / LATENT_WEIGHTS}:
        with safetensors.safe_open(file, "pt") as weights:
            found.update(weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118
    return {("BF16",): torch.bfloat16, ("F16",): torch.float16}.get(tuple(found), torch.float32)


def _config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """Read a checkpoint's config.json, without dropout."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: not a checkpoint, since config.json is missing; use the folder of a transformers checkpoint"
        )
    try:
        config = load_config(folder, trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be loaded as a causal language model ({error})") from None
    disable_dropout(config)
    return config


def _disable_dropout_layers(backbone: PreTrainedModel) -> None:
    """Set the rate of dropout to 0 in layers whose class fixes it."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


LOADING_INFO = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Options of `from_pretrained` for what `check_loading` reads; mismatched sizes are for it to refuse."""


def check_loading(folder: Path, loading: dict) -> None:
    """Raise UserError unless a checkpoint's tensors are exactly the model's. `loading`: the info of transformers.

    transformers itself goes on: with random weights in place of missing ones, and without unexpected ones.
    """
    mismatched = [
        f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in loading["mismatched_keys"]
    ]
    for what, names in (
        ("missing", loading["missing_keys"]),
        ("of another shape", mismatched),
        ("unexpected", loading["unexpected_keys"]),
    ):
        if names := sorted(names):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{folder}: weights that are {what} for the architecture in config.json: {', '.join(names[:3])}{more}; "
                "use a checkpoint and a config.json that belong together"
            )


def disable_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout rate of an architecture to 0, since a policy with dropout differs from its reference.

    These are numbers whose name has `dropout`, or ends in `_pdrop` or `layerdrop`. TRL turns dropout off likewise.
    """
    for part in (config, config.get_text_config()):
        for name, value in list(vars(part).items()):
            if ("dropout" in name or name.endswith(("_pdrop", "layerdrop"))) and isinstance(value, float):
                setattr(part, name, 0.0)


@torch.no_grad()
def check_architecture(backbone: PreTrainedModel) -> None:
    """Stop unless this package's log-probabilities, of single sequences and of pairs, are the model's own, on a few
    tokens of its vocabulary.

    Catches, by measurement, every architecture that does what we do not know of to its logits or in its attention.
    If packed pairs fail this check and padded ones pass it, the policy pads pairs (see `packing.obstacle`).
    `backbone` as transformers loads it: its own attention is what ours is held against.
    """
    kind, device, attention = backbone.config.model_type, backbone.device, backbone.config._attn_implementation
    was_training = backbone.training
    backbone.eval()
    ids = torch.arange(1, 13, device=device)[None] % backbone.config.get_text_config().vocab_size
    prompt, chosen, rejected = ids.split([4, 5, 3], 1)
    sequences = [ids, torch.cat([prompt, chosen], 1), torch.cat([prompt, rejected], 1)]
    own = [backbone(input_ids=sequence, use_cache=False).logits[0, :-1] for sequence in sequences]
    expected = [
        logits.float().log_softmax(-1).gather(-1, sequence[0, 1:, None]).squeeze(-1)
        for logits, sequence in zip(own, sequences, strict=True)
    ]
    tolerance = 1e-3 if own[0].dtype == torch.float32 else 0.1

    completions = torch.cat([logps[prompt.shape[1] - 1 :] for logps in expected[1:]])
    # Two pairs, so that what comes before a pair is checked, too.
    item = {"index": 0} | {
        name: part[0].cpu().numpy() for name, part in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))
    }
    batch = collate([item, item])
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k in MODEL_INPUTS}

    def fault(policy: LatentPolicy) -> str | None:
        single = policy.token_logps(policy.hidden(ids)[0, :-1], ids[0, 1:])
        try:
            encoded = policy.encode(**batch)
        except packing.OwnMask:
            return "its attention has a mask of its own"
        logps = policy.token_logps(encoded.tokens, encoded.labels)
        pair = torch.cat([logps[encoded.token_rows == row] for row in (1, 3)])  # of the second pair
        for actual, wanted, what in (
            (single, expected[0], "its logits are not a linear head on the last hidden state of a causal model"),
            (pair, completions, "its attention cannot be told which tokens to see"),
        ):
            if not _close(actual, wanted, tolerance):
                return f"{what} (log-probabilities differ by {(actual - wanted).abs().max().item():.3g})"
        return None

    policy = LatentPolicy(backbone)
    if not isinstance(policy.head, nn.Linear):
        raise UserError(f"{kind}: its output layer must be a linear head, before which z is added; use another model")
    found = fault(policy)
    if found and not policy.obstacle:
        backbone.set_attn_implementation(attention)
        backbone.packing_obstacle = found
        found = fault(LatentPolicy(backbone))
    if not found and packing.obstacle(backbone):
        found = _generation_fault(backbone, prompt[0].tolist(), ids[0].tolist(), tolerance)
    if found:
        raise UserError(f"{kind}: {found}; this architecture is not supported")
    backbone.train(was_training)


def _close(actual: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return torch.allclose(actual.float(), wanted.float(), atol=tolerance, rtol=tolerance)


def _generation_fault(backbone: PreTrainedModel, short: list[int], long: list[int], tolerance: float) -> str | None:
    """Return how the log-probabilities of two generated tokens change where the shorter of two prompts is padded on the
    left; None where they do not."""
    width = len(long)
    ids = torch.tensor([[0] * (width - len(short)) + short, long], device=backbone.device)
    mask = (torch.arange(width)[None] >= width - torch.tensor([[len(short)], [width]])).long().to(backbone.device)
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    try:
        output = backbone.generate(input_ids=ids, attention_mask=mask, **options)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return f"transformers cannot generate with it ({' '.join(str(error).split())})"
    for row, prompt in enumerate((short, long)):
        sequence = torch.tensor([prompt + output.sequences[row, width:].tolist()], device=backbone.device)
        logits = backbone(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 : len(prompt) + 1]
        wanted = logits.float().log_softmax(-1)
        actual = torch.stack([logits[row] for logits in output.logits]).float().log_softmax(-1)
        if not _close(actual, wanted, tolerance):
            return (
                "generation from a prompt that is padded on the left differs from generation without padding "
                f"(log-probabilities by {(actual - wanted).abs().max().item():.3g})"
            )
    return None
