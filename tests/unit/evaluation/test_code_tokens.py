"""Tokens of codes: which are raised and lowered, by logits that are computed from whole tensors here."""

import pytest
import torch
from tiny import make_backbone, make_tokenizer

from lpc import latents
from lpc.evaluation.code_tokens import code_tokens, text_of
from lpc.model.policy import LatentPolicy


def policy_of(settings, **options):
    latent = latents.build(latents.parse(settings), 32, seed=1) if settings else None
    return LatentPolicy(make_backbone(**options), latent).eval()


@pytest.mark.parametrize(("kind", "options"), [("llama", {}), ("granite", {"logits_scaling": 4.0})])
def test_logits_are_against_the_mean_code_and_the_mean_token(kind, options):
    """The vocabulary of the model is larger than the tokenizer's, whose last token is the last that may be listed."""
    tokenizer = make_tokenizer()
    policy = policy_of({"codes": 4}, kind=kind, vocabulary=len(tokenizer) + 16, **options)
    with torch.no_grad():
        policy.head.weight[len(tokenizer) :] += 100
        policy.latent.codebook += 5 * torch.randn(32)  # what all codes share
        logits = policy.latent.codebook @ policy.head.weight[: len(tokenizer)].T / options.get("logits_scaling", 1.0)
    logits = logits - logits.mean(0) - (logits - logits.mean(0)).mean(1, keepdim=True)
    found = code_tokens(policy, tokenizer, count=3)
    assert [entry["code"] for entry in found] == [0, 1, 2, 3]
    for entry, row in zip(found, logits, strict=True):
        order = row.argsort(descending=True).tolist()
        for end, wanted in (("raised", order[:3]), ("lowered", order[:-4:-1])):
            assert [token["token"] for token in entry[end]] == [text_of(tokenizer, index) for index in wanted]
            assert [token["logit"] for token in entry[end]] == pytest.approx(row[wanted].tolist(), rel=1e-3)


def test_texts_of_tokens():
    tokenizer = make_tokenizer()
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" quick", "\n", "é")}
    assert [len(of) for of in ids.values()] == [1, 1, 2]
    assert text_of(tokenizer, ids[" quick"][0]) == " quick" and text_of(tokenizer, ids["\n"][0]) == "\n"
    assert text_of(tokenizer, ids["é"][0]) == "Ã", "half of a character has the tokenizer's name"
    assert text_of(tokenizer, tokenizer.eos_token_id) == "</s>"


@pytest.mark.parametrize("settings", [None, {"kind": "mlp"}])
def test_a_run_without_codes_has_none(settings):
    with pytest.raises(ValueError, match="without codes"):
        code_tokens(policy_of(settings), make_tokenizer())
