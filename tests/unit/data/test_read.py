import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from lpc.cli import UserError
from lpc.data.formats.base import Malformed
from lpc.data.formats.pairs import pair_row
from lpc.data.formats.ultrafeedback import scored_row
from lpc.data.hub import describe_dataset
from lpc.data.read import ROWS, check_share, pack, read, unpack

REAL = Path(__file__).parents[4] / "shared" / "data"


def scored(i=0, **changes):
    completions = [
        {"model": "m", "response": f"answer {j} to {i}", "overall_score": 1.0 + j, "annotations": None}
        for j in range(4)
    ]
    return {"source": "s", "instruction": f"question {i}", "models": ["m"] * 4, "completions": completions, **changes}


def with_completion(**changes):
    row = scored()
    row["completions"][2].update(changes)
    return row


def without(name):
    row = scored()
    del row["completions"][2][name]
    return row


def write(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as stream:
        stream.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return str(path)


def source(path, kind="ultrafeedback", **options):
    return describe_dataset(kind=kind, path=str(path), revision=None, hub_split="train", **options)


# Rows of the UltraFeedback schema


def test_a_scored_row():
    row = scored_row(scored(), "-")
    assert row["source"] == "s"
    assert row["messages"] == [{"role": "user", "content": "question 0"}]
    assert [c["score"] for c in row["completions"]] == [1, 2, 3, 4]
    assert row["completions"][1] == {"model": "m", "response": "answer 1 to 0", "score": 2.0, "aspects": None}
    assert pa.Table.from_pylist([{**row, "split": "train"}], schema=ROWS).num_rows == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "not an object"),
        ({}, "missing field instruction"),
        (scored(instruction=None), "missing field instruction"),
        (scored(instruction=" \n"), "empty instruction"),
        (scored(instruction=["a"]), "instruction is not text"),
        (scored(instruction="half \ud83d of a pair"), "instruction is not valid Unicode"),
        (scored(source=3), "source is not text"),
        (scored(completions=None), "missing field completions"),
        (scored(completions=[]), "no completions"),
        (scored(completions=scored()["completions"][:1]), "fewer than two completions"),
        (scored(completions=["a", "b"]), "not an object"),
        (without("response"), "missing field response"),
        (without("overall_score"), "missing field overall_score"),
        (with_completion(response=""), "empty response"),
        (with_completion(response=None), "missing field response"),
        (with_completion(overall_score="7"), "score is not a number"),
        (with_completion(overall_score=True), "score is not a number"),
        (with_completion(overall_score=float("nan")), "score is not a number"),
        (with_completion(overall_score=float("inf")), "score is not a number"),
        (with_completion(overall_score=[5]), "score is not a number"),
    ],
)
def test_malformed_rows_by_reason(record, reason):
    with pytest.raises(Malformed, match=f"^{reason}$"):
        scored_row(record, "-")


def test_aspects_as_the_hub_has_them():
    """Ratings are strings in objects, "N/A" where there was nothing to rate; the first release had lists of one."""
    annotations = {
        "instruction_following": {"Rating": "4", "Rationale": "…"},
        "honesty": {"Rating": "N/A", "Rationale": "…"},
        "truthfulness": [{"Type": ["None"], "Rating": "3", "Rationale": "…", "Rationale For Rating": "…"}],
    }
    row = scored_row(with_completion(annotations=annotations), "-")
    assert row["completions"][2]["aspects"] == {
        "instruction_following": 4.0,
        "honesty": None,
        "truthfulness": 3.0,
        "helpfulness": None,
    }
    nothing = {"honesty": {"Rating": "N/A"}, "helpfulness": {}, "truthfulness": {"Rating": None}}
    assert scored_row(with_completion(annotations=nothing), "-")["completions"][2]["aspects"] is None


def test_white_space_around_a_prompt_makes_no_other_prompt():
    a, b = scored_row(scored(), "-"), scored_row(scored(instruction=" question 0\n"), "-")
    assert a["prompt_id"] == b["prompt_id"]
    assert a["row_id"] != b["row_id"]


