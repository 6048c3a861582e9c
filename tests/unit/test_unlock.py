"""Whose lock of Snakemake may be removed. tests/workflow/test_lock_after_kill.py kills a real one."""

import os

import pytest

from lpc import process, unlock
from lpc.cli import UserError
from lpc.files import write_json


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """A folder with Snakemake's lock on the results of `mine`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".snakemake/locks"
    folder.mkdir(parents=True)
    (folder / "0.input.lock").write_text("src/lpc/cli.py\n")
    (folder / "0.output.lock").write_text("results/mine/report.html\n")
    return folder


def record(**owner):
    write_json(unlock._owner("mine"), process.me() | owner)


DEAD = {"start_time": "1"}


def test_a_dead_owners_lock_is_removed_and_another_projects_stays(locks):
    (locks / "1.input.lock").write_text("results/mine/report.html\n")
    (locks / "1.output.lock").write_text("results/other/report.html\n")
    record(**DEAD)
    assert unlock.remove_lock("mine")
    assert {path.name for path in locks.iterdir()} == {"1.input.lock", "1.output.lock"}
    assert not unlock.remove_lock("mine")


def test_a_living_owner_keeps_its_lock(locks):
    record()
    with pytest.raises(UserError, match=f"results/mine: in use by Snakemake, process {os.getpid()} on "):
        unlock.remove_lock("mine")


def test_a_lock_whose_owner_may_live_stays(locks):
    with pytest.raises(UserError, match="locked by an unknown Snakemake"):
        unlock.remove_lock("mine")
    record(**DEAD)
    newer = unlock._owner("mine").stat().st_mtime + 1
    os.utime(locks / "0.output.lock", (newer, newer))
    with pytest.raises(UserError, match="locked by an unknown Snakemake"):
        unlock.remove_lock("mine")
    os.utime(locks / "0.output.lock", (0, 0))
    (locks / "1.output.lock").write_text("results/mine/tables/cost.csv\n")
    with pytest.raises(UserError, match="locked by an unknown Snakemake"):
        unlock.remove_lock("mine")
    (locks / "1.output.lock").unlink()
    record(**DEAD, machine="another", host="node7")
    with pytest.raises(UserError, match=r"locked by Snakemake, process \d+ on node7; .*--unlock"):
        unlock.remove_lock("mine")
    assert len(list(locks.iterdir())) == 2
