"""The lock that a killed Snakemake leaves: `make demo` removes it, and never that of a living one."""

import copy
import os
import signal
import subprocess
import sys
import time

from checkout import ROOT, SMALL

WORLD = "results/small/data/world/world.jsonl.gz"


def unlock(checkout, config) -> subprocess.CompletedProcess:
    """What `make demo` runs before Snakemake, on another configuration."""
    command = [sys.executable, "-m", "lpc.unlock", "--configfile", config]
    environment = {**os.environ, "PYTHONPATH": str(checkout.folder / "src")}
    return subprocess.run(command, cwd=checkout.folder, env=environment, capture_output=True, text=True, check=False)


def test_a_killed_snakemakes_lock_is_removed_and_a_living_ones_is_not(checkout):
    slow = copy.deepcopy(SMALL)
    slow["datasets"]["world"]["rows"] = 10**7
    process = checkout.start(
        WORLD, "--cores", "1", "--configfile", checkout.write(slow, "slow.yaml"), start_new_session=True
    )
    config = checkout.write(SMALL)
    try:
        end = time.monotonic() + 120
        while not (checkout.folder / ".snakemake/owners/small.json").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        second = unlock(checkout, config)
        assert second.returncode == 1
        [line] = second.stderr.splitlines()
        assert f"results/small: in use by Snakemake, process {process.pid} on " in line
        assert list(checkout.folder.glob(".snakemake/locks/*"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert unlock(checkout, config).stdout == "results/small: removed the lock that a killed Snakemake left behind\n"
    checkout.snakemake(WORLD, "--cores", "1", "--configfile", config)
    assert unlock(checkout, config).stdout == ""


def test_make_demo_removes_the_lock_before_it_starts_snakemake():
    lines = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert lines.index("lpc.unlock --configfile config/demo.yaml") < lines.index("snakemake all --cores")
