"""Fixtures of the training tests."""

from pathlib import Path

import pyarrow as pa
import pytest
from small import TOKENS, UNEVEN, Step, make_base, train_step
from tiny import make_pairs, make_tokenizer

from lpc.files import canonical, write_json, write_parquet


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """A base, pairs and their reference on disk, as the workflow leaves them."""
    return make_inputs(tmp_path_factory.mktemp("inputs"), make_pairs(48), ("float32", "bfloat16"))


@pytest.fixture(scope="session")
def split_inputs(tmp_path_factory) -> Path:
    """As `inputs`, with 48 training pairs, 12 validation pairs and 12 test pairs.

    Every other label of a validation pair is wrong, so that their loss rises while the training learns.
    """
    rows = make_pairs(72, splits=("train", "train", "validation", "train", "train", "test")).to_pylist()
    for row in rows[2::12]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    pairs = pa.Table.from_pylist(rows)
    return make_inputs(tmp_path_factory.mktemp("split-inputs"), pairs, ("float32",))


def make_inputs(folder: Path, pairs, precisions: tuple[str, ...]) -> Path:
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
    write_parquet(folder / "pairs.parquet", pairs)
    for precision in precisions:
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
