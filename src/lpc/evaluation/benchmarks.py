"""Running a task of the Language Model Evaluation Harness, and its result and per-sample log."""

import json
import math
import random
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers
from lm_eval.evaluator import evaluate
from lm_eval.utils import handle_non_serializable

from lpc import files
from lpc.cli import UserError
from lpc.evaluation.tasks import describe_files, describe_hub, metric_name

# The seeds of lm-eval's own command line.
RANDOM_SEED, OTHER_SEED = 0, 1234


def run_task(lm, loaded: dict, entry: dict) -> tuple[dict, list[dict]]:
    """Run a loaded task under an lm-eval model; return (result, samples), the result as in `benchmarks/<task>.json`.

    Values and standard errors are shares between 0 and 1; a standard error is None where lm-eval computes none.
    """
    if entry["chat_template"] and lm.tokenizer.chat_template is None:
        raise UserError(
            f"task {entry['name']}: this base's tokenizer has no chat template; set `chat_template` of the base, "
            "or turn that of the task off"
        )
    for name, task in loaded["tasks"].items():
        new = (task.config.generation_kwargs or {}).get("max_gen_toks", lm.max_gen_toks)
        if task.OUTPUT_TYPE == "generate_until" and new >= lm.max_length:
            raise UserError(
                f"task {entry['name']}: {name} writes up to {new} tokens, but this base's context has {lm.max_length} "
                "in all; take a base with a longer context, or leave this task out"
            )
    random.seed(RANDOM_SEED)
    np.random.seed(OTHER_SEED)
    torch.manual_seed(OTHER_SEED)
    start = time.monotonic()
    results = evaluate(
        lm,
        loaded,
        limit=entry["limit"],
        apply_chat_template=entry["chat_template"],
        fewshot_as_multiturn=entry["chat_template"],
    )
    seconds = time.monotonic() - start

    summaries = {
        name: {"n": results["n-samples"][name]["effective"], "metrics": _metrics(results["results"][name])}
        for name in loaded["tasks"]
    }
    if loaded["groups"]:
        name = _root(loaded["groups"])
        n = sum(summary["n"] for summary in summaries.values())
        summary = {"n": n, "metrics": _metrics(results["groups"][name]), "subtasks": summaries}
    else:
        (name, summary), *_ = summaries.items()
    result = summary | {
        "task": entry["name"],
        "harness_task": entry["task"],
        "num_fewshot": results["n-shot"].get(name),
        "limit": entry["limit"],
        "chat_template": entry["chat_template"],
        "data": describe_files(entry),
        "hub": describe_hub(loaded),
        "task_version": results["versions"].get(name),
        "harness_version": version("lm_eval"),
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "batch_size": lm.batch_size,
        "seconds": round(seconds, 3),
    }
    return result, [_sample(name, sample) for name in loaded["tasks"] for sample in results["samples"][name]]


def _root(groups: dict) -> str:
    """Return the group that contains all others."""
    children = {child for group in groups.values() for child in group.child_names}
    return next(name for name in groups if name not in children)


def _metrics(scores: dict) -> dict:
    """Return {"acc": {"value", "stderr"}} from lm-eval's {"acc,none": …, "acc_stderr,none": …, "alias": …}."""
    metrics = {}
    for key, value in scores.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr"):
            stderr = scores.get(f"{name}_stderr,{kind}")
            finite = isinstance(stderr, float | int) and math.isfinite(stderr)
            metrics[metric_name(key)] = {"value": float(value), "stderr": float(stderr) if finite else None}
    return metrics


def _sample(task: str, sample: dict) -> dict:
    """Return one line of the per-sample log. lm-eval repeats the prompt with each choice; the log has it once."""
    prompts, requests = zip(*sample["arguments"], strict=True)
    metrics = {metric: sample[metric] for metric in sample["metrics"]}
    return {
        "task": task,
        "doc_id": sample["doc_id"],
        "filter": sample["filter"],
        "doc": sample["doc"],
        "target": sample["target"],
        "prompt": prompts[0] if len(set(prompts)) == 1 else prompts,
        "requests": requests,
        "responses": [response[0] for response in sample["resps"]],
        "filtered": sample["filtered_resps"],
        "metrics": metrics,
    }


def share_of_truth(doc: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Return the true choices' share of the choices' probability, as TruthfulQA's mc2 scores it. lm-eval calls this.

    doc: a question with `labels`. Log-likelihoods are shifted by their largest before `exp`, or all might underflow.
    """
    logps = np.array([logp for logp, _ in results])
    weights = np.exp(logps - logps.max())
    return {"acc": float(weights[np.array(doc["labels"]) == 1].sum() / weights.sum())}


def write_samples(path: str | Path, samples: list[dict]) -> None:
    with files.atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for sample in samples:
            stream.write(json.dumps(sample, default=handle_non_serializable, ensure_ascii=False) + "\n")
