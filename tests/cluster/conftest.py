"""A real cluster for the tests: SLURM with accounting, Apptainer, the project's images, and a checkout to run in.

They need root on Debian, with slurm-wlm, munge, slurmdbd and mariadb-server installed. Where something is missing the
tests skip and say what; with LPC_REQUIRE_CLUSTER=1 they install Apptainer, build the images, and otherwise fail. Both
stay in ~/.cache/lpc, so that a later run finds them.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cluster import HERE, POISON, REQUIRED, ROOT, Cluster, missing

from lpc.lock import lock

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpc"


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
        with lock(CACHE, wait=600):
            subprocess.run([ROOT / HERE / "get_apptainer.sh", prefix], check=True)
    return prefix / "bin"


@pytest.fixture(scope="session")
def folder():
    """For all that the tests write. Not pytest's, which others cannot enter: munge refuses to serve from there.

    Not in /tmp either, which a container shows whether or not it is bound.
    """
    path = Path(tempfile.mkdtemp(prefix="lpc-cluster-", dir="/srv"))
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
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "a clone"]):
        subprocess.run(["git", *words], cwd=copy, check=True)
    # Workers of pytest-xdist share the images, and so do sessions.
    with lock(CACHE / "images", wait=3600):
        provide_images(copy, apptainer)
    return copy


def provide_images(copy: Path, apptainer: Path) -> None:
    cache, here = CACHE / "images", copy / "containers/images"
    here.mkdir()
    # Debian's packages, which the machine has anyway: whether a registry answers must not decide.
    build = [sys.executable, "containers/build.py", "--base", "debootstrap"]
    environment = {**os.environ, "PATH": f"{apptainer}:{os.environ['PATH']}"}
    for folder in (ROOT / "containers/images", cache):
        for source in [*folder.glob("*.sif"), *folder.glob("*.json")]:
            link(source, here / source.name)
    wanted = subprocess.run([*build, "--print"], cwd=copy, check=True, capture_output=True, text=True)
    lacking = [file for file in wanted.stdout.split() if not Path(file).exists()]
    if lacking and not REQUIRED:
        missing(f"there is no {Path(lacking[0]).name} (make images)")
    subprocess.run(build, cwd=copy, env=environment, check=True)  # also where none lacks: it writes the choice
    if lacking:
        for source in [*cache.glob("*.sif"), *cache.glob("*.json")]:
            source.unlink()  # of other versions: each set is some gigabytes
        names = subprocess.run([*build, "--print"], cwd=copy, check=True, capture_output=True, text=True).stdout.split()
        for image in map(Path, names):
            for source in (image, image.with_suffix(".json"), here / "choice.json"):
                link(source, cache / source.name)


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
        cluster = Cluster(checkout, state, environment)
        yield cluster
        cluster.end()
    finally:
        subprocess.run([ROOT / HERE / "slurm.sh", "down", state], check=True)


@pytest.fixture(scope="session")
def demo(cluster) -> str:
    """The whole workflow, run once; its output. Other tests go on from its data, base and reference."""
    code, output = cluster.snakemake("all")
    assert code == 0, output[-8000:]
    return output
