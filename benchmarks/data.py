"""Time and memory of the steps that handle data, at the size of UltraFeedback: 64,000 prompts, four completions each.

    python benchmarks/data.py --output data.json

The data are English words in random order, with lengths as in UltraFeedback. Each step runs as its rule runs it, in a
process of its own; memory is that process's largest resident set, libraries included.
"""

import argparse
import json
import os
import pydoc_data.topics
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
TOKENIZER = """
import json, sys
from lpc.model.scratch import train_tokenizer
rows, vocabulary, folder = sys.argv[1:]
with open(rows, encoding="utf-8") as stream:
    texts = [json.loads(line)["completions"][0]["response"] for line, _ in zip(stream, range(4000))]
train_tokenizer(texts, int(vocabulary)).save_pretrained(folder)
"""
TOKENISE = """
import sys, torch, transformers
from lpc.config.models import Tokens
from lpc.data.tokens import load_tokenizer
from lpc.scoring import load_pairs
split, tokenizer, pairs, folder = sys.argv[1:]
_, tokens = load_pairs(pairs, load_tokenizer(tokenizer), Tokens(), split=split or None, columns=["pair_id"])
if split:
    tokens.save(folder)
"""
MAP = """
import sys, torch, transformers
from lpc.data.tokens import PairTokens, collate
tokens = PairTokens.load(sys.argv[1])
order = torch.randperm(len(tokens)).tolist()
for start in range(0, len(order), 8):
    collate([tokens[i] for i in order[start : start + 8]])
"""


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64_000)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--words", type=int, default=300, help="of a completion, on average")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="of the tokenizer, which is trained on the data")
    parser.add_argument(
        "--folder", type=Path, help="for the data, which are made where it has none; default: temporary"
    )
    parser.add_argument("--output", help="also write the numbers here (.json)")
    return parser


def make_rows(path: Path, prompts: int, completions: int, words: int) -> None:
    """Write rows in the UltraFeedback schema (.jsonl). Lengths are gamma distributed; a prompt has half the words."""
    rng = random.Random(0)
    vocabulary = re.findall(r"[A-Za-z]+[,.]?", " ".join(pydoc_data.topics.topics.values()))

    def text(mean: float) -> str:
        return " ".join(rng.choices(vocabulary, k=1 + int(rng.gammavariate(2, mean / 2))))

    def completion(model: int) -> dict:
        ratings = {name: {"Rating": str(rng.randint(1, 5))} for name in ("honesty", "helpfulness", "truthfulness")}
        score = rng.randint(2, 20) / 2
        return {"model": f"model-{model}", "response": text(words), "overall_score": score, "annotations": ratings}

    with open(path, "w", encoding="utf-8") as stream:
        for number in range(prompts):
            row = {"source": f"source-{number % 7}", "instruction": text(words / 2)}
            print(json.dumps(row | {"completions": [completion(model) for model in range(completions)]}), file=stream)


def measure(*command: str | Path) -> dict:
    """{"seconds", "cpu_seconds", "memory_mib"} of a process."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, *map(str, command)], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(map(str, command))[:200]}")
    seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "memory_mib": usage.ru_maxrss / 2**10}


def steps(folder: Path, rows: Path):
    """Yield the name and the command of each step, in their order."""
    record, split, pairs = folder / "dataset.json", folder / "rows.parquet", folder / "pairs.parquet"

    def step(name: str, spec: dict, **options: Path) -> tuple:
        words = [word for option, path in options.items() for word in (f"--{option}", path)]
        return name, ("-m", f"lpc.steps.{name}", "--spec", json.dumps(spec), *words)

    dataset = {"kind": "ultrafeedback", "path": str(rows), "revision": None, "hub_split": "train", "group": None}
    yield step("download_dataset", dataset, output=record)
    sizes = {"split": {"validation": 1000, "test": 2000}, "max_rejected_rows": 0.0}
    extra = {"rejects": folder / "rejects.jsonl", "summary": folder / "split.json"}
    yield step("split", sizes, record=record, output=split, **extra)
    yield step("pairs", {}, rows=split, output=pairs, summary=folder / "pairs.json")
    noisy = {"output": folder / "noisy.parquet", "summary": folder / "noisy.json"}
    yield step("flip", {"rate": 0.5}, pairs=pairs, **noisy)
    tokenizer, tokens = folder / "tokenizer", folder / "tokens"
    yield "reference: tokenise all pairs", ("-c", TOKENISE, "", tokenizer, pairs, tokens)
    yield "train: tokenise and write", ("-c", TOKENISE, "train", tokenizer, pairs, tokens)
    yield "train: every process maps and reads", ("-c", MAP, tokens)


def main():
    args = parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows, found = folder / "rows.jsonl", []
        if not rows.exists():
            make_rows(rows, args.prompts, args.completions, args.words)
            # In a process of its own: a step's largest resident set counts that of the process that started it.
            measure("-c", TOKENIZER, rows, str(args.vocabulary), folder / "tokenizer")
        print(f"{rows.stat().st_size / 2**20:.0f} MiB of rows")
        for name, command in steps(folder, rows):
            found.append({"step": name} | measure(*command))
            seconds, cpu, memory = (found[-1][key] for key in ("seconds", "cpu_seconds", "memory_mib"))
            print(f"{name:36} {seconds:7.1f} s {cpu:7.1f} s of CPUs {memory:7.0f} MiB", flush=True)
    if args.output:
        settings = {key: getattr(args, key) for key in ("prompts", "completions", "words", "vocabulary")}
        Path(args.output).write_text(json.dumps({"settings": settings, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
