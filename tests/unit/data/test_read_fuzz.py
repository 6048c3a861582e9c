"""Whatever a file holds, reading it gives rows, rejects with reasons, or one line of the project's own."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpc import files
from lpc.cli import UserError
from lpc.data import formats
from lpc.data.formats.base import Rows
from lpc.data.hub import describe_dataset
from lpc.data.read import ROWS, check_share, read, unpack
from lpc.evaluation.tasks import read_rows

budget = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

text = st.sampled_from(["hi", "", " ", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "\ud800", "\x00é"])
text |= st.text(max_size=5)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | text
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | value, "content": text | value}
)
messages = st.lists(message | value, max_size=4)
QUESTION = {"role": "user", "content": "q"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in "ab")
COMPLETIONS = [
    {"model": "m", "response": text, "overall_score": 1, "annotations": {"honesty": {"Rating": "3"}}} for text in "ab"
]
PAIRS = [
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD], "prompt": "q", "system": "s"},
    {"chosen": [GOOD], "rejected": [BAD], "prompt": [QUESTION], "source": "t"},
    {"chosen": "a", "rejected": "b", "prompt": "q", "images": [], "worker": 3, "source": "s"},
]
TURN = {"from": "human", "value": "q"}
RECORDS = {
    "pairs": PAIRS,
    "ultrafeedback": [{"instruction": "q", "completions": COMPLETIONS, "source": "s", "system": None, "worker": "w"}],
    "populations": [{"prompt": "q", "responses": {"a": "x", "b": "y"}, "worker": 3}],
    "implicit-prompt": [{"chosen": "a b", "rejected": "a c", "worker": 3}],
    "nectar": [{"prompt": "q", "answers": [{"answer": text, "rank": 1.0} for text in "ab"], "source": ["s"]}],
    "shp": [{"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 3, "score_B": 2}],
    "helpsteer3": [{"context": [QUESTION], "response1": "a", "response2": "b", "overall_preference": -1}],
    "safe-rlhf": [{"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1}],
    "sharegpt": [
        {"conversations": [TURN], **{name: {"from": "gpt", "value": name} for name in ("chosen", "rejected")}}
    ],
}


def places(record):
    """Every way to an element of nested lists and objects."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, inner in items:
        yield [key]
        yield from ([key, *rest] for rest in places(inner))


@st.composite
def nearly(draw, kind):
    """A row that would be read as of this kind, with up to two elements replaced."""
    record = json.loads(json.dumps(draw(st.sampled_from(RECORDS[kind]))))
    for _ in range(draw(st.integers(0, 2))):
        *way, last = draw(st.sampled_from(list(places(record))))
        inner = record
        for key in way:
            inner = inner[key]
        inner[last] = draw(scalar | value | messages)
    return record


kinds = st.sampled_from(list(RECORDS))


def check(path, kind, group):
    try:
        source = describe_dataset(kind=kind, path=str(path), revision=None, hub_split="train", group=group)
        rows, rejects, _ = read(source)
        files.write_rows(path.with_name("rows.out"), map(unpack, rows), ROWS)
        assert all(reject["reason"] and reject["row"] for reject in rejects)
        files.write_json(path.with_name("rejects.out"), rejects)
        check_share(len(rows), rejects, 0.5)
    except UserError as error:
        str(error).encode()
        return None
    return rows


@budget
@given(st.data(), kinds, st.sampled_from([None, "prompt", "worker"]))
def test_rows_of_any_values(tmp_path, data, kind, group):
    records = data.draw(st.lists(nearly(kind) | value, max_size=4))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    check(path, kind, group)


@budget
@given(st.data(), kinds)
def test_lines_of_any_bytes(tmp_path, data, kind):
    row = nearly(kind).map(lambda record: json.dumps(record).encode())
    lines = data.draw(st.lists(st.binary(max_size=30) | row, max_size=4))
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    check(path, kind, None)


@budget
@given(st.binary(max_size=60), st.sampled_from(["a.jsonl.gz", "a.parquet"]), kinds)
def test_files_of_any_bytes(tmp_path, content, name, kind):
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name, kind, None)


@budget
@given(st.data(), st.binary(max_size=4), kinds)
def test_gzip_that_is_cut_or_damaged(tmp_path, data, damage, kind):
    content = gzip.compress("\n".join(json.dumps(record) for record in 3 * RECORDS[kind]).encode())
    place = data.draw(st.integers(0, len(content)))
    tail = content[place + len(damage) :] if data.draw(st.booleans()) else b""
    (tmp_path / "a.jsonl.gz").write_bytes(content[:place] + damage + tail)
    check(tmp_path / "a.jsonl.gz", kind, None)


CSV = 'question,answer\n"a, ""b""",1\n'
JSON = '{"question": "a", "choices": ["x", "y"], "answer": 0}'


@budget
@given(
    st.sampled_from(["jsonl", "json", "csv", "jsonl.gz", "csv.gz", "parquet", "txt"]),
    st.binary(max_size=20) | st.sampled_from([b"[" * 5000, b"1" * 5000, b"\xef\xbb\xbf", b'"' * 9, b"NaN"]),
    st.sampled_from([JSON, f"[{JSON}]", CSV]),
    st.integers(0, 60),
)
def test_tasks_of_any_bytes(tmp_path, suffix, damage, text, place):
    """Rows of benchmark tasks; a file that is read has rows."""
    content = text.encode()[:place] + damage + text.encode()[place:]
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    try:
        assert read_rows(tmp_path / f"a.{suffix}")
    except UserError as error:
        assert f"a.{suffix}" in str(error)


@budget
@given(st.integers(4, 400), st.binary(min_size=1, max_size=4), kinds)
def test_damaged_parquet(tmp_path, place, damage, kind):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["hi", "you"], "chosen": ["a", "b"], "rejected": ["c", "d"]}), path)
    content = path.read_bytes()
    place %= len(content) - len(damage)
    path.write_bytes(content[:place] + damage + content[place + len(damage) :])
    check(path, kind, None)


def test_the_rows_that_the_fuzzer_starts_from_are_read(tmp_path):
    """Otherwise nothing but refusals would be tested."""
    assert RECORDS.keys() == {name for name, kind in formats.KINDS.items() if issubclass(kind, Rows)}
    for kind, records in RECORDS.items():
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
        assert len(check(tmp_path / "a.jsonl", kind, None)) == len(records)