def test_unicode_forms_of_a_prompt_make_no_other_prompt():
    """Composed and decomposed letters look the same; what is trained stays as it was."""
    a, b = scored_row(scored(instruction="café Å"), "-"), scored_row(scored(instruction="cafe\u0301 A\u030a "), "-")
    assert a["prompt_id"] == b["prompt_id"]
    assert b["messages"][0]["content"] == "cafe\u0301 A\u030a "
    assert a["prompt_id"] != scored_row(scored(instruction="cafe A"), "-")["prompt_id"]


def test_ids_of_ordinary_prompts_stay():
    """Splits and pairs of earlier results go by these."""
    row = scored_row(scored(), "-")
    assert row["prompt_id"] == "4226e4b83c6ff5957b3a888957238a1a4d3519f4bfafcf664666aa02260adb56"
    assert row["row_id"] == "b9378701b02bd3138f6d805fa07e4f317f15f5f56cfac8d2dc79fa8bcdcb5683"


# Rows of chosen and rejected


HH = {
    "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant: well\n\nas you see",
    "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant: no",
}
TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "how?"},
]


def said(text):
    return [{"role": "assistant", "content": text}]


DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?"
MESSAGES = {"chosen": TURNS + said("well\n\nas you see"), "rejected": TURNS + said("no")}


@pytest.mark.parametrize(
    "record",
    [
        HH,
        {
            "chosen": TURNS + said("well\n\nas you see"),
            "rejected": TURNS + said("no"),
            "prompt": "hi",
            "score_chosen": 7.5,
        },
        {"prompt": TURNS, "chosen": "well\n\nas you see", "rejected": "no"},
        {"prompt": TURNS, "chosen": said("well\n\nas you see"), "rejected": said("no")},
        {"prompt": DIALOGUE, "chosen": " well\n\nas you see", "rejected": "no"},
        {"prompt": DIALOGUE + "\n\nAssistant: ", "chosen": " well\n\nas you see", "rejected": " no"},
        {"prompt": DIALOGUE.strip() + "\n\nAssistant:", "chosen": "well\n\nas you see", "rejected": "no"},
        {"prompt": DIALOGUE, "chosen": said("well\n\nas you see"), "rejected": said("no")},
        {**HH, "prompt": DIALOGUE},
        {**HH, "prompt": None, "images": [], "image": None, "system": " "},
        {**MESSAGES, "prompt": "how? "},
        {**MESSAGES, "prompt": TURNS},
    ],
    ids=[
        "dialogues",
        "messages",
        "prompt and text",
        "prompt and messages",
        "dialogue and text",
        "dialogue that ends in Assistant and text",
        "dialogue without breaks before",
        "dialogue and messages",
        "dialogue and dialogues",
        "no prompt, no images, no system",
        "last question and messages",
        "prompt and whole messages",
    ],
)
def test_pairs_in_every_form_are_the_same_row(record):
    row = pair_row(record, "name")
    assert row["source"] == "name"
    assert row["messages"] == TURNS
    assert [(c["response"], c["score"]) for c in row["completions"]] == [("well\n\nas you see", 1.0), ("no", 0.0)]
    assert row == pair_row(HH, "name")


def test_plain_strings_beside_a_prompt():
    row = pair_row({"prompt": "hi", "chosen": "a", "rejected": "b", "source": "own"}, "name")
    assert row["messages"] == [{"role": "user", "content": "hi"}]
    assert row["source"] == "own"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chosen": None}, "missing field chosen"),
        ({"rejected": "no dialogue"}, "rejected is not a dialogue of Human and Assistant"),
        ({"rejected": "\n\nHuman: other\n\nAssistant: no"}, "chosen and rejected have different prompts"),
        ({"chosen": "\n\nHuman: hi\n\nAssistant: "}, "empty message in chosen"),
        ({"chosen": "\n\nHuman: hi"}, "chosen does not alternate between user and assistant"),
        (
            {"chosen": "\n\nHuman: hi\n\nHuman: you\n\nAssistant: a"},
            "chosen does not alternate between user and assistant",
        ),
        ({"chosen": 5}, "chosen is neither text nor messages"),
        ({"chosen": []}, "chosen does not alternate between user and assistant"),
        ({"chosen": ["hi"]}, "not an object"),
        ({"prompt": ""}, "the prompt is not that of chosen"),
        ({"prompt": "hi", "chosen": ""}, "empty message in chosen"),
        ({"prompt": 3, "chosen": "a"}, "prompt is neither text nor messages"),
        ({"prompt": 3}, "prompt is neither text nor messages"),
        ({"prompt": [3]}, "not an object"),
        ({"prompt": "hello"}, "the prompt is not that of chosen"),
        ({"prompt": TURNS[:1]}, "the prompt is not that of chosen"),
        (
            {"prompt": "hello", "chosen": TURNS + said("a"), "rejected": TURNS + said("b")},
            "the prompt is not that of chosen",
        ),
        (
            {"prompt": "pre\n\nHuman: hi\n\nAssistant:", "chosen": "a"},
            "prompt is not a dialogue of Human and Assistant",
        ),
        ({"images": [{"bytes": "…"}]}, "images cannot be used, only text"),
        ({"image": "a.png"}, "image cannot be used, only text"),
        ({"system": ["be kind"]}, "system is not text"),
    ],
)
def test_malformed_pairs_by_reason(changes, reason):
    with pytest.raises(Malformed, match=f"^{reason}$"):
        pair_row({**HH, **changes}, "name")


