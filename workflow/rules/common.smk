# Helper functions of the rules: the resolved configuration, paths, what a rule uses of either, resources, images.
# In : the configuration (`config`, `workflow.configfiles`)
# Out: SETTINGS, RESULTS (where results lie), DATASET, VARIANT, ... (patterns of their files) and the functions below.
#      No rules.
import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

# Not that of a workflow that uses this one as a module.
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
# The checkout's package, also where another one is installed.
sys.path.insert(0, str(ROOT / "src"))

from lpc import environment, images, jobs, latents, objectives, plan, unlock
from lpc.attempts import memory_shares
from lpc.cli import WORKFLOW_STDERR, UserError
from lpc.config import models, specs
from lpc.config.keys import Role
from lpc.config.load import ConfigError, resolve
from lpc.data.formats.mix import Mix
from lpc.data.formats.world import World
from lpc.files import canonical
from lpc.layout import Layout, dataset_of, noisy
from lpc.paths import is_local
from lpc.report.tables import TABLES
from lpc.modules import commit, digest, modules_of, modules_of_task

# A module's configuration is a section of some file: its messages name no line.
CONFIG_FILES = workflow.configfiles if workflow.modifier.is_main_snakefile() else []
try:
    CONFIG = resolve(config, [min(os.path.relpath(file), str(file), key=len) for file in CONFIG_FILES])
except ConfigError as error:
    raise WorkflowError(str(error)) from None

SETTINGS = CONFIG.settings
EVALUATION = SETTINGS.evaluation
TASKS = EVALUATION.benchmarks.tasks
MIXTURES = [name for name, entry in SETTINGS.datasets.items() if isinstance(entry, Mix)]
WORLDS = [name for name, entry in SETTINGS.datasets.items() if isinstance(entry, World)]
SCRATCH = [name for name, entry in SETTINGS.bases.items() if isinstance(entry, models.ScratchBase)]
QUANTIZED = [name for name, entry in SETTINGS.bases.items() if isinstance(entry, models.QuantizedBase)]

# Files of a dataset, a base, a run, ... as patterns with the wildcards that name them.
RESULTS = Layout(f"results/{SETTINGS.project}")
DATASET = RESULTS.data("{dataset}")
NOISY = RESULTS.data(noisy("{dataset}", "{noise}"))
VARIANT = RESULTS.data("{variant}")
BASE = RESULTS.base("{base}")
REFERENCE = RESULTS.reference("{base}", "{variant}")
RUN_NAMES = ("{base}", "{variant}", "{recipe}", "{seed}")
RUN = RESULTS.run(*RUN_NAMES)
TASK = RESULTS.task("{task}")

# The interpreter is Snakemake's own unless the rule's image brings one.
in_containers = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
try:
    environment.prepare(ROOT, containers=in_containers, main=workflow.is_main_process)
    variables = environment.variables()
except UserError as error:
    raise WorkflowError(str(error)) from None


class shell(shell):
    """Snakemake's, with a prefix of its own: another workflow's rules must not get it."""


