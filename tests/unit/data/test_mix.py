"""A mixture: which pairs of its members it has, and that no prompt is in two of its splits."""

import collections
import json

import pytest

from lpc import cli, files
from lpc.cli import UserError
from lpc.data.formats.base import make_row, preferred
from lpc.data.mix import mix
from lpc.data.pairs import PAIRS, make_pair
from lpc.steps import mix as step


def pair(prompt, split="train", text="yes", group=None):
    messages = [{"role": "user", "content": prompt}]
    row = {**make_row({}, "own source", messages, preferred(text, "no")), "split": split, "group": group}
    return make_pair(row, *row["completions"])


def held_out(name):
    return [pair(f"{name} dev", "validation"), pair(f"{name} test", "test")]


def member(name, count=100, **options):
    return [*held_out(name), *(pair(f"{name} {i}", **options) for i in range(count))]


def train(pairs):
    return {row["pair_id"] for row in pairs if row["split"] == "train"}


def test_shares_are_of_training_pairs_and_sources_are_members():
    members = {"a": member("a"), "b": member("b", 50)}
    mixed, dropped = mix(members, {"a": 0.3, "b": 1.0}, 0)
    counts = collections.Counter((row["source"], row["split"]) for row in mixed)
    assert counts == {
        ("a", "train"): 30, ("a", "validation"): 1, ("a", "test"): 1,
        ("b", "train"): 50, ("b", "validation"): 1, ("b", "test"): 1,
    }  # fmt: skip
    assert dropped == {
        "a": {"held_out": 0, "copies": 0, "beyond_share": 70},
        "b": {"held_out": 0, "copies": 0, "beyond_share": 0},
    }
    assert [row["pair_id"] for row in mixed] == sorted(row["pair_id"] for row in mixed)
    originals = {row["pair_id"]: row for name in members for row in members[name]}
    for row in mixed:
        assert row == {**originals[row["pair_id"]], "source": row["source"]}


def test_the_draw_follows_the_seed_alone_and_a_larger_share_keeps_a_smaller_one():
    first = member("a")
    shares = [train(mix({"a": first}, {"a": share}, 0)[0]) for share in (0.2, 0.5, 1.0)]
    assert shares[0] < shares[1] < shares[2]
    assert train(mix({"a": first[::-1]}, {"a": 0.5}, 0)[0]) == shares[1]
    assert train(mix({"a": first}, {"a": 0.5}, 1)[0]) != shares[1]
    # Another member does not change what is drawn of this one.
    mixed, _ = mix({"a": first, "b": member("b")}, {"a": 0.5, "b": 0.5}, 0)
    assert {row["pair_id"] for row in mixed if row["source"] == "a" and row["split"] == "train"} == shares[1]


@pytest.mark.parametrize(("count", "share", "expected"), [(10, 0.29, 3), (7, 0.5, 4), (3, 0.6, 2)])
def test_the_number_of_drawn_pairs_is_the_nearest(count, share, expected):
    """Rounded down, 0.29 of 10 pairs would be 2."""
    mixed, _ = mix({"a": member("a", count)}, {"a": share}, 0)
    assert len(train(mixed)) == expected


def test_members_draw_independently():
    """Two members with the same groups: not the same half of them, or the mixture would hold half of the groups."""
    halves = []
    members = {name: [*held_out(name), *(pair(f"{name} {i}", group=f"{i}") for i in range(40))] for name in "ab"}
    mixed, _ = mix(members, {"a": 0.5, "b": 0.5}, 0)
    for name in "ab":
        halves.append({row["group"].partition("/")[2] for row in mixed if row["source"] == name and row["group"]})
    assert [len(half) for half in halves] == [20, 20] and halves[0] != halves[1]


