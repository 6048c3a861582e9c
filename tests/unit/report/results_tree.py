"""A small tree of results in the formats that the workflow writes, with known contents."""

import copy
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from steps import run_step

from lpc import files, latents
from lpc.evaluation import intervals
from lpc.evaluation.diagnostics import latent_diagnostics
from lpc.report.runs import latent_kind, resolve

SOURCES = ["bank", "court", "courier", "library", "nursery", "poet"]
PAIRS, CODES, FEATURES = 120, 8, 16
# Probability that a run judges a pair rightly.
SKILL = {"dpo": 0.70, "dpo-lpc": 0.72, "dpo-mlp": 0.85, "simpo": 0.6, "simpo-lpc": 0.6, "dpo-lpc+latent.codes=16": 0.7}
LATENT = {"kind": "lpc", "codes": CODES, "kl_weight": 0.05, "inference": "mean"}
RECIPES = {
    "dpo": {"objective": {"name": "dpo", "beta": 0.1}, "latent": None},
    "dpo-lpc": {"objective": {"name": "dpo", "beta": 0.1}, "latent": LATENT},
    "dpo-lpc+latent.codes=16": {"objective": {"name": "dpo", "beta": 0.1}, "latent": {**LATENT, "codes": 16}},
    "dpo-mlp": {"objective": {"name": "dpo", "beta": 0.1}, "latent": {"kind": "mlp"}},
    "simpo": {"objective": {"name": "simpo", "beta": 2.0, "margin": 1.0}, "latent": None},
    "simpo-lpc": {"objective": {"name": "simpo", "beta": 2.0, "margin": 1.0}, "latent": LATENT},
}
TASKS = {
    "sums": {"task": "config/tasks/world_generate.yaml", "metric": "acc"},
    "truths": {"task": "config/tasks/world_truth.yaml", "metric": "acc"},
}
WHERE = {"bases": ["tiny"], "datasets": ["world"]}
SETTINGS = {
    "project": "small",
    "datasets": {"world": {"kind": "world", "rows": 600, "split": {"validation": 20, "test": PAIRS, "seed": 0}}},
    "noise": {"flip50": {"rate": 0.5, "marker": "[FLIP]", "seed": 0}},
    "tokens": {"max_length": 256, "max_prompt_length": 128},
    "bases": {"tiny": {"scratch": {"dataset": "world", "hidden_size": FEATURES}, "dtype": "float32"}},
    "training": {"epochs": 1, "learning_rate": 0.001},
    "recipes": {name: recipe for name, recipe in RECIPES.items() if "+" not in name},
    "experiments": {
        "main": {**WHERE, "recipes": ["dpo", "dpo-lpc", "dpo-mlp", "simpo", "simpo-lpc"], "sweep": {}, "seeds": [0, 1]},
        "codebook": {**WHERE, "recipes": ["dpo-lpc"], "sweep": {"latent.codes": [CODES, 16]}, "seeds": [0]},
        "noise": {**WHERE, "recipes": ["dpo", "dpo-lpc"], "noise": ["clean", "flip50"], "sweep": {}, "seeds": [0]},
    },
    "evaluation": {
        "preference": {"batch_size": 64, "datasets": []},
        "benchmarks": {"batch_size": 32, "tasks": TASKS},
        "tsne": {"perplexity": 10, "seed": 0},
        "completions": {"prompts": 2, "codes": 2, "max_new_tokens": 24, "seed": 0},
        "alpacaeval": None,
    },
}


def listed(recipe: str, seed: int, noise: str = "clean", experiments: tuple[str, ...] = ("main",)) -> dict:
    """A run as the rules list it."""
    variant = "world" if noise == "clean" else f"world.{noise}"
    return {
        "base": "tiny",
        "dataset": "world",
        "noise": noise,
        "variant": variant,
        "recipe": recipe,
        "seed": seed,
        "experiments": list(experiments),
    }


MAIN = [listed(recipe, seed) for recipe in SETTINGS["experiments"]["main"]["recipes"] for seed in (0, 1)]
for shared in MAIN:
    if shared["recipe"] in ("dpo", "dpo-lpc") and shared["seed"] == 0:
        shared["experiments"].append("noise")
    if shared["recipe"] == "dpo-lpc" and shared["seed"] == 0:
        shared["experiments"].append("codebook")
