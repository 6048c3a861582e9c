# Helper functions of the rules: the resolved configuration, paths, what a rule uses of either, resources, images.
# In : the configuration (`config`, `workflow.configfiles`)
# Out: SETTINGS, R (the project's results folder), RUN (a run's folder, as a pattern) and the functions below. No rules.
import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

ROOT = Path(workflow.basedir)
# The checkout's package, also where another one is installed.
sys.path.insert(0, str(ROOT / "src"))

from lpc import environment, images
from lpc.cli import UserError
from lpc.config import ConfigError, resolve
from lpc.files import canonical
from lpc.paths import is_local
from lpc.sources import commit, sources

try:
    CONFIG = resolve(config, [min(os.path.relpath(file), str(file), key=len) for file in workflow.configfiles])
except ConfigError as error:
    raise WorkflowError(str(error)) from None

SETTINGS = CONFIG.settings
EVALUATION = SETTINGS["evaluation"]
TASKS = EVALUATION["benchmarks"]["tasks"]
WORLDS = [name for name, entry in SETTINGS["datasets"].items() if entry["kind"] == "world"]
SCRATCH = [name for name, entry in SETTINGS["bases"].items() if "scratch" in entry]
R = f"results/{SETTINGS['project']}"
RUN = f"{R}/runs/{{base}}/{{variant}}/{{recipe}}/seed-{{seed}}"

# The interpreter is Snakemake's own unless the rule's image brings one.
in_containers = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
try:
    environment.prepare(ROOT, containers=in_containers, main=workflow.is_main_process)
except UserError as error:
    raise WorkflowError(str(error)) from None
