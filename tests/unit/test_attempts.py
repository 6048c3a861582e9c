"""Which attempts ran out of memory, from logs as SLURM writes them."""

import pytest

from lpc.attempts import memory_shares

OUT_OF_MEMORY = [
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch. Some of your processes may have been killed",
    "slurmstepd-n1: error: StepId=7.0 exceeded memory limit (800000 > 700000), being killed",
    "srun: error: n1: task 0: Out Of Memory",
]
OTHERWISE = [
    "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    "srun: error: n1: task 0: Exited with exit code 1",
]


@pytest.fixture
def logs(tmp_path):
    """Call that writes the log of a job of rule train, for the wildcards base and a/b."""
    folder = tmp_path / "rule_train/base_a_b"
    folder.mkdir(parents=True)

    def write(job, *lines):
        (folder / f"{job}.log").write_text("\n".join(["Building DAG of jobs...", *lines, "end"]))
        return tmp_path

    return write


def shares(attempt, folder):
    return memory_shares("train", ["base", "a/b"], attempt, folder)


@pytest.mark.parametrize("line", OUT_OF_MEMORY)
def test_attempt_out_of_memory_gets_more(logs, line):
    assert shares(2, logs(7, line)) == 2


@pytest.mark.parametrize("line", OTHERWISE)
def test_attempt_that_failed_otherwise_does_not(logs, line):
    assert shares(2, logs(7, line)) == 1


def test_only_the_attempts_of_this_run_of_snakemake_count(logs):
    """By the number of the job, not of its digits; what an earlier Snakemake left lies before."""
    folder = logs(8, OUT_OF_MEMORY[0])
    logs(9, OUT_OF_MEMORY[0])
    logs(10, OTHERWISE[0])
    assert [shares(attempt, folder) for attempt in (1, 2, 3)] == [1, 1, 2]


def test_attempt_without_a_log_counts_as_out_of_memory(tmp_path, logs):
    assert shares(3, tmp_path / "elsewhere") == 3
    assert shares(3, logs(7, OTHERWISE[0])) == 2
