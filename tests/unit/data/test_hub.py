"""The cache of huggingface_hub is laid out for real on disk; only the network is missing (HF_HUB_OFFLINE)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lpc.cli import UserError
from lpc.data.hub import describe_dataset
from lpc.data.read import read, unpack
from lpc.model.checkpoint import describe_base, load_on_meta, weight_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPTIONS = {"dtype": "float32", "chat_template": None, "trust_remote_code": False}


def in_cache(home: Path, kind: str, name: str) -> Path:
    """The folder of the only revision, `main`, of a repository in the cache under `home`."""
    repository = home / "hub" / f"{kind}s--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def step(name: str, home: Path, spec: dict, *arguments):
    """Run a step by its command line, as a rule does, with HF_HOME at `home` and no network."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", f"lpc.steps.{name}", "--spec", json.dumps(spec), *map(str, arguments)]
    environment["PYTHONPATH"] = str(Path(__file__).parents[3] / "src")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def last_line(done) -> str:
    return done.stderr.strip().splitlines()[-1]


def pair(i):
    return {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}


def dataset_spec(**changes):
    return {"kind": "pairs", "path": "org/prefs", "revision": None, "hub_split": "train", **changes}


def test_a_hub_dataset_from_the_cache_to_rows(tmp_path):
    snapshot = in_cache(tmp_path, "dataset", "org/prefs")
    (snapshot / "data").mkdir()
    for split, count in (("train", 30), ("test", 5)):
        lines = [json.dumps(pair(i)) for i in range(count)]
        (snapshot / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (snapshot / "README.md").write_text("# Preferences\n")

    source = tmp_path / "dataset.json"
    done = step("download_dataset", tmp_path, dataset_spec(), "--output", source)
    assert done.returncode == 0, done.stderr
    record = json.loads(source.read_text())
    assert record["revision"] == COMMIT
    assert record["files"] == [str(snapshot / n) for n in ("README.md", "data/test.jsonl", "data/train.jsonl")]
    assert set(record["sha256"]) == set(record["files"])

    rows, rejects, copies = read(record)
    assert (len(rows), rejects, copies) == (30, [], 0)
    assert {row["source"] for row in rows} == {"prefs"}
    assert len(read({**record, "hub_split": "test"})[0]) == 5
    with pytest.raises(UserError, match="split 'dev' cannot be read"):
        read({**record, "hub_split": "dev"})
    shutil.rmtree(snapshot)
    with pytest.raises(UserError, match="the downloaded data set is gone"):
        read(record)


CARD = """---
configs:
- config_name: easy
  data_files: [{split: train, path: easy/train.jsonl}, {split: held_out, path: easy/test.jsonl}]
- config_name: hard
  data_files: [{split: train, path: hard/train.jsonl}]
---
"""


def test_configuration_folder_and_own_splits_of_a_hub_dataset(tmp_path):
    snapshot = in_cache(tmp_path, "dataset", "org/prefs")
    (snapshot / "README.md").write_text(CARD)
    for number, (folder, split) in enumerate([("easy", "train"), ("easy", "test"), ("hard", "train")]):
        (snapshot / folder).mkdir(exist_ok=True)
        lines = [json.dumps(pair(10 * number + i)) for i in range(3 + number)]
        (snapshot / folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    source = tmp_path / "dataset.json"
    spec = dataset_spec(hub_config="easy", test="held_out")
    done = step("download_dataset", tmp_path, spec, "--output", source)
    assert done.returncode == 0, done.stderr
    record = json.loads(source.read_text())
    assert (record["hub_config"], record["data_dir"], record["own_splits"]) == ("easy", None, {"test": "held_out"})

    def found(record):
        return {(row.get("split"), unpack(row)["messages"][0]["content"]) for row in read(record)[0]}

    own = [("test", f"question {i}") for i in range(10, 14)]
    rest = [(None, f"question {i}") for i in range(3)]
    assert found(record) == {*own, *rest}
    for place in ({"hub_config": "hard"}, {"hub_config": None, "data_dir": "hard"}):
        assert found(record | place | {"own_splits": {}}) == {(None, f"question {i}") for i in range(20, 25)}
    with pytest.raises(UserError, match=r"split 'held_out' cannot be read .*correct `hub_split`, `hub_config`"):
        read(record | {"hub_config": "hard"})
    with pytest.raises(UserError, match=r"(?s)cannot be read .*easy.*hard"):
        read(record | {"hub_config": None})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (dataset_spec(), "org/prefs (dataset, revision main): not in the cache"),
        (dataset_spec(revision="v2"), "org/prefs (dataset, revision v2): not in the cache"),
        (dataset_spec(path="no/such/file"), "neither a file or folder here nor a name on the hub"),
        (dataset_spec(path="missing.jsonl"), "missing.jsonl: no such file"),
    ],
)
def test_what_is_not_there_is_one_line_with_a_cure(tmp_path, spec, words):
    output = tmp_path / "dataset.json"
    done = step("download_dataset", tmp_path / "cache", spec, "--output", output)
    assert done.returncode == 1
    assert words in last_line(done)
    assert "; " in last_line(done)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])


