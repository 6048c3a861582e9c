"""Answers by vLLM are those by transformers: against a fake engine, since vLLM cannot be installed where tests run."""

import json
import sys

import fake_vllm
import pytest
import torch
from steps import run_step
from tiny import make_backbone, make_tokenizer, random_text

from lpc import latents
from lpc.cli import UserError
from lpc.evaluation import alpacaeval
from lpc.evaluation.harness import LatentLM
from lpc.evaluation.vllm_engine import ENVIRONMENT, EngineLM
from lpc.model.policy import LatentPolicy
from lpc.modules import modules_of

LONGEST = 12
END = 5  # <|end|>, which the tokenizer's chat template writes
KINDS = {
    "plain": None,
    "exact, mode": {"kind": "exact", "codes": 4, "logit_scale": 20.0, "inference": "mode"},
    "exact, sample": {"kind": "exact", "codes": 4, "inference": "sample", "inference_seed": 3},
    "exact, mixture": {"kind": "exact", "codes": 4},
    "lpc, mode": {"kind": "lpc", "codes": 4, "logit_scale": 20.0, "inference": "mode"},
    "lpc, sample": {"kind": "lpc", "codes": 4, "inference": "sample"},
    "lpc, mean": {"kind": "lpc", "codes": 4, "logit_scale": 20.0},
    "lpc, gumbel": {"kind": "lpc", "codes": 4, "inference": "gumbel"},
}


@pytest.fixture
def vllm(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "of the test")  # so that what the engine sets ends with the test
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def save(tmp_path):
    """A function that saves a run whose z changes what it writes, and whose answers often end early."""

    def make(latent: dict | None, backbone: str = "llama", generation: dict | None = None, **options):
        model = make_backbone(backbone, **options)
        with torch.no_grad():
            model.get_output_embeddings().weight[END] *= 2.5
        model.generation_config.update(**generation or {})
        policy = LatentPolicy(model)
        if latent is not None:
            policy.latent = latents.build(latents.parse(latent), 32, seed=1)
            with torch.no_grad():
                for name in policy.latent.linear:
                    policy.latent.get_parameter(name).mul_(75)
        policy.save_pretrained(tmp_path / "model")
        make_tokenizer().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


@pytest.fixture(scope="module")
def instructions():
    """More than the batch has room for, and one that is longer than the context."""
    import numpy as np

    texts = [random_text(np.random.default_rng(i), 1, 9) for i in range(11)] + ["the lazy dog " * 120]
    return [{"instruction": text, "dataset": "test"} for text in texts]


def answers(lm, instructions):
    return alpacaeval.answer(lm, instructions, generator="run", max_new_tokens=LONGEST)


