"""From a file of pairs to batches: which pairs, their tokens, their reference, and the statistics of the base."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc.cli import UserError
from lpc.data.cut import cut_warnings
from lpc.data.tokens import tokenize_pairs
from lpc.files import write_parquet
from lpc.model.policy import LatentPolicy
from lpc.reference import Moments
from lpc.scoring import attach_reference, encoded_batches, load_pairs, prompt_states

TOKENS = {"max_length": 64, "max_prompt_length": 32}


@pytest.fixture
def pairs(tmp_path):
    """Twelve pairs of three splits; pair 4 (of validation) has completions that are equal once they are cut."""
    table = make_pairs(12, splits=("train", "validation", "test"))
    chosen, rejected = (table[side].to_pylist() for side in ("chosen", "rejected"))
    chosen[4], rejected[4] = "fox " * 80 + "good", "fox " * 80 + "bad"
    table = table.set_column(table.schema.get_field_index("chosen"), "chosen", pa.array(chosen))
    table = table.set_column(table.schema.get_field_index("rejected"), "rejected", pa.array(rejected))
    write_parquet(tmp_path / "pairs.parquet", table)
    return table


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]),
        ({"split": "train"}, [0, 3, 6, 9]),
        ({"split": "validation"}, [1, 7, 10]),
        ({"pair_ids": ["pair-0007", "pair-0002"]}, [7, 2]),
    ],
)
def test_rows_and_tokens_are_of_the_same_pairs(tmp_path, pairs, choice, expected):
    tokenizer, path = make_tokenizer(), tmp_path / "pairs.parquet"
    rows, tokens = load_pairs(path, tokenizer, TOKENS, **choice)
    assert rows.to_pylist() == [pairs.slice(i, 1).to_pylist()[0] for i in expected]
    for position, i in enumerate(expected):
        alone = tokenize_pairs(pairs.slice(i, 1), tokenizer, **TOKENS)
        for part in ("prompts", "chosen", "rejected"):
            assert getattr(tokens, part)[position].tolist() == getattr(alone, part)[0].tolist()
    assert tokens.reference is None and tokens.dropped == (choice in ({}, {"split": "validation"}))


def test_no_more_columns_are_kept_than_wanted(tmp_path, pairs):
    """The texts of all pairs would take more memory than their tokens."""
    rows, _ = load_pairs(tmp_path / "pairs.parquet", make_tokenizer(), TOKENS, split="train", columns=["pair_id"])
    assert rows.to_pydict() == {"pair_id": [f"pair-{i:04d}" for i in (0, 3, 6, 9)]}


@pytest.mark.parametrize(
    ("count", "words"), [(1, []), (2, ["18 % have a prompt that is cut; raise tokens.max_prompt"])]
)
def test_many_cut_prompts_are_warned_about(tmp_path, pairs, caplog, count, words):
    messages = pairs["messages"].to_pylist()
    for i in range(count):
        messages[i][0]["content"] = "fox " * 80
    write_parquet(tmp_path / "pairs.parquet", pairs.set_column(4, "messages", pa.array(messages)))
    load_pairs(tmp_path / "pairs.parquet", make_tokenizer(), TOKENS)
    assert [word for word in words if word in caplog.text] == words and len(caplog.records) == len(words)


def test_many_completions_without_their_end_are_warned_about():
    limits = {"max_length": 64, "max_prompt_length": 32}
    assert cut_warnings({"prompts": 0.1, "chosen": 0.1, "rejected": 0.1}, **limits) == []
    (found,) = cut_warnings({"prompts": 0.0, "chosen": 0.04, "rejected": 0.125}, **limits)
    assert found == (
        "4 % have a chosen completion without its end, and 12 % a rejected one; raise tokens.max_length (64)"
    )


def test_no_pair_stops(tmp_path, pairs):
    path = tmp_path / "pairs.parquet"
    write_parquet(tmp_path / "empty.parquet", pairs.slice(0, 0))
    with pytest.raises(UserError, match="no train pair in this file"):
        load_pairs(tmp_path / "empty.parquet", make_tokenizer(), TOKENS, split="train")
    with pytest.raises(UserError, match="no other pair in this file; change `split`"):
        load_pairs(path, make_tokenizer(), TOKENS, split="other")
    with pytest.raises(UserError, match="no pair is left after tokenisation, since all 1 have equal"):
        load_pairs(path, make_tokenizer(), TOKENS, pair_ids=["pair-0004"])


def test_the_reference_of_a_split_is_its_own(tmp_path, pairs):
    tokenizer, path = make_tokenizer(), tmp_path / "pairs.parquet"
    rows, tokens = load_pairs(path, tokenizer, TOKENS)
    reference_file(tmp_path / "r.parquet", rows, tokens)
    number = {name: i for i, name in enumerate(rows["pair_id"].to_pylist())}
    some, tokens = load_pairs(path, tokenizer, TOKENS, split="validation", reference=tmp_path / "r.parquet")
    assert tokens.reference.tolist() == [[number[name], -number[name]] for name in some["pair_id"].to_pylist()]


def reference_file(path, pairs, tokens, **changes):
    columns = {
        "pair_id": pairs["pair_id"],
        "chosen_logp": np.arange(len(pairs), dtype=float),
        "rejected_logp": -np.arange(len(pairs), dtype=float),
        "chosen_tokens": [len(c) for c in tokens.chosen],
        "rejected_tokens": [len(r) for r in tokens.rejected],
    }
    write_parquet(path, pa.table(columns | changes))


def test_reference_is_joined_by_pair_not_by_position(tmp_path):
    pairs, tokenizer = make_pairs(6), make_tokenizer()
    tokens = tokenize_pairs(pairs, tokenizer, max_length=64, max_prompt_length=32)
    reference_file(tmp_path / "r.parquet", pairs, tokens)
    order = [4, 0, 5]
    some = pairs.take(pa.array(order))
    tokens = tokenize_pairs(some, tokenizer, max_length=64, max_prompt_length=32)
    attach_reference(tokens, some, tmp_path / "r.parquet")
    assert tokens.reference.tolist() == [[i, -i] for i in order]


def test_a_reference_of_something_else_is_refused(tmp_path):
    pairs, tokenizer = make_pairs(6), make_tokenizer()
    tokens = tokenize_pairs(pairs, tokenizer, max_length=64, max_prompt_length=32)
    reference_file(tmp_path / "r.parquet", pairs, tokens, pair_id=[f"other-{i}" for i in range(6)])
    with pytest.raises(UserError, match="of another pair set"):
        attach_reference(tokens, pairs, tmp_path / "r.parquet")
    reference_file(tmp_path / "r.parquet", pairs, tokens, chosen_tokens=[1] * 6)
    with pytest.raises(UserError, match="another tokeniser"):
        attach_reference(tokens, pairs, tmp_path / "r.parquet")


def test_prompt_states_are_those_of_the_packed_pairs():
    """h_x of each pair stands at its own position, whichever batch its prompt or pair is in."""
    tokens = tokenize_pairs(make_pairs(11), make_tokenizer(), **TOKENS)
    policy = LatentPolicy(make_backbone()).eval()
    states = prompt_states(policy, tokens, batch_size=2, precision="float32")
    seen = []
    for positions, _, encoded in encoded_batches(policy, tokens, 3, "float32", "test"):
        torch.testing.assert_close(states[torch.from_numpy(positions)], encoded.h_x, rtol=1e-4, atol=1e-4)
        seen += positions.tolist()
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("mean", [0.0, 3e-9, 1e6])
def test_a_constant_feature_is_not_blown_up_by_its_rounding(mean):
    """A feature that never varies but for rounding gets a standard deviation of 1, one that varies its own."""
    torch.manual_seed(0)
    varying, moments = 5 + 0.1 * torch.randn(1000, dtype=torch.float64), Moments()
    constant = torch.full((1000,), mean, dtype=torch.float64) * (1 + 1e-9 * torch.randn(1000, dtype=torch.float64))
    for part in torch.stack([constant, varying], 1).split(77):
        moments.add(part)
    found, std = moments.mean_std()
    assert std[0] == 1 and found[0].item() == pytest.approx(mean)
    assert std[1].item() == pytest.approx(varying.std(correction=0).item(), rel=1e-5)
