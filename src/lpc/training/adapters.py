"""Low-rank adapters of a policy's backbone (LoRA, arXiv 2106.09685), by peft.

Beneath them may be layers of `lpc.model.quantization.hold_in_4_bits` (QLoRA).
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

from lpc.cli import UserError
from lpc.config.models import Lora
from lpc.extras import import_extra
from lpc.model.policy import LatentPolicy
from lpc.model.quantization import is_held, whole_weight


def load_peft() -> ModuleType:
    """Import peft. Raises UserError where it is not installed."""
    return import_extra("peft", extra="lora", needed_by="training.lora")


def add_adapters(policy: LatentPolicy, lora: Lora, seed: int) -> Callable[[], object]:
    """Freeze the backbone, add adapters that change nothing yet, and return the function that merges them.

    A merged backbone has its former modules and names, and whole weights where they were held in 4 bits. `seed` draws
    the adapters' weights. Raises UserError where peft is missing, the base has too few layers, no module has one of the
    names, or one has that the latent or the saved weights could not follow.
    """
    peft, backbone, targets = load_peft(), policy.backbone, lora.target_modules
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        # By name: peft's own `layers_to_transform` does not go with "all-linear".
        exclude_modules=lora.last_layers and _modules_before(backbone, lora.last_layers),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            tuner = peft.LoraModel(backbone, config, "default")
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"training.lora.target_modules: {targets} cannot be adapted ({reason})") from None
    for module in (policy.head, backbone.get_input_embeddings()):
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            raise UserError(
                f"training.lora.target_modules: {targets} names the head or the embeddings, which have no adapters; "
                "name layers between them"
            )
    return lambda: _merge(backbone, tuner)


def _modules_before(backbone: nn.Module, last_layers: int) -> list[str]:
    """Return the names of the modules of all decoder layers but the last `last_layers`."""
    count = backbone.config.get_text_config().num_hidden_layers
    if last_layers > count:
        raise UserError(f"training.lora.last_layers: {last_layers}, but the base has {count} layers; lower it")
    modules = dict(backbone.named_modules())
    name = next(name for name, part in modules.items() if isinstance(part, nn.ModuleList) and len(part) == count)
    first = tuple(f"{name}.{number}." for number in range(count - last_layers))
    return [module for module in modules if module.startswith(first)]


@torch.no_grad()
def _merge(backbone: nn.Module, tuner: nn.Module) -> None:
    """Make plain linear layers of all layers in 4 bits, then merge the adapters. peft alone would round the sums."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(backbone.named_modules()):
        adapted = isinstance(layer, LoraLayer)
        held = layer.get_base_layer() if adapted else layer
        if is_held(held) and not name.endswith(".base_layer"):  # the layer around that one was replaced
            weight = whole_weight(held).float()
            if adapted:
                weight += layer.get_delta_weight("default").float()
            plain = nn.Linear(held.in_features, held.out_features, held.bias is not None, device="meta")
            plain.weight, plain.bias = nn.Parameter(weight), held.bias
            backbone.set_submodule(name, plain)
    tuner.merge_and_unload()