def generated(policy, ids: list[int]) -> list[int]:
    """Tokens after one prompt by transformers."""
    tokens = policy.generate(torch.tensor([ids]), max_new_tokens=LONGEST, do_sample=False, pad_token_id=0)
    return tokens[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_those_of_transformers(vllm, save, instructions, name):
    folder = save(KINDS[name])
    lm = LatentLM(folder, batch_size=3, device="cpu")
    expected = answers(lm, instructions)
    assert answers(EngineLM(folder, batch_size=5, device="cpu"), instructions) == expected
    (engine,) = vllm.engines
    assert [request.output for request in engine.requests] == [generated(lm.policy, r.ids) for r in engine.requests]
    lengths = [len(request.output) for request in engine.requests]
    assert min(lengths) < LONGEST == max(lengths), "some answers end by themselves, and some at the limit"
    if KINDS[name] is None:
        assert engine.processors == [] and engine.requests[0].params.extra_args is None
    else:
        plain = LatentPolicy(lm.policy.backbone)
        assert [generated(plain, r.ids) for r in engine.requests] != [r.output for r in engine.requests]
        assert len({tuple(r.params.extra_args["lpc_weights"]) for r in engine.requests}) > 1


def test_settings_of_the_checkpoint_and_of_the_base(vllm, save, instructions):
    folder = save(KINDS["exact, mode"], generation={"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.6})
    lm = LatentLM(folder, device="cpu")
    without = save(KINDS["exact, mode"])
    assert answers(lm, instructions) != answers(LatentLM(without, device="cpu"), instructions)
    save(KINDS["exact, mode"], generation={"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.6})
    engine = EngineLM(folder, device="cpu", dtype="bfloat16", trust_remote_code=True)
    answers(engine, instructions)
    (made,) = vllm.engines
    assert made.backbone.dtype == torch.bfloat16 and made.trust_remote_code and made.seed == 0
    assert {request.params.repetition_penalty for request in made.requests} == {1.5}
    assert {tuple(request.params.stop_token_ids) for request in made.requests} == {(2, END)}
    assert made.max_model_len == 256, "room for the cut prompt and its answer"
    assert all(parameter.is_meta for parameter in engine.policy.parameters()), "the GPU is vLLM's"
    vllm.engines.clear()
    assert answers(EngineLM(folder, device="cpu"), instructions) == answers(lm, instructions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent": {"kind": "mlp", "codes": 4}}, r"^latent\.kind mlp: it has no codes, .*"),
        ({"latent": {"kind": "gaussian"}}, r"^latent\.kind gaussian: it has no codes, .*"),
        (
            {"latent": KINDS["lpc, mode"], "backbone": "gemma2", "final_logit_softcapping": 5.0},
            r"^gemma2: its logits are capped .*",
        ),
        (
            {"latent": None, "generation": {"no_repeat_ngram_size": 3, "min_new_tokens": 2}},
            r"generation_config\.json: sets min_new_tokens, no_repeat_ngram_size, which is not passed on .*",
        ),
    ],
)
def test_what_vllm_cannot_serve_is_refused_before_it_starts(vllm, save, arguments, message):
    folder = save(**arguments)
    with pytest.raises(UserError, match=message + r" set evaluation\.alpacaeval\.engine to transformers$"):
        EngineLM(folder, device="cpu")
    assert vllm.engines == []


def test_a_plain_run_of_capped_logits_is_served(vllm, save, instructions):
    folder = save(None, "gemma2", final_logit_softcapping=5.0)
    assert answers(EngineLM(folder, device="cpu"), instructions[:4]) == answers(
        LatentLM(folder, device="cpu"), instructions[:4]
    )


def test_it_neither_samples_nor_scores(vllm, save):
    lm = EngineLM(save(None), device="cpu")
    ids = torch.tensor([[1, 7]])
    for options in ({"do_sample": True}, {"temperature": 0.5}, {"num_beams": 2}):
        with pytest.raises(NotImplementedError, match="greedy texts alone"):
            lm._model_generate(ids, 8, [], attention_mask=torch.ones_like(ids), **options)
    with pytest.raises(ValueError, match="arg 3 must not be zero"):
        lm._loglikelihood_tokens([(None, [1], [7])])


def run(folder, output, engine: str, **spec):
    base = {"path": str(folder), "dtype": "float32", "trust_remote_code": False}
    base |= {"chat_template": None, "chat_template_kwargs": {}}
    (folder.parent / "base.json").write_text(json.dumps(base))
    (folder.parent / "i.json").write_text(json.dumps([{"instruction": "the quick", "dataset": "test"}]))
    run_step(
        "alpacaeval_generate",
        {"name": "tiny", "max_new_tokens": LONGEST, "engine": engine, **spec},
        *("--base", folder.parent / "base.json", "--model", folder),
        *("--instructions", folder.parent / "i.json", "--output", output),
    )
    return json.loads(output.read_text())


def test_the_step_generates_with_the_configured_engine(vllm, save, tmp_path):
    folder, inference = save(KINDS["exact, mode"]), {"inference": "sample", "inference_seed": 5}
    expected = run(folder, tmp_path / "transformers.json", "transformers", inference=inference)
    assert vllm.engines == []
    assert run(folder, tmp_path / "vllm.json", "vllm", inference=inference) == expected
    ((request,),) = [engine.requests for engine in vllm.engines]
    lm = LatentLM(folder, device="cpu", inference=inference)
    assert request.output == generated(lm.policy, request.ids)


def test_an_edit_of_the_logits_processor_generates_again():
    names = {path.name for path in modules_of("lpc.steps.alpacaeval_generate")}
    assert {"vllm_engine.py", "lpc_codes.py", "lpc_vllm.py"} <= names


def test_without_vllm_the_error_names_the_cure(save, monkeypatch, tmp_path):
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "of the test")
    monkeypatch.setitem(sys.modules, "vllm", None)
    message = r"^evaluation\.alpacaeval\.engine: vllm cannot be imported \(.*\); install it as docs/howto/vllm\.md says"
    with pytest.raises(UserError, match=message):
        run(save(None), tmp_path / "o.json", "vllm")
    assert not (tmp_path / "o.json").exists()
