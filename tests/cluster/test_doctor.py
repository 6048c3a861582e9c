"""`python -m lpc.doctor` on a real SLURM with real images: a set-up that works, and broken ones."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import yaml
from cluster import HERE, image_path

pytestmark = pytest.mark.timeout(2700)  # the first test builds the images


@pytest.fixture
def doctor(cluster, folder, tmp_path):
    """Call to the doctor: exit code, and its lines without those that are ok."""
    home = folder / "huggingface"
    home.mkdir(exist_ok=True)

    def call(profile=None, partitions=None, config=None, containers=False, **variables):
        changed = tmp_path / "profile"
        changed.mkdir(exist_ok=True)
        text = yaml.safe_load((cluster.checkout / "slurm/config.yaml").read_text())
        if not containers:  # their checks take the longest
            del text["software-deployment-method"]
        (changed / "config.yaml").write_text(json.dumps({**text, **(profile or {})}))
        listed = yaml.safe_load((cluster.checkout / "slurm/partitions.yaml").read_text())["partitions"]
        (changed / "partitions.yaml").write_text(json.dumps({"partitions": {**listed, **(partitions or {})}}))
        (tmp_path / "config.json").write_text(json.dumps(config or {}))
        command = [sys.executable, "-m", "lpc.doctor", "--profile", changed, "--configfile", HERE / "config.yaml"]
        result = subprocess.run(
            [*command, tmp_path / "config.json"],
            cwd=cluster.checkout,
            env={**cluster.environment, "PYTHONPATH": "src", "HF_HOME": str(home), **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not result.stderr, result.stderr
        print(result.stdout)
        lines = result.stdout.splitlines()
        return result.returncode, [line for line in lines if line.startswith(("FAILED", "note"))], lines

    return call


def failures(lines):
    return [line for line in lines if line.startswith("FAILED")]


@contextmanager
def memory_file_system(path, options):
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@contextmanager
def slurm_setting(cluster, name, value):
    """Change a line of slurm.conf, and put it back."""
    file = cluster.slurm / "slurm.conf"
    text = file.read_text()
    file.write_text(re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE))
    cluster.command("scontrol", "reconfigure")
    try:
        yield
    finally:
        file.write_text(text)
        cluster.command("scontrol", "reconfigure")


def test_good_set_up(doctor, cluster, folder):
    code, findings, lines = doctor(containers=True)
    assert code == 0 and not failures(findings), findings
    report = "\n".join(lines)
    for part in (
        "ok     MinJobAge: 600 s",
        "ok     jobs: at most 100 in the queue",
        "ok     account: SLURM's default (yours: root)",
        "ok     partition: gpu, time limit UNLIMITED",
        "ok     jobs of rule train: 2 CPUs, 4000 MB, 10 minutes, 2 GPUs in partition gpu",
        "ok     Apptainer: apptainer version 1.",
        f"ok     container: {image_path(cluster.checkout, 'training').name} runs, and sees the checkout and HF_HOME",
        "note   GPU driver: not visible on this login node",
        f"GB free in {folder}/huggingface",
    ):
        assert part in report, part
    # Three times as much at the third attempt is more than a node of 8000 MB has.
    assert [line for line in findings if "attempt 3 of a failed job may ask for 2 CPUs, 12000 MB" in line]
    assert lines[-1] == "all checks passed"


def test_controller_that_hangs(doctor, cluster):
    controller = int((cluster.slurm / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        code, findings, _ = doctor()
    finally:
        os.kill(controller, signal.SIGCONT)
    [failure] = failures(findings)
    assert code == 1 and failure.startswith("FAILED SLURM: the controller does not answer (scontrol: ")


def test_faults_of_the_profile(doctor):
    """A partition that does not exist, an account and a limit that SLURM does not grant, each with its fix."""
    profile = {"default-resources": {"nodes": 1, "slurm_account": "nobodys"}, "jobs": 20_000}
    code, findings, _ = doctor(profile=profile, partitions={"fast": {"max_runtime": 60}})
    report = "\n".join(failures(findings))
    assert code == 1
    assert re.search(r"partition: fast does not exist; use cpu, gpu, urgent in \S+/partitions.yaml", report)
    assert "account: nobodys is not one of yours (root); correct slurm_account in the profile" in report
    assert "jobs: the profile allows 20000 jobs in the queue, but MaxJobCount (of the whole cluster) is 10000" in report
    assert "jobs of rule train: " in report and "Invalid account or account/partition combination" in report


def test_jobs_that_no_node_can_take(doctor, cluster):
    train = {"threads": 2, "mem_mb": 900_000, "gpus": 2, "launch": "config/accelerate/ddp.yaml"}
    code, findings, _ = doctor(config={"resources": {"train": train}})
    [failure] = failures(findings)
    assert code == 1
    assert failure.startswith("FAILED jobs of rule train: 2 CPUs, 900000 MB, 10 minutes, 2 GPUs in partition gpu: ")
    assert "Requested node configuration is not available; lower `resources`" in failure

    several = {"resources": {"train": {**train, "mem_mb": 4000, "nodes": 2}}, "training": {"micro_batch_size": 8}}
    code, _, lines = doctor(config=several)
    assert code == 0
    assert "ok     jobs of rule train: 2 nodes of 2 CPUs, 4000 MB, 10 minutes, gpu:2 in partition gpu" in lines
    several["resources"]["train"]["nodes"] = 4
    several["training"]["micro_batch_size"] = 4
    code, findings, _ = doctor(config=several)
    assert code == 1 and "FAILED jobs of rule train: 4 nodes of 2 CPUs, " in "".join(findings)

    cluster.command("scontrol", "update", "PartitionName=gpu", "MaxTime=5")
    try:
        code, findings, _ = doctor()
    finally:
        cluster.command("scontrol", "update", "PartitionName=gpu", "MaxTime=INFINITE")
    assert code == 1
    [partition, job] = failures(findings)
    assert "gpu ends jobs after 00:05:00, but" in partition and partition.endswith("set max_runtime: 5")
    assert "jobs of rule train" in job and "the partition's time limit is 00:05:00" in job


def test_slurm_that_forgets_ended_jobs(doctor, cluster):
    with slurm_setting(cluster, "MinJobAge", 60):
        code, findings, _ = doctor()
        [failure] = failures(findings)
        assert code == 1 and failure.startswith("FAILED MinJobAge: SLURM forgets a job 60 s after its end")
        assert doctor(profile={"slurm-status-command": "sacct"})[0] == 0


def test_submission_limit_of_the_account(doctor, cluster):
    cluster.command("sacctmgr", "-iQ", "modify", "user", "root", "set", "MaxSubmitJobs=7")
    cluster.command("sacctmgr", "-iQ", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=5")
    try:
        code, findings, _ = doctor()
    finally:
        cluster.command("sacctmgr", "-iQ", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
        cluster.command("sacctmgr", "-iQ", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=-1")
    [failure] = failures(findings)
    assert code == 1
    assert "MaxSubmitJobs of account root is 7, MaxSubmitJobsPU of QoS normal is 5; set jobs: 5 or fewer" in failure


def test_image_that_is_missing(doctor, cluster):
    folder = cluster.checkout / "containers/images"
    image = image_path(cluster.checkout, "evaluation")
    image.rename(folder / "elsewhere")
    try:
        code, findings, _ = doctor(containers=True)
    finally:
        (folder / "elsewhere").rename(image)
    [failure] = failures(findings)
    assert code == 1 and failure.startswith(f"FAILED images: {image.name}: not in ")
    assert failure.endswith("run make images")


def test_cache_that_cannot_be_used(doctor, folder):
    with memory_file_system(folder / "read-only", "ro,size=1m") as path:
        code, findings, _ = doctor(containers=True, HF_HOME=str(path))
        report = "\n".join(failures(findings))
        assert code == 1 and f"HF_HOME: {path} cannot be written to (Read-only file system)" in report
        assert "container: " in report, "the job itself cannot write there either"
    with memory_file_system(folder / "small", "size=1m") as path:
        code, findings, _ = doctor(HF_HOME=str(path))
        [failure] = failures(findings)
        assert code == 1 and failure.startswith(f"FAILED HF_HOME: 0.0 GB free in {path}, but at least 2.0 GB")
    code, findings, _ = doctor(HF_HOME=str(folder / "none"))
    [failure] = failures(findings)
    assert code == 1 and failure.startswith(f"FAILED HF_HOME: {folder}/none is not a folder; create it")


def test_options_of_the_container_that_hide_the_cache(doctor):
    hidden = {"apptainer-args": "--nv --cleanenv --no-mount tmp --contain --env HF_HOME=/nowhere"}
    code, findings, _ = doctor(profile=hidden, containers=True)
    [failure] = failures(findings)
    assert code == 1 and "does not run as a job would" in failure and "correct apptainer-args" in failure
