"""Snakemake itself as a job, by slurm/controller.sbatch."""

import subprocess

import pytest
from cluster import POISON, wait_for

pytestmark = pytest.mark.timeout(2700)  # the first test builds the images


WORKFLOW = """
rule all:
    input: "second"

rule first:
    output: "first"
    resources: mem_mb=600, runtime=3
    shell: "echo start >> starts; [ $(wc -l < starts) = 2 ] || sleep 120; touch {output}"

rule second:
    input: "first"
    output: "second"
    resources: mem_mb=600, runtime=3
    shell: "cp {input} {output}"
"""


def test_snakemake_as_a_job_ends_in_time_and_goes_on(cluster, folder):
    """The controller is told that its time is over while its first job runs: it cancels it and requeues itself."""
    work = folder / "controller"
    work.mkdir()
    (work / "Snakefile").write_text(WORKFLOW)
    environment = {key: value for key, value in cluster.environment.items() if key not in POISON}
    polls = ["--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "5"]
    submission = subprocess.run(
        ["sbatch", "--parsable", "--mem=1G", "--time=10", cluster.checkout / "slurm/controller.sbatch", "all", *polls],
        cwd=work,
        env={**environment, "PROFILE": str(cluster.checkout / "slurm")},
        check=True,
        capture_output=True,
        text=True,
    )
    job = submission.stdout.strip()
    log = work / f"controller-{job}.log"

    def state():
        words = cluster.command("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").split()
        return words[0]

    wait_for((work / "starts").exists, "the first job of the controller")
    cluster.command("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: log.exists() and "back into the queue" in log.read_text(), "the controller to end")
    wait_for(lambda: state() in ("COMPLETED", "FAILED"), "the controller's second start")
    output = log.read_text()
    assert state() == "COMPLETED", output[-6000:]
    assert (work / "second").exists()
    assert (work / "starts").read_text().split() == ["start", "start"], "the cancelled job, and its repetition"

    def starts():  # accounting is a few seconds late
        return cluster.command("sacct", "-X", "-D", "-n", "-P", "-o", "state", "-j", job).split()

    wait_for(lambda: starts() == ["REQUEUED", "COMPLETED"], "both starts in the accounts", 30)
