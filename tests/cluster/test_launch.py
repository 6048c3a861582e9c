"""The launch files of config/accelerate, as `accelerate launch` reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

# What a training process sees: TrainingArguments is how the Trainer joins the others.
PROBE = """
import json, os, sys, torch
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import TrainingArguments
arguments = TrainingArguments(output_dir=sys.argv[1], use_cpu=True, report_to=[])
seen = {"processes": arguments.world_size}
if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    plugin = FullyShardedDataParallelPlugin()
    seen |= {"version": plugin.fsdp_version, "reshard": plugin.reshard_after_forward,
             "state": plugin.state_dict_type.name, "wrap": plugin.auto_wrap_policy.__name__}
open(os.path.join(sys.argv[1], os.environ.get("RANK", "0")), "w").write(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("name", "processes", "expected"),
    [
        ("single", 1, {}),
        ("ddp", 2, {}),
        (
            "fsdp",
            2,
            {"version": 2, "state": "SHARDED_STATE_DICT", "reshard": True, "wrap": "transformer_auto_wrap_policy"},
        ),
    ],
)
def test_each_process_sees_the_others_and_the_sharding(tmp_path, name, processes, expected):
    (tmp_path / "probe.py").write_text(PROBE)
    output = tmp_path / "output"
    output.mkdir()
    file = ROOT / f"config/accelerate/{name}.yaml"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        file,
        "--num_processes",
        str(processes),
    ]
    subprocess.run(
        [*launch, tmp_path / "probe.py", output],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=180,
    )
    seen = {path.name: json.loads(path.read_text()) for path in output.iterdir() if path.is_file()}
    assert seen == {str(rank): {"processes": processes, **expected} for rank in range(processes)}


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_trainings_on_one_node_do_not_share_a_port(name):
    assert yaml.safe_load((ROOT / f"config/accelerate/{name}.yaml").read_text())["main_process_port"] == 0
