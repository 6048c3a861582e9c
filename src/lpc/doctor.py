"""Check a cluster's set-up before the first job (`make doctor`): one line for each check, with the fix.

It reads a Snakemake profile and the configuration, and queries SLURM, Apptainer and the files. Nothing is submitted:
`sbatch --test-only` lets SLURM itself judge the line that each rule would send. Exit code 1 if a check failed.
"""

import argparse
import getpass
import importlib.util
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import yaml

from lpc import cache, environment, images
from lpc.cli import UserError, fail
from lpc.config import models
from lpc.config.load import load

ROOT = Path(__file__).resolve().parents[2]
LONGEST_PAUSE = 180
"""Seconds between two polls of Snakemake's SLURM plugin, which grow by 10 after each in which no job ended."""
LEAST_FREE = 2 * 10**9
"""Bytes that results and HF_HOME need with the smallest of models."""
BYTES_PER_PARAMETER = 24
"""Of a checkpoint (weights and two moments in float32), twice: the new one is written before the old one is deleted."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le"}


@dataclass(frozen=True)
class Finding:
    level: str
    """"ok", "note" (cannot be decided here, or may matter later) or "FAILED"."""
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<6} {self.subject}: {self.text}"


@dataclass(frozen=True)
class SetUp:
    """The set-up to check: a profile and the requests of the configuration."""

    folder: Path
    """Of the profile."""
    profile: dict
    resources: dict[str, models.Resources]
    """By rule, with an entry "default" for all others."""
    references: dict[str, str]
    """Images that come from a registry, by name."""
    parameters: int
    """Of the largest base model that was downloaded; 0 before the first one."""


def read(folder: Path, files: list[str]) -> SetUp:
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{file}: no such file; use --profile with the folder of a profile, such as slurm")
    settings = load(*files).settings
    section = settings.resources
    resources = {rule: section.of(rule) for rule in type(section).model_fields}
    records = Path("results").glob(f"{settings.project}/bases/*/base.json")
    parameters = max((json.loads(record.read_text())["parameters"] for record in records), default=0)
    references = settings.images.references()
    return SetUp(folder, yaml.safe_load(file.read_text()), resources, references, parameters)


def ok(subject: str, text: str) -> Finding:
    return Finding("ok", subject, text)


def note(subject: str, text: str) -> Finding:
    return Finding("note", subject, text)


def failed(subject: str, text: str) -> Finding:
    return Finding("FAILED", subject, text)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="slurm", help="folder of the Snakemake profile (default: %(default)s)")
    parser.add_argument(
        "--configfile",
        nargs="+",
        default=[str(ROOT / "config/config.yaml")],
        help="configuration of the run, as for Snakemake (default: config/config.yaml)",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Print all findings; return 1 if one of them is a failure."""
    failures = 0
    for finding in check(read(Path(args.profile), args.configfile)):
        print(finding, flush=True)
        failures += finding.level == "FAILED"
    print(f"{failures} checks failed" if failures else "all checks passed")
    return 1 if failures else 0


def check(setup: SetUp) -> Iterator[Finding]:
    yield from check_python()
    yield from check_slurm(setup)
    containers = "apptainer" in setup.profile.get("software-deployment-method", [])
    if containers:
        yield from check_containers(setup)
    yield from check_gpus()
    yield from check_folders(setup, containers)


