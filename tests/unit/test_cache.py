"""Reference scores from the folder that projects share: taken only where all that they depend on is equal."""

import itertools
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from steps import run_step
from tiny import CHAT_TEMPLATE, make_backbone, make_pairs, make_tokenizer

from lpc import cache, doctor
from lpc.cli import UserError
from lpc.files import read_json, write_json, write_parquet

SPEC = {"tokens": {"max_length": 64, "max_prompt_length": 32}, "precision": "float32", "micro_batch_size": 8}
BASE = {
    "name": "first",
    "sha256": "0123",
    "dtype": "float32",
    "chat_template": None,
    "chat_template_kwargs": None,
    "trust_remote_code": False,
}


@pytest.fixture
def shared(tmp_path, monkeypatch):
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_backbone().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def installed():
    """The packages here, read once: each reading of some 200 takes longer than the scores."""
    return [SimpleNamespace(name=found.name, version=found.version) for found in cache.distributions()]


@pytest.fixture
def score(tmp_path, model, installed, monkeypatch, caplog):
    """Call to the step, as another project each time: whether it took its results, and what they are."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cache, "distributions", lambda: installed)
    numbers = itertools.count()

    def call(base=None, pairs=0, **spec):
        caplog.clear()
        project = tmp_path / f"project-{next(numbers)}"
        project.mkdir()
        write_json(project / "base.json", {"path": str(model), **BASE, **(base or {})})
        write_parquet(project / "pairs.parquet", make_pairs(24 + pairs))
        outputs = [project / "reference.parquet", project / "statistics.safetensors"]
        arguments = ["--base", project / "base.json", "--pairs", project / "pairs.parquet"]
        run_step("reference", {**SPEC, **spec}, *arguments, "--output", outputs[0], "--statistics", outputs[1])
        taken = [record.getMessage() for record in caplog.records if "taken from" in record.getMessage()]
        return bool(taken), [output.read_bytes() for output in outputs]

    return call


def package(monkeypatch):
    found = [*cache.distributions(), SimpleNamespace(name="torch-of-tomorrow", version="1")]
    monkeypatch.setattr(cache, "distributions", lambda: found)


def module(monkeypatch):
    monkeypatch.setattr(cache, "modules_of", lambda name: [cache.PACKAGE / "reference.py"])


def threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 31)


def device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    # The step would compute there; what it takes is known before.
    monkeypatch.setattr("lpc.steps.reference.to_device", lambda policy: policy.eval())


def variable(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")


def image(monkeypatch):
    monkeypatch.setattr(cache, "current", lambda: {"image": "training.sif", "sha256": "0123"})


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": 1},
        {"precision": "bfloat16"},
        {"micro_batch_size": 4},
        {"tokens": {"max_length": 60, "max_prompt_length": 32}},
        {"base": {"sha256": "4567"}},
        {"base": {"chat_template": CHAT_TEMPLATE.replace("<|end|>", "")}},
        package,
        module,
        threads,
        device,
        variable,
        image,
    ],
    ids=lambda change: change.__name__ if callable(change) else str(change),
)
def test_scores_are_taken_only_where_nothing_differs(shared, score, monkeypatch, change):
    taken, first = score()
    assert not taken
    assert score(base={"name": "second", "dtype": "bfloat16"}) == (True, first)
    if callable(change):
        change(monkeypatch)
        assert not score()[0]
    else:
        assert not score(**change)[0]


def test_without_a_folder_nothing_is_shared(shared, score, monkeypatch):
    score()
    monkeypatch.delenv(cache.VARIABLE)
    assert not score()[0]


def test_results_are_copies(shared, score, tmp_path):
    """A project keeps its results when the folder is emptied, and an edit of one project reaches no other."""
    _, first = score()
    for kept in shared.iterdir():
        assert not kept.is_symlink() and kept.stat().st_nlink == 1
        kept.unlink()
    outputs = [path for path in tmp_path.glob("project-*/*") if path.name.startswith(("reference", "statistics"))]
    assert sorted(path.read_bytes() for path in outputs) == sorted(first)


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-1]), os.unlink])
def test_damaged_files_are_named_and_nothing_is_taken(shared, score, damage, suffix):
    score()
    [file], [record] = shared.glob(f"*.{suffix}"), shared.glob("*.json")
    damage(file)
    with pytest.raises(UserError, match=f"^{file}: missing or damaged; delete {record}, then rerun$"):
        score()
    record.unlink()
    assert not score()[0]
    assert score()[0]


def test_the_record_says_what_scores_depend_on(shared, score, tmp_path):
    score()
    [record] = shared.glob("*.json")
    text, found = record.read_text(), read_json(record)
    assert found["identity"]["modules"]["steps/reference.py"]
    assert any(name.startswith("torch==") for name in found["identity"]["packages"])
    assert "project-" not in text and str(tmp_path) not in text


def test_a_folder_that_cannot_be_used_stops_before_any_work(shared, score, monkeypatch):
    message = rf"LPC_CACHE={shared} is not %s on \S+; name a folder that you may write"
    with monkeypatch.context() as patched, pytest.raises(UserError, match=message % "writable"):
        patched.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
        score()
    shared.rmdir()
    with pytest.raises(UserError, match=message % "a folder"):
        score()


def test_the_doctor_looks_at_the_folder(shared):
    def level():
        found = doctor.check_folders(SimpleNamespace(parameters=0), containers=False)
        return [(finding.level, str(shared) in finding.text) for finding in found if finding.subject == "LPC_CACHE"]

    assert level() == [("ok", True)]
    shared.rmdir()
    assert level() == [("FAILED", True)]
