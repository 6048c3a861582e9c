"""The lock of a run folder, held against real processes that are killed, stopped and started at once."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from lpc import lock as lock_module
from lpc.cli import UserError
from lpc.lock import lock

SOURCE = Path(__file__).resolve().parents[2] / "src"


def start(code: str, *arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def owner(tmp_path):
    """Starts processes that take the lock, say so, and keep it until they are told to go on; ends them afterwards."""
    processes = []

    def start_owner(beat: float = 20.0, stale: float = 180.0, **environment) -> subprocess.Popen:
        process = start(
            """
            import sys
            from lpc.lock import lock
            with lock(sys.argv[1], wait=0, beat=float(sys.argv[2]), stale=float(sys.argv[3])):
                print("held", flush=True)
                sys.stdin.readline()
            """,
            tmp_path,
            beat,
            stale,
            **environment,
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n", process.communicate()
        return process

    yield start_owner
    for process in processes:
        process.kill()
        process.communicate()


def pretend_other_machine(folder: Path) -> None:
    """Make the present owner look like one of another node, so that only its signs of life can tell about it."""
    [path] = folder.glob("lock.*")
    owner = json.loads(path.read_text())
    seen = path.stat().st_mtime
    path.write_text(json.dumps({**owner, "machine": "elsewhere", "host": "node17"}))
    os.utime(path, (seen, seen))


def test_free_lock_is_taken_at_once_and_again_after_release(tmp_path):
    for _ in range(3):
        with lock(tmp_path, wait=0) as waited:
            assert waited == 0.0
    assert [path.name for path in tmp_path.iterdir()] == ["lock.3"]


def test_refusal_names_owner_and_its_job(tmp_path, owner):
    process = owner(SLURM_JOB_ID="4711")
    with (
        pytest.raises(UserError, match=rf"process {process.pid} on .*SLURM job 4711.*scancel 4711"),
        lock(tmp_path, wait=0),
    ):
        pytest.fail("two owners")
    assert process.poll() is None


def test_released_when_the_owner_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path, wait=0):
        1 / 0  # noqa: B018
    with lock(tmp_path, wait=0):
        pass


def test_waits_for_a_living_owner(tmp_path, owner):
    process = owner()
    threading.Timer(0.3, process.send_signal, [signal.SIGINT]).start()
    with lock(tmp_path, wait=60, stale=1) as waited:  # stale is short only to poll fast
        assert waited >= 0.2


def test_killed_owner_on_this_machine_does_not_keep_it(tmp_path, owner):
    process = owner()
    # Not collected yet, as where the parent is slow: a zombie is dead.
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")
    with lock(tmp_path, wait=0):
        pass


def test_number_of_a_dead_owner_given_to_another_process(tmp_path, owner):
    process = owner()
    [path] = tmp_path.glob("lock.*")
    path.write_text(json.dumps({**json.loads(path.read_text()), "start_time": "1"}))
    assert process.poll() is None
    with lock(tmp_path, wait=0):
        pass


def test_owner_elsewhere_counts_as_dead_only_without_signs_of_life(tmp_path, owner):
    process = owner(beat=0.2)
    pretend_other_machine(tmp_path)
    with pytest.raises(UserError, match="node17"), lock(tmp_path, wait=2.5, stale=2):
        pytest.fail("two owners")
    process.kill()
    with lock(tmp_path, wait=10, stale=2):
        pass


def test_requeued_job_takes_over_from_its_earlier_self_at_once(tmp_path, owner, monkeypatch):
    process = owner(SLURM_JOB_ID="12", SLURM_STEP_ID="0")
    process.kill()
    pretend_other_machine(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    with pytest.raises(UserError), lock(tmp_path, wait=0):
        pytest.fail("a step beside ours took the lock")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with lock(tmp_path, wait=0):
        pass


def test_owner_that_was_suspended_ends_when_another_took_over(tmp_path, owner):
    process = owner(beat=0.2)
    pretend_other_machine(tmp_path)
    process.send_signal(signal.SIGSTOP)
    with lock(tmp_path, wait=30, stale=1):
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "another process has taken" in errors
        with pytest.raises(UserError), lock(tmp_path, wait=0):
            pytest.fail("the old owner released the new one's lock")


def test_deleted_lock_ends_its_owner(tmp_path, owner):
    process = owner(beat=0.1)
    (tmp_path / "lock.1").unlink()
    assert process.wait(timeout=10) == 1
    assert "was deleted" in process.stderr.read()


@pytest.mark.parametrize(
    "content",
    [
        b'{"host": "node17", "mach',
        b"{}",
        b"[]",
        b"4711",
        b"\x00" * 200,
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"host": "a", "machine": "b", "pid": "1", "start_time": "1", "slurm_job": "1", "slurm_step": "0"}',
    ],
)
def test_torn_or_foreign_lock_file_is_named(tmp_path, content):
    (tmp_path / "lock.7").write_bytes(content)
    with (
        pytest.raises(UserError, match=r"lock\.7: not a lock file, .* delete"),
        lock(tmp_path, wait=0),
    ):
        pytest.fail("nobody knows whether the owner lives")
    assert [path.name for path in tmp_path.iterdir()] == ["lock.7"]


def test_empty_lock_file_is_a_released_lock_and_other_names_are_none(tmp_path):
    for name in ("lock.7", "lock.", "lock.\N{SUPERSCRIPT TWO}", "lock.08", "lock.txt"):
        (tmp_path / name).touch()
    with lock(tmp_path, wait=0):
        assert (tmp_path / "lock.8").exists() and not (tmp_path / "lock.7").exists()
    assert len(list(tmp_path.iterdir())) == 5


def test_lock_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, link = os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(os, "link", lambda source, target: events.append("link") or link(source, target))
    with lock(tmp_path, wait=0):
        assert events == ["fsync", "link"]


def test_of_many_that_find_a_dead_owner_one_wins_at_a_time(tmp_path, owner):
    owner().kill()
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = """
        import sys, time
        from pathlib import Path
        from lpc.lock import lock
        counter = Path(sys.argv[2])
        for _ in range(5):
            # stale is short only to poll fast; all are on this machine, where it does not matter
            with lock(sys.argv[1], wait=60, stale=0.04):
                value = int(counter.read_text())
                time.sleep(0.01)
                counter.write_text(str(value + 1))
        """
    processes = [start(code, tmp_path, counter) for _ in range(6)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert counter.read_text() == "30"


def test_slow_process_does_not_take_an_old_generation(tmp_path, monkeypatch):
    """It found nobody, but by the time it creates generation 1, that one has come, gone, and given way to 2."""
    with lock(tmp_path, wait=0):
        pass
    with lock(tmp_path, wait=0):
        assert not lock_module._create(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["lock.2"]


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.02)
