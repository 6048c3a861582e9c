"""What a change makes Snakemake run again: the exact set of jobs, for one key of every rule.

Outputs are empty files with Snakemake's real record of them (its --touch), since this tests the graph, not the steps.
"""

import copy
import re

import pytest
import yaml
from checkout import ROOT, Checkout
from pydantic import BaseModel

from lpc import plan
from lpc.config.keys import Role, role_of
from lpc.config.models import Settings

DEMO = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
# One recipe of each sort: with and without reference, latent and codes; and one task of each file. A job that evaluates
# reruns as a whole; which of its parts it computes is tested in test_evaluate_step.py and test_benchmark_step.py.
RECIPES = ["dpo", "simpo", "dpo-lpc", "dpo-mlp"]
DEMO["recipes"] = {name: DEMO["recipes"][name] for name in RECIPES}
DEMO["experiments"] = {"main": {**DEMO["experiments"]["main"], "recipes": RECIPES}}
for dropped in ("world_hard", "world_generate"):
    del DEMO["evaluation"]["benchmarks"]["tasks"][dropped]
LATENT = [name for name in RECIPES if "latent" in DEMO["recipes"][name]]
# A control has no code that could be forced.
CODES = [name for name in LATENT if DEMO["recipes"][name]["latent"].get("kind", "lpc") == "lpc"]
TASKS = list(DEMO["evaluation"]["benchmarks"]["tasks"])
END = {"tables", "report"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout in which the whole demo has run."""
    checkout = Checkout(tmp_path_factory.mktemp("finished"))
    checkout.pretend_finished(checkout.write(DEMO))
    return checkout


def jobs(rules, recipes=RECIPES):
    """The jobs of per-run rules for these recipes."""
    return {f"{rule} {recipe} 0" for rule in rules.split() for recipe in recipes}


def after_train(recipes=RECIPES):
    return jobs("train evaluate benchmark", recipes) | END


def changed(path, value, config=DEMO):
    config = copy.deepcopy(config)
    *parents, last = path.split("/")
    place = config
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return config


BENCHMARKS = jobs("benchmark") | {"benchmark_base"} | END
FROM_BASE = after_train() | {"reference", "benchmark_base"}

CASES = {
    # key: (new value, the jobs that it reruns)
    "datasets/world/rows": (6000, FROM_BASE | {"world", "split", "pairs", "pretrain"}),
    "datasets/world/split/seed": (1, FROM_BASE | {"split", "pairs", "pretrain"}),
    "datasets/world/pairs/ties": ("drop", after_train() | {"pairs", "reference"}),
    "bases/tiny/scratch/layers": (4, FROM_BASE | {"pretrain"}),
    "tokens/max_length": (200, FROM_BASE | {"pretrain"}),
    "training/weight_decay": (0.1, after_train()),
    "recipes/dpo/objective/beta": (0.2, after_train(["dpo"])),
    "recipes/dpo-lpc/latent/kl_weight": (0.1, after_train(["dpo-lpc"])),
    "recipes/simpo/training/learning_rate": (0.01, after_train(["simpo"])),
    # A code's inference and its draws are of no matter to training.
    "recipes/dpo-lpc/latent/inference": ("mode", after_train(["dpo-lpc"]) - {"train dpo-lpc 0"}),
    "recipes/dpo-lpc/latent/inference_seed": (1, after_train(["dpo-lpc"]) - {"train dpo-lpc 0"}),
    "evaluation/benchmarks/tasks/world_easy/limit": (10, BENCHMARKS),
    "evaluation/benchmarks/tasks/world_truth/questions/count": (10, BENCHMARKS | {"questions world_truth"}),
    "evaluation/benchmarks/tasks/again": (
        DEMO["evaluation"]["benchmarks"]["tasks"]["world_easy"],
        BENCHMARKS | {"questions again"},
    ),
    "evaluation/benchmarks/tasks/world_easy/metric": ("acc_norm", END),
    "evaluation/latents/seed": (1, jobs("evaluate", LATENT) | END),
    "evaluation/tsne/perplexity": (20, jobs("evaluate", LATENT) | END),
    "evaluation/completions/codes": (2, jobs("evaluate", CODES) | END),
    "evaluation/completions": (None, jobs("evaluate", CODES) | END),
    "experiments/main/recipes": (["dpo"], END),
}


@pytest.mark.parametrize("path", CASES)
def test_changed_key_reruns_its_jobs_and_no_others(finished, path):
    value, expected = CASES[path]
    assert finished.planned(finished.write(changed(path, value))) == expected


MODEL = "results/demo/runs/tiny/world/dpo-lpc/seed-0/model"
BASE_MODEL = "results/demo/bases/tiny/model"


@pytest.mark.parametrize(
    ("path", "value", "models"),
    [
        ("recipes/dpo-lpc/latent/kl_weight", 0.1, {MODEL: "params changed"}),
        ("recipes/dpo-lpc/latent/inference", "mode", {}),
        ("recipes/dpo-lpc-2", DEMO["recipes"]["dpo-lpc"], {}),  # a new name keeps both
        (
            "bases/tiny/scratch/layers",
            4,
            {MODEL: "its inputs change", "results/demo/bases/tiny/model": "params changed"},
        ),
    ],
)
def test_plan_names_the_models_that_a_run_would_delete(finished, monkeypatch, path, value, models):
    monkeypatch.chdir(finished.folder)
    summary = finished.forked("all", "--summary", "--configfile", finished.write(changed(path, value)))
    lines = plan.replaced(plan.pending(summary))
    assert set(lines) >= {f"{model}: {reason}" for model, reason in models.items()}
    assert len(lines) == (1 + len(RECIPES) if len(models) > 1 else len(models))


def test_a_run_names_the_models_that_it_deletes_before_its_first_job(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.pretend_finished(checkout.write(DEMO))
    config = checkout.write(changed("recipes/dpo-lpc/latent/kl_weight", 0.1))
    # The training itself fails on its empty inputs, after Snakemake has deleted the old model.
    output = checkout.snakemake(MODEL, "--cores", "1", "--configfile", config, expect=1)
    assert 0 < output.index(f"warning: {plan.REPLACED}: {MODEL}; {plan.KEEP}\n") < output.index("rule train:")
    assert not (tmp_path / MODEL).exists() and (tmp_path / MODEL.replace("dpo-lpc", "dpo")).exists()


def other_than(value):
    if isinstance(value, bool):
        return not value
    if value is None or value < 2:
        return 2
    # A quarter, since two nodes with two GPUs share a batch.
    return max(1, value // 4) if isinstance(value, int) else value / 2


def execution_keys(section, path=()):
    """(path, value that differs) of every key of this section of DEMO whose role is execution, at any depth."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name == "images":
            continue  # another image is other software, for which Snakemake runs a rule again
        if isinstance(value, BaseModel):
            yield from execution_keys(value, (*path, name))
        elif role_of(type(section), name) is Role.EXECUTION:
            if name == "launch":
                yield (*path, name), "config/accelerate/single.yaml"
            elif name == "attention":
                yield (*path, name), "flex"
            elif name == "trackers":
                yield (*path, name), ["mlflow"]
            else:
                yield (*path, name), other_than(value)


EXECUTION = {"/".join(path): value for path, value in execution_keys(Settings.model_validate(DEMO))}


def test_execution_keys_are_those_of_training_evaluation_and_resources():
    assert set(EXECUTION) >= {
        "training/micro_batch_size",
        "training/attention",
        "training/gradient_checkpointing",
        "training/logging_steps",
        "training/save_minutes",
        "training/trackers",
        "evaluation/preference/batch_size",
        "evaluation/benchmarks/batch_size",
        "resources/train/launch",
        "resources/train/nodes",
        "resources/evaluate/max_runtime",
    }


def test_execution_keys_rerun_nothing(finished):
    """All at once: each of them that reran a job would show."""
    config = DEMO
    for path, value in EXECUTION.items():
        config = changed(path, value, config)
    assert finished.planned(finished.write(config)) == set()


def test_micro_batch_size_trains_again_where_pairs_are_compared(tmp_path):
    """Mutual information is estimated over the pairs of a micro-batch."""
    checkout = Checkout(tmp_path)
    config = changed("recipes/dpo-lpc/latent/information_weight", 0.1)
    checkout.pretend_finished(checkout.write(config))
    config = changed("training/micro_batch_size", 16, config)
    assert checkout.planned(checkout.write(config)) == after_train(["dpo-lpc"])


def test_new_seed_trains_only_the_new_runs(finished):
    planned = finished.planned(finished.write(changed("experiments/main/seeds", [0, 1])))
    new = {job.replace(" 0", " 1", 1) for job in after_train() - END}
    assert planned == new | END


def test_new_experiment_trains_what_no_other_has(finished):
    """One of its three values is the recipe's own, so that run is there already."""
    sweep = {**DEMO["experiments"]["main"], "recipes": ["dpo-lpc"], "sweep": {"latent.codes": [8, 64]}}
    sweep |= {"noise": ["clean", "flip50"]}
    config = changed("experiments/codebook", sweep) | {"noise": {"flip50": {"rate": 0.5}}}
    planned = finished.planned(finished.write(config))
    assert {job for job in planned if job.startswith(("train", "flip", "reference"))} == {
        "flip flip50",
        "reference",  # of the flipped pairs
        "train dpo-lpc 0",  # on the flipped pairs
        "train dpo-lpc+latent.codes=8 0",
    }


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return value


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(DEMO, id="the same"),
        pytest.param(
            {
                key: value if key in ("experiments", "evaluation") else reversed_keys(value)
                for key, value in reversed(DEMO.items())
            },
            id="keys in another order",
        ),
        pytest.param(changed("recipes/dpo/objective/label_smoothing", 0.0), id="a default written down"),
        pytest.param(changed("evaluation/tsne/perplexity", 30.0), id="30 as 30.0"),
        pytest.param(changed("training/epochs", 1.0), id="1 as 1.0"),
    ],
)
def test_nothing_reruns(finished, config):
    assert finished.planned(finished.write(config)) == set()