def output_of(*command: str) -> str:
    """Return a command's standard output. Raises UserError with its message if it fails or hangs."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]}: {last_line(error.stderr or error.stdout)}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: no answer in 60 s") from None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


# Python


def check_python() -> Iterator[Finding]:
    # `make images` refused a version that is too old.
    yield ok("Python", f"{platform.python_version()}, {sys.executable}")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        yield failed("Snakemake", "its SLURM plugin is not installed; run make images, then . .venv/bin/activate")


# SLURM


def check_slurm(setup: SetUp) -> Iterator[Finding]:
    lacking = [command for command in ("sbatch", "squeue", "scontrol", "sinfo") if not shutil.which(command)]
    if lacking:
        yield failed("SLURM", f"{', '.join(lacking)}: not on PATH; use a login node (module load slurm)")
        return
    try:
        config = dict(re.findall(r"^(\w+) *= *(.*?) *$", output_of("scontrol", "show", "config"), re.MULTILINE))
        partitions = slurm_partitions()
    except UserError as error:
        yield failed("SLURM", f"the controller does not answer ({error}); try again later, or ask the administrators")
        return
    yield ok("SLURM", f"version {config['SLURM_VERSION']}, cluster {config['ClusterName']}")
    yield from check_polling(setup.profile, config)
    yield from check_queue(setup.profile, config)
    yield from check_account(setup.profile)
    if importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        yield from check_partitions(setup, partitions)


def slurm_partitions() -> dict[str, dict[str, str]]:
    """Return each partition's settings, as `scontrol show partition` names them."""
    lines = output_of("scontrol", "--oneliner", "show", "partition").splitlines()
    entries = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    return {entry["PartitionName"]: entry for entry in entries if "PartitionName" in entry}


def check_polling(profile: dict, config: dict) -> Iterator[Finding]:
    """Check whether SLURM still knows an ended job when Snakemake asks for it."""
    if profile.get("slurm-status-command") != "squeue":
        if config["AccountingStorageType"].endswith("none"):
            yield failed("polling", "this SLURM keeps no accounts for sacct; set slurm-status-command: squeue")
        return
    age = int(config["MinJobAge"].split()[0])
    pause = max(LONGEST_PAUSE, profile.get("slurm-init-seconds-before-status-checks", 40))
    if 0 < age <= pause:  # 0 is for ever
        yield failed(
            "MinJobAge",
            f"SLURM forgets a job {age} s after its end, Snakemake asks up to {pause} s after it, then waits for ever; "
            "set slurm-status-command: sacct in the profile, or ask for MinJobAge=300 (SLURM's default)",
        )
    else:
        yield ok("MinJobAge", f"{age} s; Snakemake asks at least every {pause} s")


def check_queue(profile: dict, config: dict) -> Iterator[Finding]:
    """Compare the number of jobs that may be in the queue with the profile's `jobs`."""
    jobs = profile["jobs"]
    limits = {"MaxJobCount (of the whole cluster)": int(config["MaxJobCount"])}
    try:
        limits |= submit_limits()
    except UserError as error:
        yield note("jobs", f"limits of accounts and QoS cannot be read ({error})")
    exceeded = {name: limit for name, limit in limits.items() if limit < jobs}
    if exceeded:
        listed = ", ".join(f"{name} is {limit}" for name, limit in exceeded.items())
        least = min(exceeded.values())
        yield failed("jobs", f"the profile allows {jobs} jobs in the queue, but {listed}; set jobs: {least} or fewer")
    else:
        yield ok("jobs", f"at most {jobs} in the queue; the lowest limit is {min(limits.values())}")


def submit_limits() -> dict[str, int]:
    """Return the limits on submitted jobs that sacctmgr lists for this user: of associations, their parents and their
    QoS."""
    user = getpass.getuser()
    columns = "account,user,maxsubmitjobs,grpsubmitjobs"
    own = rows("sacctmgr", "show", "assoc", f"user={user}", "format=account,qos")
    accounts = ",".join(sorted({account for account, _ in own}))
    names = {name for _, qos in own for name in qos.split(",")}
    limits = {}
    if accounts:
        # Rows without a user are of the account itself.
        listed = rows("sacctmgr", "show", "assoc", f"account={accounts}", f"format={columns}")
        for account, whose, most, group in listed:
            if whose == user and most:
                limits[f"MaxSubmitJobs of account {account}"] = int(most)
            if whose in ("", user) and group:
                limits[f"GrpSubmitJobs of account {account}"] = int(group)
    for name, *values in rows("sacctmgr", "show", "qos", "format=name,maxsubmitjobspu,maxsubmitjobspa,grpsubmit"):
        for kind, value in zip(("MaxSubmitJobsPU", "MaxSubmitJobsPA", "GrpSubmit"), values, strict=True):
            if name in names and value:
                limits[f"{kind} of QoS {name}"] = int(value)
    return limits


