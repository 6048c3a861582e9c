"""The steps from generated rows to noisy pairs, run as functions on real files."""

import gzip
import json
import os
import random
import subprocess
import sys

import pyarrow.compute as pc
import pytest

from lpc import cli, files
from lpc.cli import UserError
from lpc.data import pairs as pairs_module
from lpc.data import read
from lpc.steps import download_dataset, flip, pairs, split, world

WORLD = {"rows": 300, "completions": 4, "score_noise": 0.5, "seed": 0}
SPLIT = {"split": {"validation": 20, "test": 60, "seed": 0}, "max_rejected_rows": 0.0}
PAIRS = {"ties": "keep", "min_margin": 0.0, "score": "overall", "seed": 0, "drop_sources": []}
FLIP = {"rate": 0.25, "marker": "[FLIP]", "seed": 0}


def run(step, spec, **options):
    arguments = [word for name, path in options.items() for word in (f"--{name}", str(path))]
    step.main(cli.parse(step.parser(), ["--spec", json.dumps(spec), *arguments]))


def make_world(folder):
    run(world, WORLD, output=folder / "world.jsonl.gz", record=folder / "dataset.json")


def make_split(folder, spec=SPLIT):
    outputs = {"output": folder / "rows.parquet", "rejects": folder / "rejects.jsonl", "summary": folder / "split.json"}
    run(split, spec, record=folder / "dataset.json", **outputs)


def make_pairs(folder):
    run(pairs, PAIRS, rows=folder / "rows.parquet", output=folder / "pairs.parquet", summary=folder / "pairs.json")


def make_flip(folder):
    run(flip, FLIP, pairs=folder / "pairs.parquet", output=folder / "noisy.parquet", summary=folder / "noisy.json")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_world(folder)
    make_split(folder)
    make_pairs(folder)
    make_flip(folder)
    return folder


def test_numbers_and_schemas(done):
    rows = files.read_parquet(done / "rows.parquet")
    assert rows.schema.equals(read.ROWS)
    assert {name: part["rows"] for name, part in files.read_json(done / "split.json")["splits"].items()} == {
        "train": 220,
        "validation": 20,
        "test": 60,
    }
    built = files.read_parquet(done / "pairs.parquet")
    assert built.schema.equals(pairs_module.PAIRS)
    assert built.num_rows == 300
    assert len(set(built["pair_id"].to_pylist())) == 300
    noisy = files.read_parquet(done / "noisy.parquet")
    assert noisy.schema.equals(pairs_module.PAIRS)
    assert files.read_json(done / "noisy.json")["splits"]["train"]["flipped"] == 55
    assert noisy.filter(pc.field("split") != "train").equals(built.filter(pc.field("split") != "train"))
    assert (done / "rejects.jsonl").read_text() == ""


def test_no_prompt_is_in_two_splits(done):
    table = files.read_parquet(done / "rows.parquet", columns=["prompt_id", "split"]).to_pylist()
    splits = {}
    for row in table:
        splits.setdefault(row["prompt_id"], set()).add(row["split"])
    assert all(len(names) == 1 for names in splits.values())


def test_metadata_says_what_made_the_file(done):
    metadata = files.parquet_metadata(done / "noisy.parquet")
    assert metadata["spec"] == {**SPLIT, "split": {**SPLIT["split"], "by": "prompt", "limit": None}, "annotators": None}
    assert metadata["pairs"] == PAIRS
    assert metadata["noise"] == FLIP
    digest = files.sha256(done / "world.jsonl.gz")
    told = {"kind": "world", "path": "world.jsonl.gz", "revision": None, "group": None, "sha256": [digest]}
    assert metadata["dataset"] == told


