"""Main memory of a sharded training: the first process alone holds a copy of the base, in the type it is stored in."""

import json

import pytest
import transformers
from processes import train_step_together
from test_fsdp import launch_file
from tiny import make_tokenizer

from lpc.files import read_json, write_json


@pytest.fixture(scope="module")
def large(tmp_path_factory, inputs):
    """A base of 84 million parameters in bfloat16: 161 MiB as stored, 322 in float32."""
    folder = tmp_path_factory.mktemp("large")
    # Narrow and thick: what is measured of the head takes the square of the width.
    config = transformers.LlamaConfig(
        **{"vocab_size": 384, "hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 3},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256},
    )
    base = transformers.LlamaForCausalLM(config).bfloat16()
    base.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    write_json(folder / "base.json", read_json(inputs / "base.json") | {"path": str(folder / "base")})
    return folder, sum(2 * p.numel() for p in base.parameters()) / 2**20


def test_no_process_but_the_first_holds_a_copy(inputs, large, tmp_path):
    folder, stored = large
    settings = {"objective": "simpo", "latent": None, "batch_size": 4, "micro_batch_size": 1}
    settings |= {"base": folder / "base.json", "module": "measured_step", "save_minutes": 60}
    train_step_together(inputs, tmp_path, expect=85, environment=launch_file(), **settings)
    first, other = (json.loads((tmp_path / f"memory-{rank}.json").read_text()) for rank in range(2))
    # Peaks of resident memory above the start, in MiB, when weights are loaded and when they are sharded: half of them
    # in float32 is as much as all of them in bfloat16.
    assert first["loaded"] < 2.5 * stored, first  # with the pairs' tokens; above 3 in float32
    assert other["loaded"] < 0.4 * stored, other
    assert stored < other["sharded"] < 1.7 * stored, other
    # Between two micro-batches each process has its part of the gradients.
    assert first["gradients"] == other["gradients"] == "sharded"


def test_a_launch_file_that_shards_needs_gpus(inputs, tmp_path):
    """accelerate would leave the weights whole on CPUs, and this training has none yet."""
    errors = train_step_together(inputs, tmp_path, expect=1, environment=launch_file(), latent=None)
    assert "error: the launch file asks for FSDP, which accelerate does not run on cpu with 2 processes" in errors
