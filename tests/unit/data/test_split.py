import random

import pytest

from lpc.cli import UserError
from lpc.data.split import SPLITS, count_rows, describe, keep_own, limited, split_groups, split_prompts


def filled(rows, assigned):
    return {name: sum(rows[prompt] for prompt in assigned if assigned[prompt] == name) for name in SPLITS}


@pytest.mark.parametrize("trial", range(30))
def test_sizes_are_met_to_within_one_prompt(trial):
    rng = random.Random(trial)
    rows = {f"prompt {i}": rng.randint(1, rng.choice((1, 3, 14))) for i in range(rng.randint(60, 300))}
    total = sum(rows.values())
    sizes = {"validation": rng.randint(14, total // 4), "test": rng.randint(14, total // 4)}
    assigned = split_prompts(rows, sizes, seed=trial)
    assert assigned.keys() == rows.keys()
    counts = filled(rows, assigned)
    for name, size in sizes.items():
        assert size - max(rows.values()) < counts[name] <= size
    assert counts["train"] == total - counts["validation"] - counts["test"]


def test_a_prompt_of_fourteen_rows_stays_whole():
    rows = [{"prompt_id": f"{i % 40}", "source": "s"} for i in range(40 * 14)]
    counts = count_rows(rows)
    assert set(counts.values()) == {14}
    assigned = split_prompts(counts, {"validation": 30, "test": 100}, seed=0)
    assert filled(counts, assigned) == {"train": 560 - 98 - 28, "validation": 28, "test": 98}
    for row in rows:
        row["split"] = assigned[row["prompt_id"]]
    summary = describe(rows)
    assert summary["test"] == {"rows": 98, "prompts": 7, "sources": {"s": 98}}
    assert sum(part["prompts"] for part in summary.values()) == 40  # so that no prompt is in two splits


def test_exact_where_prompts_have_one_row():
    rows = {str(i): 1 for i in range(100)}
    assert filled(rows, split_prompts(rows, {"validation": 7, "test": 13}, 0)) == {
        "train": 80,
        "validation": 7,
        "test": 13,
    }


def test_order_of_rows_does_not_matter_and_the_seed_does():
    rows = {str(i): 1 + i % 3 for i in range(200)}
    names = list(rows)
    random.Random(1).shuffle(names)
    sizes = {"validation": 20, "test": 40}
    first = split_prompts(rows, sizes, 0)
    assert split_prompts({name: rows[name] for name in names}, sizes, 0) == first
    assert split_prompts(rows, sizes, 1) != first


def test_prompts_selected_by_their_own_hash_fill_every_split():
    """Data sets exist whose prompts were kept by sha256 % 10; an unsalted split by the same hash leaves splits
    empty."""
    from hashlib import sha256

    names = [str(i) for i in range(5000)]
    digests = {name: sha256(name.encode()).hexdigest() for name in names}
    kept = {digest: 1 for digest in digests.values() if int(digest, 16) % 10 == 3}
    counts = filled(kept, split_prompts(kept, {"validation": 50, "test": 50}, 0))
    assert counts["validation"] == counts["test"] == 50
    assert counts["train"] == len(kept) - 100 > 0


@pytest.mark.parametrize(
    ("rows", "sizes", "empty"),
    [
        ({"a": 5, "b": 5, "c": 5}, {"validation": 4, "test": 5}, "validation"),
        ({"a": 5, "b": 5, "c": 5}, {"validation": 5, "test": 0}, "test"),
    ],
)
def test_an_empty_split_stops(rows, sizes, empty):
    with pytest.raises(UserError, match=f"split {empty}: no rows"):
        split_prompts(rows, sizes, 0)


@pytest.mark.parametrize("sizes", [{"validation": 5, "test": 5}, {"validation": 0, "test": 11}])
def test_splits_as_large_as_the_data_stop(sizes):
    with pytest.raises(UserError, match=rf"test \({sizes['test']}\) and .* but the data has 10; make `split`"):
        split_prompts({"a": 5, "b": 5}, sizes, 0)


@pytest.mark.parametrize("drawn", ["validation", "test"])
def test_one_split_is_drawn_where_the_other_is_the_data_s_own(drawn):
    rows = {str(i): 1 + i % 2 for i in range(40)}
    assert filled(rows, split_prompts(rows, {drawn: 10}, 0)) == {"train": 50, "validation": 0, "test": 0, drawn: 10}
    assert set(split_prompts(rows, {}, 0).values()) == {"train"}
    with pytest.raises(UserError, match=rf"split: {drawn} \(60\) must leave rows for training, but the data has 60"):
        split_prompts(rows, {drawn: 60}, 0)
    with pytest.raises(UserError, match="split train: no rows left"):
        split_prompts({}, {}, 0)


def test_a_prompt_of_two_own_splits_stays_in_the_first():
    """Test before validation before the rest; a row without a split is of the rest."""
    own = {"test": "ab", "validation": "bc", "train": "acd"}
    rows = [
        {"prompt_id": prompt, "n": f"{name} {prompt}"} | ({} if name == "train" else {"split": name})
        for name, prompts in own.items()
        for prompt in prompts
    ]
    assert [row["n"] for row in keep_own(rows)] == ["test a", "test b", "validation c", "train d"]
    assert keep_own(rows[4:]) == rows[4:]
    with pytest.raises(UserError, match="split validation: no rows left, since all its prompts are in test"):
        keep_own([row for row in rows if row["n"] != "validation c"])


def test_a_limit_keeps_the_first_rows_by_a_hash_and_own_splits_whole():
    rows = [{"row_id": f"{i:064x}"} for i in range(200)] + [{"row_id": "own", "split": "test"}]
    few, more = limited(rows, 20), limited(rows, 50)
    assert (len(few), len(more)) == (21, 51) and all(row in more for row in few) and few[-1] == rows[-1]
    assert few == [row for row in rows if row in few], "in their order"
    assert few[:20] != rows[:20] and limited(rows[::-1], 20) == few[::-1]
    assert limited(rows, None) == limited(rows, 200) == limited(rows, 1000) == rows


def people(count, each, prompts, seed=0):
    rng = random.Random(seed)
    return [
        {"group": f"p{i % count}", "prompt_id": f"q{rng.randrange(prompts)}", "source": "s", "n": i}
        for i in range(count * each)
    ]


@pytest.mark.parametrize("prompts", [60, 1000])
def test_by_group_neither_a_group_nor_a_prompt_is_in_two_splits(prompts):
    rows = people(30, 10, prompts)
    found = split_groups(rows, {"validation": 20, "test": 40}, seed=0)
    for key in ("group", "prompt_id"):
        assert len({(row[key], row["split"]) for row in found}) == len({row[key] for row in found})
    test = [row for row in found if row["split"] == "test"]
    assert len(test) == 40 and len({row["group"] for row in test}) == 4, "all rows of test people are kept"
    held_out = {row["prompt_id"] for row in found if row["split"] != "train"}
    dropped = {row["n"] for row in rows} - {row["n"] for row in found}
    assert dropped and all(rows[n]["prompt_id"] in held_out for n in dropped), "and no row is dropped without need"
    assert all("split" not in row for row in rows)


def test_by_group_what_cannot_be_split_is_refused():
    rows = people(30, 10, 1)
    with pytest.raises(UserError, match="split validation: no rows left, since all its groups' prompts are in another"):
        split_groups(rows, {"validation": 20, "test": 40}, seed=0)
    rows[7]["group"] = None
    with pytest.raises(UserError, match=r"split\.by: 1 of 300 rows have no group"):
        split_groups(rows, {"validation": 20, "test": 40}, seed=0)
