"""Each trap of tokenising preference pairs, on real tokenizers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import CHAT_TEMPLATE, make_pairs, make_tokenizer

from lpc.cli import UserError
from lpc.data.tokens import (
    PairTokens,
    Ragged,
    collate,
    encode_completions,
    encode_prompts,
    load_tokenizer,
    tokenize_pairs,
    turn_end,
)
from lpc.model import scratch

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


def test_the_prompt_ends_where_the_assistant_begins():
    """The ids of a prompt are a prefix of nothing else: prompt + completion decode to the rendered dialogue."""
    tokenizer = make_tokenizer()
    prompt = encode_prompts(tokenizer, [PROMPT])[0]
    assert tokenizer.decode(prompt).endswith("<|assistant|>")
    text = tokenizer.decode(prompt + encode_completions(tokenizer, [PROMPT], ["dog"])[0])
    assert text.replace(" ", "") == "<|user|>thefox<|end|><|assistant|>dog<|end|>"


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


TURNS = [
    {"role": role, "content": content}
    for role, content in (("system", "be the fox"), ("user", "a"), ("assistant", "b"), ("user", "c"))
] + [{"role": "assistant", "content": "the dog runs"}, {"role": "user", "content": "jumps over"}]
NUMBERED = CHAT_TEMPLATE.replace("{{ m.role }}|>", "{{ m.role }}|>{{ loop.index if m.role == 'assistant' }}")


@pytest.mark.parametrize(
    ("less", "kept"),
    [
        ([], TURNS),
        (TURNS, [TURNS[0], *TURNS[3:]]),
        ([TURNS[0], *TURNS[3:]], [TURNS[0], TURNS[5]]),
        ([TURNS[0], TURNS[5]], [TURNS[5]]),
    ],
    ids=["all", "a question with its answer", "another", "the system turn"],
)
def test_a_prompt_of_several_turns_loses_the_oldest_whole(less, kept):
    """One token less than a prompt needs costs it a question with its answer; the system turn goes last."""
    tokenizer = with_bos_processor(make_tokenizer())
    # The completion begins with the number of its turn, so it shows which turns stand before it.
    tokenizer.chat_template = NUMBERED
    room = len(encode_prompts(tokenizer, [less])[0]) - 1 if less else 200
    pairs = pa.table({"messages": [TURNS], "chosen": ["dog"], "rejected": ["cats"]})
    tokens = tokenize_pairs(pairs, tokenizer, max_length=300, max_prompt_length=room)
    assert [tokens.prompts[0].tolist()] == encode_prompts(tokenizer, [kept])
    assert [tokens.chosen[0].tolist()] == encode_completions(tokenizer, [kept], ["dog"])
    assert tokens.cut == [int(kept != TURNS), 0, 0]
    row = {"messages": TURNS, "completions": [{"response": "dog"}]}
    whole = tokens.prompts[0].tolist() + tokens.chosen[0].tolist()
    assert scratch.encode(tokenizer, [row], 300, room) == [whole], "the base from scratch reads what it is scored on"


def test_a_last_question_that_is_too_long_keeps_its_end():
    tokenizer = with_bos_processor(make_tokenizer())
    pairs = pa.table({"messages": [TURNS], "chosen": ["dog"], "rejected": ["cats"]})
    tokens = tokenize_pairs(pairs, tokenizer, max_length=40, max_prompt_length=3)
    (last,) = encode_prompts(tokenizer, [TURNS[5:]])
    assert tokens.prompts[0].tolist() == [tokenizer.bos_token_id, *last[-2:]] and tokens.cut == [1, 0, 0]


def test_what_is_cut_is_counted_by_part():
    """Of the pairs that are kept; a completion that fits to its last token is whole."""
    tokenizer = make_tokenizer()
    rows = table(
        ("a", "dog", "fox " * 30), ("a " * 30, "cats", "dog"), ("a", "fox " * 30, "fox " * 31), ("a", "b", "c")
    )
    longest = len(encode_prompts(tokenizer, [[{"role": "user", "content": "a"}]])[0])
    end = len(encode_completions(tokenizer, [PROMPT], ["dog"])[0])
    tokens = tokenize_pairs(rows, tokenizer, max_length=longest + end, max_prompt_length=longest)
    assert (len(tokens), tokens.dropped) == (3, 1)
    cats = len(encode_completions(tokenizer, [PROMPT], ["cats"])[0]) > end
    assert tokens.cut == [1, int(cats), 1]
    assert tokens.cut_shares() == {"prompts": 1 / 3, "chosen": int(cats) / 3, "rejected": 1 / 3}


def test_completions_are_cut_from_the_right_alike_and_never_vanish():
    """Chosen and rejected get the same room; a cut completion has no end of its turn, since its end is not there."""
    tokenizer = make_tokenizer()
    rows = table(("fox " * 50, "dog " * 50, "cat " * 50))
    tokens = tokenize_pairs(rows, tokenizer, max_length=16, max_prompt_length=12)
    assert len(tokens.prompts[0]) == 12 and len(tokens.chosen[0]) == len(tokens.rejected[0]) == 4
    assert turn_end(tokenizer)[0] not in tokens.chosen[0].tolist() + tokens.rejected[0].tolist()
    with pytest.raises(UserError, match="no token of a completion would be left"):
        tokenize_pairs(rows, tokenizer, max_length=16, max_prompt_length=16)


def test_pairs_that_became_equal_are_dropped_and_counted():
    tokenizer = make_tokenizer()
    rows = table(("a", "fox " * 30 + "dog", "fox " * 30 + "cat"), ("a", "dog", "cat"), ("a", "same", "same"))
    tokens = tokenize_pairs(rows, tokenizer, max_length=20, max_prompt_length=10)
    assert tokens.rows.tolist() == [1] and tokens.dropped == 2 and len(tokens) == 1


def test_batches_of_any_size_give_the_same_tokens(monkeypatch):
    pairs, tokenizer = make_pairs(23), make_tokenizer()
    options = {"max_length": 24, "max_prompt_length": 12}
    whole = tokenize_pairs(pairs, tokenizer, **options)
    monkeypatch.setattr("lpc.data.tokens.BATCH", 4)
    parts = tokenize_pairs(pairs, tokenizer, **options)
    assert parts.rows.tolist() == whole.rows.tolist() and parts.dropped == whole.dropped
    assert parts.cut == whole.cut and min(whole.cut) > 0
    for name in ("prompts", "chosen", "rejected"):
        assert [ids.tolist() for ids in getattr(parts, name)] == [ids.tolist() for ids in getattr(whole, name)]
    messages = pairs["messages"].to_pylist()
    messages[-1].append({"role": "user", "content": None})
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content + ''")
    pairs = pairs.set_column(4, "messages", pa.array(messages))
    with pytest.raises(UserError, match="row 22: the chat template"):
        tokenize_pairs(pairs, tokenizer, **options)


def test_no_pairs_give_no_tokens():
    tokens = tokenize_pairs(make_pairs(2).slice(0, 0), make_tokenizer(), max_length=24, max_prompt_length=12)
    assert len(tokens) == len(tokens.prompts) == 0 and tokens.lengths().tolist() == []


def test_ragged_items_count_from_either_end():
    rows = [[1, 2], [], [3], [4, 5, 6]]
    ragged = Ragged.concatenate([Ragged.join(rows[:2]), Ragged.join([]), Ragged.join(rows[2:])])
    assert [row.tolist() for row in ragged] == rows and len(ragged) == 4
    assert ragged[-1].tolist() == [4, 5, 6] and ragged.ids.dtype == np.int32
    with pytest.raises(IndexError):
        ragged[4]


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


@pytest.mark.parametrize("pad", ["<pad>", "<|end|>"])
def test_a_pad_token_equal_to_the_end_of_a_turn_changes_nothing(pad):
    """The end stays a label although padding may have its id: nothing here looks at pad ids."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = pad
    tokens = tokenize_pairs(make_pairs(4), tokenizer, max_length=64, max_prompt_length=32)
    batch = collate([tokens[i] for i in range(4)])
    ends = batch["labels"][torch.cumsum(torch.cat([batch["chosen_tokens"], batch["rejected_tokens"]]), 0) - 1]
    assert (ends == turn_end(tokenizer)[0]).all()


