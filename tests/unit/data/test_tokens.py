"""Each trap of tokenising preference pairs, on real tokenizers."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import CHAT_TEMPLATE, make_pairs, make_tokenizer

from lpc.cli import UserError
from lpc.data.tokens import (
    collate,
    encode_completions,
    encode_prompts,
    load_tokenizer,
    tokenize_pairs,
)

PROMPT = [{"role": "user", "content": "the fox"}]


def table(*rows: tuple[str, str, str]) -> pa.Table:
    return pa.table(
        {
            "messages": [[{"role": "user", "content": prompt}] for prompt, _, _ in rows],
            "chosen": [chosen for _, chosen, _ in rows],
            "rejected": [rejected for _, _, rejected in rows],
        }
    )


def with_bos_processor(tokenizer):
    """Make the tokenizer itself put BOS before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("template_writes_bos", [True, False])
def test_exactly_one_bos(template_writes_bos):
    tokenizer = with_bos_processor(make_tokenizer())
    if template_writes_bos:
        tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    ids = encode_prompts(tokenizer, [PROMPT])[0]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_no_bos_where_the_tokenizer_uses_none():
    """A defined but unused BOS (as Qwen's) is not put in."""
    tokenizer = make_tokenizer()
    assert tokenizer.bos_token_id not in encode_prompts(tokenizer, [PROMPT])[0]


def test_exactly_one_eos_at_the_end():
    tokenizer = make_tokenizer()
    for text in ("the fox", "the fox</s>"):
        ids = encode_completions(tokenizer, [text])[0]
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1


def test_the_prompt_ends_where_the_assistant_begins():
    """The ids of a prompt are a prefix of nothing else: prompt + completion decode to the rendered dialogue."""
    tokenizer = make_tokenizer()
    prompt = encode_prompts(tokenizer, [PROMPT])[0]
    assert tokenizer.decode(prompt).endswith("<|assistant|>")
    text = tokenizer.decode(prompt + encode_completions(tokenizer, ["dog"])[0], skip_special_tokens=False)
    assert text.replace(" ", "") == "<|user|>thefox<|end|><|assistant|>dog</s>"


def test_a_merge_across_the_boundary_cannot_happen():
    """Both completions of a pair share the prompt's ids exactly, even where text would merge across the boundary."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokens = tokenize_pairs(table(("the qui", "ck", "x")), tokenizer, max_length=64, max_prompt_length=32)
    joined = tokenizer("the quick", add_special_tokens=False)["input_ids"]
    apart = [*tokens.prompts[0], *tokens.chosen[0][:-1]]
    assert joined != apart and tokens.prompts[0].tolist() == tokenizer("the qui", add_special_tokens=False)["input_ids"]


def test_prompts_are_cut_from_the_left_and_keep_bos():
    tokenizer = with_bos_processor(make_tokenizer())
    rows = table(("fox " * 50 + "dog", "a", "b"))
    full = encode_prompts(tokenizer, rows["messages"].to_pylist())[0]
    tokens = tokenize_pairs(rows, tokenizer, max_length=40, max_prompt_length=10)
    assert tokens.prompts[0].tolist() == [tokenizer.bos_token_id, *full[-9:]]


def test_completions_are_cut_from_the_right_alike_and_never_vanish():
    """Chosen and rejected get the same room; a cut completion has no EOS, since its end is not there."""
    tokenizer = make_tokenizer()
    rows = table(("fox " * 50, "dog " * 50, "cat " * 50))
    tokens = tokenize_pairs(rows, tokenizer, max_length=16, max_prompt_length=12)
    assert len(tokens.prompts[0]) == 12 and len(tokens.chosen[0]) == len(tokens.rejected[0]) == 4
    assert tokenizer.eos_token_id not in tokens.chosen[0].tolist() + tokens.rejected[0].tolist()
    with pytest.raises(UserError, match="no token of a completion would be left"):
        tokenize_pairs(rows, tokenizer, max_length=16, max_prompt_length=16)


def test_pairs_that_became_equal_are_dropped_and_counted():
    tokenizer = make_tokenizer()
    rows = table(("a", "fox " * 30 + "dog", "fox " * 30 + "cat"), ("a", "dog", "cat"), ("a", "same", "same"))
    tokens = tokenize_pairs(rows, tokenizer, max_length=20, max_prompt_length=10)
    assert tokens.rows.tolist() == [1] and tokens.dropped == 2 and len(tokens) == 1


def test_collate_points_at_the_right_tokens():
    """Positions, labels, states before them, and ends of a hand-made batch."""
    items = [
        {"index": 4, "prompt": np.array([11, 12]), "chosen": np.array([13, 14, 2]), "rejected": np.array([15, 2])},
        {"index": 9, "prompt": np.array([21]), "chosen": np.array([2]), "rejected": np.array([22, 23])},
    ]
    batch = collate(items)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14, 2, 15, 2, 21, 2, 22, 23]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 1, 2]]
    assert batch["lengths"] == [(2, 3, 2), (1, 1, 2)]
    assert batch["prompt_ends"].tolist() == [1, 7]
    assert batch["ends"].tolist() == [4, 8, 6, 10]
    assert batch["token_rows"].tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    assert batch["token_columns"].tolist() == [0, 1, 2, 0, 0, 1, 0, 1]
    assert batch["states"].tolist() == [1, 2, 3, 7, 1, 5, 7, 9]
    assert batch["labels"].tolist() == [13, 14, 2, 2, 15, 2, 22, 23]
    assert batch["chosen_tokens"].tolist() == [3, 1] and batch["rejected_tokens"].tolist() == [2, 2]
    assert batch["index"].tolist() == [4, 9] and batch["tokens"].tolist() == [7, 4]


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_pad_token_equal_to_eos_changes_nothing(pad):
    """EOS stays a label although padding may have its id: nothing here looks at pad ids."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = pad
    tokens = tokenize_pairs(make_pairs(4), tokenizer, max_length=64, max_prompt_length=32)
    batch = collate([tokens[i] for i in range(4)])
    ends = batch["labels"][torch.cumsum(torch.cat([batch["chosen_tokens"], batch["rejected_tokens"]]), 0) - 1]
    assert (ends == tokenizer.eos_token_id).all()


def test_sorted_batches_cover_every_pair_once_longest_first():
    tokens = tokenize_pairs(make_pairs(25), make_tokenizer(), max_length=64, max_prompt_length=32)
    batches = tokens.sorted_batches(4)
    lengths = tokens.lengths()
    assert sorted(position for batch in batches for position in batch) == list(range(25))
    assert np.all(np.diff([lengths[b].max() for b in batches]) <= 0)


def test_a_tokenizer_without_template_or_eos_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(tmp_path / "a")
    assert load_tokenizer(tmp_path / "a", chat_template=CHAT_TEMPLATE).chat_template == CHAT_TEMPLATE
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(tmp_path / "b")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path / "nothing")