def rows(*command: str) -> list[list[str]]:
    """Return the lines of a listing of sacctmgr, split into columns."""
    listing = output_of(*command, "--noheader", "--parsable2")
    return [line.split("|") for line in listing.splitlines()]


def check_account(profile: dict) -> Iterator[Finding]:
    account = profile.get("default-resources", {}).get("slurm_account")
    try:
        own = rows("sacctmgr", "show", "assoc", f"user={getpass.getuser()}", "format=account")
    except UserError as error:
        yield note("account", f"the accounting database does not answer ({error}); SLURM decides at the first job")
        return
    known = sorted({account for [account] in own})
    listed = ", ".join(known) or "none"
    if account is None:
        yield ok("account", f"SLURM's default (yours: {listed})")
    elif known and str(account).lower() not in known:
        yield failed("account", f"{account} is not one of yours ({listed}); correct slurm_account in the profile")
    else:
        yield ok("account", str(account))


class Resources(dict):
    """Resources of a job, as the plugin reads them: by key and by attribute."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def resources_of(rule: str, setup: SetUp, attempt: int) -> Resources:
    """Return the resources of a rule's job at its attempt, from 1."""
    entry = setup.resources[rule]
    own = {"mem_mb": entry.memory_at(attempt, setup.parameters), "runtime": entry.minutes_at(attempt)}
    own |= entry.requests()
    overridden = setup.profile.get("set-resources", {}).get(rule, {})
    return Resources({**setup.profile.get("default-resources", {}), **own, **overridden})


def check_partitions(setup: SetUp, partitions: dict) -> Iterator[Finding]:
    """Check the partitions of the profile's file, then SLURM's answer about a job of each rule."""
    from snakemake_executor_plugin_slurm.partitions import read_partition_file
    from snakemake_interface_common.exceptions import WorkflowError

    file = setup.folder / setup.profile["slurm-partition-config"]
    try:
        configured = read_partition_file(file)
    except WorkflowError as error:
        yield failed("partitions", f"{error}; the comment in {file} names the page with all keys")
        return
    for entry in configured:
        if entry.name not in partitions:
            known = ", ".join(sorted(partitions))
            yield failed("partition", f"{entry.name} does not exist; use {known} in {file}")
            continue
        state, longest = partitions[entry.name]["State"], partitions[entry.name]["MaxTime"]
        if state != "UP":
            yield failed("partition", f"{entry.name} is {state}; take it out of {file}, or wait until it is UP")
        elif minutes(longest) < entry.limits.max_runtime < float("inf"):
            yield failed(
                "partition",
                f"{entry.name} ends jobs after {longest}, but {file} says {entry.limits.max_runtime:.0f} minutes; "
                f"set max_runtime: {minutes(longest):.0f}",
            )
        else:
            yield ok("partition", f"{entry.name}, time limit {longest}, nodes {partitions[entry.name]['Nodes']}")
    usable = [entry for entry in configured if entry.name in partitions]
    attempts = 1 + setup.profile.get("retries", 0)
    for rule, entry in setup.resources.items():
        subject = "jobs of other rules" if rule == "default" else f"jobs of rule {rule}"
        request, fault = judge(rule, 1, setup, usable, partitions)
        if fault:
            yield failed(subject, f"{request}: {fault}; lower `resources` of the configuration, or correct {file}")
            continue
        unknown = entry.mem_mb_per_billion and not setup.parameters
        more = f", and {entry.mem_mb_per_billion} MB for each billion parameters" if unknown else ""
        yield ok(subject, request + more)
        request, fault = judge(rule, attempts, setup, usable, partitions)
        if fault:
            yield note(subject, f"attempt {attempts} of a failed job may ask for {request}: {fault}")


