"""What sites differ in: no Apptainer, GPUs by --gres, GPUs of AMD."""

import json
import shutil
import subprocess

import pytest
import yaml
from cluster import HERE, POISON, ROOT

pytestmark = pytest.mark.timeout(2700)  # the first test builds the images

PROFILES = ROOT / "workflow/profiles"


def settings(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def test_profile_without_containers_differs_in_nothing_else():
    containers = {"software-deployment-method", "apptainer-args"}
    assert settings("slurm").keys() - settings("slurm-venv").keys() == containers
    assert settings("slurm-venv").items() <= settings("slurm").items()
    assert (PROFILES / "slurm-venv/partitions.yaml").samefile(PROFILES / "slurm/partitions.yaml")


def test_jobs_without_containers(cluster):
    """The short stage of the data as a SLURM job, in Snakemake's own Python."""
    checkout = cluster.checkout
    (checkout / "venv.json").write_text('{"project": "venv"}')
    code, output = cluster.snakemake(
        "results/venv/data/world/split.json",
        config=("venv.json",),
        profile=("--profile", "workflow/profiles/slurm-venv"),
    )
    assert code == 0, output[-6000:]
    assert "submitted with SLURM jobid" in output and "Activating singularity image" not in output
    assert "container" not in json.loads((checkout / "results/venv/data/world/split.json").read_text())


def test_gpus_by_gres_and_devices_of_amd(cluster, tmp_path):
    """The profile's commented lines for sites without --gpus; the variables with which SLURM names AMD's GPUs."""
    profile = tmp_path / "profile"
    shutil.copytree(cluster.checkout / "workflow/profiles/slurm", profile)
    changed = {**settings("slurm"), "set-resources": {"environment": {"gpu": 0, "gres": "gpu:2"}}}
    (profile / "config.yaml").write_text(yaml.safe_dump(changed))
    probe = cluster.checkout / "results/probe/environment.json"
    probe.unlink(missing_ok=True)
    code, output = cluster.snakemake(
        "results/probe/environment.json",
        "--snakefile",
        str(HERE / "Snakefile"),
        profile=("--profile", str(profile)),
        variables={"ROCR_VISIBLE_DEVICES": "0,1"},
    )
    assert code == 0, output[-6000:]
    [job] = [line.split("jobid ")[1].split()[0] for line in output.splitlines() if "submitted with SLURM jobid" in line]
    shown = cluster.command("scontrol", "show", "job", job)
    assert "TresPerNode=gres:gpu:2" in shown and "TresPerJob" not in shown, shown
    environment = json.loads(probe.read_text())["environment"]
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["ROCR_VISIBLE_DEVICES"] == "0,1"
    assert not POISON.keys() & environment.keys()


def test_driver_is_chosen_where_the_job_runs(tmp_path):
    (tmp_path / "arguments.sh").write_text(f"echo {settings('slurm')['apptainer-args']}")

    def options(*prepare):
        script = "; ".join([*prepare, f"bash {tmp_path}/arguments.sh"])
        command = ["unshare", "--mount", "bash", "-ec", script]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    assert options()[0] == "--nv"
    assert options("mount -t tmpfs tmpfs /dev", "touch /dev/kfd /dev/null")[0] == "--rocm"
