"""Checkouts of the workflow that tests may change, and Snakemake run in them."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "workflow", "profiles", "config", "src", "containers")


@functools.cache
def forks() -> subprocess.Popen:
    """The process whose forks are Snakemake; it ends with this one, which holds the other end of its input."""
    command = [sys.executable, Path(__file__).with_name("forks.py")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


SECRETS = {"HF_TOKEN": "hf_zGqXsecretofthehub", "OPENAI_API_KEY": "sk-zGqXsecretofthejudge"}
"""In the environment of every run; see `test_no_secret_is_in_any_output`."""


class Checkout:
    """A copy of the workflow's files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in PARTS:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.sif", "*.egg-info")
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy(ROOT / part, folder)

    @staticmethod
    def rules(folder: Path) -> set[str]:
        """Names of the rules that are written down, `all` apart."""
        files = sorted((folder / "workflow/rules").glob("*.smk"))
        return {name for file in files for name in re.findall(r"^ *rule (\w+):", file.read_text(), re.MULTILINE)}

    def write(self, config: dict, name: str = "test.yaml") -> Path:
        path = self.folder / "config" / name
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def start(self, *arguments, **options) -> subprocess.Popen:
        # Warnings of libraries about a missing terminal or home are no part of what is tested.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **SECRETS}
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def snakemake(self, *arguments, expect: int = 0) -> str:
        """What Snakemake prints; fails unless it ends with the exit code `expect`."""
        process = self.start(*arguments)
        output = process.communicate()[0]
        assert process.returncode == expect, output
        return output

    def forked(self, *arguments) -> str:
        """What Snakemake prints, as by `snakemake`, without its imports, which take longer than a dry run."""
        file = self.folder / "output.txt"
        print(json.dumps([str(self.folder), [*map(str, arguments)], str(file)]), file=forks().stdin, flush=True)
        code, output = forks().stdout.readline(), file.read_text()
        assert code == "0\n", output
        return output

    def planned(self, config: Path, names: tuple[str, ...] = ("recipe", "noise", "seed", "task")) -> set[str]:
        """The jobs that a dry run would start, each as its rule and wildcards: "questions world_easy".

        names: the wildcards that tell the jobs of one rule apart here; the rest is the same in all of them.
        """
        output = self.forked("all", "--dry-run", "--configfile", config)
        jobs = set()
        for block in re.split(r"\n(?=(?:local)?rule \w+:)", output)[1:]:
            rule = re.match(r"(?:local)?rule (\w+):", block)[1]
            wildcards = re.search(r"^    wildcards: (.*)$", block, re.MULTILINE)
            values = dict(pair.split("=", 1) for pair in wildcards[1].split(", ")) if wildcards else {}
            jobs.add(" ".join([rule, *(values[key] for key in names if key in values)]))
        jobs.discard("all")
        return jobs

    def pretend_finished(self, config: Path) -> None:
        """Empty files for every output, with Snakemake's own record of having made them from this configuration."""
        summary = self.forked("all", "--summary", "--configfile", config)
        files = [line.split("\t")[0] for line in summary.splitlines() if line.startswith("results/")]
        assert files
        for name in files:
            path = self.folder / name
            if path.name in ("model", "evaluation"):
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                # Memory that grows with the model is read from there.
                path.write_text('{"parameters": 1000000}' if path.name == "base.json" else "")
        self.forked("all", "--touch", "--forceall", "--cores", "1", "--configfile", config)


# Every stage in a size that ends in a minute: what it computes is no use, how it computes it is all there.
SMALL = {
    "project": "small",
    "datasets": {"world": {"kind": "world", "rows": 400, "split": {"validation": 40, "test": 100}}},
    "tokens": {"max_length": 160, "max_prompt_length": 80},
    "bases": {
        "tiny": {
            "scratch": {"dataset": "world", "vocabulary": 400, "hidden_size": 32, "layers": 1, "heads": 2, "epochs": 1}
        }
    },
    "training": {"batch_size": 16, "micro_batch_size": 16, "learning_rate": 1.0e-3, "precision": "float32"},
    "recipes": {
        "dpo": {"objective": {"name": "dpo"}},
        "dpo-lpc": {"objective": {"name": "dpo"}, "latent": {"codes": 8}},
    },
    "experiments": {"main": {"bases": ["tiny"], "datasets": ["world"], "recipes": ["dpo", "dpo-lpc"]}},
    "evaluation": {"tsne": {"perplexity": 10}, "completions": {"prompts": 2, "codes": 2, "max_new_tokens": 8}},
}