def judge(rule: str, attempt: int, setup: SetUp, usable: list, partitions: dict) -> tuple[str, str]:
    """Return the request of a rule's job in words, and what is wrong with it ("" if nothing is).

    The plugin chooses the partition and writes the line for sbatch; SLURM tests it.
    """
    from snakemake_executor_plugin_slurm.partitions import get_best_partition
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string
    from snakemake_interface_common.exceptions import WorkflowError

    threads, resources = setup.resources[rule].threads, resources_of(rule, setup, attempt)
    job = SimpleNamespace(name=rule, threads=threads, resources=resources, is_group=lambda: False)
    silent = logging.getLogger("lpc.doctor.plugin")
    silent.addHandler(logging.NullHandler())
    silent.propagate = False
    partition = resources.get("slurm_partition") or get_best_partition(usable, job, silent)
    words = f"{threads} CPUs, {resources['mem_mb']} MB, {resources['runtime']} minutes"
    words = f"{resources['nodes']} nodes of {words}" if resources.get("nodes", 1) > 1 else words
    words += f", {resources['gpu']} GPUs" if resources.get("gpu") else ""
    words += f", {resources['gres']}" if resources.get("gres") else ""
    if not partition:
        return words, "no partition of the profile takes it"
    words += f" in partition {partition}"
    if partition in partitions and minutes(partitions[partition]["MaxTime"]) < resources["runtime"]:
        return words, f"the partition's time limit is {partitions[partition]['MaxTime']}"
    account = f"-A {shlex.quote(str(resources['slurm_account']))}" if resources.get("slurm_account") else ""
    parameters = {
        "run_uuid": "lpc-doctor",
        "slurm_logfile": os.devnull,
        "comment_str": rule,
        "account": account,
        "partition": f"-p {partition}",
        "workdir": os.getcwd(),
    }
    executor = SimpleNamespace(requeue=setup.profile.get("slurm-requeue"), no_requeue=False, qos=None, reservation=None)
    try:
        line = get_submit_command(job, parameters, executor) + set_gres_string(job)
        output_of("bash", "-c", f"{line} --test-only --wrap true")
    except WorkflowError as error:
        return words, str(error)
    except UserError as error:
        return words, str(error).removeprefix("bash: ")
    return words, ""


def minutes(limit: str) -> float:
    """Return a time limit of SLURM ("1-12:00:00", "30:00", "UNLIMITED") in minutes."""
    if limit in ("UNLIMITED", "INFINITE"):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    hours, mins, seconds = [0, 0, *map(int, clock.split(":"))][-3:]
    return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60


# Apptainer and the images


def check_containers(setup: SetUp) -> Iterator[Finding]:
    program = shutil.which("apptainer") or shutil.which("singularity")
    if not program:
        yield failed("Apptainer", "not on PATH; load its module, or use the profile workflow/profiles/slurm-venv")
        return
    try:
        version = output_of(program, "--version").strip()
    except UserError as error:
        yield failed("Apptainer", f"does not run: {error}")
        return
    number = re.search(r"(\d+)\.\d+", version)
    if version.startswith("apptainer") and number and int(number[1]) < 1:
        yield failed("Apptainer", f"{version} is older than 1.0; load a newer module")
    else:
        yield ok("Apptainer", version)
    yield from check_images(setup.references)
    image = images.path("training")
    if "training" not in setup.references and image.exists():
        yield from check_image(program, image, setup.profile)


def check_images(references: dict[str, str]) -> Iterator[Finding]:
    """Check that the local images are built, and list those of a registry."""
    for name, reference in references.items():
        yield note("images", f"{name}: {reference} is pulled before the first job that needs it")
    # No job runs in the base; it is needed to build the others.
    local = [name for name, parent in images.PARENTS.items() if parent and name not in references]
    needed = {image for name in local for image in images.lineage(name)} - references.keys()
    lacking = [images.path(name).name for name in images.PARENTS if name in needed and not images.path(name).exists()]
    if lacking:
        yield failed("images", f"{', '.join(lacking)}: not in {images.FOLDER / 'images'}; run make images")
    elif needed:
        yield ok("images", ", ".join(images.path(name).name for name in images.PARENTS if name in needed))


