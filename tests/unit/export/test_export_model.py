"""Folders that transformers loads: with the latent, and with one code in the head's bias."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny import make_backbone, make_tokenizer

from lpc import cli, latents
from lpc.cli import UserError
from lpc.data.tokens import encode_prompts
from lpc.export import write
from lpc.latents.base import Latent
from lpc.model.policy import LatentPolicy
from lpc.steps import export

KINDS = {
    "mean": {"kind": "lpc", "codes": 4, "logit_scale": 20.0, "standardize": True},
    "mode": {"kind": "lpc", "codes": 4, "inference": "mode"},
    "sample": {"kind": "lpc", "codes": 4, "inference": "sample", "inference_seed": 3},
    "gumbel": {"kind": "lpc", "codes": 4, "inference": "gumbel", "temperature": 0.7, "temperature_end": 0.5},
    "straight": {"kind": "lpc", "codes": 4, "inference": "gumbel", "straight_through": True},
    "mixture": {"kind": "exact", "codes": 4},
    "shared": {"kind": "exact", "codes": 4, "prior": "shared"},
    "gaussian": {"kind": "gaussian"},
    "gaussian sample": {"kind": "gaussian", "inference": "sample"},
    "mlp": {"kind": "mlp", "codes": 4},
    "vector": {"kind": "vector"},
}


def policy_of(settings: dict, backbone: str = "llama", **options) -> LatentPolicy:
    """A policy whose z changes what it writes."""
    latent = latents.build(latents.parse(settings), 32, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in (*latent.named_parameters(), *latent.named_buffers()):
            if name in latent.linear or name == "scale":
                value.mul_(1.5 / settings.get("code_scale", 0.02))
            elif name == "shared_logits" or name.endswith("standardizer.mean"):
                value.normal_(generator=generator)
            elif name.endswith("standardizer.std"):
                value.uniform_(0.5, 2, generator=generator)
    return LatentPolicy(make_backbone(backbone, **options), latent).eval()


def prompts(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts and their mask."""
    texts = ["the quick brown fox", "cats sleep", "a dog and a fox jump over the lazy dog"][:count]
    rows = encode_prompts(make_tokenizer(), [[{"role": "user", "content": text}] for text in texts])
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, (torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])).long()


GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """A folder of its own for the code that transformers copies; one for all tests, since a package has one place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def exported(tmp_path):
    """A function that saves a policy as a run, exports it by the step, and returns the new folder."""

    def make(policy: LatentPolicy, form: str, *words: str) -> Path:
        policy.save_pretrained(tmp_path / "model")
        make_tokenizer().save_pretrained(tmp_path / "model")
        output = tmp_path / form
        arguments = ["--model", tmp_path / "model", "--form", form, "--output", output, *words]
        export.main(cli.parse(export.parser(), list(map(str, arguments))))
        return output

    return make


def load(folder: Path, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


@pytest.mark.parametrize("name", KINDS)
def test_transformers_writes_what_the_policy_writes(exported, name):
    policy, (ids, mask) = policy_of(KINDS[name]), prompts()
    model = load(exported(policy, "latent"))
    expected = policy.generate(ids, mask, **GREEDY)
    assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, **GREEDY), expected)
    plain = policy.backbone.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    assert not torch.equal(expected, plain), "z of this size changes the text"
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    assert torch.equal(model.generate(ids, attention_mask=mask, **beams), policy.generate(ids, mask, **beams))
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    h = torch.stack([policy.hidden(torch.tensor([row]))[0, -1] for row in rows])
    torch.testing.assert_close(model.prompt_z(ids, mask), policy.prior_z(h, rows), atol=1e-5, rtol=1e-5)
    if policy.latent.has_codes:
        weights = policy.prior_weights(h, rows)
        torch.testing.assert_close(model.code_weights(ids, mask), weights, atol=1e-5, rtol=1e-5)
        forced = policy.generate(ids, mask, code=2, **GREEDY)
        assert torch.equal(model.generate(ids, attention_mask=mask, code=2, **GREEDY), forced)
    else:
        with pytest.raises(ValueError, match=r"code 2: this latent has no codes"):
            model.generate(ids, attention_mask=mask, code=2, **GREEDY)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("granite", {"logits_scaling": 4.0}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("phi", {}),
    ],
)
def test_other_architectures(exported, backbone, options):
    policy, (ids, mask) = policy_of(KINDS["mean"], backbone, **options), prompts()
    model = load(exported(policy, "latent"))
    expected = policy.generate(ids, mask, **GREEDY)
    assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), expected)


def test_what_the_folder_holds(exported):
    """No import of this package, and no way to load it that drops z."""
    folder = exported(policy_of(KINDS["mean"]), "latent")
    modules = sorted(file.name for file in folder.rglob("*.py*"))
    assert modules == ["architecture.py", "latent.py", "modeling_lpc.py", "noise.py"]
    imported = set()
    for name in modules:
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "torch", "transformers"}
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer.chat_template == make_tokenizer().chat_template
    end = make_tokenizer().convert_tokens_to_ids("<|end|>")
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert end in stops, "generation ends where a turn ends"


def test_a_call_without_z_is_refused_and_one_with_z_is_exact(exported):
    policy, (ids, _) = policy_of(KINDS["mean"]), prompts(1)
    model = load(exported(policy, "latent"))
    with pytest.raises(RuntimeError, match="the latent needs the end of the prompt"):
        model(ids)
    z = model.prompt_z(ids[:, :5])
    with torch.no_grad(), model.with_z(z):
        logits = model(ids).logits
    with torch.no_grad():
        expected = policy.head(policy.hidden(ids) + z[:, None])
    torch.testing.assert_close(logits, expected)
    with pytest.raises(RuntimeError, match="the latent needs"):
        model(ids)
    model.resize_token_embeddings(400)
    with pytest.raises(RuntimeError, match="the latent needs"):
        model(ids)
    for name in ("past_key_values", "prefill_chunk_size"):
        with pytest.raises(ValueError, match=f"{name}: not supported with a latent"):
            model.generate(ids, **{name: 4}, **GREEDY)
    with pytest.raises(ValueError, match="left padding"):
        model.generate(ids, attention_mask=torch.zeros_like(ids), **GREEDY)


def test_types_of_the_weights_are_kept(exported):
    """The backbone's as stored, the latent's float32, so that z is that of the policy."""
    policy = policy_of(KINDS["mean"])
    policy.backbone.to(torch.bfloat16)
    model = load(exported(policy, "latent"))
    assert {value.dtype for value in model.model.parameters()} == {torch.bfloat16}
    low = load(model.name_or_path, dtype=torch.bfloat16)
    for loaded in (model, low):
        assert {value.dtype for value in loaded.latent.state_dict().values()} == {torch.float32}
        assert torch.equal(loaded.latent.codebook, policy.latent.codebook)
    ids, mask = prompts()
    expected = policy.generate(ids, mask, **GREEDY)
    assert torch.equal(low.generate(ids, attention_mask=mask, **GREEDY), expected)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [("phi", {}), ("phimoe", {"num_local_experts": 2, "num_experts_per_tok": 1})],
)
def test_one_code_as_a_bias_of_the_head(exported, backbone, options):
    policy, (ids, mask) = policy_of(KINDS["mode"], backbone, **options), prompts()
    if policy.head.bias is not None:
        torch.nn.init.normal_(policy.head.bias)
    folder = exported(policy, "code", "--code", "3")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = policy.head(policy.hidden(ids[2:]) + policy.latent.codebook[3])
        torch.testing.assert_close(model(ids[2:]).logits, logits, atol=1e-4, rtol=1e-4)
    expected = policy.generate(ids, mask, code=3, **GREEDY)
    assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, **GREEDY), expected)


def test_refusals(exported, tmp_path, monkeypatch):
    policy = policy_of(KINDS["mean"])
    with pytest.raises(UserError, match="llama: its head has no bias"):
        exported(policy, "code", "--code", "0")
    with pytest.raises(UserError, match="--code: code 4: this latent has codes 0 to 3"):
        exported(policy, "code", "--code", "4")
    with pytest.raises(UserError, match="--code: names the code"):
        exported(policy, "latent", "--code", "1")
    with pytest.raises(UserError, match="--code: names the code"):
        exported(policy, "code")
    monkeypatch.setattr(latents.kind("lpc"), "exported", Latent.exported)
    with pytest.raises(UserError, match=r"latent\.kind lpc: cannot be exported"):
        exported(policy, "latent")
    assert not (tmp_path / "latent").exists()
    (tmp_path / "latent").mkdir()
    with pytest.raises(UserError, match="exists; name a new folder"):
        exported(policy, "latent")


def test_a_plain_run_is_an_ordinary_checkpoint_already(exported):
    with pytest.raises(UserError, match="has no latent"):
        exported(LatentPolicy(make_backbone()), "latent")


def test_own_code_is_not_exported(tmp_path):
    policy = policy_of(KINDS["mean"])
    policy.backbone.__class__ = type("Own", (type(policy.backbone),), {"__module__": "transformers_modules.own"})
    with pytest.raises(UserError, match="its code is not transformers' own"):
        write.write_model(policy, tmp_path / "own")
