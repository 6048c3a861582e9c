"""Fixtures of all tests."""

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("LPC_CACHE", None)  # or steps would take what other tests made
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from a second thread. With two workers on two cores the threads of both wait for each other,
# and each wait costs more than the sum that it waits for. Processes that tests start get this, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from tiny import make_backbone, make_pairs, make_tokenizer

# A shell starts background commands with SIGINT ignored, and processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """Folder of a tiny Llama checkpoint with its tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_backbone().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def pairs():
    return make_pairs(48)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Folder of what the training step reads: a base, pairs and their references."""
    from small import make_inputs

    return make_inputs(tmp_path_factory.mktemp("inputs"), make_pairs(48), ("float32", "bfloat16"))


FIRST = ("tests/workflow/", "tests/cluster/", "tests/storm/", "tests/training/", "tests/unit/training/")
"""Folders of long files. They start first: one that starts last would run alone, beside workers without work."""


def pytest_collection_modifyitems(items):
    def place(item):
        return next((i for i, folder in enumerate(FIRST) if item.nodeid.startswith(folder)), len(FIRST))

    items.sort(key=place)


def pytest_collection_finish():
    # Each training collects garbage, which would walk through a million objects of imported modules each time.
    gc.collect()
    gc.freeze()
