"""Folders that other programs load: a model with its latent, a model with one code, biases for a server."""

import importlib.util
import shutil
import sys
import uuid
from pathlib import Path
from types import ModuleType

import safetensors.torch
import torch
from accelerate import init_empty_weights
from torch import nn

from lpc import files
from lpc.cli import UserError
from lpc.latents.base import Exported
from lpc.model import noise
from lpc.model.policy import LatentPolicy

FILES = Path(__file__).parent / "files"
ARCHITECTURE = '''"""The architecture that the latent is added to."""

from transformers import {config} as BackboneConfig
from transformers import {model} as Backbone

__all__ = ["Backbone", "BackboneConfig"]
'''
HEAD_BIAS = "lm_head_bias"
"""Key of the architectures whose head may have a bias (Phi-3.5-MoE, Zaya)."""


def write_model(policy: LatentPolicy, folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads with its latent.

    Raises UserError where the architecture's code is not transformers' own, or the latent cannot be exported.
    """
    exported, backbone = policy.latent.exported(), policy.backbone
    kind, config = type(backbone), backbone.config
    if not kind.__module__.startswith("transformers."):
        raise UserError(f"{config.model_type}: its code is not transformers' own; only such architectures are exported")
    folder.mkdir()
    for file in (FILES / "modeling_lpc.py", FILES / "latent.py", Path(noise.__file__)):
        shutil.copy(file, folder)
    text = ARCHITECTURE.format(config=type(config).__name__, model=kind.__name__)
    (folder / "architecture.py").write_text(text, encoding="utf-8")
    module = _import(folder)
    shapes = {name: list(tensor.shape) for name, tensor in exported.tensors.items()}
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    settings["lpc"] = {**_rule(exported), "shapes": shapes}
    settings["auto_map"] = {
        "AutoConfig": "modeling_lpc.LatentConfig",
        "AutoModelForCausalLM": "modeling_lpc.LatentForCausalLM",
    }
    with init_empty_weights(include_buffers=False):
        model = module.LatentForCausalLM(module.LatentConfig.from_dict(settings))
    state = backbone.state_dict() | {f"latent.{name}": tensor for name, tensor in exported.tensors.items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = backbone.generation_config
    model.config.dtype = backbone.dtype
    model.save_pretrained(folder)


def write_code(policy: LatentPolicy, code: int, folder: Path) -> None:
    """Write an ordinary checkpoint whose head adds W·code as its bias.

    Raises UserError where the architecture's head has no bias, or there is no such code.
    """
    backbone, head = policy.backbone, policy.head
    if policy.latent.reads_hidden:
        kind = policy.latent.settings.kind
        raise UserError(f"latent.kind {kind}: what it adds depends on the token, so no bias of the head can hold it")
    try:
        z = policy.latent.force(code, 1)
    except ValueError as error:
        raise UserError(f"--code: {error}") from None
    if head.bias is None and not hasattr(backbone.config, HEAD_BIAS):
        raise UserError(
            f"{backbone.config.model_type}: its head has no bias, so an ordinary checkpoint cannot hold a code; "
            "use --form latent and `generate(code=...)`, or --form vllm"
        )
    with torch.no_grad():
        bias = policy.z_logits(z)[0]
        if head.bias is None:
            setattr(backbone.config, HEAD_BIAS, True)
        else:
            bias = bias + head.bias.float()
        head.bias = nn.Parameter(bias.to(head.weight.dtype))
    backbone.save_pretrained(folder)


def table_obstacle(policy: LatentPolicy) -> str | None:
    """Return why no table can hold the biases of a latent policy; None where one can.

    The obstacles are a latent without codes, one that reads hidden states, and capped logits, to which z does not add a
    bias.
    """
    if not policy.latent.has_codes or policy.latent.reads_hidden:
        why = "what it adds depends on the token" if policy.latent.has_codes else "it has no codes"
        return f"latent.kind {policy.latent.settings.kind}: {why}, so no table can hold its z"
    if policy.softcap is not None:
        return f"{policy.config.model_type}: its logits are capped after z is added, so z does not add a bias to them"
    return None


def write_table(policy: LatentPolicy, folder: Path) -> None:
    """Write the biases of the codes [K, V] and the prior's network as safetensors, and logits processors of vLLM.

    Raises UserError where there is a `table_obstacle`.
    """
    if why := table_obstacle(policy):
        raise UserError(f"{why}; use --form latent")
    exported = policy.latent.exported()
    with torch.no_grad():
        table = policy.z_logits(exported.tensors.pop("codebook")) * policy.scale
    folder.mkdir()
    # Named from here, so that `lpc.modules` counts them: an edit reruns a rule that generates with them.
    for name in ("files/lpc_codes.py", "files/lpc_vllm.py", "files/lpc_vllm_v2.py"):
        shutil.copy(FILES.parent / name, folder)
    prior = {f"prior.{name}": tensor.detach().contiguous() for name, tensor in exported.tensors.items()}
    safetensors.torch.save_file({"table": table.contiguous(), **prior}, folder / "codes.safetensors")
    files.write_json(folder / "codes.json", _rule(exported))


def _rule(exported: Exported) -> dict:
    return {"rule": exported.rule, "temperature": exported.temperature, "seed": exported.seed}


def _import(folder: Path) -> ModuleType:
    """Import modeling_lpc.py of a folder, with the modules beside it."""
    name = f"lpc_exported_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "modeling_lpc.py", submodule_search_locations=[str(folder)]
    )
    # Its relative imports find their package there; so does transformers, which reads a class's source.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)  # absent where Python writes no bytecode
    return module