shell.prefix(
    "set -euo pipefail; export "
    + " ".join(f"{name}={value}" for name, value in environment.VARIABLES.items())
    + f" PYTHONPATH={shlex.quote(str(ROOT / 'src'))}; "
    + ("" if in_containers else f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")
)


def one_of(names):
    """A wildcard constraint: exactly these names."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


wildcard_constraints:
    base=one_of(SETTINGS["bases"]),
    dataset=one_of(SETTINGS["datasets"]),
    noise=one_of(SETTINGS["noise"]),
    variant=rf"({one_of(SETTINGS['datasets'])})(\.({one_of(SETTINGS['noise'])}))?",
    recipe=r"[^/]+",
    seed=r"\d+",
    task=one_of(TASKS),


# Any rule


def here(path):
    """A file of the workflow as seen from the working directory: the same name wherever both are moved together."""
    return os.path.relpath(path)


def code(step):
    """The modules that `lpc.steps.<step>` runs, as input: editing one reruns the rules that use it."""
    return [here(file) for file in sources(f"lpc.steps.{step}")]


def image(name):
    """The rule's container image. A run in containers stops before its first job where one is missing."""
    path = images.path(name)
    if in_containers and not path.exists():
        raise WorkflowError(f"{here(path)}: no such image; build the images with `make images` (docs/cluster.md)")
    return here(path)


def spec(*sections, **values):
    """The rule's one parameter: canonical JSON, so that the order of keys is no change and swapped values are one."""
    merged = {}
    for section in sections:
        merged.update(section)
    return canonical({**merged, **values})


def resource(rule, key):
    return {**SETTINGS["resources"]["default"], **SETTINGS["resources"].get(rule, {})}[key]


def memory(rule):
    """MB, growing with the attempt and, for rules with `base` as input, with the size of the model."""

    def mem_mb(wildcards, input, attempt):
        needed = resource(rule, "mem_mb")
        per_billion = resource(rule, "mem_mb_per_billion")
        if per_billion:
            # Not there until the base was fetched: Snakemake then asks again before it starts the job.
            with open(input.base, encoding="utf-8") as stream:
                needed += round(per_billion * json.load(stream)["parameters"] / 1e9)
        return needed * attempt

    return mem_mb


def runtime(rule):
    """Minutes, growing with the attempt."""
    return lambda wildcards, attempt: resource(rule, "runtime") * attempt


# Stage data


def dataset(wildcards):
    return SETTINGS["datasets"][wildcards.dataset]


def base(wildcards):
    return SETTINGS["bases"][wildcards.base]


def pick(section, *keys):
    return {key: section[key] for key in keys}


def local_dataset(wildcards):
    path = dataset(wildcards)["path"]
    return [path] if is_local(path) else []


def local_base(wildcards):
    model = base(wildcards)["model"]
    return sorted(str(file) for file in Path(model).iterdir() if file.is_file()) if is_local(model) else []


def world_file(wildcards):
    return [f"{R}/data/{wildcards.dataset}/world.jsonl.gz"] if wildcards.dataset in WORLDS else []


def scratch_rows(wildcards):
    return f"{R}/data/{base(wildcards)['scratch']['dataset']}/rows.parquet"


# Stage train

PROCESSES = max(1, resource("train", "gpus"))


def launch(threads):
    """The command that starts a training: one process for each GPU if the configuration names a launch file.

    The processes share the job's threads, where each would take all of them.
    """
    file = resource("train", "launch")
    if file is None:
        return "python"
    processes = f"--num_processes {PROCESSES} --num_cpu_threads_per_process {max(1, threads // PROCESSES)}"
    return f"accelerate launch --config_file {shlex.quote(here(ROOT / file))} {processes}"


def recipe(wildcards):
    return CONFIG.recipes[wildcards.recipe]


def needs_reference(wildcards):
    return recipe(wildcards)["objective"]["name"] != "simpo"


def training_reference(wildcards):
    folder = f"{R}/reference/{wildcards.base}/{wildcards.variant}"
    return [f"{folder}/reference.parquet"] if needs_reference(wildcards) else []


def training_statistics(wildcards):
    folder = f"{R}/reference/{wildcards.base}/{wildcards.variant}"
    standardize = (recipe(wildcards)["latent"] or {}).get("standardize")
    return [f"{folder}/statistics.safetensors"] if standardize else []


# Stage evaluate


def scoring():
    """How log-probabilities of a base's pairs and of its runs are computed: alike, or their difference is not zero."""
    return {"tokens": SETTINGS["tokens"], "precision": SETTINGS["training"]["precision"]}


def preference_reference(wildcards):
    """Test pairs are never flipped, so the reference of the training variant holds those of its dataset, too."""
    own = wildcards.variant.split(".")[0] == wildcards.dataset
    folder = f"{R}/reference/{wildcards.base}/{wildcards.variant if own else wildcards.dataset}"
    return [f"{folder}/reference.parquet"] if needs_reference(wildcards) else []


def definition(name):
    """The YAML file of one of our own tasks, or lm-eval's name of one of its."""
    task = TASKS[name]["task"] or name
    if not task.endswith(".yaml") or Path(task).is_file():
        return task
    return here(ROOT / task)


def task(wildcards):
    entry = {key: value for key, value in TASKS[wildcards.task].items() if key != "questions"}
    return {**entry, "name": wildcards.task, "task": definition(wildcards.task)}


def task_spec(wildcards):
    return spec(task(wildcards), batch_size=EVALUATION["benchmarks"]["batch_size"])


def task_questions(wildcards):
    return [f"{R}/tasks/{wildcards.task}/questions.jsonl"] if TASKS[wildcards.task]["questions"] else []


def task_data(wildcards):
    """The task's local files, or the record that its data set was brought from the hub into the cache."""
    entry = TASKS[wildcards.task]
    if entry["questions"]:
        return []
    return list(entry["data"].values()) if entry["data"] else [f"{R}/tasks/{wildcards.task}/download.json"]


def task_code(wildcards):
    return definition_code(definition(wildcards.task))


@cache  # every run has a job for each task
def definition_code(file):
    """The task's own definition, and the modules of its functions."""
    if not file.endswith(".yaml"):
        return []
    modules = re.findall(r"!function\s+(lpc[\w.]*)\.\w+", Path(file).read_text(encoding="utf-8"))
    functions = {here(source) for module in modules for source in sources(module)}
    return [file, *sorted(functions - set(code("benchmark")))]


def alpacaeval_files(wildcards):
    entry = EVALUATION["alpacaeval"]
    return [file for file in (entry["instructions"], entry["reference"]) if file is not None]


# Stage report

TABLES = [
    "preference_accuracy",
    "comparisons",
    "benchmarks",
    "latents",
    "codes",
    "code_correlations",
    "selection",
    "training",
    "cost",
]
HELDOUT = EVALUATION["preference"]["datasets"]


def table_files():
    return [f"{R}/tables/{table}.csv" for table in TABLES]


def results_of(runs):
    """All files of these runs, and of their bases, that the tables and the page show."""
    results = {}
    for run in runs:
        files = ["train.json", "train.jsonl"]
        files += [f"preference/{name}.{kind}" for name in (run.dataset, *HELDOUT) for kind in ("json", "parquet")]
        files += [f"benchmarks/{name}.json" for name in TASKS]
        if CONFIG.recipes[run.recipe]["latent"]:
            files += ["latents.json", "latents.parquet", "tsne_source.svg", "tsne_code.svg"]
        if EVALUATION["completions"] and (CONFIG.recipes[run.recipe]["latent"] or {}).get("kind") == "lpc":
            files += ["completions.json"]
        if EVALUATION["alpacaeval"]:
            files += ["alpacaeval/judged.json"]
        results |= dict.fromkeys(f"{R}/runs/{run.path}/{file}" for file in files)
        results |= dict.fromkeys(f"{R}/bases/{run.base}/benchmarks/{name}.json" for name in TASKS)
    return list(results)


def run_list():
    """What the tables and the page are told of each run."""
    experiments = {run: [] for run in CONFIG.runs}
    for name, runs in CONFIG.experiments.items():
        for run in runs:
            experiments[run].append(name)
    return [
        {
            "path": run.path,
            "base": run.base,
            "dataset": run.dataset,
            "noise": run.noise,
            "variant": run.variant,
            "recipe": run.recipe,
            "seed": run.seed,
            "experiments": experiments[run],
        }
        for run in CONFIG.runs
    ]


def sweeps():
    """The swept keys and their values by experiment, as lists: their order decides between equal settings."""
    experiments = SETTINGS["experiments"].items()
    return {name: list(entry["sweep"].items()) for name, entry in experiments if entry["sweep"]}


def configuration():
    """What results depend on: how many cores they took is no part of it."""
    return {key: value for key, value in SETTINGS.items() if key != "resources"}
