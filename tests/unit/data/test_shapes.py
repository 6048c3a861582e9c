"""Every shape of docs/data.md is read from its example row, and names of columns are mapped."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from lpc.cli import UserError
from lpc.config import specs
from lpc.config.models import Dataset
from lpc.data import formats
from lpc.data.formats.base import Malformed, Rows
from lpc.data.hub import describe_dataset
from lpc.data.pairs import choose
from lpc.data.read import read, unpack

GUIDE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
SHAPES = re.findall(r"^\| (.+?) \| `(\{kind: .+?\})` \| `(\{.+\})` \|$", GUIDE, re.MULTILINE)
SPLIT = {"validation": 1, "test": 1}


def entry(**keys):
    return TypeAdapter(Dataset).validate_python(keys if keys["kind"] == "mix" else {"split": SPLIT} | keys)


def rows_of(folder, records, **keys):
    """What a data set of these settings reads of a file of these records: rows and rejects."""
    path = folder / "prefs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = entry(path=str(path), **keys)
    rows, rejects, _ = read(describe_dataset(**dict(specs.DownloadDataset.of_dataset(settings))))
    return list(map(unpack, rows)), rejects


@pytest.mark.parametrize(("settings", "example"), [shape[1:] for shape in SHAPES], ids=[shape[0] for shape in SHAPES])
def test_an_example_row_of_the_guide_is_read(tmp_path, settings, example):
    (row,), rejects = rows_of(tmp_path, [json.loads(example)], **yaml.safe_load(settings))
    assert rejects == []
    *earlier, last = row["messages"]
    assert last == {"role": "user", "content": "What is 1 + 1?"}
    assert [turn["role"] for turn in earlier] == (
        ["system"] if "Be brief." in example else ["user", "assistant"] if "Hello" in example else []
    )
    assert [completion["response"] for completion in choose(row, 0)] in (["It is 2.", "It is 3."], ["Two.", "Three."])
    known = {"if", "evol_instruct", "sharegpt", "askmath_train", "general"}
    assert row["source"] in {name for name in known if f'"{name}"' in example} or row["source"] == "prefs"


def test_the_guide_has_every_kind_that_reads_rows():
    kinds = {name for name, kind in formats.KINDS.items() if issubclass(kind, Rows)}
    assert {yaml.safe_load(settings)["kind"] for _, settings, _ in SHAPES} == kinds
    assert len(SHAPES) == GUIDE.count("| `{kind: "), "every row of the table is an example"


def test_the_data_sets_of_the_guide_are_settings():
    blocks = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    found = {name: entry(**keys) for block in blocks for name, keys in yaml.safe_load(block)["datasets"].items()}
    assert found["orca"].columns == {"prompt": "question"} and found["helpful"].split.own() == {"test": "test"}


# Rows of one shape that cannot be used

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
TURN = [{"role": "user", "content": "q"}]
NECTAR = {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}
VOTES = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 5, "score_B": 2}
STRENGTH = {"context": TURN, "response1": "a", "response2": "b", "overall_preference": 1}
SAFE = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1}
SHARED = {
    "conversations": [{"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "b"},
}


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("pairs", {**PAIR, "chosen_score": 5}, "missing field rejected_score"),
        ("pairs", {**PAIR, "chosen_score": "5", "rejected_score": 2}, "chosen_score is not a number"),
        ("pairs", {**PAIR, "chosen_score": 1, "rejected_score": 2}, "chosen_score is below rejected_score"),
        ("implicit-prompt", {"chosen": "blue", "rejected": "black"}, "chosen and rejected begin with no common word"),
        ("implicit-prompt", {"chosen": " a b", "rejected": " a c", "system": 3}, "system is not text"),
        ("implicit-prompt", {"chosen": "a b"}, "missing field rejected"),
        ("nectar", {**NECTAR, "answers": NECTAR["answers"][:1]}, "fewer than two answers"),
        ("nectar", {**NECTAR, "answers": "ab"}, "fewer than two answers"),
        ("nectar", {**NECTAR, "answers": ["a", "b"]}, "not an object"),
        ("nectar", {**NECTAR, "answers": [{"answer": "a", "rank": "1"}] * 2}, "rank is not a number"),
        ("nectar", {**NECTAR, "answers": [{"answer": " ", "rank": 1}] * 2}, "empty answer"),
        ("nectar", {**NECTAR, "source": ["a", 3]}, "source is not text"),
        ("nectar", {**NECTAR, "prompt": 3}, "prompt is neither text nor messages"),
        ("shp", {**VOTES, "labels": 2}, "labels is neither 0 nor 1"),
        ("shp", {**VOTES, "labels": True}, "labels is not a number"),
        ("shp", {**VOTES, "labels": 0}, "score_A and score_B contradict labels"),
        ("shp", {**VOTES, "labels": 0, "score_A": 2}, "score_A and score_B contradict labels"),
        ("shp", {**VOTES, "score_A": 2}, "score_A and score_B contradict labels"),
        ("shp", {**VOTES, "score_A": None}, "missing field score_A"),
        ("shp", {**VOTES, "history": [3]}, "history is not text"),
        ("helpsteer3", {**STRENGTH, "overall_preference": "1"}, "overall_preference is not a number"),
        (
            "helpsteer3",
            {**STRENGTH, "context": [*TURN, {"role": "assistant", "content": "a"}]},
            "context does not alternate between user and assistant, ending with the user",
        ),
        ("helpsteer3", {**STRENGTH, "response2": None}, "missing field response2"),
        ("safe-rlhf", {**SAFE, "better_response_id": 2}, "better_response_id is neither 0 nor 1"),
        ("safe-rlhf", {**SAFE, "response_1": ""}, "empty response_1"),
        ("sharegpt", {**SHARED, "conversations": [{"from": "tool", "value": "q"}]}, "conversations has a turn that"),
        ("sharegpt", {**SHARED, "conversations": 3}, "not an object"),
        ("sharegpt", {**SHARED, "chosen": {"from": "gpt"}}, "missing field value"),
        ("sharegpt", {**SHARED, "chosen": {"from": "human", "value": "a"}}, "chosen does not alternate"),
        ("sharegpt", {**SHARED, "chosen": {"from": "gpt", "value": 3}}, "message in chosen is not text"),
    ],
)  # fmt: skip
def test_malformed_rows_by_reason(kind, record, reason):
    for found in (record, None, [], 3):
        with pytest.raises(Malformed, match=f"^{reason}" if found is record else "^not an object$"):
            formats.kind(kind).row(found, "-")


@pytest.mark.parametrize(
    ("kind", "record", "scores"),
    [
        ("pairs", {**PAIR, "chosen_score": 5, "rejected_score": 2.5}, [5, 2.5]),
        ("pairs", {**PAIR, "chosen_score": 5, "rejected_score": 5}, [5, 5]),
        ("pairs", {**PAIR, "chosen_score": None, "rejected_score": None}, [1, 0]),
        ("nectar", NECTAR, [-1, -2]),
        ("shp", VOTES, [5, 2]),
        ("shp", {**VOTES, "labels": 0, "score_A": None, "score_B": None}, [0, 1]),
        ("helpsteer3", STRENGTH, [0, 1]),
        ("helpsteer3", {**STRENGTH, "overall_preference": -3}, [3, 0]),
        ("helpsteer3", {**STRENGTH, "overall_preference": 0}, [0, 0]),
        ("safe-rlhf", SAFE, [1, 0]),
    ],
)
def test_scores_say_what_the_row_says(kind, record, scores):
    assert [completion["score"] for completion in formats.kind(kind).row(record, "-")["completions"]] == scores


def test_whole_dialogues_of_turns_and_prompts_of_words():
    turns = SHARED["conversations"]
    whole = {name: [*turns, SHARED[name]] for name in ("chosen", "rejected")}
    assert formats.kind("sharegpt").row(whole, "-") == formats.kind("sharegpt").row(SHARED, "-")
    row = formats.kind("implicit-prompt").row({"chosen": "It is\nblue", "rejected": "It is\nblue and black"}, "-")
    assert row["messages"][0]["content"] == "It is"
    assert [completion["response"] for completion in row["completions"]] == ["blue", "blue and black"]
    answers = [{**answer, "answer": f" {answer['answer']}\n", "model": "m"} for answer in NECTAR["answers"]]
    row = formats.kind("nectar").row({**NECTAR, "answers": answers, "source": ["a", "b"]}, "-")
    assert row["source"] == "a+b" and formats.kind("nectar").row({**NECTAR, "source": []}, "-")["source"] == "-"
    assert [(found["model"], found["response"]) for found in row["completions"]] == [("m", "a"), ("m", "b")]


# Names of columns


def test_columns_of_the_file_take_our_names(tmp_path):
    """A column that is mapped has only the name that it is mapped to, and a row without it has no such column."""
    columns = {"prompt": "question", "chosen": "rejected", "rejected": "chosen", "source": "system", "system": "who"}
    record = {"question": "q", "chosen": "bad", "rejected": "good", "system": "web", "who": "Be kind.", "prompt": "no"}
    (row,), rejects = rows_of(tmp_path, [record, {**record, "question": None}], kind="pairs", columns=columns)
    assert [turn["content"] for turn in row["messages"]] == ["Be kind.", "q"] and row["source"] == "web"
    assert [completion["response"] for completion in choose(row, 0)] == ["good", "bad"]
    reason = "chosen is not a dialogue of Human and Assistant"
    assert [(reject["reason"], reject["columns"]) for reject in rejects] == [(reason, list(record))]
    del record["question"]
    _, rejects = rows_of(tmp_path, [{**record, "question": "q"}, record], kind="pairs", columns=columns)
    assert len(rejects) == 1, "the file's own prompt does not take the place of what was asked for"


def test_a_column_that_takes_our_name_has_its_own_no_more(tmp_path):
    (row,), _ = rows_of(
        tmp_path, [{"system": "q", "chosen": "a", "rejected": "b"}], kind="pairs", columns={"prompt": "system"}
    )
    assert row["messages"] == [{"role": "user", "content": "q"}]


def test_a_group_may_stand_among_the_columns(tmp_path):
    records = [{"prompt": "q", "chosen": "a", "rejected": "b", "worker": name} for name in ("ann", "bob")]
    rows, _ = rows_of(tmp_path, records, kind="pairs", columns={"group": "worker"})
    assert {row["group"] for row in rows} == {"ann", "bob"}
    assert rows == rows_of(tmp_path, records, kind="pairs", group="worker")[0]
    with pytest.raises(ValidationError, match="`group` of this dataset names another column"):
        entry(kind="pairs", path="a.jsonl", columns={"group": "worker"}, group="person")


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path):
    record = {"question": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(
        UserError, match=r"columns.prompt: no row has a value in column 'qestion'; did you mean question\?"
    ):
        rows_of(tmp_path, [record], kind="pairs", columns={"prompt": "qestion"})
    with pytest.raises(UserError, match=r"column 'x'; correct `columns.system` .*: question, chosen, rejected\)"):
        rows_of(tmp_path, [record], kind="pairs", columns={"prompt": "question", "system": "x"})
    with pytest.raises(UserError, match=r"group: no row has a value in column 'chosn'; did you mean chosen\?"):
        rows_of(tmp_path, [record], kind="pairs", columns={"prompt": "question", "group": "chosn"})


def test_a_name_that_the_kind_does_not_read_is_refused():
    with pytest.raises(ValidationError, match="kind pairs reads no column of this name; use prompt, chosen, rejected"):
        entry(kind="pairs", path="a.jsonl", columns={"promt": "question"})
