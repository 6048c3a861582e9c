import random

import pytest

from lpc.cli import UserError
from lpc.data.formats.base import ASPECTS
from lpc.data.formats.ultrafeedback import scored_row
from lpc.data.pairs import build, choose, describe


def row(scores, i=0, source="s", texts=None, split="train"):
    texts = texts or [f"text {j} of {i}" for j in range(len(scores))]
    completions = [{"response": text, "overall_score": score} for text, score in zip(texts, scores, strict=True)]
    return {"split": split, **scored_row({"source": source, "instruction": f"q{i}", "completions": completions}, "-")}


def others():
    """A row each for the two splits that a test does not look at; none may be empty."""
    return [row([2, 1], "v", split="validation"), row([2, 1], "t", split="test")]


def made(rows, **options):
    pairs, dropped = build([*rows, *others()], **{"ties": "keep", "seed": 0, "drop_sources": [], **options})
    return [pair for pair in pairs if pair["split"] == "train"], dropped


@pytest.mark.parametrize("trial", range(20))
def test_best_against_one_of_the_rest(trial):
    rng = random.Random(trial)
    for i in range(20):
        example = row([rng.randint(1, 4) for _ in range(rng.randint(2, 6))], i)
        chosen, rejected = choose(example, seed=trial)
        scores = [completion["score"] for completion in example["completions"]]
        assert example["completions"].index(chosen) == scores.index(max(scores))
        assert rejected in example["completions"]
        assert rejected is not chosen


def test_the_draw_is_even_and_follows_row_and_seed():
    rows = [row([4, 1, 2, 3], i) for i in range(3000)]
    draws = [choose(example, 0)[1]["score"] for example in rows]
    assert draws == [choose(example, 0)[1]["score"] for example in rows]
    assert draws != [choose(example, 1)[1]["score"] for example in rows]
    for score in (1, 2, 3):
        # 1000 expected, standard deviation 26
        assert abs(draws.count(score) - 1000) < 110


def test_order_of_rows_does_not_matter():
    rows = [row([1, 3, 2, 3], i) for i in range(50)]
    pairs, _ = made(rows)
    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    assert made(shuffled)[0] == pairs
    assert len({pair["pair_id"] for pair in pairs}) == 50
    # By pair_id, which no other column follows.
    everything, _ = build([*rows, *others()], ties="keep", seed=0, drop_sources=[])
    for column in ("pair_id", "prompt_id"):
        values = [pair[column] for pair in everything]
        assert (values == sorted(values)) == (column == "pair_id")


def test_ties_are_kept_or_dropped_by_the_rule():
    rows = [row([2, 2], i) for i in range(3)] + [row([2, 1], i) for i in range(3, 8)]
    kept, dropped = made(rows)
    assert len(kept) == 8
    assert dropped == {"source": 0, "unrated": 0, "misread": 0, "identical": 0, "tie": 0, "margin": 0}
    assert sum(pair["chosen_score"] == pair["rejected_score"] for pair in kept) == 3
    # The first of equals is chosen, as in the published binarisation.
    assert all(pair["chosen"].startswith("text 0") for pair in kept)
    left, dropped = made(rows, ties="drop")
    assert len(left) == 5
    assert dropped["tie"] == 3
    assert all(pair["chosen_score"] > pair["rejected_score"] for pair in left)


def test_pairs_of_a_small_margin_are_left_out_and_counted():
    rows = [row(scores, i) for i, scores in enumerate([[3, 2], [3, 2.5], [3, 2.51], [2, 2]])]
    pairs, dropped = made(rows, min_margin=0.5)
    assert {pair["chosen_score"] - pair["rejected_score"] for pair in pairs} == {1, 0.5} and dropped["margin"] == 2
    assert made(rows, min_margin=0.51, ties="drop")[1] == {**dict.fromkeys(dropped, 0), "tie": 1, "margin": 2}
    assert len(made(rows)[0]) == 4


def rated(scores, ratings, i=0):
    """A row with these ratings of its completions' aspects, in order."""
    found = row(scores, i)
    for completion, values in zip(found["completions"], ratings, strict=True):
        completion["aspects"] = values and dict(zip(ASPECTS, values, strict=True))
    return found


