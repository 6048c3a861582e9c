"""The generated questions: right answers are right, wrong ones are wrong, and all of them differ."""

import pytest

from lpc.data import world
from lpc.evaluation import benchmarks, questions

TRUE = {world.fact(name, attribute) for name in world.OBJECTS for attribute in world.VALUES}


def sentences(text):
    return {f"{part}." for part in text.rstrip(".").split(". ")}


@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_one_choice_of_four_is_true(kind):
    rows = list(questions.generate(kind, count=150, seed=0))
    for row in rows:
        true = [i for i, choice in enumerate(row["choices"]) if sentences(choice) <= TRUE]
        assert true == [row["answer"]] and len(set(row["choices"])) == 4
        if kind == "hard":
            assert all(
                len(sentences(choice) & TRUE) == 1 for i, choice in enumerate(row["choices"]) if i != row["answer"]
            )
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}


def test_truth_has_as_many_true_as_false_sentences():
    for row in questions.generate("truth", count=150, seed=0):
        assert [choice in TRUE for choice in row["choices"]] == [bool(label) for label in row["labels"]]
        assert sum(row["labels"]) * 2 == len(row["labels"]) == len(set(row["choices"]))


def test_sums_are_right():
    for row in questions.generate("generate", count=150, seed=0):
        a, b = (int(word.strip(".")) for word in row["question"].split() if word.strip(".").isdigit())
        assert row["answer"] == str(a + b)


@pytest.mark.parametrize("kind", ["easy", "hard", "generate", "truth"])
def test_questions_differ_and_repeat_with_their_seed(kind):
    rows = list(questions.generate(kind, count=200, seed=0))
    assert rows == list(questions.generate(kind, count=200, seed=0))
    assert rows != list(questions.generate(kind, count=200, seed=1))
    assert len({str({**row, "id": None}) for row in rows}) == 200 == len({row["id"] for row in rows})


def test_the_share_of_truth_is_that_of_the_probabilities():
    doc = {"labels": [1, 0, 1]}
    # Probabilities 0.2, 0.5 and 0.1: the true ones' share is 0.3 / 0.8, and stays so where all underflow.
    logps = [-1.6094379, -0.6931472, -2.3025851]
    for shift in (0.0, -5000.0):
        share = benchmarks.share_of_truth(doc, [(logp + shift, False) for logp in logps])
        assert share["acc"] == pytest.approx(0.375, abs=1e-6)