shell.prefix(
    f"set -euo pipefail; exec 9>&2; export {WORKFLOW_STDERR}=/proc/$$/fd/9 "
    + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    + f" PYTHONPATH={shlex.quote(str(ROOT / 'src'))}"
    + f" {images.VARIABLE}={shlex.quote(' '.join(SETTINGS.images.references().values()))}; "
    + ("" if in_containers else f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")
)


def one_of(names):
    """A wildcard constraint: exactly these names."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


wildcard_constraints:
    base=one_of(SETTINGS.bases),
    dataset=one_of(SETTINGS.datasets),
    noise=one_of(SETTINGS.noise),
    variant=rf"({one_of(SETTINGS.datasets)})(\.({one_of(SETTINGS.noise)}))?",
    recipe=r"[^/]+",
    seed=r"\d+",
    task=one_of(TASKS),


# Any rule


def here(path):
    """A file of the workflow as seen from the working directory: the same name wherever both are moved together."""
    return os.path.relpath(path)


def code(step, *further):
    """The end of a rule's command, a comment: the digest of the modules that `lpc.steps.<step>` runs.

    Snakemake compares commands, so an edit of a module reruns the rules that use it. As inputs, the modules were most of
    what a dry run had to look at. further: other files of code that the step runs.
    """
    return f"  # code {digest({*modules_of(f'lpc.steps.{step}'), *further})}"


def modules(step, *parts):
    """The further modules that `lpc.steps.<step>` runs for a job, as input: editing one reruns the jobs that use it.

    parts: "objective", "latent" and "evaluate", where it uses those of the recipe; "dataset", where it reads the
    dataset's rows.
    """
    return lambda wildcards: list(
        dict.fromkeys(file for part in parts for file in kind_modules(step, settings_of(part, wildcards)))
    )


def settings_of(part, wildcards):
    """The dataset's section, or the recipe's section `objective`, `latent` or `training.evaluate`."""
    if part == "evaluate":
        return recipe(wildcards).training.evaluate
    return dataset(wildcards) if part == "dataset" else getattr(recipe(wildcards), part)


def kind_modules(step, settings):
    """The modules of a dataset's kind, an objective or a latent that the step has not; none without a latent."""
    return further_modules(step, type(settings).__module__) if settings else []


@cache  # every job asks for those of the same few kinds
def further_modules(step, module):
    return [here(file) for file in sorted({*modules_of(module)} - {*modules_of(f"lpc.steps.{step}")})]


def every_kind():
    """The modules of all objectives and latents, whose names tables and page show."""
    kinds = [*objectives.KINDS.values(), *latents.KINDS.values()]
    return {file for kind in kinds for file in modules_of(kind.__module__)}


def image(name):
    """The rule's container image. A run in containers stops before its first job where a local one is missing.

    An image of a registry is pulled by Snakemake, once, before the first job that needs it.
    """
    if reference := SETTINGS.images.references().get(name):
        return reference
    try:
        path = images.path(name)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    if in_containers and not path.exists():
        raise WorkflowError(f"{here(path)}: no such image; build the images with `make images` (docs/cluster.md)")
    return here(path)


def tracked(make):
    """The rule's one tracked parameter: what results depend on, of the spec that `make` makes from the wildcards.

    Canonical JSON, so that the order of keys makes no difference and swapped values do.
    """
    return lambda wildcards: canonical(make(wildcards).tracked())


def execution(make):
    """How the job does its work. A function of `output`, so that Snakemake does not take it for a reason to rerun."""
    return lambda wildcards, output: canonical(make(wildcards).execution())


def announce(dag):
    """At the start of a run: record whose lock it is, and name the finished models that Snakemake is about to delete."""
    if workflow.execution_settings.lock:
        unlock.record_owner(SETTINGS.project)
    models = [output for job in dag.needrun_jobs() for output in job.output if plan.is_finished_model(output)]
    if models:
        print(f"warning: {plan.REPLACED}: {', '.join(models)}; {plan.KEEP}", file=sys.stderr)


def resource(rule, key):
    return getattr(SETTINGS.resources.of(rule), key)


def memory(section, rule=None):
    """MB, growing after attempts without enough and, for rules with `base` as input, with the size of the model.

    section: of `resources`; rule: where it is not called like its section.
    """

    def mem_mb(wildcards, input, attempt):
        parameters = 0
        if resource(section, "mem_mb_per_billion"):
            # Not there until the base was fetched: Snakemake then asks again before it starts the job.
            with open(input.base, encoding="utf-8") as stream:
                parameters = json.load(stream)["parameters"]
        shares = memory_shares(rule or section, wildcards, attempt)
        return SETTINGS.resources.of(section).memory_at(shares, parameters)

    return mem_mb


def runtime(rule):
    return lambda wildcards, attempt: SETTINGS.resources.of(rule).minutes_at(attempt)


def caption(name):
    """The caption of a figure or page in Snakemake's own report, beside the rules that name it."""
    return f"../report/{name}.rst"


# Stage data


def dataset(wildcards):
    return SETTINGS.datasets[wildcards.dataset]


def base(wildcards):
    return SETTINGS.bases[wildcards.base]


def pick(section, *names):
    return {name: getattr(section, name) for name in names}


def local_dataset(wildcards):
    entry = dataset(wildcards)
    return [entry.path, *entry.split.own().values()] if is_local(entry.path) else []


def local_base(wildcards):
    model = base(wildcards).model
    return sorted(str(file) for file in Path(model).iterdir() if file.is_file()) if is_local(model) else []


def world_file(wildcards):
    return [RESULTS.data(wildcards.dataset).world] if wildcards.dataset in WORLDS else []


def scratch_rows(wildcards):
    return RESULTS.data(base(wildcards).scratch.dataset).rows


def world_spec(wildcards):
    return specs.World(**pick(dataset(wildcards), *specs.World.model_fields))


def download_dataset_spec(wildcards):
    return specs.DownloadDataset.of_dataset(dataset(wildcards))


def split_spec(wildcards):
    entry = dataset(wildcards)
    return specs.Split(**pick(entry, "split", "max_rejected_rows"), annotators=getattr(entry, "annotators", None))


def pairs_spec(wildcards):
    return specs.Pairs(**dict(dataset(wildcards).pairs))


def members(wildcards):
    return [RESULTS.data(name).pairs for name in models.members_of(SETTINGS.datasets, wildcards.dataset)]


def mix_spec(wildcards):
    return specs.Mix(**pick(dataset(wildcards), *specs.Mix.model_fields))


def flip_spec(wildcards):
    return specs.Flip(**dict(SETTINGS.noise[wildcards.noise]))


def download_base_spec(wildcards):
    return specs.DownloadBase(name=wildcards.base, **dict(base(wildcards)))


def quantize_source(wildcards):
    return RESULTS.base(base(wildcards).quantize).record


def quantize_spec(wildcards):
    return specs.Quantize(name=wildcards.base, quantize=base(wildcards).quantize)


def pretrain_spec(wildcards):
    return specs.Pretrain(name=wildcards.base, tokens=SETTINGS.tokens, **dict(base(wildcards)))


# Stage train

PROCESSES = resource("train", "processes")
NODES = resource("train", "nodes")


def launch(threads):
    """The command that starts a training: one process for each GPU if the configuration names a launch file.

    The processes of a node share its threads, where each would take all of them. On several nodes the command runs once
    on each (`train_requests`); srun gives it the node's rank, and the first node's address.
    """
    file = resource("train", "launch")
    if file is None:
        return "python"
    own_threads = max(1, threads * NODES // PROCESSES)
    words = f"accelerate launch --config_file {shlex.quote(here(ROOT / file))}"
    words += f" --num_processes {PROCESSES} --num_cpu_threads_per_process {own_threads}"
    if NODES > 1:
        # A port that all nodes know beforehand, below those that the system hands out.
        words += f" --num_machines {NODES} --machine_rank $SLURM_NODEID"
        words += " --main_process_ip $SLURM_LAUNCH_NODE_IPADDR --main_process_port $((20000 + SLURM_JOB_ID % 10000))"
    return words


def train_requests():
    """GPUs and nodes of a training, and for several nodes the shell that runs the rule's command on each of them."""
    shell_exec = {"shell_exec": str(ROOT / "workflow/nodes/bash")} if NODES > 1 else {}
    return SETTINGS.resources.of("train").requests() | shell_exec


def recipe(wildcards):
    return CONFIG.recipes[wildcards.recipe]


def training_reference(wildcards):
    needed = recipe(wildcards).objective.needs_reference
    return [RESULTS.reference(wildcards.base, wildcards.variant).logps] if needed else []


def training_statistics(wildcards):
    latent = recipe(wildcards).latent
    needed = latent is not None and latent.needs_statistics
    return [RESULTS.reference(wildcards.base, wildcards.variant).statistics] if needed else []


def reference_spec(wildcards):
    return specs.Reference(tokens=SETTINGS.tokens, **pick(SETTINGS.training, "precision", "micro_batch_size"))


def train_spec(wildcards):
    return specs.Train.of_recipe(recipe(wildcards), SETTINGS.tokens, int(wildcards.seed))


# Stage evaluate


def evaluated(wildcards):
    """The datasets whose test pairs a run is scored on, its own first."""
    return list(dict.fromkeys((dataset_of(wildcards.variant), *HELDOUT)))


def evaluate_spec(wildcards):
    return evaluation_of(wildcards.recipe, dataset_of(wildcards.variant))


@cache  # the same for all seeds, and asked for twice by each job
def evaluation_of(recipe, dataset):
    return specs.Evaluate.of_run(SETTINGS, CONFIG.recipes[recipe], dataset)


def evaluated_pairs(wildcards):
    return [RESULTS.data(name).pairs for name in evaluated(wildcards)]


def evaluated_references(wildcards):
    """Test pairs are never flipped, so the reference of the training variant holds those of its dataset, too.

    An objective that trains without one is scored with it as well: equation 4 is the paper's measure for all.
    """
    _, *others = evaluated(wildcards)
    return [RESULTS.reference(wildcards.base, variant).logps for variant in (wildcards.variant, *others)]


def definition(name):
    """The YAML file of one of our own tasks, or lm-eval's name of one of its."""
    task = TASKS[name].task or name
    if not task.endswith(".yaml") or Path(task).is_file():
        return task
    return here(ROOT / task)


def task(name):
    entry = dict(TASKS[name])
    del entry["questions"]
    return {**entry, "task": definition(name)}


def download_task_spec(wildcards):
    return specs.DownloadTask(**task(wildcards.task), name=wildcards.task)


@cache  # every run has the same
def benchmark_tasks():
    """All tasks; the data of one with generated questions are those, and one from the hub has its download's record."""
    return {
        name: specs.BenchmarkTask(
            **task(name)
            | ({"data": {"test": str(RESULTS.task(name).questions)}} if entry.questions else {})
            | ({} if entry.questions or entry.data else {"download": str(RESULTS.task(name).download)})
        )
        for name, entry in TASKS.items()
    }


def benchmark_base_spec(wildcards):
    return specs.BenchmarkBase(tasks=benchmark_tasks(), batch_size=EVALUATION.benchmarks.batch_size)


def benchmark_spec(wildcards):
    return specs.Benchmark(
        tasks=benchmark_tasks(),
        batch_size=EVALUATION.benchmarks.batch_size,
        inference=specs.Inference.of_latent(recipe(wildcards).latent),
    )


def questions_spec(wildcards):
    return specs.Questions(**dict(TASKS[wildcards.task].questions))


def task_data(wildcards):
    """The tasks' local files, generated questions, and records that data were downloaded from the hub to the cache."""
    tasks = benchmark_tasks().values()
    return [file for task in tasks for file in (task.data.values() if task.data else [task.download])]


def task_modules(wildcards):
    return definition_modules()


@cache
def definition_modules():
    """The definitions of our own tasks, and the modules of their functions."""
    definitions = [task.task for task in benchmark_tasks().values() if task.task.endswith(".yaml")]
    found = {here(file) for definition in definitions for file in modules_of_task(definition)}
    return sorted(found - {here(file) for file in modules_of("lpc.steps.benchmark")})


def alpacaeval_files(wildcards):
    entry = EVALUATION.alpacaeval
    return [file for file in (entry.instructions, entry.reference) if file is not None]


def alpacaeval_download_spec(wildcards):
    return specs.AlpacaEvalDownload(**pick(EVALUATION.alpacaeval, "instructions", "reference"))


def alpacaeval_generate_spec(wildcards):
    return specs.AlpacaEvalGenerate(
        name="/".join(wildcards),
        inference=specs.Inference.of_latent(recipe(wildcards).latent),
        **pick(EVALUATION.alpacaeval, "batch_size", "max_new_tokens", "engine"),
    )


def alpacaeval_judge_spec(wildcards):
    return specs.AlpacaEvalJudge(judge=EVALUATION.alpacaeval.judge)


# Stage report

HELDOUT = EVALUATION.preference.datasets


def table_files():
    return [RESULTS.table(table) for table in TABLES]


def results_of(runs):
    """All files of these runs, and of their bases, that the tables and the page show, as a function of the wildcards.

    A function, since a job's start parses all rules, and only these few jobs need the list.
    """
    return lambda wildcards: result_files(tuple(runs))


@cache  # tables and page ask for the same
def result_files(runs):
    return [str(file) for job in jobs.results_of(CONFIG, RESULTS, runs) for file in job.files]


def run_entries():
    """The runs, as tables and page name them."""
    experiments = {run: [] for run in CONFIG.runs}
    for name, runs in CONFIG.experiments.items():
        for run in runs:
            experiments[run].append(name)
    names = ("base", "dataset", "noise", "variant", "recipe", "seed")
    return [specs.RunEntry(**pick(run, *names), experiments=experiments[run]) for run in CONFIG.runs]


def tables_spec(wildcards):
    return specs.Tables(
        runs=run_entries(),
        recipes=CONFIG.recipes,
        tasks=[(name, entry.metric) for name, entry in TASKS.items()],
        datasets=HELDOUT,
        # As lists: their order decides between equal settings.
        sweeps={name: list(entry.sweep.items()) for name, entry in SETTINGS.experiments.items() if entry.sweep},
    )


def report_spec(wildcards):
    return specs.Report(settings=SETTINGS, runs=run_entries(), recipes=CONFIG.recipes)