def test_a_local_dataset_is_recorded_with_its_checksum(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(pair(0)) + "\n")
    record = describe_dataset(**dataset_spec(path=str(path)))
    assert record["revision"] is None
    assert list(record["sha256"]) == record["files"] == [str(path)]
    path.write_text(json.dumps(pair(1)) + "\n")
    assert describe_dataset(**dataset_spec(path=str(path)))["sha256"] != record["sha256"]


def test_a_hub_base_from_the_cache(tmp_path, checkpoint):
    snapshot = in_cache(tmp_path, "model", "org/tiny")
    shutil.copytree(checkpoint, snapshot, dirs_exist_ok=True)
    output = tmp_path / "base.json"
    spec = {"name": "tiny", "model": "org/tiny", "revision": "main", **OPTIONS}
    done = step("download_base", tmp_path, spec, "--output", output)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert record["revision"] == COMMIT
    assert record["path"] == str(snapshot)
    assert record["parameters"] > 0


def test_a_local_base_is_recorded(checkpoint):
    from safetensors import safe_open

    record = describe_base(name="tiny", model=str(checkpoint), revision=None, **OPTIONS)
    with safe_open(checkpoint / "model.safetensors", "np") as weights:
        count = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert record["parameters"] == count
    assert record["revision"] is None


def test_a_shard_or_a_tokenizer_that_changed_is_another_base(tmp_path, checkpoint):
    """The index of shards says nothing of their content: the record must."""
    from tiny import make_backbone

    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    digests = set()
    for seed in (0, 1):
        make_backbone(seed=seed).save_pretrained(tmp_path, max_shard_size="20KB")
        digests.add(describe_base(name="tiny", model=str(tmp_path), revision=None, **OPTIONS)["sha256"])
    (tmp_path / "tokenizer_config.json").write_text((tmp_path / "tokenizer_config.json").read_text() + " ")
    digests.add(describe_base(name="tiny", model=str(tmp_path), revision=None, **OPTIONS)["sha256"])
    assert len(digests) == 3, "two sets of weights, and another tokenizer"


def test_a_folder_that_is_no_checkpoint(tmp_path, checkpoint):
    with pytest.raises(UserError, match=r"not a model checkpoint, since it has no config.json; use a folder"):
        describe_base(name="b", model=str(tmp_path), revision=None, **OPTIONS)
    shutil.copy(checkpoint / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"it has none of model.*pickles are not read"):
        weight_files(tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(checkpoint / "model.safetensors", tmp_path / "model-1.safetensors")
    with pytest.raises(UserError, match=r"1 of 2 shards are missing, model-2.safetensors first"):
        weight_files(tmp_path)
    shutil.copy(checkpoint / "model.safetensors", tmp_path / "model-2.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    with pytest.raises(UserError, match="no tokenizer"):
        describe_base(name="b", model=str(tmp_path), revision=None, **OPTIONS)


def test_a_model_that_is_no_causal_language_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    with pytest.raises(UserError, match="no causal language model"):
        load_on_meta(tmp_path, trust_remote_code=False)
