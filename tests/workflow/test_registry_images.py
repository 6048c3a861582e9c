"""Rules in images of a registry, up to the command lines of Apptainer, which no registry is needed for."""

import copy
import hashlib
import json
import os
import sys
from pathlib import Path

from checkout import SMALL

DIGEST = "0123456789abcdef" * 4
REFERENCE = f"docker://registry.example/group/lpc-training@sha256:{DIGEST}"

APPTAINER = """#!/bin/bash
# Writes down how it is called. `exec` runs the command outside of any container, with Apptainer's variable.
printf '%s\\n' "$*" >> "$APPTAINER_LOG"
case "$1" in
--version) echo "apptainer version 1.4.0" ;;
pull) touch "$3" ;;
exec)
    while [[ "$1" != *.simg ]]; do shift; done
    export APPTAINER_CONTAINER="$1"
    shift
    exec "$@"
    ;;
esac
"""


def test_an_image_is_pulled_by_digest_and_named_in_results(checkout, tmp_path_factory, monkeypatch):
    """The one rule that runs needs the training image alone: local images are missing, and may."""
    programs = tmp_path_factory.mktemp("programs")
    (programs / "apptainer").write_text(APPTAINER)
    (programs / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("APPTAINER_LOG", str(programs / "log"))
    references = {name: REFERENCE.replace("training", name) for name in ("training", "evaluation", "reporting")}
    config = checkout.write({**copy.deepcopy(SMALL), "images": references})
    record = checkout.folder / "results/small/data/world/dataset.json"
    target = record.relative_to(checkout.folder)
    checkout.snakemake(target, "--cores", "1", "--sdm", "apptainer", "--configfile", config)
    name = hashlib.md5(REFERENCE.encode()).hexdigest()
    calls = (programs / "log").read_text().splitlines()
    assert f"pull --name {name}.simg {REFERENCE}" in calls
    assert sum(call.startswith("pull") for call in calls) == 1
    [executed] = [call for call in calls if call.startswith("exec")]
    assert f"/.snakemake/singularity/{name}.simg bash -c " in executed and "-m lpc.steps.world" in executed
    assert json.loads(record.read_text())["container"] == {"image": REFERENCE, "sha256": DIGEST}

    local = checkout.write({**copy.deepcopy(SMALL), "images": {"training": REFERENCE}}, "local.yaml")
    output = checkout.snakemake("all", "--cores", "1", "--sdm", "apptainer", "--configfile", local, expect=1)
    assert "containers/images/evaluation-" in output and "no such image" in output
