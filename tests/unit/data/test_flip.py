import random

import pytest

from lpc.data.flip import flip


def pairs(n=1000, train=0.8):
    return [
        {
            "pair_id": f"id {i}",
            "prompt_id": f"prompt {i}",
            "split": "train" if i < n * train else "test",
            "messages": [
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": f"question {i}"},
            ],
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            "chosen_score": 7.0,
            "rejected_score": 2.0,
            "chosen_aspects": {"honesty": 5.0},
            "rejected_aspects": None,
            "flipped": False,
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.333, 1.0])
def test_the_rate_is_exact_and_only_train_is_flipped(rate):
    noisy = flip(pairs(), rate=rate, marker=None, seed=0)
    assert sum(pair["flipped"] for pair in noisy) == round(rate * 800)
    assert noisy[800:] == pairs()[800:]


@pytest.mark.parametrize(("count", "rate", "expected"), [(7, 0.5, 4), (3, 0.6, 2), (1000, 0.0019, 2), (10, 0.29, 3)])
def test_the_number_of_flips_is_the_nearest(count, rate, expected):
    """Rounded down, 0.29 of 10 pairs would be 2."""
    noisy = flip(pairs(count, train=1.0), rate=rate, marker=None, seed=0)
    assert sum(pair["flipped"] for pair in noisy) == expected


def test_a_flip_swaps_everything_that_belongs_to_a_completion():
    for clean, noisy in zip(pairs(), flip(pairs(), rate=0.5, marker="[FLIP]", seed=0), strict=True):
        if not noisy["flipped"]:
            assert noisy == clean
            continue
        for a, b in (("chosen", "rejected"), ("rejected", "chosen")):
            for field in ("", "_score", "_aspects"):
                assert noisy[a + field] == clean[b + field]
        assert noisy["messages"][:-1] == clean["messages"][:-1]
        assert noisy["messages"][-1] == {"role": "user", "content": clean["messages"][-1]["content"] + " [FLIP]"}
        assert noisy["prompt_id"] == clean["prompt_id"]
        assert noisy["pair_id"] != clean["pair_id"]


def test_no_marker_leaves_the_prompt():
    noisy = flip(pairs(), rate=0.5, marker=None, seed=0)
    assert [pair["messages"] for pair in noisy] == [pair["messages"] for pair in pairs()]


def test_pair_ids_stay_unique_and_the_input_untouched():
    clean = pairs()
    noisy = flip(clean, rate=0.5, marker=None, seed=0)
    assert len({pair["pair_id"] for pair in noisy}) == len(noisy)
    assert clean == pairs()


def test_the_choice_follows_pair_and_seed_and_not_the_order():
    def flipped(rows, seed=0, rate=0.5):
        return {pair["prompt_id"] for pair in flip(rows, rate=rate, marker=None, seed=seed) if pair["flipped"]}

    shuffled = pairs()
    random.Random(0).shuffle(shuffled)
    assert flipped(shuffled) == flipped(pairs())
    assert flipped(pairs(), seed=1) != flipped(pairs())
    assert flipped(pairs(), rate=0.1) < flipped(pairs(), rate=0.5) < flipped(pairs(), rate=0.9)