def test_comments_rerun_nothing(finished):
    path = finished.folder / "config/commented.yaml"
    path.write_text("# A comment\n" + yaml.safe_dump(DEMO) + "# another\n")
    assert finished.planned(path) == set()


# SimPO trains without the reference; its accuracy by equation 4 has one.
WITH_REFERENCE = (after_train() - after_train(["simpo"])) | {"reference"} | jobs("evaluate", ["simpo"]) | END

MODULES = {
    "steps/world.py": FROM_BASE | {"world", "split", "pairs", "pretrain"},
    "steps/split.py": FROM_BASE | {"split", "pairs", "pretrain"},
    "steps/pairs.py": after_train() | {"pairs", "reference"},
    "steps/flip.py": set(),
    "steps/pretrain.py": FROM_BASE | {"pretrain"},
    "steps/reference.py": WITH_REFERENCE,
    "steps/train.py": after_train(),
    "training/trainer.py": after_train(),
    # The kinds: those of each recipe, and tables and report, which name them all.
    "objectives/base.py": after_train(),
    "objectives/dpo.py": after_train(["dpo", "dpo-lpc", "dpo-mlp"]),
    "objectives/simpo.py": after_train(["simpo"]),
    "objectives/slic.py": END,
    "latents/lpc.py": after_train(["dpo-lpc"]),
    "latents/mlp.py": after_train(["dpo-mlp"]),
    "latents/codes.py": after_train(["dpo-lpc"]),
    "latents/vector.py": END,
    "scoring.py": after_train() | {"reference"},
    "reference.py": WITH_REFERENCE,
    "steps/preference.py": jobs("evaluate") | END,
    "steps/benchmark.py": BENCHMARKS,
    "steps/questions.py": BENCHMARKS | {f"questions {task}" for task in TASKS},
    "steps/latents.py": jobs("evaluate") | END,
    "steps/completions.py": jobs("evaluate") | END,
    "steps/tsne.py": jobs("evaluate") | END,
    "steps/tables.py": END,
    "steps/report.py": {"report"},
    "report/page.css": {"report"},
    "config/__init__.py": set(),
    "config/models.py": set(),
    "config/specs.py": set(),
    "config/keys.py": set(),
    "layout.py": END,
    # It says which code made a checkpoint, shared scores, or a finished benchmark.
    "modules.py": after_train() | {"reference", "benchmark_base"},
}


