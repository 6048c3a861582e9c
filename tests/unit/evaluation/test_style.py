"""Whose manner completions have: the classifier, completions under a code, and the step."""

import pyarrow as pa
import pytest
import torch
from tiny import make_backbone, make_tokenizer

from lpc import cli, latents
from lpc.cli import UserError
from lpc.data.tokens import encode_prompts
from lpc.evaluation.completions import answer
from lpc.evaluation.style import completions_of_code, first_tokens, fit_classifier, shares
from lpc.files import canonical, read_json, write_json, write_parquet
from lpc.model.policy import LatentPolicy
from lpc.steps import style as step

LATENT = {"kind": "exact", "codes": 3, "code_scale": 2.0, "prior": "shared"}


def policy_of() -> LatentPolicy:
    return LatentPolicy(make_backbone(), latents.build(latents.parse(LATENT), 32, 0)).eval()


def test_batches_say_what_single_prompts_do():
    policy, tokenizer = policy_of(), make_tokenizer()
    messages = [[{"role": "user", "content": text}] for text in ("good", "a bad one", "good bad good")]
    prompts = encode_prompts(tokenizer, messages)
    for code in range(3):
        found = list(completions_of_code(policy, tokenizer, prompts, code, batch_size=2, max_new_tokens=6))
        assert found == [
            answer(policy, tokenizer, ids, code=code, max_new_tokens=6, do_sample=False) for ids in prompts
        ]


def test_sources_that_differ_in_a_sign_are_told_apart():
    texts = [f"word{i} and more{'!' if i % 2 else '.'}" for i in range(60)]
    classifier = fit_classifier(texts, ["warm" if i % 2 else "cold" for i in range(60)])
    assert shares(classifier, ["some other text!", "and yet another!", "no."]) == pytest.approx(
        {"warm": 2 / 3, "cold": 1 / 3}
    )
    with pytest.raises(UserError, match="all training pairs are of source cold; two or more"):
        fit_classifier(texts, ["cold"] * 60)


def test_real_completions_are_cut_as_generated_ones_are():
    tokenizer = make_tokenizer()
    (text,) = first_tokens(tokenizer, ["good bad good bad good bad"], 2)
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 2 and "good".startswith(text)


def test_step(tmp_path):
    """Code 1 is forced to write "q" without end, which is what the source `kind` writes."""
    policy, tokenizer = policy_of(), make_tokenizer()
    (letter,) = tokenizer("q", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        policy.latent.codebook[1] = 50 * policy.head.weight[letter]
    tokenizer.save_pretrained(tmp_path / "model")
    policy.save_pretrained(tmp_path / "model")
    record = {"path": "unused", "chat_template": None, "chat_template_kwargs": {}, "trust_remote_code": False}
    write_json(tmp_path / "base.json", record)
    rows = []
    for i in range(40):
        source, text = ("kind", "qqqqqqqq") if i % 2 else ("mean", "bad bad bad bad")
        rows.append(
            {
                "pair_id": f"{i}", "prompt_id": f"p{i}", "split": "test" if i > 29 else "train", "source": source,
                "group": source, "messages": [{"role": "user", "content": f"good bad {'good ' * (i % 5)}"}],
                "chosen": f"{text} {'a' * (i // 2)}", "rejected": "bad good",
            }
        )  # fmt: skip
    write_parquet(tmp_path / "pairs.parquet", pa.Table.from_pylist(rows))
    of = [(0, "kind", 0.4), (0, "mean", 0.6), (1, "kind", 0.9), (1, "mean", 0.2)]
    write_json(tmp_path / "person.json", {"codes": [{"code": c, "source": s, "accuracy": a} for c, s, a in of]})
    spec = {"tokens": {"max_length": 64, "max_prompt_length": 32}, "precision": "float32", "prompts": 5}
    spec |= {"max_new_tokens": 4, "batch_size": 3, "seed": 0}
    words = [
        word
        for name in ("model", "base", "pairs", "person", "output")
        for word in (f"--{name}", str(tmp_path / {"model": "model", "output": "style.json"}.get(name, f"{name}.json")))
    ]
    words[words.index("--pairs") + 1] = str(tmp_path / "pairs.parquet")
    step.main(cli.parse(step.parser(), ["--spec", canonical(spec), *words]))
    found = read_json(tmp_path / "style.json")
    assert found["prompts"] == 5 and found["real_accuracy"] > 0.9
    assert [(code["code"], code["source"]) for code in found["codes"]] == [(0, "mean"), (1, "kind")]
    assert found["codes"][1]["own"] == found["codes"][1]["shares"]["kind"] == 1.0
