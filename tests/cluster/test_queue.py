"""Submissions that SLURM refuses for the moment."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from cluster import ROOT, wait_for

pytestmark = pytest.mark.timeout(2700)  # the first test builds the images

SBATCH = ROOT / "workflow/profiles/bin/sbatch"


def submit(cluster, folder, *arguments):
    return subprocess.run(
        [SBATCH, "--parsable", "--output=/dev/null", *arguments],
        cwd=folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_full_queue_delays_a_run_and_loses_none(cluster):
    """One job at a time may be in the queue; two stages that need nothing of each other are both done."""
    cluster.command("sacctmgr", "-iQ", "modify", "user", "root", "set", "MaxSubmitJobs=1")
    try:
        targets = [f"results/cluster/data/{name}/world.jsonl.gz" for name in ("one", "other")]
        config = cluster.checkout / "queue.json"
        dataset = {"kind": "world", "rows": 600, "split": {"validation": 50, "test": 150}}
        config.write_text(json.dumps({"datasets": {"one": dataset, "other": dataset}}))  # new ones: both are due
        code, output = cluster.snakemake(*targets, config=(config.name,))
    finally:
        cluster.command("sacctmgr", "-iQ", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
    assert code == 0, output[-6000:]
    assert all((cluster.checkout / target).exists() for target in targets)
    assert "sbatch failed" not in output
    waiting = (cluster.checkout / ".snakemake/slurm_logs/waiting.log").read_text()
    assert re.search(r"waiting 10 s to submit a job: sbatch: error: AssocMaxSubmitJobLimit", waiting)


def test_controller_that_restarts_is_waited_for_and_other_errors_are_not(cluster, tmp_path):
    begin = time.monotonic()
    refused = submit(cluster, tmp_path, "--account=nobodys", "--wrap=true")
    assert refused.returncode == 1 and not refused.stdout and time.monotonic() - begin < 8
    assert "Invalid account or account/partition combination" in refused.stderr
    assert not (tmp_path / ".snakemake").exists()

    controller = int((cluster.slurm / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    waiting = tmp_path / ".snakemake/slurm_logs/waiting.log"
    process = subprocess.Popen(
        [SBATCH, "--parsable", "--output=/dev/null", "--wrap=true"],
        cwd=tmp_path,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(waiting.exists, "the submission to time out", 60)
    finally:
        os.kill(controller, signal.SIGCONT)
    assert process.wait(120) == 0 and process.stdout.read().strip().isdigit()
    assert "Socket timed out" in waiting.read_text()
