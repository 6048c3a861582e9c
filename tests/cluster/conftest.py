"""A real cluster for the tests: SLURM with accounting, Apptainer, the project's images, and a checkout to run in.

They need root on Debian, with slurm-wlm, munge, slurmdbd and mariadb-server installed. Where something is missing the
tests skip and say what; with LPC_REQUIRE_CLUSTER=1 they install Apptainer, build the images, and otherwise fail. Both
stay in ~/.cache/lpc, so that a later run finds them.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lpc import images

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("tests/cluster")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpc"
REQUIRED = os.environ.get("LPC_REQUIRE_CLUSTER") == "1"

# Of the host, and never to be seen by a rule: ranks would make the training wait for processes that do not exist.
POISON = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "PYTHONPATH": "/host/python", "LPC_POISON": "1"}


def missing(what: str):
    if REQUIRED:
        pytest.fail(f"LPC_REQUIRE_CLUSTER=1, but {what}", pytrace=False)
    pytest.skip(f"{what} (LPC_REQUIRE_CLUSTER=1 makes this a failure)")


def wait_for(condition, what: str, seconds: float = 90.0):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.3)
    return value


class Cluster:
    """A checkout of the working tree, and the environment in which Snakemake finds SLURM and Apptainer."""

    def __init__(self, checkout: Path, environment: dict[str, str]):
        self.checkout, self.environment = checkout, environment

    def start(self, *arguments: str, config: tuple[str, ...] = (), profile: tuple[str, ...] = ("--profile", "slurm")):
        """Start Snakemake; its output is in the file `output` of the returned process."""
        configfiles = ["--configfile", str(HERE / "config.yaml"), *config]
        # Fast polls, since the jobs take seconds and the file system is local.
        fast = ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5"] if profile else []
        output = tempfile.NamedTemporaryFile("w", prefix="snakemake-", dir=self.checkout.parent, delete=False)  # noqa: SIM115
        process = subprocess.Popen(
            ["snakemake", *profile, *arguments, *configfiles, *fast],
            cwd=self.checkout,
            env=self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.output = Path(output.name)
        return process

    def snakemake(self, *arguments: str, timeout: float = 600.0, **options) -> tuple[int, str]:
        """Run Snakemake to its end: exit code and output."""
        process = self.start(*arguments, **options)
        return self.finish(process, timeout)

    def finish(self, process, timeout: float = 300.0) -> tuple[int, str]:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"Snakemake did not end in {timeout:.0f} s:\n{process.output.read_text()[-6000:]}")
        return code, process.output.read_text()

    def command(self, *words: str) -> str:
        """Output of a SLURM command."""
        return subprocess.run(words, env=self.environment, check=True, capture_output=True, text=True).stdout

    def jobs(self) -> dict[str, str]:
        """State of each job that waits or runs, by number."""
        lines = self.command("squeue", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def job(self, output: Path) -> str:
        """Number of the last job that this Snakemake submitted."""

        def submitted():
            return re.findall(r"submitted with SLURM jobid (\d+)", output.read_text())

        return wait_for(submitted, "a submitted job")[-1]


@pytest.fixture(scope="session")
def apptainer() -> Path:
    """The folder with the program."""
    found = shutil.which("apptainer")
    if found:
        return Path(found).parent
    prefix = CACHE / "apptainer"
    if not (prefix / "bin/apptainer").exists():
        if not REQUIRED:
            missing("there is no apptainer on PATH")
        subprocess.run([ROOT / HERE / "get_apptainer.sh", prefix], check=True)
    return prefix / "bin"


@pytest.fixture(scope="session")
def folder():
    """For all that the tests write. Not pytest's, which others cannot enter: munge refuses to serve from there."""
    path = Path(tempfile.mkdtemp(prefix="lpc-cluster-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def checkout(folder, apptainer) -> Path:
    """A copy of the working tree as a clone would be, with the images."""
    copy = folder / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, copy / name
        if not os.path.lexists(source):
            continue  # deleted and not yet committed
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    cache, here = CACHE / "images", copy / "containers/images"
    cache.mkdir(parents=True, exist_ok=True)
    here.mkdir()
    wanted = {name: images.path(name).name for name in images.PARENTS}
    for source in [*cache.iterdir(), *(ROOT / "containers/images").glob("*")]:
        if source.suffix in (".sif", ".json") and source.with_suffix(".sif").name in wanted.values():
            link(source, here / source.name)
    lacking = [file for file in wanted.values() if not (here / file).exists()]
    if lacking:
        if not REQUIRED:
            missing(f"there is no {lacking[0]} (make images)")
        subprocess.run(
            [sys.executable, "containers/build.py"],
            cwd=copy,
            env={**os.environ, "PATH": f"{apptainer}:{os.environ['PATH']}"},
            check=True,
        )
        for source in cache.iterdir():
            source.unlink()  # of other versions: each set is some gigabytes
    for source in here.iterdir():
        link(source, cache / source.name)
    return copy


def link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def cluster(checkout, apptainer, folder):
    if os.getuid() != 0:
        missing("a SLURM of one's own needs root")
    programs = {"slurmctld": "slurm-wlm", "munged": "munge", "slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
    for program, package in programs.items():
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            missing(f"the package {package} is not installed")
    state = folder / "slurm"
    subprocess.run([ROOT / HERE / "slurm.sh", "up", state], check=True)
    try:
        variables = dict(re.findall(r"(\w+)=(\S+)", (state / "environment").read_text()))
        path = f"{Path(sys.executable).parent}:{apptainer}:{os.environ['PATH']}"
        kept = ("HOME", "LANG", "USER", "TMPDIR")
        environment = {key: os.environ[key] for key in kept if key in os.environ}
        environment |= POISON | variables | {"PATH": variables["PATH"].replace("$PATH", path)}
        # The home folder of a rule is the working directory; a package that a user installed there must not be found.
        packages = checkout / ".local/lib/python3.11/site-packages"
        packages.mkdir(parents=True)
        (packages / "poison.py").write_text("")
        yield Cluster(checkout, environment)
    finally:
        subprocess.run([ROOT / HERE / "slurm.sh", "down", state], check=True)


@pytest.fixture(scope="session")
def demo(cluster) -> str:
    """The whole workflow, run once; its output. Other tests go on from its data, base and reference."""
    code, output = cluster.snakemake("all")
    assert code == 0, output[-8000:]
    return output
