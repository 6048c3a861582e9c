"""Loading the backbone of a policy, a causal LM of transformers, and the check that a policy can be built on it."""

import os
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
)

from lpc.cli import UserError
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.model import packing
from lpc.model.policy import LATENT_WEIGHTS, LatentPolicy


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
