"""CPU time of a dry run of a thousand runs, of the start of one job, and of importing Snakemake.

    python benchmarks/workflow.py --output workflow.json

The configuration is the demo's with more seeds. `dry_run` is `snakemake -n all`. `start` is what a job of SLURM does
before its command: a process that plans the one job. `imports` is `import snakemake.cli` alone. All three are CPU
seconds, which other work on the machine changes less than wall time. `own` is the share of a dry run inside functions
of this repository (configuration, paths, parameters, lists of results), under a profiler.
"""

import argparse
import json
import os
import platform
import pstats
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
OURS = (str(ROOT / "src"), str(ROOT / "workflow"), str(ROOT / "Snakefile"))


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 1000], help="even numbers")
    parser.add_argument("--output", help="also write the numbers here (.json)")
    return parser


def main():
    args = parser().parse_args()
    results = {}
    print("| runs | jobs | reference jobs | `snakemake -n` | own | start of a job | imports |")
    print("|---|---|---|---|---|---|---|")
    for runs in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            results[runs] = row = measure(runs, Path(folder))
        print(
            f"| {runs} | {row['jobs']} | {row['reference_jobs']} | {row['dry_run']:.1f} s | {100 * row['own']:.0f} % "
            f"| {row['start']:.1f} s | {row['imports']:.1f} s |",
            flush=True,
        )
    if args.output:
        record = {"results": results, "snakemake": version("snakemake"), "machine": platform.platform()}
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


def measure(runs: int, folder: Path) -> dict:
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    config["project"] = "dry-run"
    config["experiments"]["main"] |= {"recipes": ["dpo", "dpo-lpc"], "seeds": list(range(runs // 2))}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    common = ["--dry-run", "--configfile", folder / "config.yaml", "--directory", folder]
    common += ["--snakefile", ROOT / "Snakefile"]
    dry_run, printed = cpu_seconds("-m", "snakemake", "all", *common, "--quiet", "rules")
    counts = Counter()
    for line in printed.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            counts[words[0]] = int(words[1])
    job = ["--target-jobs", "reference:base=tiny,variant=world", "--allowed-rules", "reference", "--mode", "subprocess"]
    job += ["--force", "--nolock", "--ignore-incomplete", "--quiet"]
    profile = folder / "profile"
    cpu_seconds("-m", "cProfile", "-o", profile, "-m", "snakemake", "all", *common, "--quiet")
    stats = pstats.Stats(str(profile))
    return {
        "dry_run": dry_run,
        "start": cpu_seconds("-m", "snakemake", *job, *common)[0],
        "imports": cpu_seconds("-c", "import snakemake.cli")[0],
        "own": own_seconds(stats) / stats.total_tt,
        "jobs": counts["total"],
        "reference_jobs": counts["reference"],
    }


def cpu_seconds(*arguments) -> tuple[float, str]:
    """CPU time, of user and system, of a Python process with these arguments, and what it prints."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def own_seconds(stats: pstats.Stats) -> float:
    """Time in functions of ours that others call. The bodies of the workflow's files count as Snakemake's: they build
    its rules."""
    ours = lambda function: function[0].startswith(OURS) and function[2] != "<module>"  # noqa: E731
    return sum(
        times[3]
        for function, (_, _, _, _, callers) in stats.stats.items()
        if ours(function)
        for caller, times in callers.items()
        if not ours(caller)
    )


if __name__ == "__main__":
    main()