def test_a_system_message_may_lead():
    system = [{"role": "system", "content": "be kind"}]
    row = pair_row({"chosen": system + TURNS + said("a"), "rejected": system + TURNS + said("b")}, "-")
    assert row["messages"] == system + TURNS


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "hi", "chosen": "a", "rejected": "b"},
        {"prompt": TURNS[:1], "chosen": said("a"), "rejected": said("b")},
        {"chosen": TURNS[:1] + said("a"), "rejected": TURNS[:1] + said("b")},
        {
            "chosen": [{"role": "system", "content": "be kind "}, *TURNS[:1], *said("a")],
            "rejected": [{"role": "system", "content": "be kind "}, *TURNS[:1], *said("b")],
        },
        {"instruction": "hi", "completions": [{"response": text, "overall_score": 1} for text in "ab"]},
    ],
)
def test_a_system_column_is_the_system_turn(record):
    normalise = scored_row if "instruction" in record else pair_row
    row = normalise({**record, "system": "be kind"}, "-")
    assert [message["role"] for message in row["messages"]] == ["system", "user"]
    assert row["messages"][0]["content"].strip() == "be kind"


def test_two_different_system_turns_are_refused():
    system = [{"role": "system", "content": "be kind"}]
    record = {"chosen": system + TURNS + said("a"), "rejected": system + TURNS + said("b"), "system": "be brief"}
    with pytest.raises(Malformed, match="the system column is not the system turn of the messages"):
        pair_row(record, "-")


# Groups


def test_a_row_has_the_group_of_its_column(tmp_path):
    """Equal judgements of two annotators are two rows; a row without a value has no group."""
    annotators = ["ann", "bob", 3, 3.0, None]
    write(tmp_path / "a.jsonl", [scored(worker=worker) for worker in annotators])
    rows, rejects, copies = read(source(tmp_path / "a.jsonl", group="worker"))
    assert {row["group"] for row in rows} == {"ann", "bob", "3", None}
    assert (len(rows), rejects, copies) == (4, [], 1)
    assert len({row["prompt_id"] for row in rows}) == 1
    assert scored_row(scored(), "-") in map(unpack, rows)
    assert pa.Table.from_pylist([unpack(row) for row in rows], schema=ROWS)["group"].null_count == 1