@pytest.mark.parametrize("module", MODULES)
def test_edited_module_reruns_the_rules_that_use_it(finished, module):
    path = finished.folder / "src/lpc" / module
    original = path.read_bytes()
    path.write_bytes(original + b"\n")
    try:
        assert finished.planned(finished.write(DEMO)) == MODULES[module]
    finally:
        path.write_bytes(original)


def test_reasons_say_that_code_changed(finished):
    path, reference = finished.folder / "src/lpc/scoring.py", "results/demo/reference/tiny/world/reference.parquet"
    original, config = path.read_bytes(), finished.write(DEMO)
    path.write_bytes(original + b"\n")
    try:
        summary = finished.forked("all", "--summary", "--configfile", config)
        assert plan.pending(summary)[reference] == "code changed"
        printed = finished.forked(reference, "--dry-run", "--configfile", config)
        assert "reason: Code has changed since last execution" in printed
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize(("package", "kind", "key"), [("objectives", "slic", "name"), ("latents", "vector", "kind")])
def test_new_kind_remakes_tables_and_report_alone(finished, package, kind, key):
    folder = finished.folder / "src/lpc" / package
    text = (folder / f"{kind}.py").read_text()
    assert f'{key}: Literal["{kind}"]' in text
    new = folder / "added.py"
    new.write_text(text.replace(f'Literal["{kind}"]', 'Literal["added"]').replace(f'= "{kind}"', '= "added"'))
    try:
        assert finished.planned(finished.write(DEMO)) == END
    finally:
        new.unlink()


