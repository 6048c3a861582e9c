"""What a dry run of a thousand runs costs, and how much of it is this workflow's own code rather than Snakemake's.

    python benchmarks/workflow.py --output workflow.json

The configuration is the demo's with more seeds. `seconds` is `snakemake -n all` as a user sees it; `own` is the time
inside functions of this repository (configuration, paths, parameters, lists of results), under a profiler, which
makes it two to three times longer than it is.
"""

import argparse
import json
import os
import platform
import pstats
import subprocess
import sys
import tempfile
import time
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
    print("| runs | jobs | reference jobs | `snakemake -n` | of it own code |\n|---|---|---|---|---|")
    for runs in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            results[runs] = row = measure(runs, Path(folder))
        print(
            f"| {runs} | {row['jobs']} | {row['reference_jobs']} | {row['seconds']:.1f} s | {row['own']:.1f} s |",
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
    arguments = ["all", "--dry-run", "--configfile", str(folder / "config.yaml"), "--directory", str(folder)]
    arguments += ["--snakefile", str(ROOT / "Snakefile")]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    plan = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments, "--quiet", "rules"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    counts = Counter()
    for line in plan.stdout.splitlines() + plan.stderr.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            counts[words[0]] = int(words[1])
    profile = folder / "profile"
    subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", profile, "-m", "snakemake", *arguments, "--quiet"],
        env=environment, capture_output=True, check=True,
    )  # fmt: skip
    return {
        "seconds": seconds,
        "own": own_seconds(pstats.Stats(str(profile))),
        "jobs": counts["total"],
        "reference_jobs": counts["reference"],
    }


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