def check_image(program: str, image: Path, profile: dict) -> Iterator[Finding]:
    """Run one command in the image with the profile's options, to check the architecture and the folders."""
    labels = json.loads(output_of(program, "inspect", "--labels", "--json", str(image)))["data"]["attributes"]["labels"]
    built, here = labels.get("org.label-schema.build-arch"), ARCHITECTURES.get(platform.machine(), platform.machine())
    if built and built != here:
        yield failed("images", f"built for {built}, but this machine is {here}; run make images on such a machine")
        return
    try:
        bound = environment.binds(ROOT)
    except UserError:
        return  # reported with the folders
    test = f'test -w "$HF_HOME" && test -r {ROOT}/src/lpc/__init__.py && python --version'
    if not os.environ.get("HF_HOME"):
        test = test.removeprefix('test -w "$HF_HOME" && ')
    options = f"--home '{os.getcwd()}' {profile.get('apptainer-args', '')}"
    command = ["bash", "-c", f"APPTAINER_BIND='{bound}' exec {program} exec {options} '{image}' bash -c '{test}'"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        message = last_line(result.stderr) if result.stderr.strip() else "the checkout or HF_HOME is not seen in it"
        yield failed("container", f"{image.name} does not run as a job would: {message}; correct apptainer-args")
    else:
        yield ok("container", f"{image.name} runs, and sees the checkout and HF_HOME")


def check_gpus() -> Iterator[Finding]:
    if Path("/dev/kfd").exists():
        yield ok("GPU driver", "AMD (/dev/kfd)")
    elif shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            yield ok("GPU driver", "; ".join(sorted(set(output_of(*query).splitlines()))))
        except UserError as error:
            yield note("GPU driver", f"{error}; check that of a node with srun --gpus=1 nvidia-smi")
    else:
        yield note("GPU driver", "not visible on this login node; check that of a node with srun --gpus=1 nvidia-smi")


# Folders


def check_folders(setup: SetUp, containers: bool) -> Iterator[Finding]:
    try:
        if shared := cache.folder():
            yield check_folder(cache.VARIABLE, shared, LEAST_FREE, "name a folder with room")
    except UserError as error:
        yield failed(cache.VARIABLE, str(error).removeprefix(f"{cache.VARIABLE}="))
    results = Path("results").resolve()
    needed = LEAST_FREE + BYTES_PER_PARAMETER * setup.parameters
    yield check_folder("results", results, needed, "make results a link to a file system with room")
    home = os.environ.get("HF_HOME")
    default = Path.cwd() / ".cache/huggingface" if containers else Path.home() / ".cache/huggingface"
    if home and not Path(home).is_dir():
        yield failed("HF_HOME", f"{home} is not a folder; create it (mkdir -p) on a file system that the nodes share")
        return
    if not home:
        yield note("HF_HOME", f"not set, so models and data go to {default}; export HF_HOME=/a/folder/with/room")
    yield check_folder("HF_HOME", Path(home or default).resolve(), LEAST_FREE, "set it to a folder with room")
    for name, path in {"working directory": Path.cwd(), "HF_HOME": Path(home or default).resolve()}.items():
        if path.is_relative_to("/tmp"):
            yield note(name, f"{path} lies in /tmp, which each node has its own of; use a shared file system")


def check_folder(subject: str, path: Path, needed: int, fix: str) -> Finding:
    """Check whether a folder, or the one that it will be created in, is writable and has room."""
    existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return failed(subject, f"{existing} cannot be written to ({error.strerror}); {fix}")
    free = shutil.disk_usage(existing).free
    room = f"{free / 1e9:.1f} GB free in {existing}"
    if free < needed:
        return failed(subject, f"{room}, but at least {needed / 1e9:.1f} GB are needed; {fix}")
    return ok(subject, f"{room} (a quota may be lower)")


if __name__ == "__main__":
    try:
        sys.exit(main(parser().parse_args()))
    except UserError as error:
        fail(str(error), 1)
