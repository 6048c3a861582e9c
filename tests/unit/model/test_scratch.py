import hashlib
import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lpc.cli import UserError
from lpc.data import world
from lpc.data.formats.ultrafeedback import scored_row
from lpc.data.tokens import encode_completions, encode_prompts
from lpc.model import scratch

SETTINGS = {
    "vocabulary": 400,
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "seed": 0,
    "max_length": 96,
    "max_prompt_length": 64,
}


@pytest.fixture(scope="module")
def rows():
    return [scored_row(row, "-") for row in world.generate(100, completions=4, score_noise=0.5, seed=0)]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch") / "model"
    return folder, scratch.train(rows, folder, **SETTINGS)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(rows, trained, tmp_path):
    first = digests(trained[0])
    torch.manual_seed(99)  # the state that a caller left behind must not matter
    scratch.train(rows, tmp_path / "again", **SETTINGS)
    assert digests(tmp_path / "again") == first
    scratch.train(rows, tmp_path / "other", **{**SETTINGS, "seed": 1})
    assert digests(tmp_path / "other")["model.safetensors"] != first["model.safetensors"]


def test_it_learns_and_loads_in_plain_transformers(rows, trained):
    folder, summary = trained
    assert summary["steps"] == 50
    assert summary["first_loss"] == pytest.approx(torch.log(torch.tensor(400.0)).item(), abs=0.5)
    assert summary["last_loss"] < 0.6 * summary["first_loss"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert summary["parameters"] == model.num_parameters()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (ids,) = encode_prompts(tokenizer, [rows[0]["messages"]])
    ids += encode_completions(tokenizer, [rows[0]["messages"]], [rows[0]["completions"][0]["response"]])[0]
    batch = torch.tensor([ids])
    with torch.no_grad():
        assert model(input_ids=batch, labels=batch).loss < 0.75 * summary["first_loss"]


def test_special_tokens_are_distinct_and_single(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    assert len(tokenizer) == 400
    names = [scratch.BOS, scratch.EOS, scratch.PAD, *scratch.ROLES]
    ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(names)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (scratch.BOS, scratch.EOS, scratch.PAD)
    assert AutoModelForCausalLM.from_pretrained(trained[0]).config.eos_token_id == tokenizer.eos_token_id


def test_the_chat_template(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|begin|><|user|>hi<|end|><|assistant|>yes<|end|>"
    )
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == (
        "<|begin|><|user|>hi<|end|><|assistant|>"
    )
    # One BOS, from the template for a chat and from the tokenizer for plain text.
    (ids,) = encode_prompts(tokenizer, [messages[:1]])
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer("plain")["input_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("text", ["plain", " two  spaces ", "çé 漢字 🙂\n\ttab", "zero\x00byte"])
def test_any_text_survives_the_tokenizer(trained, text):
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_long_texts_keep_the_end_of_the_prompt_and_the_start_of_the_completion(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    words = " ".join(str(i) for i in range(300))
    row = {"messages": [{"role": "user", "content": words}], "completions": [{"response": words}, {"response": "no"}]}
    long, short = scratch.encode(tokenizer, [row], max_length=96, max_prompt_length=64)
    assert len(long) == 96
    assert long[:64] == short[:64]
    assert tokenizer.decode(long[64:]).startswith("0 1 2 3")
    assert long[0] == tokenizer.bos_token_id
    assert tokenizer.decode(long[1:64]).endswith("298 299<|end|><|assistant|>")
    assert short[-1] == tokenizer.eos_token_id


def test_batches_cover_every_text_once_an_epoch_and_hold_like_lengths():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 200, (1003,), generator=generator).tolist()
    draw = scratch.batches(lengths, 10, torch.Generator().manual_seed(1))
    for _ in range(2):
        epoch = list(itertools.islice(draw, 101))
        assert sorted(i for batch in epoch for i in batch) == list(range(1003))
        padding = sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in epoch)
        assert padding < 0.1 * sum(lengths)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocabulary": 200}, "scratch.vocabulary: 200 is too small"),
        ({"hidden_size": 30, "heads": 4}, "scratch.hidden_size: 30 must be a multiple"),
        ({"learning_rate": 1e30}, "diverged.*lower scratch.learning_rate"),
    ],
)
def test_settings_that_cannot_work_stop(rows, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        scratch.train(rows, tmp_path / "model", **{**SETTINGS, **changes})
    assert not (tmp_path / "model").exists()
