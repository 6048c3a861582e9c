"""Fixtures of whole trainings."""

from pathlib import Path

import pyarrow as pa
import pytest
from processes import train_step
from small import UNEVEN, make_inputs
from tiny import make_pairs


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


@pytest.fixture(scope="session")
def unbroken(inputs, tmp_path_factory) -> Path:
    """The folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_step(inputs, folder, **UNEVEN)
    return folder