LISTED = [
    *MAIN,
    listed("dpo-lpc+latent.codes=16", 0, experiments=("codebook",)),
    listed("dpo", 0, "flip50", ("noise",)),
    listed("dpo-lpc", 0, "flip50", ("noise",)),
]
WITH_TRAINING = {name: {**recipe, "training": SETTINGS["training"]} for name, recipe in RECIPES.items()}


def a_run(recipe: str, seed: int, noise: str = "clean") -> dict:
    """A run with its recipe's settings."""
    return copy.deepcopy(resolve([listed(recipe, seed, noise)], WITH_TRAINING, [])[0])


def folder_of(run: dict) -> str:
    """The run's folder as documented, without lpc.layout."""
    return f"runs/{run['base']}/{run['variant']}/{run['recipe']}/seed-{run['seed']}"


RUNS = resolve(LISTED, WITH_TRAINING, [])
# Configured, but never trained: its rows and its section must say so.
ABSENT = folder_of(a_run("simpo-lpc", 1))


def pair_columns() -> dict:
    return {
        "pair_id": [f"pair-{i:03}" for i in range(PAIRS)],
        "prompt_id": [f"prompt-{i // 2:03}" for i in range(PAIRS)],
        "source": [SOURCES[i // 2 % 6] for i in range(PAIRS)],
    }


def write_data(root: Path) -> None:
    folder, generator = root / "data" / "world", np.random.default_rng(0)
    aspect = pa.struct(
        [(name, pa.float64()) for name in ("instruction_following", "honesty", "truthfulness", "helpfulness")]
    )
    scores = [
        None if i % 3 == 0 else dict.fromkeys(aspect.names, float(generator.integers(1, 6))) for i in range(PAIRS)
    ]
    table = pa.table(
        {
            **pair_columns(),
            "split": ["test"] * PAIRS,
            "chosen": ["Seven! It is 7. Good luck!", "Seven."] * (PAIRS // 2),
            "rejected": ["7 and more."] * PAIRS,
            "chosen_aspects": pa.array(scores, aspect),
            "rejected_aspects": pa.array(scores[::-1], aspect),
        }
    )
    files.write_parquet(folder / "pairs.parquet", table)
    files.write_json(folder / "pairs.json", {"splits": {"test": {"pairs": PAIRS, "prompts": PAIRS // 2}}})
    files.write_json(
        folder / "dataset.json", {"kind": "world", "files": [], "revision": None, "sha256": {"world": "ab" * 32}}
    )
    files.write_json(folder / "split.json", {"train": 400, "validation": 20, "test": PAIRS})
    base = {
        "name": "tiny",
        "path": "model",
        "revision": None,
        "sha256": "cd" * 32,
        "parameters": 680_000,
        "dtype": "float32",
    }
    files.write_json(root / "bases" / "tiny" / "base.json", base)
    write_benchmarks(root / "bases" / "tiny", 0.4)


def write_benchmarks(folder: Path, value: float) -> None:
    for task in TASKS:
        metrics = {"acc": {"value": value, "stderr": 0.03}, "acc_norm": {"value": value + 0.01, "stderr": None}}
        files.write_json(
            folder / "benchmarks" / f"{task}.json",
            {
                "task": task,
                "base": "tiny",
                "n": 200,
                "metrics": metrics,
                "harness_version": "0.4.13",
                "task_version": 1,
                "num_fewshot": 0,
            },
        )


def write_run(root: Path, run: dict) -> None:
    folder, seed = root / folder_of(run), run["seed"]
    generator = np.random.default_rng([seed, *folder_of(run).encode()])
    latent = bool(run["latent"])
    write_preference(folder, SKILL[run["recipe"]], latent_kind(run), generator)
    write_benchmarks(folder, SKILL[run["recipe"]])
    files.write_json(
        folder / "train.json",
        {
            "steps": 188,
            "pairs": 6000,
            "dropped": 0,
            "cut": {"prompts": 0.02, "chosen": 0.125, "rejected": 0.0625},
            "tokens": 400_000,
            "seconds": 40.0 + latent,
            "tokens_per_second": 10_000.0,
            "seconds_per_step": 0.2 + 0.004 * latent,
            "peak_memory_gib": 1.2,
            "parameters": 680_000 + 50_000 * latent,
            "latent_parameters": 50_000 * latent,
            "first_loss": float(np.log(2)),
            "last_loss": 0.4,
            "saved": {"dtype": "bfloat16", "moved": 1.0, "undone": 0.25, "margin": {"before": 0.4, "after": 0.3}},
            "device": "cpu",
            "processes": 1,
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "resumed_from": [],
            "evaluations": [
                {"step": step, "pairs": 20, "loss": 0.69 - step / 600, "accuracy": 0.5 + step / 600}
                for step in (47, 94, 141, 188)
            ],
            "identity": {"pairs": "aa" * 32},
            "container": {"image": "training-0123.sif", "sha256": "ef" * 32},
        },
    )
    lines = []
    for step in range(5, 189, 5):
        line = {"step": step, "epoch": step / 188, "loss": 0.69 * np.exp(-step / 200), "accuracy": 0.5 + step / 900}
        if run["latent"] and run["latent"]["kind"] == "lpc":
            line.update(
                kl=0.02, prior_perplexity=7.0, mean_prior_perplexity=7.9, posterior_perplexity=6.0, gamma=step / 188
            )
        lines.append(json.dumps(line))
    files.write_text(folder / "train.jsonl", "\n".join(lines) + "\n")
    if latent:
        write_latents(folder, run, generator)


def write_preference(folder: Path, skill: float, latent: str | None, generator) -> None:
    columns = pair_columns()
    chosen = np.where(generator.random(PAIRS) < skill, 1.0, -1.0)
    chosen[0] = 0.0  # a tie
    rules = latents.kind(latent).inference_rules() if latent else ()
    kinds = ["", "_zero", "_shuffled", "_posterior", "_posterior_swapped"] if latent else [""]
    for kind in kinds:
        columns[f"chosen_reward{kind}"] = chosen if kind == "" else generator.normal(size=PAIRS)
        columns[f"rejected_reward{kind}"] = np.zeros(PAIRS)
    others = [f"_by_{rule}" for rule in rules] + ["_log_ratio"] * (skill == SKILL["simpo"])
    for number, kind in enumerate(others):
        kinds.append(kind)
        wrong = number * (np.arange(PAIRS) % 20 == 7)  # none by the first rule, the run's own
        columns |= {f"chosen_reward{kind}": chosen - 2 * wrong, f"rejected_reward{kind}": np.zeros(PAIRS)}
    files.write_parquet(folder / "evaluation/preference/world.parquet", pa.table(columns))
    accuracy = {
        f"accuracy{kind}": float(intervals.outcomes(columns[f"chosen_reward{kind}"], np.zeros(PAIRS)).mean())
        for kind in kinds
    }
    validation = {"n": 20, "accuracy": skill, "low": skill - 0.2, "high": skill + 0.1}
    by_rule = {rule: accuracy.pop(f"accuracy_by_{rule}") for rule in rules}
    inference = {"inference": {"default": "mean", "accuracy": by_rule}} if rules else {}
    summary = {
        "n": PAIRS,
        "ties": 1,
        "validation": validation,
        "longer_accuracy": 0.56,
        "prefers_longer": 0.61,
        **({"prefers_longer_zero": 0.52} if latent else {}),
        "dropped": 0,
        "mean_margin": 0.4,
        **accuracy,
        **inference,
    }
    files.write_json(folder / "evaluation/preference/world.json", summary)


def write_latents(folder: Path, run: dict, generator) -> None:
    columns = pair_columns()
    prompts = np.arange(PAIRS) // 2
    source = prompts % 6
    h_x = generator.normal(size=(6, FEATURES))[source] * 3 + generator.normal(size=(PAIRS // 2, FEATURES))[prompts]
    prior = posterior = None
    z = 0.1 * h_x
    if run["latent"]["kind"] == "lpc":
        codes = run["latent"]["codes"]
        prior = np.full((PAIRS, codes), 0.3 / (codes - 1))
        prior[np.arange(PAIRS), source] = 0.7
        posterior = generator.dirichlet(np.ones(codes), size=PAIRS)
        z = prior @ generator.normal(size=(codes, FEATURES))
        columns |= {"prior": list(prior.astype(np.float32)), "posterior": list(posterior.astype(np.float32))}
        write_completions(folder, same=run["objective"]["name"] == "simpo")
    columns |= {"z": list(z.astype(np.float32)), "h_x": list(h_x.astype(np.float32))}
    columns |= {"chosen_tokens": generator.integers(5, 60, PAIRS), "rejected_tokens": generator.integers(5, 60, PAIRS)}
    files.write_parquet(folder / "evaluation/latents.parquet", pa.table(columns))
    measured = latent_diagnostics(prior, posterior, z, h_x, columns["source"], prompt_id=columns["prompt_id"], seed=0)
    tokens = None if prior is None else [tokens_of(code) for code in range(prior.shape[1])]
    files.write_json(folder / "evaluation/latents.json", measured | {"code_tokens": tokens})
    if run["recipe"] == "dpo-lpc":
        accuracies = {"0": 0.5, "2": 0.7, "16": 0.8}
        contexts = {
            size: {"accuracy": a, "low": a - 0.1, "high": a + 0.1, "nmi": None if size == "0" else a}
            for size, a in accuracies.items()
        }
        of_codes = [
            {
                "code": code,
                "source": source,
                "pairs": 30,
                "accuracy": 0.9 if code == place else 0.4,
                "share": 0.1 * place,
            }
            for code in range(CODES)
            for place, source in enumerate(SOURCES)
        ]
        person = {"n": 60, "groups": 6, "contexts": contexts, "codes": of_codes}
        files.write_json(folder / "evaluation/person.json", person)
        shares = dict(zip(SOURCES, np.full(len(SOURCES), 1 / len(SOURCES)).tolist(), strict=True))
        styles = [{"code": 3, "source": SOURCES[0], "accuracy": 0.9, "own": shares[SOURCES[0]], "shares": shares}]
        files.write_json(folder / "evaluation/style.json", {"prompts": 20, "real_accuracy": 0.75, "codes": styles})


def tokens_of(code: int) -> dict:
    """What a code does to the tokens: one of them is markup, one a number, and one a line end."""
    ends = {"raised": [(f" up {code}", 1.5), ("<b>", 0.5)], "lowered": [("7", -2.5), ("\n", -0.25)]}
    return {"code": code, **{end: [{"token": t, "logit": at} for t, at in found] for end, found in ends.items()}}


def write_completions(folder: Path, *, same: bool) -> None:
    """Of two prompts: always the same text, or codes that say something else on the first."""
    long = "A very long word, " + "o" * 90 + ", and <b>markup</b> that must stay text."
    prompts = []
    for i, source in enumerate(SOURCES[:2]):
        texts = ["Seven.", "Seven.", "Seven." if same or i else long, "Seven." if same or i else ""]
        completions = [{"z": z, "text": text} for z, text in zip(["prior", "zero", 5, 2], texts, strict=True)]
        messages = [{"role": "user", "content": f"What is {i + 3} plus four?"}]
        prompts.append({"prompt_id": f"prompt-{i}", "source": source, "messages": messages, "completions": completions})
    codes = [{"code": 5, "mean_prior": 0.25}, {"code": 2, "mean_prior": 0.125}]
    files.write_json(folder / "evaluation/completions.json", {"codes": codes, "prompts": prompts})


def tables_spec() -> dict:
    sweeps = {"codebook": [["latent.codes", SETTINGS["experiments"]["codebook"]["sweep"]["latent.codes"]]]}
    return {
        "runs": LISTED,
        "recipes": WITH_TRAINING,
        "tasks": [[name, entry["metric"]] for name, entry in TASKS.items()],
        "datasets": [],
        "sweeps": sweeps,
    }


COMMIT = "0123456789abcdef"


def report_spec() -> dict:
    return copy.deepcopy({"settings": SETTINGS, "runs": LISTED, "recipes": WITH_TRAINING})


def build(root: Path) -> None:
    """Write the tree, with tables and t-SNE figures as the steps make them."""
    write_data(root)
    for run in RUNS:
        if folder_of(run) != ABSENT:
            write_run(root, run)
    timing = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    files.write_text(
        root / "timing/train/tiny~world~dpo~0.tsv", timing + "41.5\t0:00:41\t900.25\t1\t1\t1\t0\t0\t99\t40.1\n"
    )
    files.write_text(root / "timing/split/world.tsv", timing + "0.5\t0:00:00\t-\t-\t-\t-\t-\t-\t0\t0.0\n")
    for run in RUNS:
        folder = root / folder_of(run)
        if (folder / "evaluation/latents.parquet").exists() and run["seed"] == 0 and run["variant"] == "world":
            run_step(
                "tsne",
                SETTINGS["evaluation"]["tsne"],
                "--latents",
                folder / "evaluation/latents.parquet",
                "--coordinates",
                folder / "evaluation/tsne.csv",
                "--by-source",
                folder / "evaluation/tsne_source.svg",
                "--by-code",
                folder / "evaluation/tsne_code.svg",
            )
    run_step("tables", tables_spec(), "--results", root, "--output", root / "tables")