def test_the_same_spec_gives_the_same_bytes(done, tmp_path):
    make_world(tmp_path)
    assert (tmp_path / "world.jsonl.gz").read_bytes() == (done / "world.jsonl.gz").read_bytes()
    make_split(tmp_path)
    make_pairs(tmp_path)
    make_flip(tmp_path)
    for name in ("rows.parquet", "split.json", "pairs.parquet", "pairs.json", "noisy.parquet", "noisy.json"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name


def test_every_key_of_pairs_reaches_them(done, tmp_path):
    spec = PAIRS | {"min_margin": 3.0, "ties": "drop", "drop_sources": ["poet"]}
    outputs = {"output": tmp_path / "pairs.parquet", "summary": tmp_path / "pairs.json"}
    run(pairs, spec, rows=done / "rows.parquet", **outputs)
    built = files.read_parquet(outputs["output"])
    assert pc.min(pc.subtract(built["chosen_score"], built["rejected_score"])).as_py() >= 3
    dropped = files.read_json(outputs["summary"])["dropped"]
    assert min(dropped["margin"], dropped["source"]) > 0 and built.num_rows + sum(dropped.values()) == 300
    with pytest.raises(UserError, match=r"no pairs are left in train, validation, test \(.*'unrated': 300"):
        run(pairs, PAIRS | {"score": "aspects"}, rows=done / "rows.parquet", **outputs)


def test_the_order_of_rows_in_the_file_does_not_matter(done, tmp_path):
    with gzip.open(done / "world.jsonl.gz", "rt") as stream:
        lines = stream.readlines()
    random.Random(0).shuffle(lines)
    path = tmp_path / "shuffled.jsonl"
    path.write_text("".join(lines))
    spec = {"kind": "ultrafeedback", "path": str(path), "revision": None, "hub_split": "train"}
    run(download_dataset, spec, output=tmp_path / "dataset.json")
    make_split(tmp_path)
    make_pairs(tmp_path)
    make_flip(tmp_path)
    for name in ("rows.parquet", "pairs.parquet", "noisy.parquet"):
        assert files.read_parquet(tmp_path / name).equals(files.read_parquet(done / name)), name


def test_people_of_a_world_are_the_groups_of_its_rows(tmp_path):
    run(world, WORLD | {"people": 12}, output=tmp_path / "world.jsonl.gz", record=tmp_path / "dataset.json")
    make_split(tmp_path, {"split": {"validation": 25, "test": 75, "by": "group"}})
    rows = files.read_parquet(tmp_path / "rows.parquet", ["group", "split"]).to_pylist()
    people = {name: {row["group"] for row in rows if row["split"] == name} for name in ("train", "validation", "test")}
    assert {name: len(groups) for name, groups in people.items()} == {"train": 8, "validation": 1, "test": 3}


def test_own_splits_of_local_files(tmp_path):
    """Prompts 0 to 39 are the rest, 25 to 34 validation, 30 to 44 test: each prompt stays in the last of these."""
    ranges = {"prefs": range(40), "test": range(30, 45), "dev": range(25, 35)}
    for name, numbers in ranges.items():
        lines = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b" + "c" * (i % 2 and name == "dev")} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path, dev, test = (str(tmp_path / f"{name}.jsonl") for name in ("prefs", "dev", "test"))
    spec = {"kind": "pairs", "path": path, "validation": dev, "test": test}
    run(download_dataset, spec, output=tmp_path / "dataset.json")
    record = files.read_json(tmp_path / "dataset.json")
    assert record["files"] == [path] and record["own_splits"] == {"validation": [dev], "test": [test]}
    assert set(record["sha256"]) == {path, dev, test}
    make_split(tmp_path, {"split": {"validation": dev, "test": test}})
    prompts = {name: set() for name in ("train", "validation", "test")}
    for row in files.read_parquet(tmp_path / "rows.parquet").to_pylist():
        prompts[row["split"]].add(int(row["messages"][0]["content"][1:]))
    assert prompts == {"train": {*range(25)}, "validation": {*range(25, 30)}, "test": {*range(30, 45)}}
    summary = files.read_json(tmp_path / "split.json")
    # Of equal rows that of test stays, then that of validation: ten of the rest are in test, and those of even prompts
    # of validation are in test or in the rest. Of the others, two are dropped from validation and three from the rest.
    assert (summary["copies"], summary["dropped"], summary["beyond_limit"]) == (15, 5, 0)

    run(download_dataset, spec | {"validation": None}, output=tmp_path / "dataset.json")
    make_split(tmp_path, {"split": {"validation": 4, "test": test, "limit": 20}})
    summary = files.read_json(tmp_path / "split.json")
    assert {name: part["rows"] for name, part in summary["splits"].items()} == {
        "train": 16,
        "validation": 4,
        "test": 15,
    }
    assert (summary["copies"], summary["dropped"], summary["beyond_limit"]) == (10, 0, 10)


def test_a_dataset_for_testing_alone(done, tmp_path):
    (tmp_path / "dataset.json").write_bytes((done / "dataset.json").read_bytes())
    make_split(tmp_path, {"split": {"test": "all"}})
    make_pairs(tmp_path)
    rows = {name: part["rows"] for name, part in files.read_json(tmp_path / "split.json")["splits"].items()}
    assert rows == {"train": 0, "validation": 0, "test": 300}
    assert files.read_parquet(tmp_path / "pairs.parquet")["split"].to_pylist() == ["test"] * 300
    summary = files.read_json(tmp_path / "pairs.json")["splits"]
    assert summary["train"]["longer_chosen"] is None and 0 < summary["test"]["longer_chosen"] < 1


def test_annotators_of_populations_are_drawn_in_each_split(tmp_path):
    """12 prompts, 3 populations with 2 others each, so 6 rounds: 8 training prompts are 2 annotators of 4 a round."""
    path, names = tmp_path / "rows.jsonl", ("art", "none", "trade", "war")
    lines = [{"prompt": f"p{i}", "responses": {name: f"{name} {i}" for name in names}} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(download_dataset, {"kind": "populations", "path": str(path)}, output=tmp_path / "dataset.json")
    annotators = {"pairs": 4, "held_out_pairs": 2, "without": ["none"]}
    make_split(tmp_path, {"split": {"validation": 2, "test": 2}, "annotators": annotators})
    make_pairs(tmp_path)
    rows = files.read_parquet(tmp_path / "pairs.parquet").to_pylist()
    people, prompts = {}, {}
    for row in rows:
        people.setdefault((row["split"], row["group"]), []).append(row)
        prompts.setdefault(row["split"], set()).add(row["prompt_id"])
    sizes = {split: [len(own) for (of, _), own in people.items() if of == split] for split in prompts}
    assert sizes == {"train": [4] * 12, "validation": [2] * 6, "test": [2] * 6}
    assert not prompts["train"] & prompts["test"]
    for own in people.values():
        assert len({row["source"] for row in own}) == 1 and len({row["prompt_id"] for row in own}) == len(own)
    choices = {(row["prompt_id"], row["chosen"].split()[0], row["rejected"].split()[0]) for row in rows}
    assert len(choices) == len(rows) == 72, "each population against each other one, once a prompt"
    assert all(row["source"] == row["chosen"].split()[0] != row["rejected"].split()[0] for row in rows)


def test_too_few_prompts_for_an_annotator_stop(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"p{i}", "responses": {"a": "x", "b": "y"}} for i in range(9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(download_dataset, {"kind": "populations", "path": str(path)}, output=tmp_path / "dataset.json")
    with pytest.raises(UserError, match="2 prompts in split test are too few for an annotator of 32 pairs; lower"):
        make_split(tmp_path, {"split": {"validation": 2, "test": 2}, "annotators": {"pairs": 4}})
    with pytest.raises(UserError, match="no prompt has a response of c; there are a, b"):
        make_split(tmp_path, {"split": {"validation": 2, "test": 2}, "annotators": {"without": ["c"]}})


def test_too_many_malformed_rows_stop_and_leave_only_their_list(done, tmp_path):
    with gzip.open(done / "world.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    for row in rows[:3]:
        row["completions"] = []
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"kind": "ultrafeedback", "path": str(path), "revision": None, "hub_split": "train"}
    run(download_dataset, spec, output=tmp_path / "dataset.json")
    with pytest.raises(UserError, match=r"3 of 300 rows are malformed \(3 no completions"):
        make_split(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dataset.json", "rejects.jsonl", "rows.jsonl"]
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == [1, 2, 3]
    make_split(tmp_path, {**SPLIT, "max_rejected_rows": 0.01})
    assert files.read_json(tmp_path / "split.json")["rejected"] == {"no completions": 3}


def test_data_steps_and_tables_import_nothing_that_they_do_not_use():
    """Each of these would be a second or more of every job."""
    program = "import sys; from lpc.steps import flip, pairs, split, tables; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert {"datasets", "pandas", "scipy.stats", "sklearn", "torch"}.isdisjoint(done.stdout.split())
