"""What packing pairs saves: the prompt shared by both completions and no padding, against two padded sequences.

    python benchmarks/packing.py [--lengths FILE...] --output packing.json

Each row is one optimizer step's forward and backward pass of plain DPO on a random Llama in float32, with the same
log-probabilities on both sides (asserted). `lengths`: files in the UltraFeedback schema or with flat pairs
(.jsonl[.gz]), whose lengths in tokens stand for those of real data; their time per token is held against pairs that
all have the mean lengths.
"""

import argparse
import gzip
import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from lpc.data import read
from lpc.data.tokens import MODEL_INPUTS, collate
from lpc.model.policy import LatentPolicy
from lpc.model.scratch import train_tokenizer


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=4_096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=8, help="per step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lengths", type=Path, nargs="*", default=[])
    parser.add_argument("--output", help="also write the numbers here (.json)")
    return parser


def main():
    args = parser().parse_args()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    policy = LatentPolicy(transformers.LlamaForCausalLM(config))
    rng = np.random.default_rng(0)
    rows = {}
    print("| lengths | tokens | time | of two padded sequences: tokens | time |\n|---|---|---|---|---|")
    for prompt, completion in ((64, 128), (512, 128), (128, 512)):
        batches = [[(prompt, completion, completion)] * args.pairs] * args.steps
        rows[f"prompt {prompt}, completions {completion}"] = compare(policy, batches, args.vocabulary, rng)
    for path in args.lengths:
        texts = texts_of_pairs(path, 4 * args.pairs * args.steps)
        tokenizer = train_tokenizer([text for row in texts for text in row], args.vocabulary)
        lengths = [row for row in token_lengths(texts, tokenizer) if sum(row) <= 1024][: args.pairs * args.steps]
        batches = [lengths[i : i + args.pairs] for i in range(0, len(lengths), args.pairs)]
        row = compare(policy, batches, args.vocabulary, rng)
        mean = tuple(round(n) for n in np.mean(lengths, 0))
        alike = compare(policy, [[mean] * args.pairs] * args.steps, args.vocabulary, rng)
        row["time_per_token_of_equal_lengths"] = row["seconds"] / row["tokens"] / (alike["seconds"] / alike["tokens"])
        rows[path.name.split(".")[0]] = row
        print(f"| … time per token against equal lengths {mean} | | {row['time_per_token_of_equal_lengths']:.2f} | | |")
    if args.output:
        versions = {module.__name__: module.__version__ for module in (torch, transformers)}
        record = {"arguments": vars(args) | {"lengths": [path.name for path in args.lengths]}, "results": rows}
        record |= {"versions": versions, "machine": platform.platform(), "threads": torch.get_num_threads()}
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


def texts_of_pairs(path: Path, count: int) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of `count` pairs drawn from a file; all of them where it has fewer."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
        kind = "ultrafeedback" if "completions" in json.loads(next(stream)) else "pairs"
    rows, _, _ = read.read({"kind": kind, "path": str(path), "revision": None, "files": [str(path)]})
    rows = [read.unpack(rows[i]) for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    return [
        (" ".join(message["content"] for message in row["messages"]), *(c["response"] for c in row["completions"][:2]))
        for row in rows
    ]


def token_lengths(texts: list[tuple[str, str, str]], tokenizer) -> list[tuple[int, int, int]]:
    """Their tokens, each with one for the end of the turn."""
    return [tuple(len(ids) + 1 for ids in tokenizer(list(row), add_special_tokens=False)["input_ids"]) for row in texts]


def compare(policy, batches, vocabulary, rng) -> dict:
    times, tokens = {"packed": [], "padded": []}, {"packed": [], "padded": []}
    for lengths in batches:
        items = [
            dict(zip(("index", "prompt", "chosen", "rejected"), (0, *ids), strict=True))
            for ids in ([rng.integers(2, vocabulary, n) for n in row] for row in lengths)
        ]
        sums = {}
        for name, function in (("packed", packed), ("padded", padded)):
            policy.zero_grad()
            start = time.perf_counter()
            logps, count = function(policy, items)
            chosen, rejected = logps
            (-F.logsigmoid(0.1 * (chosen - rejected))).mean().backward()
            times[name].append(time.perf_counter() - start)
            tokens[name].append(count)
            sums[name] = torch.cat(logps).detach()
        torch.testing.assert_close(sums["packed"], sums["padded"], rtol=1e-4, atol=1e-3)
    # Without the first step, which warms up; sums, since steps of real lengths differ.
    seconds = {name: sum(values[1:]) for name, values in times.items()}
    total = {name: sum(values[1:]) for name, values in tokens.items()}
    share = total["packed"] / total["padded"]
    ratio = seconds["packed"] / seconds["padded"]
    print(
        f"| {describe(batches)} | {total['packed']} | {seconds['packed']:.3f} s | {share:.2f} | {ratio:.2f} |",
        flush=True,
    )
    return {"tokens": total["packed"], "seconds": seconds["packed"], "of_padded": {"tokens": share, "time": ratio}}


def describe(batches) -> str:
    rows = np.concatenate(batches)
    low, high = rows.min(0), rows.max(0)
    parts = [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(low, high, strict=True)]
    return f"{len(rows)} pairs: prompt {parts[0]}, completions {parts[1]}, {parts[2]}"


def packed(policy, items):
    batch = collate(items)
    return policy.pair_logps(policy.encode(**{name: batch[name] for name in MODEL_INPUTS}), None), int(
        batch["tokens"].sum()
    )


def padded(policy, items):
    """Chosen and rejected as sequences of their own, padded to the longest: what most trainers do."""
    sequences = [np.concatenate([item["prompt"], item[side]]) for side in ("chosen", "rejected") for item in items]
    ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    starts = [len(item["prompt"]) for item in items] * 2
    where = [(row, column) for row, s in enumerate(sequences) for column in range(starts[row], len(s))]
    rows, columns = torch.tensor(where).T
    ids = torch.from_numpy(ids)
    hidden = policy.hidden(ids)
    logps = policy.token_logps(hidden[rows, columns - 1], ids[rows, columns])
    sums = hidden.new_zeros(ids.shape).index_put((rows, columns), logps).sum(-1)
    return tuple(sums.chunk(2)), ids.numel()


if __name__ == "__main__":
    main()