def test_rows_of_one_prompt_are_a_group(tmp_path):
    records = [scored(i // 2, source=f"s{i}") for i in range(6)]
    write(tmp_path / "a.jsonl", records)
    rows, _, _ = read(source(tmp_path / "a.jsonl", group="prompt"))
    assert all(row["group"] == row["prompt_id"] for row in rows)
    assert {row["row_id"] for row in rows} == {scored_row(record, "-")["row_id"] for record in records}


def test_a_group_that_is_not_there_is_named_and_one_of_another_type_is_malformed(tmp_path):
    write(tmp_path / "a.jsonl", [scored(0), scored(1)])
    with pytest.raises(
        UserError, match=r"group: no row has a value in column 'worker'; correct .* source, instruction"
    ):
        read(source(tmp_path / "a.jsonl", group="worker"))
    for i, value in enumerate([True, ["ann"], 0.5, " ", "\ud83d"]):
        write(tmp_path / f"{i}.jsonl", [scored(0, worker="ann"), scored(1, worker=value)])
        rows, rejects, _ = read(source(tmp_path / f"{i}.jsonl", group="worker"))
        assert (len(rows), len(rejects)) == (1, 1) and "group" in rejects[0]["reason"]


# Files


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_same_rows_in_any_order(tmp_path, suffix):
    records = [scored(i) for i in range(20)]
    expected = sorted((scored_row(record, "-") for record in records), key=lambda row: row["row_id"])
    random.Random(0).shuffle(records)
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    else:
        write(path, records)
    rows, rejects, copies = read(source(path))
    assert [unpack(row) for row in rows] == expected
    assert (rejects, copies) == ([], 0)


def test_a_packed_row_is_the_row_in_fewer_bytes():
    """All rows of a data set are in memory at once."""
    row = scored_row(scored(), "-") | {"group": "ann"}
    row["completions"][0]["aspects"] = {"honesty": 0.1 + 0.2, "helpfulness": None}
    row["completions"][1]["response"] = "\x00é😀"
    packed = pack(row)
    assert unpack(packed | {"split": "test"}) == row | {"split": "test"}
    assert not any(isinstance(value, dict | list) for value in packed.values())


def test_a_folder_is_all_its_files(tmp_path):
    write(tmp_path / "a.jsonl", [scored(0), scored(1)])
    write(tmp_path / "b.jsonl.gz", [scored(1), scored(2)])
    (tmp_path / "README.md").write_text("not data")
    rows, _, copies = read(source(tmp_path))
    assert len(rows) == 3
    assert copies == 1  # row 1 stands in both


def test_rows_without_a_source_take_the_name_of_the_data(tmp_path):
    for name in ("prefs.jsonl", "prefs.jsonl.gz"):
        write(tmp_path / name, [HH])
        assert read(source(tmp_path / name, "pairs"))[0][0]["source"] == "prefs"


def test_malformed_rows_are_listed_and_fatal_above_the_share(tmp_path):
    path = write(tmp_path / "a.jsonl", [scored(0), scored(1, completions=[]), scored(2), with_completion(response="")])
    rows, rejects, _ = read(source(path))
    columns = ["source", "instruction", "models", "completions"]
    assert rejects == [
        {"file": path, "row": 2, "reason": "no completions", "columns": columns},
        {"file": path, "row": 4, "reason": "empty response", "columns": columns},
    ]
    assert check_share(len(rows), rejects, 0.5) == {"empty response": 1, "no completions": 1}
    with pytest.raises(UserError, match=r"2 of 4 rows are malformed \(1 empty response, 1 no completions; .*row 2 of"):
        check_share(len(rows), rejects, 0.49)
    with pytest.raises(UserError, match=r"a\.jsonl, with columns source, instruction, .*\); `ultrafeedback` reads"):
        check_share(len(rows), rejects, 0.1)
    with pytest.raises(UserError, match="2 of 2 rows"):
        check_share(0, rejects, 1.0)  # nothing left is an error, whatever is allowed


LINES = {
    "not JSON": [b'{"instruction": ', b"[1, 2", b'{"a": ' + b"1" * 5000 + b"}", b"nonsense", b'"\xef\xbb\xbf"]'],
    "not UTF-8 text": [b'{"instruction": "\xff"}', b"\x00\xd8"],
    "nested too deeply": [b"[" * 100_000 + b"]" * 100_000],
    "not an object": [b"[]", b"3", b"null"],
    "score is not a number": [
        json.dumps(with_completion(overall_score=score)).encode() for score in (10**400, -(10**400), float("-inf"))
    ],
    "response is not valid Unicode": [json.dumps(with_completion(response="\ud83d")).encode()],
    "model is not valid Unicode": [json.dumps(with_completion(model="\ud83d")).encode()],
    "system is not valid Unicode": [json.dumps(scored(system="\ud83d")).encode()],
}


@pytest.mark.parametrize("reason", LINES)
def test_a_broken_line_is_one_reject_with_its_number(tmp_path, reason):
    good, bad = json.dumps(scored()).encode(), LINES[reason]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([b"\xef\xbb\xbf" + good, b"", *bad]) + b"\r\n")
    rows, rejects, _ = read(source(tmp_path / "a.jsonl"))
    assert [unpack(row) for row in rows] == [scored_row(scored(), "-")]
    assert [(reject["row"], reject["reason"]) for reject in rejects] == [(i + 3, reason) for i in range(len(bad))]


def test_a_rating_of_hundreds_of_digits_is_no_rating():
    annotations = {"honesty": {"Rating": 10**400}, "helpfulness": {"Rating": "3"}}
    row = scored_row(with_completion(annotations=annotations), "-")
    assert row["completions"][2]["aspects"]["honesty"] is None


def test_names_of_columns_in_a_message_are_few_and_printable(tmp_path):
    record = {"\ud83d" + "x" * 100: 1, **{f"column {i}": 2 for i in range(50)}}
    write(tmp_path / "a.jsonl", [record])
    rows, rejects, _ = read(source(tmp_path / "a.jsonl"))
    assert len(rejects[0]["columns"]) == 20 and max(map(len, rejects[0]["columns"])) == 40
    with pytest.raises(UserError, match=r"with columns \\ud83dx+, column 0, ") as error:
        check_share(len(rows), rejects, 1.0)
    str(error.value).encode()


def damaged(tmp_path, what):
    good = write(tmp_path / "good.jsonl.gz", [scored(i) for i in range(200)])
    path = tmp_path / f"bad.{what.split()[-1]}"
    content = Path(good).read_bytes()
    match what:
        case "cut jsonl.gz":
            path.write_bytes(content[: len(content) // 2])
        case "plain jsonl.gz":
            path.write_text("{}\n")
        case "empty jsonl" | "empty jsonl.gz" | "empty parquet":
            path.write_bytes(b"")
        case "no rows parquet":
            parquet.write_table(pa.table({"instruction": pa.array([], pa.string())}), path)
        case "cut parquet":
            parquet.write_table(pa.Table.from_pylist([scored(i) for i in range(50)]), path)
            path.write_bytes(path.read_bytes()[:-100])
        case "flipped byte jsonl.gz":
            path.write_bytes(content[:300] + bytes([content[300] ^ 255]) + content[301:])
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut jsonl.gz", "not a complete gzip file"),
        ("plain jsonl.gz", "not a complete gzip file"),
        ("flipped byte jsonl.gz", "not a complete gzip file"),
        ("empty jsonl", "holds no rows"),
        ("empty jsonl.gz", "holds no rows"),
        ("empty parquet", "not a complete Parquet file"),
        ("no rows parquet", "holds no rows"),
        ("cut parquet", "not a complete Parquet file"),
        ("missing jsonl", "no such file"),
        ("data csv", "no such file"),
    ],
)
def test_damaged_files_stop_with_one_line_that_names_them(tmp_path, what, message):
    path = damaged(tmp_path, what)
    with pytest.raises(UserError, match=message) as caught:
        read(source(path))
    assert str(path) in str(caught.value)
    assert "; " in str(caught.value)  # the cure


def test_an_unknown_format_and_an_empty_folder_stop(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="unsupported file type"):
        source(tmp_path / "rows.csv")
    with pytest.raises(UserError, match="in this folder"):
        source(tmp_path)


# The real files


def real(name):
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"the real data is not there: {path}")
    return path


def test_real_scored_rows():
    rows, rejects, copies = read(source(real("alpacaeval_preferences.jsonl.gz")))
    assert (len(rows), rejects, copies) == (9467, [], 0)
    prompts = [row["prompt_id"] for row in rows]
    assert len(set(prompts)) == 678
    assert max(map(prompts.count, set(prompts))) == 14
    assert {row["source"] for row in rows} == {"selfinstruct", "oasst", "koala", "helpful_base", "vicuna"}


def test_real_pairs():
    rows, rejects, copies = read(source(real("hh_rlhf_harmless_test.jsonl.gz"), "pairs"))
    reasons = check_share(len(rows), rejects, 0.02)
    assert len(rows) + len(rejects) + copies == 2312
    assert reasons == {
        "chosen does not alternate between user and assistant": 8,
        "empty message in chosen": 4,
        "rejected does not alternate between user and assistant": 1,
    }
    assert all(unpack(row)["messages"][-1]["role"] == "user" for row in rows)
