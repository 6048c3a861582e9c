"""The table of docs/planning.md, and its formulas against the real model, loss and optimizer on fake tensors."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from lpc import latents
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.model import attention
from lpc.model.logps import CHUNK_LOGITS
from lpc.model.policy import LatentPolicy
from lpc.objectives import parse
from lpc.training.optimizers import make_optimizer

spec = importlib.util.spec_from_file_location("planning", Path(__file__).parents[2] / "benchmarks/planning.py")
planning = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planning)

PAIRS, PROMPT, COMPLETION = 2, 96, 64
SHAPE = planning.Shape("one layer of Llama-3-8B", 1, 4096, 14336, 32, 8)


def test_the_table_is_that_of_the_formulas():
    text = planning.DOCS.read_text(encoding="utf-8")
    assert planning.with_table(text) == text, "run python benchmarks/planning.py"
    assert planning.table() in text and planning.one_card() in text
    assert planning.CHUNK == CHUNK_LOGITS


def test_parameters_are_those_of_the_published_models():
    found = {shape.name: shape.parameters for shape in planning.SHAPES}
    assert found == {"Llama-3.2-1B": 1_235_814_400, "Llama-3-8B": 8_030_261_248, "Llama-3-70B": 70_553_706_496}


def size(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step_on_fake_tensors(layers: int, checkpointing: bool) -> dict[str, int]:
    """Bytes of one training step in bfloat16 autocast: what stays, what the forward pass saves, and of it the weights'
    copies in bfloat16."""
    ids = {part: np.arange(n, dtype=np.int32) for part, n in (("prompt", PROMPT), ("chosen", COMPLETION))}
    item = ids | {"rejected": ids["chosen"], "reference": np.zeros(2, np.float32)}
    batch = collate([{"index": index} | item for index in range(PAIRS)])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        config = LlamaConfig(
            **{"vocab_size": SHAPE.vocabulary, "hidden_size": SHAPE.hidden, "num_hidden_layers": layers},
            **{"intermediate_size": SHAPE.intermediate, "num_attention_heads": SHAPE.heads},
            num_key_value_heads=SHAPE.key_value_heads,
        )
        latent = latents.build(latents.parse({"kind": "lpc", "codes": 64}), SHAPE.hidden, 0)
        policy = LatentPolicy(LlamaForCausalLM._from_config(config, dtype=torch.float32), latent).train()
        if checkpointing:
            policy.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        batch = {name: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        weights = {p.untyped_storage()._cdata for p in policy.parameters()}
        copied = {tuple(p.shape) for p in policy.backbone.parameters() if p.dim() == 2}
        kept, copies = {}, 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal copies
            storage = tensor.untyped_storage()
            if storage._cdata not in weights and storage._cdata not in kept:
                kept[storage._cdata] = storage
                shapes = {tuple(tensor.shape), tuple(tensor.shape)[::-1]}
                copies += storage.nbytes() if shapes & copied and tensor.dtype == torch.bfloat16 else 0
            return tensor

        noise = torch.rand(PAIRS, 2, latent.noise_size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16):
                chosen, rejected, step, _ = policy(
                    progress=0.1, noise=noise, **{name: batch[name] for name in MODEL_INPUTS}
                )
            losses, _, _ = parse({"name": "dpo", "beta": 0.1}).evaluate(chosen, rejected, batch)
            loss = (losses + latent.cost(step, 0.1)).sum()
        saved = sum(storage.nbytes() for storage in kept.values())
        loss.backward()
        optimizer = torch.optim.AdamW(policy.parameters())
        optimizer.step()
        moments = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
        parameters = list(policy.parameters())
        found = {"weights": size(*parameters), "gradients": size(*(p.grad for p in parameters))}
        return found | {"optimizer": size(*moments), "saved": saved - copies, "copies": copies}


@pytest.mark.parametrize("layers,checkpointing", [(1, False), (2, True)])
def test_formulas_give_the_bytes_of_a_step(layers, checkpointing, monkeypatch):
    """What stays is exact, and activations are within 2 %: they leave out the rotary embedding and the latent."""
    monkeypatch.setattr(attention, "sdpa", attention.sdpa_in_own_type)  # as on a GPU; a CPU's saves more
    found = step_on_fake_tensors(layers, checkpointing)
    shape = planning.Shape("", layers, *(getattr(SHAPE, name) for name in ("hidden", "intermediate", "heads")), 8)
    for name, expected in planning.states(shape.parameters + shape.latent()).items():
        assert found[name] == expected, name
    prompts, completions = PAIRS * PROMPT, 2 * PAIRS * COMPLETION
    expected = planning.saved(shape, prompts, completions)
    if not checkpointing:
        expected += planning.layer_activations(shape, prompts, completions, repeated=False)
        assert found["copies"] == 2 * (shape.layer - 2 * shape.hidden)
    assert math.isclose(found["saved"], expected, rel_tol=0.02), found["saved"] / expected


@pytest.mark.parametrize("name", planning.OPTIMIZERS)
def test_optimizers_have_the_bytes_of_their_formulas(name):
    """A real step of a small model. Moments in 8 bits come with a table of 1 KiB each, and norms have none."""
    if "8bit" in name:
        pytest.importorskip("torchao", reason="torchao is not installed: pip install -e '.[optimizers]'")
    shape = planning.Shape("", 2, 256, 512, 4, 2, vocabulary=512, head=64)
    config = LlamaConfig(
        **{"vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers},
        **{"intermediate_size": shape.intermediate, "num_attention_heads": shape.heads, "num_key_value_heads": 2},
    )
    policy = LatentPolicy(LlamaForCausalLM._from_config(config, dtype=torch.float32))
    weights = list(policy.parameters())
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    optimizer = make_optimizer(name, policy, [{"params": weights}], torch.optim.AdamW, options)
    with torch.autocast("cpu", torch.bfloat16):
        logits = policy.backbone(torch.arange(8)[None]).logits
    logits.logsumexp(-1).sum().backward()
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step
        optimizer.step()

    def nested(tensor: torch.Tensor) -> int:
        parts = getattr(tensor, "tensor_attrs", None)
        return sum(nested(getattr(tensor, part)) for part in parts) if parts else size(tensor)

    moments = [t for state in optimizer.state.values() for key, t in state.items() if key not in ("step", "ties")]
    found = {"weights": size(*weights), "gradients": size(*(weight.grad for weight in weights))}
    found["optimizer"] = sum(map(nested, moments))
    expected = planning.states(shape.parameters - shape.linear, shape.linear, name)
    extra = 0
    if "8bit" in name:
        norms = (2 * shape.layers + 1) * shape.hidden
        extra = round(norms * (8 - planning.EIGHT_BITS)) + 2 * 1024 * (7 * shape.layers + 2)
    assert found == expected | {"optimizer": expected["optimizer"] + extra}