def test_no_prompt_is_in_two_splits():
    """b trains on a's test and validation prompts, one in another Unicode form with other space; a on b's test prompt;
    and what a has for validation b has for testing."""
    composed, decomposed = "caf\u00e9", " cafe\u0301\n"
    a = [*held_out("a"), pair(composed, "test"), pair("dev of a", "validation"), pair("both", "validation"),
         pair("test of b"), pair("own a")]  # fmt: skip
    b = [*held_out("b"), pair("test of b", "test"), pair("both", "test"), pair(decomposed, text="other"),
         pair("dev of a"), pair("own b")]  # fmt: skip
    mixed, dropped = mix({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, 0)
    splits = collections.defaultdict(set)
    for row in mixed:
        splits[row["prompt_id"]].add(row["split"])
    assert {len(found) for found in splits.values()} == {1}
    assert {(row["source"], row["messages"][0]["content"]) for row in mixed if row["split"] == "train"} == {
        ("a", "own a"),
        ("b", "own b"),
    }
    assert (dropped["a"]["held_out"], dropped["b"]["held_out"]) == (2, 2)


def test_a_pair_of_two_members_is_there_once():
    both = [pair("same"), pair("same test", "test")]
    mixed, dropped = mix({"a": [*held_out("a"), *both], "b": [*member("b", 1), *both]}, {"a": 1.0, "b": 1.0}, 0)
    assert sorted(row["source"] for row in mixed if row["pair_id"] in {found["pair_id"] for found in both}) == ["a"] * 2
    assert (dropped["a"]["copies"], dropped["b"]["copies"]) == (0, 2)


def test_groups_are_drawn_whole_and_are_of_one_member():
    own = [pair(f"q{i}", group=f"person {i % 10}") for i in range(40)]
    mixed, dropped = mix({"a": [*held_out("a"), *own], "b": [*held_out("b"), *own[:20]]}, {"a": 0.3, "b": 1.0}, 0)
    sizes = collections.Counter(row["group"] for row in mixed if row["source"] == "a" and row["split"] == "train")
    assert set(sizes.values()) == {4} and len(sizes) == 3 and all(group.startswith("a/person ") for group in sizes)
    assert dropped["a"]["beyond_share"] == 28
    assert all(row["group"] is None for row in mixed if row["split"] != "train")


@pytest.mark.parametrize(
    ("members", "share", "message"),
    [
        ({"a": member("a", 3)}, 0.1, "mix.a: no training pair is left at a share of 0.1 .*'beyond_share': 3"),
        ({"a": [*held_out("a"), pair("a test", text="x")]}, 1.0, "mix.a: no training pair is left .*'held_out': 1"),
        (
            {"a": [pair("v", "validation"), pair("t", "test"), pair("q")], "b": [pair("v", "test"), pair("r")]},
            1.0,
            "mix: no validation pair is left .*change `split` of these datasets",
        ),
    ],
)
def test_a_split_without_pairs_stops(members, share, message):
    with pytest.raises(UserError, match=message):
        mix(members, dict.fromkeys(members, share), 0)


def run(folder, shares, *names):
    arguments = ["--spec", json.dumps({"mix": shares}), "--pairs", *(str(folder / f"{name}.parquet") for name in names)]
    arguments += ["--output", str(folder / "mixed.parquet"), "--summary", str(folder / "mixed.json")]
    step.main(cli.parse(step.parser(), arguments))


def test_the_step(tmp_path):
    """The files are in the order of the names, whatever that of the shares is."""
    for name in ("a", "b"):
        files.write_rows(tmp_path / f"{name}.parquet", member(name, 10), PAIRS, {})
    run(tmp_path, {"b": 0.5, "a": 1.0}, "a", "b")
    mixed = files.read_parquet(tmp_path / "mixed.parquet")
    summary = files.read_json(tmp_path / "mixed.json")
    assert mixed.schema.equals(PAIRS)
    assert summary["splits"]["train"]["sources"] == {"a": 10, "b": 5} and summary["dropped"]["b"]["beyond_share"] == 5
    assert {row["messages"][0]["content"][0] for row in mixed.to_pylist() if row["source"] == "b"} == {"b"}
    with pytest.raises(UserError, match=r"--pairs: 1 files for 2 datasets \(a, b\); give one each"):
        run(tmp_path, {"b": 0.5, "a": 1.0}, "a")