def test_newer_file_of_the_same_content_reruns_nothing(finished):
    for path in (finished.folder / "src").rglob("*.py"):
        path.touch()
    assert finished.planned(finished.write(DEMO)) == set()


def test_edited_task_reruns_its_benchmarks(finished):
    path = finished.folder / "config/tasks/world_truth.yaml"
    original = path.read_bytes()
    path.write_bytes(original + b"# edited\n")
    try:
        assert finished.planned(finished.write(DEMO)) == BENCHMARKS
    finally:
        path.write_bytes(original)


def test_every_rule_is_covered():
    """A rule that is added must be added here, too; those that the demo does not run are tested with local data."""
    covered = {job.split()[0] for _, expected in CASES.values() for job in expected}
    covered |= {job.split()[0] for expected in MODULES.values() for job in expected}
    local = {"mix", "flip", "cards", "download_dataset", "download_base", "download_task", "quantize"}
    local |= {"alpacaeval_download", "alpacaeval_generate", "alpacaeval_judge"}
    listed = Checkout.rules(ROOT)
    assert covered | local == listed


# A project on files of its own


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A finished project with a local base, local pairs, noise, a task on a local file, and AlpacaEval."""
    checkout = Checkout(tmp_path_factory.mktemp("local"))
    (checkout.folder / "base").mkdir()
    for name in ("base/config.json", "base/model.safetensors", "pairs.jsonl", "task.jsonl", "asked.json"):
        (checkout.folder / name).write_text("{}\n")
    config = {
        "project": "local",
        "datasets": {"mine": {"kind": "pairs", "path": "pairs.jsonl", "split": {"validation": 1, "test": 1}}},
        "noise": {"flip": {"rate": 0.5}},
        "bases": {"own": {"model": "./base"}},
        "recipes": {"dpo": {"objective": {"name": "dpo"}}},
        "experiments": {"one": {"bases": ["own"], "datasets": ["mine"], "noise": ["flip"], "recipes": ["dpo"]}},
        "evaluation": {
            "benchmarks": {
                "tasks": {
                    "gsm8k": {"metric": "exact_match,strict-match", "data": {"test": "task.jsonl"}},
                    "arc_easy": {"metric": "acc"},
                }
            },
            "alpacaeval": {"instructions": "asked.json"},
        },
    }
    checkout.config = config
    checkout.pretend_finished(checkout.write(config))
    return checkout


RUN = {"evaluate dpo 0", "benchmark dpo 0"}
ALPACA = {"alpacaeval_generate dpo 0", "alpacaeval_judge dpo 0"}
LOCAL_TRAIN = {"train dpo 0"} | RUN | ALPACA | END
LOCAL_DATA = {"split", "pairs", "flip flip", "reference"} | LOCAL_TRAIN
LOCAL_BASE = {"reference", "benchmark_base"} | LOCAL_TRAIN
LOCAL_BENCHMARKS = {"benchmark dpo 0", "benchmark_base"} | END


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("pairs.jsonl", {"download_dataset"} | LOCAL_DATA),
        ("base/model.safetensors", {"download_base"} | LOCAL_BASE),
        ("task.jsonl", LOCAL_BENCHMARKS),
        ("asked.json", {"alpacaeval_download"} | ALPACA | END),
        ("src/lpc/config/__init__.py", set()),
        ("src/lpc/steps/flip.py", {"flip flip", "reference"} | LOCAL_TRAIN),
        ("src/lpc/steps/download_dataset.py", {"download_dataset"} | LOCAL_DATA),
        ("src/lpc/steps/download_base.py", {"download_base"} | LOCAL_BASE),
        ("src/lpc/steps/download_task.py", {"download_task arc_easy"} | LOCAL_BENCHMARKS),
        ("src/lpc/steps/alpacaeval_judge.py", {"alpacaeval_judge dpo 0"} | END),
    ],
)
def test_changed_file_of_the_user_reruns_what_reads_it(local, file, expected):
    path = local.folder / file
    original = path.read_bytes()
    path.write_bytes(original + b"\n")
    try:
        assert local.planned(local.write(local.config)) == expected
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("noise/flip/marker", None, {"flip flip", "reference"} | LOCAL_TRAIN),
        ("bases/own/chat_template", "{{ messages }}", {"download_base"} | LOCAL_BASE),
        ("evaluation/alpacaeval/max_new_tokens", 7, ALPACA | END),
        ("evaluation/alpacaeval/engine", "vllm", ALPACA | END),
        ("evaluation/alpacaeval/judge", {}, {"alpacaeval_judge dpo 0"} | END),
    ],
)
def test_changed_key_of_a_project_on_local_files(local, path, value, expected):
    config = copy.deepcopy(local.config)
    *parents, last = path.split("/")
    place = config
    for parent in parents:
        place = place[parent]
    place[last] = value
    assert local.planned(local.write(config)) == expected


def test_a_mixture_and_its_members(tmp_path):
    """A run is trained on a mixture of two datasets, and scored on a third one, which is for testing alone."""
    checkout = Checkout(tmp_path)
    rows = {"kind": "pairs", "path": "pairs.jsonl", "split": {"validation": 1, "test": 1}}
    for name in ("base/config.json", "base/model.safetensors", "pairs.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    config = {
        "project": "mixed",
        "datasets": {"one": rows, "two": copy.deepcopy(rows), "unseen": {**rows, "split": {"test": "all"}}},
        "bases": {"own": {"model": "./base"}},
        "recipes": {"dpo": {"objective": {"name": "dpo"}}},
        "experiments": {"main": {"bases": ["own"], "datasets": ["both"], "recipes": ["dpo"]}},
        "evaluation": {"preference": {"datasets": ["unseen"]}},
    }
    config["datasets"]["both"] = {"kind": "mix", "mix": {"one": 1.0, "two": 0.5}}
    checkout.pretend_finished(checkout.write(config))
    mixed = {"mix both", "reference both", "train both", "evaluate both"} | END
    unseen = {"split unseen", "pairs unseen", "reference unseen", "evaluate both"} | END
    for path, value, expected in [
        ("datasets/two/pairs/ties", "drop", {"pairs two"} | mixed),
        ("datasets/two/split/seed", 1, {"split two", "pairs two"} | mixed),
        ("datasets/both/mix/two", 0.25, mixed),
        ("datasets/both/seed", 1, mixed),
        ("datasets/unseen/split/limit", 9, unseen),
        ("datasets/both", {"mix": {"two": 0.5, "one": 1}, "kind": "mix"}, set()),
    ]:
        found = checkout.planned(checkout.write(changed(path, value, config)), ("dataset", "variant"))
        assert found == expected, path


def test_a_quantised_base_and_its_source(tmp_path):
    """One run is on the source, the other on the rounded copy."""
    checkout = Checkout(tmp_path)
    for name in ("base/config.json", "base/model.safetensors", "pairs.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    config = {
        "project": "short",
        "datasets": {"mine": {"kind": "pairs", "path": "pairs.jsonl", "split": {"validation": 1, "test": 1}}},
        "bases": {"own": {"model": "./base"}, "short": {"quantize": "own"}},
        "recipes": {"dpo": {"objective": {"name": "dpo"}}},
        "experiments": {"main": {"bases": ["own", "short"], "datasets": ["mine"], "recipes": ["dpo"]}},
    }
    checkout.pretend_finished(checkout.write(config))
    copy_alone = {"quantize short", "reference short", "train short", "evaluate short"} | END
    both = copy_alone | {"download_base own", "reference own", "train own", "evaluate own"}
    for file, expected in [
        ("src/lpc/model/quantization.py", copy_alone | {"train own", "evaluate own"}),
        ("src/lpc/steps/quantize.py", copy_alone),
        ("base/model.safetensors", both),
    ]:
        original = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(original + b"\n")
        found = checkout.planned(checkout.write(config), ("base",))
        (tmp_path / file).write_bytes(original)
        assert found == expected, file


def test_second_attempt_gets_more_memory_unless_the_first_had_enough(finished):
    """Of every rule, as SLURM's log of the first attempt tells; without a log, as if it had not been enough."""
    config = finished.write(DEMO)

    def memory(attempt):
        """MB by the name of the folder of the job's logs."""
        arguments = ("all", "--dry-run", "--forceall", "--attempt", attempt, "--configfile", config)
        folders = {}
        for block in re.split(r"\n(?=(?:local)?rule \w+:)", finished.forked(*arguments)):
            if memory := re.search(r"^    resources: .*\bmem_mb=(\d+)", block, re.MULTILINE):
                wildcards = re.search(r"^    wildcards: (.*)$", block, re.MULTILINE)
                values = [pair.split("=")[1] for pair in wildcards[1].split(", ")]
                folders[f"rule_{block.split()[1].rstrip(':')}/{'_'.join(values)}"] = int(memory[1])
        return folders

    first, unknown = memory(1), memory(2)
    assert {"rule_train/tiny_world_dpo_0", "rule_benchmark_base/tiny"} < first.keys()
    assert unknown == {job: 2 * mb for job, mb in first.items()}
    for job in first:
        log = finished.folder / ".snakemake/slurm_logs" / job / "1.log"
        log.parent.mkdir(parents=True)
        log.write_text("slurmstepd: error: *** JOB 1 ON n1 CANCELLED DUE TO TIME LIMIT ***")
    assert memory(2) == first
