"""Fixtures of the training tests."""

from pathlib import Path

import pytest
from small import TOKENS, UNEVEN, Step, make_base, train_step
from tiny import make_pairs, make_tokenizer

from lpc.files import canonical, write_json, write_parquet


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """A base, pairs and their reference on disk, as the workflow leaves them."""
    folder = tmp_path_factory.mktemp("inputs")
    make_base().save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    record = {
        "path": str(folder / "base"),
        "sha256": "0",
        "chat_template": None,
        "chat_template_kwargs": {},
        "dtype": "float32",
    }
    write_json(folder / "base.json", record | {"chat_template_kwargs": {}, "trust_remote_code": False})
    write_parquet(folder / "pairs.parquet", make_pairs(48))
    for precision in ("float32", "bfloat16"):
        words = ["--base", folder / "base.json", "--pairs", folder / "pairs.parquet"]
        words += ["--output", folder / f"reference-{precision}.parquet"]
        words += ["--statistics", folder / "statistics.safetensors"]
        words += ["--spec", canonical({"tokens": TOKENS, "micro_batch_size": 16, "precision": precision})]
        step = Step("lpc.steps.reference", [str(word) for word in words], folder)
        assert step.wait() == 0, step.errors
    return folder


@pytest.fixture(scope="session")
def unbroken(inputs, tmp_path_factory) -> Path:
    """The folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_step(inputs, folder, **UNEVEN)
    return folder