def test_sorted_batches_cover_every_pair_once_longest_first():
    tokens = tokenize_pairs(make_pairs(25), make_tokenizer(), max_length=64, max_prompt_length=32)
    batches = tokens.sorted_batches(4)
    lengths = tokens.lengths()
    assert sorted(position for batch in batches for position in batch) == list(range(25))
    assert np.all(np.diff([lengths[b].max() for b in batches]) <= 0)


@pytest.mark.parametrize("extras", [True, False])
def test_saved_tokens_are_mapped_and_the_same(tmp_path, extras):
    pairs = make_pairs(25) if extras else make_pairs(25).drop(["group"])
    tokens = tokenize_pairs(pairs, make_tokenizer(), max_length=64, max_prompt_length=32)
    tokens.reference = np.random.default_rng(0).normal(size=(25, 2)) if extras else None
    tokens.dropped, tokens.cut = 3, [4, 5, 6]
    tokens.save(tmp_path / "tokens")
    tokens.save(tmp_path / "tokens")  # an earlier attempt's are replaced
    found = PairTokens.load(tmp_path / "tokens")
    assert (len(found), found.dropped, found.cut) == (25, 3, [4, 5, 6])
    for i in range(25):
        assert found[i].keys() == tokens[i].keys()
        assert all(np.array_equal(found[i][name], tokens[i][name]) for name in tokens[i])
    for one, two in zip(collate([found[3]]).values(), collate([tokens[3]]).values(), strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    maps = Path("/proc/self/maps")
    assert f"{tmp_path}/tokens/chosen.ids.npy" in maps.read_text()
    found.close()
    assert f"{tmp_path}/tokens" not in maps.read_text()


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
