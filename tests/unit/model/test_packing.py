"""Properties of packed pairs over random lengths: a batch can be taken apart again, and attention sees what two
sequences of their own would see."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_backbone

from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.model import packing
from lpc.model.attention import Loop
from lpc.model.policy import LatentPolicy

VOCABULARY = 384
# The same examples in each run, and no database of earlier ones.
FIXED = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


def ids(longest: int):
    return st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=longest).map(lambda x: np.array(x, np.int32))


def batches(longest: int, pairs: int):
    pair = st.fixed_dictionaries({part: ids(longest) for part in ("prompt", "chosen", "rejected")})
    return st.lists(pair, min_size=1, max_size=pairs).map(
        lambda items: [{**x, "index": i} for i, x in enumerate(items)]
    )


@settings(max_examples=200, **FIXED)
@given(batches(longest=9, pairs=5))
def test_a_batch_can_be_taken_apart(items):
    batch = collate(items)
    row, positions = batch["input_ids"][0].tolist(), batch["positions"][0].tolist()
    assert batch["input_ids"].shape == batch["positions"].shape == (1, sum(batch["tokens"].tolist()))
    assert batch["tokens"].tolist() == [sum(lengths) for lengths in batch["lengths"]]
    start = 0
    for i, (item, lengths) in enumerate(zip(items, batch["lengths"], strict=True)):
        prompt, chosen, rejected = (item[part].tolist() for part in ("prompt", "chosen", "rejected"))
        assert lengths == (len(prompt), len(chosen), len(rejected))
        assert row[start : start + sum(lengths)] == prompt + chosen + rejected
        first, second = range(len(prompt) + len(chosen)), range(len(prompt), len(prompt) + len(rejected))
        assert positions[start : start + sum(lengths)] == [*first, *second]
        assert batch["prompt_ends"][i] == start + len(prompt) - 1
        for side, completion in enumerate((chosen, rejected)):
            of = batch["token_rows"] == i + side * len(items)
            assert batch["labels"][of].tolist() == completion
            assert batch["token_columns"][of].tolist() == list(range(len(completion)))
            states = batch["states"][of].tolist()
            # Before the first token stands the end of the prompt, before each later one the one before it.
            assert [row[state] for state in states] == [prompt[-1], *completion[:-1]]
            assert [positions[state] for state in states] == [len(prompt) - 1 + t for t in range(len(completion))]
            end = batch["ends"][i + side * len(items)]
            assert row[end] == completion[-1] and positions[end] == len(prompt) + len(completion) - 1
            assert start <= min(states) and max([*states, end]) < start + sum(lengths)
        start += sum(lengths)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def models(request):
    """(policy over packed pairs, the architecture under its own attention); Mistral's sees the last four tokens."""
    options = {"sliding_window": 4} if request.param == "mistral" else {}
    return LatentPolicy(make_backbone(request.param, **options)).eval(), make_backbone(request.param, **options)


@settings(max_examples=25, **FIXED)
@given(items=batches(longest=7, pairs=3))
@torch.no_grad()
def test_packed_attention_is_that_of_two_sequences(models, items):
    policy, own = models
    batch = collate(items)
    encoded = policy.encode(**{name: batch[name] for name in MODEL_INPUTS})
    for i, item in enumerate(items):
        for side, ends in (("chosen", encoded.h_chosen), ("rejected", encoded.h_rejected)):
            sequence = torch.from_numpy(np.concatenate([item["prompt"], item[side]]).astype(np.int64))[None]
            hidden = own.base_model(input_ids=sequence, use_cache=False).last_hidden_state[0]
            before = len(item["prompt"]) - 1
            tokens = encoded.tokens[encoded.token_rows == i + (side == "rejected") * len(items)]
            torch.testing.assert_close(tokens, hidden[before:-1], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(encoded.h_x[i], hidden[before], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(ends[i], hidden[-1], rtol=1e-3, atol=1e-3)


@settings(max_examples=25, **FIXED)
@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=3),
    window=st.one_of(st.none(), st.integers(1, 8)),
    softcap=st.sampled_from([None, 2.0]),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_attention_against_its_definition(lengths, window, softcap, groups, seed):
    """Query by query in float64: softmax over the tokens of its own sequence before it, at most `window` of them."""
    generator, size = torch.Generator().manual_seed(seed), sum(map(sum, lengths))
    query = torch.randn(1, 2 * groups, size, 4, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, size, 4, generator=generator, dtype=torch.float64)
    found, _ = packing.attention(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        scaling=0.7,
        sliding_window=window,
        softcap=softcap,
        layout=Loop(lengths, query.device),
    )
    start = 0
    for prompt, chosen, rejected in lengths:
        first = list(range(start, start + prompt + chosen))
        second = first[:prompt] + list(range(start + prompt + chosen, start + prompt + chosen + rejected))
        for sequence, begin in ((first, 0), (second, prompt)):
            for place in range(begin, len(sequence)):
                seen = sequence[: place + 1][-(window or len(sequence)) :]
                for head in range(2 * groups):
                    scores = 0.7 * key[0, head // groups, seen] @ query[0, head, sequence[place]]
                    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
                    expected = scores.softmax(0) @ value[0, head // groups, seen]
                    tolerance = 1e-9 if softcap is None else 1e-5  # its softmax is float32
                    torch.testing.assert_close(
                        found[0, sequence[place], head], expected, rtol=tolerance, atol=tolerance
                    )
        start += prompt + chosen + rejected
