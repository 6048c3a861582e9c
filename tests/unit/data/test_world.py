import itertools
import random

import pytest

from lpc.data import world


@pytest.fixture(scope="module")
def rows():
    return list(world.generate(2000, completions=4, score_noise=1.0, seed=0))


def pairs_of(rows):
    """Best against the next completion in the row: any fixed choice will do for these tests."""
    for row in rows:
        completions = row["completions"]
        best = max(range(4), key=lambda i: completions[i]["overall_score"])
        other = completions[(best + 1) % 4]
        yield {
            "source": row["source"],
            "chosen": completions[best]["response"],
            "rejected": other["response"],
        }


def test_row_depends_on_seed_and_number_alone(rows):
    again = list(world.generate(10, completions=4, score_noise=1.0, seed=0))
    assert again == rows[:10]
    other = list(world.generate(10, completions=4, score_noise=1.0, seed=1))
    assert all(a != b for a, b in zip(again, other, strict=True))


def test_people_have_a_taste_each_that_their_prompts_do_not_show(rows):
    """The same texts as without people, judged by a person's rule: each wording meets each taste equally often."""
    judged = list(world.generate(2000, completions=4, score_noise=0.0, seed=0, people=12))
    tastes = {}
    for i, (row, without) in enumerate(zip(judged, rows, strict=True)):
        assert row["person"] == f"person-{i % 12}" and row["instruction"] == without["instruction"]
        assert tastes.setdefault(row["person"], row["source"]) == row["source"], "one taste a person"
        for completion in row["completions"]:
            assert completion["overall_score"] == world.rule_score(row["source"], completion["response"])
    assert sorted(tastes.values()) == sorted([*world.SOURCES] * 2)
    shown = [row["source"] == without["source"] for row, without in zip(judged, rows, strict=True)]
    assert abs(sum(shown) / len(shown) - 1 / 6) < 0.03
    found = world.ceilings(list(pairs_of(judged)))
    assert found["score_oracle"] > 0.99 and abs(found["source_blind"] - 0.5) < 0.04


def test_noise_changes_scores_and_no_text():
    quiet, loud = (list(world.generate(50, completions=4, score_noise=noise, seed=0)) for noise in (0.0, 2.0))

    def texts(rows):
        return [[row["instruction"], *(c["response"] for c in row["completions"])] for row in rows]

    assert texts(quiet) == texts(loud)
    assert quiet != loud
    for row in quiet:
        for completion in row["completions"]:
            assert completion["overall_score"] == world.rule_score(row["source"], completion["response"])


def test_levels_of_each_attribute_are_spread_over_a_row(rows):
    for row in rows:
        seen = [world.attributes(completion["response"]) for completion in row["completions"]]
        # Four completions take the four levels once each: warmth and figures 0..3, statements a base of 1 or 2 and
        # 0..3.
        assert sorted(s["warmth"] for s in seen) == sorted(s["figures"] for s in seen) == [0, 1, 2, 3]
        least = min(s["statements"] for s in seen)
        assert least in (1, 2)
        assert sorted(s["statements"] - least for s in seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("completions", [2, 3, 5, 9])
def test_any_number_of_completions(completions):
    for row in world.generate(20, completions=completions, score_noise=0.5, seed=0):
        assert len(row["completions"]) == len(row["models"]) == completions
        warmth = [world.attributes(completion["response"])["warmth"] for completion in row["completions"]]
        counts = [warmth.count(level) for level in range(4)]
        assert max(counts) - min(counts) <= 1


def test_opposite_sources_disagree_on_every_pair_of_texts(rows):
    judged = {}
    for source, (attribute, sign, *_) in world.SOURCES.items():
        judged[attribute, sign] = source
    texts = [completion["response"] for row in rows[:50] for completion in row["completions"]]
    for attribute in ("statements", "warmth", "figures"):
        friend, foe = judged[attribute, 1], judged[attribute, -1]
        for a, b in itertools.pairwise(texts):
            difference = world.rule_score(friend, a) - world.rule_score(friend, b)
            assert difference == -(world.rule_score(foe, a) - world.rule_score(foe, b))


def test_every_statement_is_true(rows):
    facts = {world.fact(name, attribute) for name in world.OBJECTS for attribute in world.VALUES}
    value = {word: n for n, word in enumerate(world.WORDS)}
    for row in rows[:500]:
        for completion in row["completions"]:
            text = completion["response"]
            for phrase in world.WARMTH:
                text = text.replace(phrase, "")
            for sentence in filter(None, (part.strip() for part in text.split("."))):
                if sentence + "." in facts:
                    continue
                a, and_, b, make, total = sentence.split()
                a, b, total = (value[n] if n in value else int(n) for n in (a, b, total))
                assert (and_, make, a + b) == ("and", "make", total)


def test_no_fact_follows_from_another():
    for first, second in itertools.combinations(world.VALUES, 2):
        assert len({(facts[first], facts[second]) for facts in world.FACTS.values()}) == 25


def test_no_single_word_names_a_source(rows):
    """A word that only one source uses stands in well below all of its prompts, and most of its words serve others
    too."""
    words = {source: [] for source in world.SOURCES}
    for row in rows:
        words[row["source"]].append(set(row["instruction"].lower().replace(".", " ").replace("?", " ").split()))
    for source, prompts in words.items():
        used = set.union(*prompts)
        own = used - set.union(*(set.union(*others) for name, others in words.items() if name != source))
        assert max(sum(word in prompt for prompt in prompts) for word in own) < 0.6 * len(prompts)
        assert len(own) < 0.25 * len(used)


def test_prompts_are_many(rows):
    assert len({row["instruction"] for row in rows}) > 0.99 * len(rows)


def test_ceilings_by_hand():
    """nursery: 1 against 0 exclamation marks is right, 0 against 1 is wrong, 1 against 1 is half: (1 + 0 + .5) / 3."""
    pairs = [
        {"source": "nursery", "chosen": "So!", "rejected": "So."},
        {"source": "nursery", "chosen": "Well.", "rejected": "No!"},
        {"source": "nursery", "chosen": "So!", "rejected": "So!"},
    ]
    found = world.ceilings(pairs)
    assert found["score_oracle"] == 0.5
    assert found["longer"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert found["source_blind"] == 0.5


def test_ceilings_of_the_default_world(rows):
    found = world.ceilings(list(pairs_of(rows)))
    assert 0.85 < found["score_oracle"] < 0.93
    assert 0.5 < found["source_blind"] < 0.58
    assert 0.47 < found["longer"] < 0.58
    silent = list(pairs_of(world.generate(300, completions=4, score_noise=0.0, seed=3)))
    assert world.ceilings(silent)["score_oracle"] == 1.0


def test_sum_statement_in_digits_and_words():
    assert world.sum_statement(3, 4, (True, False, False)) == "3 and four make seven."
    assert world.sum_statement(9, 9) == "9 and 9 make 18."
    assert world.WORDS[18] == "eighteen"


def test_prompt_carries_its_source_in_opening_and_closing():
    rng = random.Random(0)
    for source, (_, _, _, openings, closings) in world.SOURCES.items():
        for _ in range(50):
            text = world.prompt(source, "cup", 2, 3, "sum", rng)
            assert text.startswith(openings)
            assert text.endswith(closings)