def test_aspects_take_the_place_of_the_score():
    """Their mean over those that are rated; a row with a completion without any gives no pair."""
    ratings = [(1, 2, 3, 3), (None, 4, 5, None), (4, 4, 4, 4)]
    rows = [rated([9, 1, 1], ratings), rated([9, 1], [(4, 4, 4, 4), None], 1)]
    held_out = [{**rated([2, 1], [(5, 5, 5, 5), (1, 1, 1, 1)], name), "split": name} for name in ("validation", "test")]
    pairs, dropped = build([*rows, *held_out], ties="keep", seed=0, drop_sources=[], score="aspects")
    (pair,) = (pair for pair in pairs if pair["split"] == "train")
    assert pair["chosen"] == "text 1 of 0" and pair["chosen_score"] == 4.5
    assert pair["rejected_score"] == {"text 0 of 0": 2.25, "text 2 of 0": 4}[pair["rejected"]]
    assert pair["chosen_aspects"]["honesty"] == 4 and dropped["unrated"] == 1
    assert {pair["chosen"] for pair in made(rows)[0]} == {"text 0 of 0", "text 0 of 1"}


def test_a_score_of_1_that_was_read_as_10_gives_no_pair():
    low, high = (2, 2, 2, 2), (2, 2, 2, 3)
    misread = [rated([10, 7], [low, high], 0), rated([7, 10], [high, (1, None, 1, None)], 1)]
    sound = [rated([10, 7], [high, low], 2), rated([9.5, 7], [low, high], 3), rated([10, 7], [None, low], 4)]
    pairs, dropped = made([*misread, *sound])
    assert {pair["chosen"] for pair in pairs} == {f"text 0 of {i}" for i in (2, 3, 4)} and dropped["misread"] == 2
    held_out = [{**rated([2, 1], [low, high], name), "split": name} for name in ("validation", "test")]
    _, dropped = build([*misread, *held_out], ties="keep", seed=0, drop_sources=[], score="aspects")
    assert dropped == dict.fromkeys(dropped, 0), "the overall score is not read"


def test_a_pair_has_the_group_of_its_row():
    (a, b), _ = made([{**row([2, 1], 0), "group": "ann"}, row([2, 1], 1)])
    assert {a["group"], b["group"]} == {"ann", None}


def test_identical_texts_give_no_pair():
    pairs, dropped = made([row([2, 1], 0, texts=["same", "same"]), row([2, 1], 1)])
    assert len(pairs) == dropped["identical"] == 1


def test_sources_can_be_dropped_and_a_misspelt_one_is_named():
    rows = [row([2, 1], 0, source="truthful_qa"), row([2, 1], 1)]
    pairs, dropped = made(rows, drop_sources=["truthful_qa"])
    assert [pair["source"] for pair in pairs] == ["s"]
    assert dropped["source"] == 1
    with pytest.raises(UserError, match="truthfulqa"):
        made(rows, drop_sources=["truthfulqa"])


def test_a_split_without_pairs_stops():
    held_out = [row([2, 2], i, split=split) for i, split in enumerate(("validation", "test"))]
    with pytest.raises(UserError, match="no pairs are left in validation, test"):
        build([row([2, 1], 2), *held_out], ties="drop", seed=0, drop_sources=[])


def test_a_split_without_rows_needs_no_pairs():
    """Of a dataset for testing alone."""
    pairs, _ = build([row([2, 1], split="test")], ties="keep", seed=0, drop_sources=[])
    assert [pair["split"] for pair in pairs] == ["test"]


def test_pair_id_follows_the_content():
    (a,), _ = made([row([2, 1], 0)])
    (b,), _ = made([row([2, 1], 0, texts=["other", "text 1 of 0"])])
    assert a["pair_id"] != b["pair_id"]
    assert a["prompt_id"] == b["prompt_id"]


def test_describe_counts_by_split():
    pairs, _ = build(
        [row([2, 1], 0, texts=["longer", "short"]), row([1, 1], 1, texts=["same", "size"]), *others()],
        ties="keep",
        seed=0,
        drop_sources=[],
    )
    train = describe(pairs)["train"]
    assert train == {
        "pairs": 2,
        "prompts": 2,
        "ties": 1,
        "flipped": 0,
        "longer_chosen": 0.75,  # one longer, one as long
        "sources": {"s": 2},
    }
