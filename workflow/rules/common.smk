# Helper functions of the rules: the resolved configuration, paths, the values that a rule uses, resources, images.
# In : the configuration (`config`, `workflow.configfiles`)
# Out: SETTINGS, RUNS, R (the project's results folder) and the functions below. No rules here.
import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

ROOT = Path(workflow.basedir)
# The checkout's package, also where another one is installed.
sys.path.insert(0, str(ROOT / "src"))

from lpc import images
from lpc.config import ConfigError, is_local, resolve
from lpc.files import canonical
from lpc.sources import sources

try:
    CONFIG = resolve(config, [os.path.relpath(file) for file in workflow.configfiles])
except ConfigError as error:
    raise WorkflowError(str(error)) from None

SETTINGS = CONFIG.settings
RUNS = {run.path: run for run in CONFIG.runs}
R = f"results/{SETTINGS['project']}"
RUN = f"{R}/runs/{{base}}/{{variant}}/{{recipe}}/seed-{{seed}}"
TASKS = SETTINGS["evaluation"]["benchmarks"]["tasks"]


# Set in the command itself, since a container passes no variable on. Only the download rules may use the network. The
# interpreter is Snakemake's own unless the rule's image brings one.
in_containers = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
shell.prefix(
    "set -euo pipefail; "
    f"export PYTHONPATH={shlex.quote(str(ROOT / 'src'))} HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false; "
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


def here(path):
    """A file of the workflow as seen from the working directory, so that results do not depend on where it is checked out."""
    return os.path.relpath(path)


def code(step):
    """The modules that `lpc.steps.<step>` runs, as input: editing one reruns the rules that use it."""
    return [here(file) for file in sources(f"lpc.steps.{step}")]


def image(name):
    return here(images.path(name))


def spec(*sections, **values):
    """The rule's one parameter: canonical JSON, so that the order of keys is no change and swapped values are one."""
    merged = {}
    for section in sections:
        merged.update(section)
    return canonical({**merged, **values})


# Resources: `resources` of the configuration, by rule


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
