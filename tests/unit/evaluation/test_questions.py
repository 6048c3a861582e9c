"""The generated questions: right answers are right, wrong ones are wrong, and all of them differ."""

import pytest

from lpc.data import world
from lpc.evaluation import questions

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
