"""Logits processors of vLLM, against fake engines: vLLM itself cannot be installed where the tests run."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import fake_vllm
import numpy as np
import pytest
import torch
from fake_vllm import SLOTS, Batch
from safetensors.torch import load_file
from test_export_model import KINDS, policy_of, prompts

from lpc.cli import UserError
from lpc.export.write import write_table

CODES = 4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an exported table, importable beside a package `vllm`."""
    fake_vllm.install(monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path / "table"))
    for name in ("lpc_codes", "lpc_vllm", "lpc_vllm_v2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path / "table"
    for name in ("lpc_codes", "lpc_vllm", "lpc_vllm_v2"):
        sys.modules.pop(name, None)


def load(name: str) -> ModuleType:
    """Import a file of the folder, which was not there yet when Python last looked."""
    importlib.invalidate_caches()
    return importlib.import_module(name)


class Request(fake_vllm.Request):
    def __init__(self, policy, prompt: list[int], extra: dict, length: int):
        params = SimpleNamespace(extra_args=extra, max_tokens=length, stop_token_ids=[], repetition_penalty=1.0)
        super().__init__(policy.backbone, prompt, params)
        self.policy, self.length = policy, length

    def expected(self) -> list[int]:
        extra, ids = self.params.extra_args, torch.tensor([self.ids])
        latent = self.policy.latent
        weights = torch.tensor(extra.get("lpc_weights", [float(k == extra.get("lpc_code")) for k in range(CODES)]))
        z, output = weights @ latent.codebook, []
        for _ in range(self.length):
            with torch.no_grad():
                hidden = self.policy.hidden(torch.cat([ids, torch.tensor([output], dtype=torch.long)], 1))[0, -1]
                output.append(int(self.policy.head(hidden + z).argmax()))
        return output


def requests(policy, count: int, rng) -> list[Request]:
    ids, mask = prompts()
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    extras = [{"lpc_code": int(rng.integers(CODES))} for _ in range(count)]
    extras[1::3] = [{"lpc_weights": rng.dirichlet(np.ones(CODES)).tolist()} for _ in extras[1::3]]
    return [Request(policy, rows[i % 3], extra, int(rng.integers(2, 6))) for i, extra in enumerate(extras)]


def test_each_request_has_its_code_while_the_batch_changes(folder):
    policy, rng = policy_of(KINDS["mode"]), np.random.default_rng(0)
    write_table(policy, folder)
    module = load("lpc_vllm")
    assert issubclass(module.CodeBias, sys.modules[fake_vllm.V1].LogitsProcessor)
    processor = module.CodeBias(SimpleNamespace(), torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    everyone = requests(policy, 16, rng)
    waiting, batch = list(everyone), Batch([processor], rng)
    for _ in range(40):
        batch.step(waiting)
    assert not waiting and not batch.slots
    assert [request.output for request in everyone] == [request.expected() for request in everyone]
    assert processor.requests == {}


def test_model_runner_v2(folder):
    """Slots are kept for a request's life and used again; rows of logits come in any order, several a request."""
    policy, rng = policy_of(KINDS["mode"]), np.random.default_rng(1)
    write_table(policy, folder)
    module = load("lpc_vllm_v2")
    processor = module.CodeBias(SimpleNamespace(), SimpleNamespace(device=torch.device("cpu"), max_num_reqs=SLOTS))
    everyone, slots = requests(policy, 12, rng), {}
    waiting = list(everyone)
    while waiting or slots:
        slots = {slot: request for slot, request in slots.items() if not request.finished}
        for slot in set(range(SLOTS)) - slots.keys():
            if waiting:
                slots[slot] = waiting.pop(0)
                assert processor.add_request(slot, slots[slot].params)
        rows = rng.permutation(list(slots)).tolist() + list(slots)[:1]
        if not rows:
            break
        context = SimpleNamespace(expanded_idx_mapping=torch.tensor(rows))
        logits = processor.apply(torch.stack([slots[slot].logits() for slot in rows]), context)
        assert torch.equal(logits[-1], logits[rows.index(rows[-1])])
        for slot, row in list(zip(rows, logits, strict=True))[:-1]:
            slots[slot].output.append(int(row.argmax()))
    assert [request.output for request in everyone] == [request.expected() for request in everyone]


@pytest.mark.parametrize("name", ["lpc_vllm", "lpc_vllm_v2"])
def test_requests_are_refused_before_they_are_served(folder, name):
    write_table(policy_of(KINDS["mode"]), folder)
    processor = load(name).CodeBias

    def validate(extra):
        processor.validate_params(SimpleNamespace(extra_args=extra))

    validate({"lpc_code": 0, "other": 1})
    validate({"lpc_weights": [0.25] * CODES})
    for extra in (None, {}, {"lpc_code": 1, "lpc_weights": [0.25] * CODES}):
        with pytest.raises(ValueError, match="one of lpc_code and lpc_weights"):
            validate(extra)
    for code in (-1, CODES, "1", 1.0):
        with pytest.raises(ValueError, match="must be a whole number from 0 to 3"):
            validate({"lpc_code": code})
    with pytest.raises(ValueError, match="has 3 numbers; it must have one for each of the 4 codes"):
        validate({"lpc_weights": [1.0, 0.0, 0.0]})


def test_another_models_logits_are_refused(folder):
    write_table(policy_of(KINDS["mode"]), folder)
    processor = load("lpc_vllm").CodeBias(None, torch.device("cpu"), False)
    with pytest.raises(ValueError, match="of a vocabulary of 384, but the served model has 385"):
        processor.apply(torch.zeros(1, 385))


@pytest.mark.parametrize("name", ["mean", "shared"])
def test_the_file_holds_biases_and_the_prior(folder, name):
    policy = policy_of(KINDS[name], "granite", logits_scaling=4.0)
    write_table(policy, folder)
    tensors = load_file(folder / "codes.safetensors")
    table = policy.latent.codebook.double() @ policy.head.weight.double().t() / 4
    torch.testing.assert_close(tensors.pop("table").double(), table, atol=1e-5, rtol=1e-5)
    h = torch.randn(3, 32)
    if name == "shared":
        numbers = tensors["prior.constant"]
    else:
        t = {key.removeprefix("prior."): tensor for key, tensor in tensors.items()}
        hidden = torch.nn.functional.gelu((h - t["mean"]) / t["std"] @ t["hidden_weight"].t() + t["hidden_bias"])
        numbers = hidden @ t["output_weight"].t() + t["output_bias"]
    torch.testing.assert_close(numbers.expand(3, -1), policy.latent.prior_logits(h), atol=1e-4, rtol=1e-4)
    rule = json.loads((folder / "codes.json").read_text())
    assert rule == {"rule": "mean" if name == "mean" else "sample", "seed": 0, "temperature": 1.0}


def test_latents_that_a_table_cannot_hold(folder):
    with pytest.raises(UserError, match=r"latent\.kind mlp: it has no codes"):
        write_table(policy_of(KINDS["mlp"]), folder)
    with pytest.raises(UserError, match="gemma2: its logits are capped"):
        write_table(policy_of(KINDS["mode"], "gemma2", final_logit_softcapping=5.0), folder)
    assert not folder.exists()
