"""The workflow on a real SLURM with real images: `snakemake --profile slurm`, and what goes wrong on clusters."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from cluster import HERE, POISON, image_path, wait_for

from lpc.files import parquet_metadata, read_json, sha256

pytestmark = pytest.mark.timeout(2700)  # the first test builds the images

RESULTS = "results/cluster"


@pytest.fixture(scope="module")
def long(cluster, demo):
    """Configuration with two longer trainings of one spec: one loses its Snakemake, the other is hit itself."""
    settings = {"epochs": 12, "save_minutes": 0.005}
    recipe = {"objective": {"name": "dpo"}, "latent": {"kind": "lpc", "codes": 8}, "training": settings}
    names = ["orphaned", "hit"]
    config = {
        "recipes": dict.fromkeys(names, recipe),
        "experiments": {"long": {"bases": ["tiny"], "datasets": ["world"], "recipes": names, "seeds": [0]}},
        "resources": {"train": {"threads": 1, "mem_mb": 2500, "gpus": 0, "launch": None}},
    }
    path = cluster.checkout / "long.yaml"
    # JSON, since YAML would write the repeated recipe as a reference.
    path.write_text(json.dumps(config))
    return ("long.yaml",)


def target(recipe):
    return f"{RESULTS}/runs/tiny/world/{recipe}/seed-0/train.json"


def checkpoints(cluster, recipe):
    """Steps of the complete checkpoints of a run."""
    folders = (cluster.checkout / RESULTS / "checkpoints").glob(f"*~{recipe}~0/*/checkpoint-*/complete.json")
    return {int(folder.parent.name.rpartition("-")[2]) for folder in folders}


def training(cluster, recipe):
    """Summary and metrics of a finished run."""
    summary = cluster.checkout / target(recipe)
    metrics = summary.with_name("train.jsonl").read_text().splitlines()
    return json.loads(summary.read_text()), [json.loads(line) for line in metrics]


def test_whole_workflow(cluster, demo):
    assert (cluster.checkout / RESULTS / "report.html").stat().st_size > 10_000
    with open(cluster.checkout / RESULTS / "tables/preference_accuracy.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["recipe"] for row in rows} >= {"dpo-lpc", "simpo"}
    # One submission for the group of data steps; local rules none.
    submitted = re.findall(r"^(?:Job|Group).* submitted with SLURM jobid (\d+)", demo, re.MULTILINE)
    jobs = ",".join(submitted)
    columns = "jobid,comment%60,submit,start,elapsed,state,reqmem,alloctres%45,partition"
    print(cluster.command("sacct", "-X", "-o", columns, "-j", jobs))
    states = cluster.command("sacct", "-X", "-n", "-P", "-o", "state", "-j", jobs).split()
    assert states == ["COMPLETED"] * len(submitted)
    assert not cluster.jobs()


def test_nothing_to_do_when_all_is_done(cluster, demo):
    code, output = cluster.snakemake("all", "--dry-run")
    assert code == 0
    assert "Nothing to be done" in output


def test_training_is_one_task_with_two_gpus_and_a_process_for_each(cluster, demo):
    [job] = re.findall(r"submitted with SLURM jobid (\d+) \(log: \S+/rule_train/\S*dpo-lpc", demo)
    allocated = cluster.command("sacct", "-X", "-n", "-P", "-o", "alloctres,partition", "-j", job).strip()
    assert "gres/gpu=2" in allocated and allocated.endswith("|gpu")
    tasks = cluster.command("sacct", "-n", "-P", "-o", "ntasks", "-j", f"{job}.0").split()
    assert tasks == ["1"]
    summary, _ = training(cluster, "dpo-lpc")
    assert summary["processes"] == 2
    assert summary["threads"] == 1, "two processes share the job's two threads"


def test_results_name_the_image_that_they_came_from(cluster, demo):
    made = {}
    for name in ("training", "evaluation", "reporting"):
        image = image_path(cluster.checkout, name)
        made[name] = {"image": image.name, "sha256": sha256(image)}
    results = cluster.checkout / RESULTS
    found = {}
    for path in results.rglob("*.*"):
        if "model" not in path.parts and path.suffix in (".json", ".parquet"):
            record = read_json(path) if path.suffix == ".json" else parquet_metadata(path)
            found[str(path.relative_to(results))] = record.get("container")
    assert len(found) > 15
    assert found == {
        path: made["evaluation" if re.search("(^finished/|/)benchmark", path) else "training"] for path in found
    }
    # What is neither: tables, figures, the model. The log of the job tells.
    stages = {"evaluation": ["benchmark", "benchmark_base", "questions"], "reporting": ["tables", "report"]}
    for log in (results / "logs").rglob("*.log"):
        stage = next((stage for stage, rules in stages.items() if log.parent.name in rules), "training")
        assert made[stage]["image"] in log.read_text() and made[stage]["sha256"] in log.read_text(), log
    page = (results / "report.html").read_text()
    assert all(image["image"] in page and image["sha256"] in page for image in made.values())


def test_report_names_the_commit_though_its_image_has_no_git(cluster, demo):
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=cluster.checkout, check=True, capture_output=True, text=True).stdout.strip()
    assert head in (cluster.checkout / RESULTS / "report.html").read_text()


def test_what_a_job_gets(cluster):
    """The environment in a container, memory over the limit, and the message of a failing rule, in one run."""
    code, output = cluster.snakemake("all", "failing", "--snakefile", str(HERE / "Snakefile"))
    assert code == 1

    probe = json.loads((cluster.checkout / "results/probe/environment.json").read_text())
    environment = probe["environment"]
    assert probe["executable"] == "/opt/lpc/bin/python"
    assert not probe["poison"], "a package of the user's home folder is seen"
    assert all(entry == "" or entry.startswith(("/opt/lpc/", "/usr/")) for entry in probe["path"]), probe["path"]
    assert not POISON.keys() & environment.keys()
    assert not any(key.startswith(("SLURM_NTASKS", "SLURM_PROCID", "PMI", "OMPI")) for key in environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["HF_HOME"] == str(cluster.checkout / ".cache/huggingface")
    assert environment["SLURM_JOB_ID"].isdigit() and environment["SLURM_STEP_ID"].isdigit()
    assert 0 < float(environment["SLURM_JOB_END_TIME"]) - time.time() <= 7 * 60

    assert (cluster.checkout / "results/probe/memory.txt").read_text().strip() == str(700 * 2**20)
    jobs = re.findall(r"submitted with SLURM jobid (\d+) \(log: \S+/rule_memory/", output)
    lines = cluster.command("sacct", "-X", "-n", "-P", "-o", "reqmem,state", "-j", ",".join(jobs)).splitlines()
    assert [line.split("|")[0] for line in lines] == ["700M", "1400M"]
    assert lines[0].endswith(("OUT_OF_MEMORY", "FAILED")) and lines[1].endswith("COMPLETED")

    assert "error: the reason stands in the log" in output, output[-4000:]
    assert "results/probe/failing.log" in output
    assert re.search(r"log: .*slurm_logs/rule_failing/\d+\.log", output)
    tries = re.findall(r"submitted with SLURM jobid (\d+) \(log: \S+/rule_failing/", output)
    assert len(tries) == 3, "the first, and the profile's two retries"
    memory = cluster.command("sacct", "-X", "-n", "-P", "-o", "reqmem", "-j", ",".join(tries)).split()
    assert memory == ["700M"] * 3, "more memory is for jobs that ran out of it"


def test_killed_snakemake_neither_loses_nor_doubles_work(cluster, long):
    """Its job goes on; the next Snakemake submits it again, and that one waits for the lock of the run."""
    first = cluster.start(target("orphaned"), config=long)
    job = cluster.job(first.output)
    wait_for(lambda: checkpoints(cluster, "orphaned"), "the first checkpoint")
    cluster.command("scontrol", "suspend", job)  # so that it does not end before the other one is there

    code, output = cluster.snakemake(target("orphaned"), config=long)
    assert code == 1 and "cannot be locked" in output, "a second Snakemake in the folder of a living one"

    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert cluster.jobs() == {job: "SUSPENDED"}
    assert cluster.snakemake("--unlock", config=long)[0] == 0
    second = cluster.start(target("orphaned"), config=long)
    log = cluster.checkout / RESULTS / "logs/train/tiny~world~orphaned~0.log"

    def waits():
        # Snakemake deletes the log before the job writes it anew.
        return log.exists() and f"SLURM job {job}; waiting" in log.read_text(errors="replace")

    wait_for(waits, "the second job at the lock")
    cluster.command("scontrol", "resume", job)
    code, output = cluster.finish(second)
    assert code == 0, output[-6000:]

    jobs = f"{job},{cluster.job(second.output)}"
    states = cluster.command("sacct", "-X", "-n", "-P", "-o", "state", "-j", jobs).split()
    assert states == ["COMPLETED", "COMPLETED"]
    assert "finished by the process that held the lock" in log.read_text(errors="replace")
    summary, metrics = training(cluster, "orphaned")
    assert summary["resumed_from"] == []
    steps = [line["step"] for line in metrics]
    assert steps == sorted(set(steps)) and steps[-1] == summary["steps"]


def test_preemption_requeue_and_scancel_lose_nothing(cluster, long):
    """A job that gives way to an urgent one, is put back into the queue, then cancelled, against one left alone."""
    code, output = cluster.snakemake(target("orphaned"), config=long)
    assert code == 0, output[-6000:]
    snakemake = cluster.start(target("hit"), config=long)
    first = cluster.job(snakemake.output)

    def hit(*command):
        """Run the command when the running job has made a checkpoint of its own; wait until it is no longer running."""
        wait_for(lambda: cluster.jobs()[first] == "RUNNING", "the job's start")
        reached = max(checkpoints(cluster, "hit"), default=0)
        wait_for(lambda: max(checkpoints(cluster, "hit"), default=0) > reached, "a checkpoint")
        cluster.command(*command)
        wait_for(lambda: cluster.jobs().get(first) != "RUNNING", f"the effect of {command[0]}")

    hit("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    hit("scontrol", "requeue", first)
    hit("scancel", first)
    code, output = cluster.finish(snakemake)
    assert code == 0, output[-6000:]
    assert cluster.job(snakemake.output) != first, "the retry of the cancelled job"
    restarts = cluster.command("sacct", "-X", "-D", "-n", "-P", "-o", "state", "-j", first).splitlines()
    assert [state.split()[0] for state in restarts] == ["PREEMPTED", "REQUEUED", "CANCELLED"]

    summary, metrics = training(cluster, "hit")
    alone, expected = training(cluster, "orphaned")
    assert alone["resumed_from"] == []
    assert len(summary["resumed_from"]) == 3 and summary["resumed_from"] == sorted(summary["resumed_from"])
    assert [line["step"] for line in metrics] == [line["step"] for line in expected]
    assert [line["loss"] for line in metrics] == [line["loss"] for line in expected], "not the same training"


def test_preempted_training_on_two_nodes_is_that_on_one(cluster, demo):
    """The demo's training again, but with one process on each of two nodes, and it has to give way to an urgent job."""
    recipe = yaml.safe_load((HERE / "config.yaml").read_text())["recipes"]["dpo-lpc"]
    recipe["training"] |= {"save_minutes": 0.005}
    train = {"nodes": 2, "gpus": 1, "threads": 1, "mem_mb": 2000}
    config = {
        "recipes": {"nodes": recipe},
        "experiments": {"nodes": {"bases": ["tiny"], "datasets": ["world"], "recipes": ["nodes"]}},
        "resources": {"train": train},
    }
    (cluster.checkout / "nodes.yaml").write_text(json.dumps(config))
    snakemake = cluster.start(target("nodes"), config=("nodes.yaml",))
    job = cluster.job(snakemake.output)
    wait_for(lambda: checkpoints(cluster, "nodes"), "a checkpoint", 600)
    cluster.command("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    code, output = cluster.finish(snakemake)
    assert code == 0, output[-6000:]
    states = cluster.command("sacct", "-X", "-D", "-n", "-P", "-o", "state,nnodes,alloctres%60", "-j", job).splitlines()
    assert [line.split("|")[:2] for line in states] == [["PREEMPTED", "2"], ["COMPLETED", "2"]]
    assert all("gres/gpu=2" in line for line in states), states
    assert cluster.command("sacct", "-n", "-P", "-o", "ntasks", "-j", f"{job}.0").split() == ["2"]

    two_nodes, metrics = training(cluster, "nodes")
    _, expected = training(cluster, "dpo-lpc")
    assert two_nodes["processes"] == 2 and len(two_nodes["resumed_from"]) == 1
    assert [line["step"] for line in metrics] == [line["step"] for line in expected]
    assert [line["loss"] for line in metrics] == [line["loss"] for line in expected], "not the same training"


@pytest.mark.parametrize(
    ("nodes", "asked", "not_asked"),
    [
        (1, ["--nodes=1", "--gpus=8"], ["--ntasks", "--gres"]),
        (2, ["--nodes=2", "--ntasks=2", "--gres=gpu:8"], ["--ntasks-per-gpu", "--gpus"]),
    ],
)
def test_submission_of_the_papers_training_with_eight_gpus_a_node(cluster, nodes, asked, not_asked):
    """The line that SLURM gets from rule train of config/config.yaml: a task with eight GPUs on each node."""
    checkout = cluster.checkout
    base, data = checkout / "results/eight/bases/llama3-8b", checkout / "results/eight/data/ultrafeedback"
    reference = checkout / "results/eight/reference/llama3-8b/ultrafeedback"
    for path in (base, data, reference):
        path.mkdir(parents=True, exist_ok=True)
    (base / "base.json").write_text(json.dumps({"parameters": 8_030_261_248}))
    (data / "pairs.parquet").touch()
    (reference / "reference.parquet").touch()
    config = yaml.safe_load((checkout / "config/config.yaml").read_text())
    config["project"] = "eight"
    config["resources"]["train"] |= {"nodes": nodes, "gpus": 8, "launch": "config/accelerate/fsdp.yaml"}
    for training in [config["training"], *(recipe.get("training", {}) for recipe in config["recipes"].values())]:
        training |= {"batch_size": 64, "micro_batch_size": 2}
    (checkout / "eight.yaml").write_text(json.dumps(config))

    # An sbatch that writes down what it is told, and refuses.
    programs = checkout / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {checkout}/submitted\nexit 1\n')
    (programs / "sbatch").chmod(0o755)
    summary = "results/eight/runs/llama3-8b/ultrafeedback/dpo-lpc/seed-0/train.json"
    process = subprocess.run(
        ["snakemake", "--profile", "slurm", summary, "--configfile", "eight.yaml", "--allowed-rules", "train"],
        cwd=checkout,
        env={**cluster.environment, "PATH": f"{programs}:{cluster.environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    shutil.rmtree(programs)
    assert process.returncode == 1
    assert (checkout / "submitted").exists(), process.stderr[-3000:]
    submitted = (checkout / "submitted").read_text().splitlines()[0]
    (checkout / "submitted").unlink()
    print(submitted)
    for part in (*asked, "--cpus-per-task=32", "--requeue", "-p gpu", "-t 1440"):
        assert part in submitted, submitted
    assert not any(part in submitted for part in not_asked), submitted
    memory = int(re.search(r"--mem (\d+)", submitted)[1])
    train = config["resources"]["train"]
    assert memory == train["mem_mb"] + round(train["mem_mb_per_billion"] * 8.030261248)
