"""Every key of a configuration, once: type, bounds, default, description and role.

The rules' parameters, the identity of a checkpoint, the checks, the tables of config/README.md and the JSON schema for
editors all come from here. Objectives, latents and kinds of datasets declare their
settings in their own files.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lpc import images, latents, objectives
from lpc.config.keys import REQUIRED, Integer, Name, Role, Section, Seed, Share, Text, Unique, fault, key
from lpc.data import formats
from lpc.data.formats.mix import Mix
from lpc.training.evaluate import Evaluate

CLEAN = "clean"
"""How an experiment names a dataset without noise."""


class Named:
    """Annotation of a kind of section that must be named: for editors, which would otherwise find several that fit."""

    def __init__(self, tag: str):
        self.tag = tag

    def __get_pydantic_json_schema__(self, schema, handler):
        return {"allOf": [handler(schema)], "required": [self.tag]}


def one_of(tag: str, kinds: dict[str, type[Section]], default: str | None = None) -> Any:
    """Return the type of a section of one of `kinds`, named by its key `tag`.

    The tags stand in pointed brackets, so that `lpc.config.faults` can tell them from keys in the path of a fault.
    """

    def kind(value: Any) -> str | None:
        found = value.get(tag, default) if isinstance(value, dict) else getattr(value, tag, None)
        return None if found is None else f"<{found}>"

    kind.__name__ = tag  # as the error of an unknown kind names it
    members = [
        Annotated[section, Tag(f"<{name}>"), *([] if name == default else [Named(tag)])]
        for name, section in kinds.items()
    ]
    union = members[0]
    for member in members[1:]:
        union = union | member
    return Annotated[union, Discriminator(kind)]


# Data


Dataset = one_of("kind", formats.KINDS)


def members_of(datasets: dict[str, Any], name: str) -> list[str]:
    """Return the datasets that a dataset's pairs are of: those of a mixture, or itself."""
    return sorted(datasets[name].mix) if isinstance(datasets.get(name), Mix) else [name]


def has_groups(datasets: dict[str, Any], name: str) -> bool:
    """Return whether all pairs of a dataset belong to groups."""
    return all(datasets[member].has_groups for member in members_of(datasets, name))


class Noise(Section):
    rate: Share = key(REQUIRED, "share of training pairs whose two completions are swapped")
    marker: Text | None = key("[FLIP]", "text appended to the prompt of a swapped pair; null: none")
    seed: Seed = key(0, "chooses which pairs")


class Tokens(Section):
    max_length: Integer = key(1024, "tokens of prompt and completion; a longer completion is cut at its end", ge=2)
    max_prompt_length: Integer = key(
        512, "tokens of the prompt; a longer one loses its oldest turns, a longer question its beginning", ge=1
    )

    @model_validator(mode="after")
    def _room_for_a_completion(self):
        if self.max_prompt_length >= self.max_length:
            raise fault(
                "max_prompt_length",
                f"{self.max_prompt_length} leaves no room for a completion; must be less than max_length"
                f" ({self.max_length})",
            )
        return self


# Base models

Dtype = Literal["float32", "bfloat16", "float16"]


class Scratch(Section):
    dataset: str = key(REQUIRED, "dataset whose training rows it learns")
    vocabulary: Integer = key(512, "tokens of the byte-level BPE tokenizer", ge=300)
    hidden_size: Integer = key(128, "width of the Llama; a multiple of `heads`", ge=8)
    layers: Integer = key(3, "decoder layers", ge=1)
    heads: Integer = key(4, "attention heads", ge=1)
    epochs: float = key(1.0, "passes over the rows", gt=0)
    batch_size: Integer = key(32, "texts a step", ge=1)
    learning_rate: float = key(0.003, "peak learning rate", gt=0)
    seed: Seed = key(0, "of weights and order")

    @model_validator(mode="after")
    def _whole_heads(self):
        if self.hidden_size % self.heads:
            raise fault("hidden_size", f"{self.hidden_size} must be a multiple of heads ({self.heads})")
        return self


class ScratchBase(Section):
    scratch: Scratch = key(REQUIRED, "a tiny Llama, trained from scratch")
    dtype: Dtype = key("float32", "dtype in which a run's weights are saved, and evaluated")


class PretrainedBase(Section):
    model: Text = key(REQUIRED, "name on the hub, or a local folder")
    revision: str | None = key(None, "commit, branch or tag on the hub")
    chat_template: Text | None = key(None, "Jinja text; null: the tokenizer's own")
    chat_template_kwargs: dict[str, JsonValue] = key(
        {}, "variables of the chat template, e.g. `{enable_thinking: false}`"
    )
    trust_remote_code: bool = key(False, "run code that comes with the model")
    dtype: Dtype = key("bfloat16", "dtype in which a run's weights are saved, and evaluated")


class QuantizedBase(Section):
    quantize: str = key(
        REQUIRED, "another base, whose linear layers' weights are rounded to 4-bit NormalFloat, as QLoRA holds them"
    )


def _base_kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((f"<{name}>" for name in ("scratch", "quantize") if name in value), "<model>")
    return {ScratchBase: "<scratch>", PretrainedBase: "<model>", QuantizedBase: "<quantize>"}.get(type(value))


AnyBase = Annotated[
    Annotated[ScratchBase, Tag("<scratch>")]
    | Annotated[PretrainedBase, Tag("<model>")]
    | Annotated[QuantizedBase, Tag("<quantize>")],
    Discriminator(_base_kind),
]


def with_source(bases: dict[str, Any], name: str) -> list[str]:
    """Return the names of the bases that a base is made from, and its own: two where it is quantised."""
    return [bases[name].quantize, name] if isinstance(bases[name], QuantizedBase) else [name]


# Training and recipes


class Lora(Section):
    """Low-rank adapters in place of all weights; needs a larger `learning_rate`. Over a base with `quantize`: QLoRA."""

    rank: Integer = key(16, "of the adapters", ge=1)
    alpha: float = key(32.0, "the adapters' output is multiplied by alpha / rank", gt=0)
    dropout: float = key(0.0, "of the adapters' inputs", ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1), Unique()] = key(
        "all-linear", "`all-linear`: all linear layers but the head; or names, such as `[q_proj, v_proj]`"
    )
    last_layers: Integer | None = key(
        None,
        "decoder layers, counted from the head, that get adapters, so that the backward pass ends there; null: all",
        ge=1,
        added=True,
    )


LOW_WEIGHTS = ("adamw_split", "adamw_8bit_bfloat16")
"""Optimizers that keep the weights of linear layers in bfloat16."""


class Training(Section):
    epochs: Integer = key(1, "passes over the training pairs", ge=1)
    batch_size: Integer = key(
        64, "pairs a step, over all devices; a multiple of `micro_batch_size` times the devices", ge=1
    )
    micro_batch_size: Integer = key(1, "pairs a device takes at once", role=Role.EXECUTION, ge=1)
    micro_batch_tokens: Integer | None = key(
        None,
        "tokens a device takes at once, in place of `micro_batch_size`, from pairs of similar length; null: as many "
        "pairs as that",
        role=Role.EXECUTION,
        ge=1,
    )
    learning_rate: float = key(5.0e-7, "peak learning rate of the backbone", gt=0)
    warmup_ratio: float = key(0.1, "share of the steps in which the rate rises; then it falls to 0", ge=0, lt=1)
    weight_decay: float = key(0.0, "of AdamW", ge=0)
    max_grad_norm: float = key(1.0, "longer gradients are cut to this length", gt=0)
    optimizer: Literal["adamw", "adamw_split", "adamw_8bit", "adamw_8bit_bfloat16"] = key(
        "adamw",
        "AdamW in float32; on one GPU, in less memory, `adamw_split`: the same numbers; `adamw_8bit`: moments in 8 "
        "bits; `adamw_8bit_bfloat16`: and linear layers' weights in bfloat16, rounded at random",
    )
    precision: Literal["float32", "bfloat16"] = key("bfloat16", "`bfloat16` (mixed precision) or `float32`")
    save_dtype: Dtype | None = key(None, "dtype in which the trained weights are saved; null: that of the base")
    deterministic: bool = key(
        False, "deterministic algorithms on a GPU: bit-equal after an interruption, at the cost of time"
    )
    lora: Lora | None = key(
        None, "train low-rank adapters and the latent, and merge them into the weights at the end; null: all weights"
    )
    attention: Literal["loop", "varlen", "flex"] = key(
        "loop",
        "attention of packed pairs: `loop`: two calls a pair; one call for all, not measured yet, by `varlen` "
        "(FlashAttention; CUDA, bfloat16) or `flex` (FlexAttention; CUDA, a C compiler)",
        role=Role.EXECUTION,
    )
    evaluate: Evaluate | None = key(None, "evaluation on the validation pairs between steps; null: none", added=True)
    gradient_checkpointing: bool = key(False, "less memory for more time", role=Role.EXECUTION)
    logging_steps: Integer = key(10, "steps between two lines of train.jsonl", role=Role.EXECUTION, ge=1)
    save_minutes: float = key(
        10.0, "minutes between two checkpoints, from which an interrupted training goes on", role=Role.EXECUTION, gt=0
    )
    trackers: Annotated[list[Literal["wandb", "mlflow", "trackio"]], Unique()] = key(
        [], "services that get the curves, besides the files for TensorBoard", role=Role.EXECUTION, added=True
    )

    @model_validator(mode="after")
    def _optimizer_of_all_weights(self):
        if self.optimizer in LOW_WEIGHTS and self.precision != "bfloat16":
            raise fault("optimizer", f"{self.optimizer} requires precision: bfloat16; change one of them")
        if self.optimizer in LOW_WEIGHTS and self.evaluate is not None:
            raise fault("optimizer", f"{self.optimizer} requires evaluate: null, since it splits each weight in two")
        if self.optimizer != "adamw" and self.lora is not None:
            raise fault(
                "optimizer", f"{self.optimizer} requires lora: null, since adapters have few states; change one of them"
            )
        return self


def _partial(section: type[Section]) -> type[Section]:
    """Return the section with every key optional and no default: what a recipe overrides."""
    fields = {
        name: (Annotated[field.annotation, Field(), *field.metadata] | None, Field(None, description=field.description))
        for name, field in section.model_fields.items()
    }
    return create_model(f"{section.__name__}Override", __base__=Section, **fields)


TrainingOverride = _partial(Training)
Objective = one_of("name", objectives.KINDS)
Latent = one_of("kind", {name: kind.Settings for name, kind in latents.KINDS.items()}, default=latents.DEFAULT)


class TrackedRecipe(Section):
    """A recipe as tables and report read it. They have no execution keys, so no check here may depend on one."""

    objective: Objective = key(REQUIRED, "the loss")
    latent: Latent | None = key(None, "null: the plain objective")
    training: Training = key(Training(), "how it is trained")


class Recipe(TrackedRecipe):
    """A recipe with its whole training section; of a sweep, too."""

    @model_validator(mode="after")
    def _pairs_to_compare(self):
        if self.latent is None or not self.latent.compares_pairs:
            return self
        if self.training.micro_batch_tokens is not None:
            raise fault(
                "latent.information_weight",
                "requires micro_batch_tokens: null, since the cost depends on the pairs of a micro-batch",
            )
        if self.training.micro_batch_size == 1:
            raise fault(
                "latent.information_weight",
                "requires micro_batch_size > 1: mutual information cannot be estimated from a single pair",
            )
        return self

    @model_validator(mode="after")
    def _whole_groups(self):
        together = 1 if self.latent is None else self.latent.pairs_together
        if self.training.micro_batch_tokens is None and (micro := self.training.micro_batch_size) % together:
            raise fault(
                "latent.group_size",
                f"{together} must divide micro_batch_size ({micro}), so that no group is split; change one of them",
            )
        return self


class RecipeEntry(Section):
    """A recipe as it is written: its training section overrides single keys."""

    objective: Objective = key(REQUIRED, "the loss")
    latent: Latent | None = key(None, "null: the plain objective")
    training: TrainingOverride = key({}, "keys of `training` that differ for this recipe")


class Experiment(Section):
    bases: Annotated[list[str], Unique()] = key(REQUIRED, "names from `bases`", min_length=1)
    datasets: Annotated[list[str], Unique()] = key(REQUIRED, "names from `datasets`", min_length=1)
    noise: Annotated[list[str], Unique()] = key([CLEAN], "`clean`, and names from `noise`", min_length=1)
    recipes: Annotated[list[str], Unique()] = key(REQUIRED, "names from `recipes`", min_length=1)
    seeds: Annotated[list[Seed], Unique()] = key([0], "of training", min_length=1)
    sweep: dict[str, Annotated[list[JsonValue], Field(min_length=1), Unique()]] = key(
        {},
        "values for any key of the recipes, e.g. `{latent.codes: [8, 16], training.learning_rate: [1.0e-6]}`: every"
        " combination is a recipe, named like `dpo-lpc+latent.codes=8`, and `selection.csv` shows which one has the"
        " highest accuracy on validation pairs",
    )


# Evaluation


class PreferenceEvaluation(Section):
    batch_size: Integer = key(64, "pairs scored at once", role=Role.EXECUTION, ge=1)
    datasets: Annotated[list[str], Unique()] = key([], "further datasets whose test pairs every run is scored on")


class Personalise(Section):
    contexts: Annotated[list[Annotated[Integer, Field(ge=0)]], Unique()] = key(
        [0, 1, 2, 4, 8, 16],
        "numbers of labelled pairs of a person that are known; groups need more test pairs than the largest",
        min_length=1,
    )
    seed: Seed = key(0, "chooses which pairs of a person are known")


class Questions(Section):
    kind: Literal["easy", "hard", "generate", "truth"] = key(REQUIRED, "generated questions about the world")
    count: Integer = key(300, "number of questions", ge=1)
    seed: Seed = key(0, "of the generator")


class Task(Section):
    task: Text | None = key(
        None, "lm-eval's name of a task or group, or a task's YAML file; null: the entry's own name"
    )
    metric: Text = key(
        REQUIRED,
        "the one that tables show, by lm-eval's name: `acc`, or `exact_match,strict-match` where a task filters",
        role=Role.DISPLAY,
    )
    num_fewshot: Integer | None = key(None, "examples in the prompt; null: the task's own number", ge=0)
    limit: Integer | None = key(None, "the first so many questions alone", ge=1)
    chat_template: bool = key(False, "prompts in the base's chat template")
    data: dict[str, str] | None = key(
        None, "local files by split, in place of the hub's: `{test: questions.jsonl}`", min_length=1
    )
    questions: Questions | None = key(None, "generated questions in place of `data`")

    @model_validator(mode="after")
    def _one_source(self):
        if self.data and self.questions:
            raise fault("questions", "a task has either data or questions; drop one")
        return self


TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]


class Benchmarks(Section):
    batch_size: Integer = key(32, "sequences scored at once", role=Role.EXECUTION, ge=1)
    tasks: dict[TaskName, Task] = key({}, "benchmarks by name")


class LatentsEvaluation(Section):
    seed: Seed = key(0, "of the diagnostics (k-means, folds of the probe)")


class TSNE(Section):
    perplexity: float = key(30.0, "of t-SNE", gt=0)
    seed: Seed = key(0, "of t-SNE")


class Completions(Section):
    prompts: Integer = key(4, "test prompts, at most", ge=1)
    codes: Integer = key(4, "codes of the largest mean prior, at most", ge=1)
    max_new_tokens: Integer = key(64, "longest completion", ge=1)
    seed: Seed = key(0, "chooses which prompts")


class Style(Section):
    prompts: Integer = key(100, "test prompts, at most", ge=1)
    max_new_tokens: Integer = key(64, "longest completion, and length at which real completions are cut", ge=1)
    batch_size: Integer = key(32, "prompts at once", role=Role.EXECUTION, ge=1)
    seed: Seed = key(0, "chooses which prompts")


class Judge(Section):
    annotator: Text = key("weighted_alpaca_eval_gpt4_turbo", "name of alpaca_eval's annotator")
    model: Text | None = key(None, "judge model in place of the annotator's")
    base_url: Text | None = key(None, "address of an OpenAI-compatible server")
    key_variable: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = key(
        "OPENAI_API_KEY", "environment variable that holds the key"
    )


class AlpacaEval(Section):
    instructions: Text | None = key(
        None, "local JSON list of `{instruction}`; null: the 805 of AlpacaEval, from the hub"
    )
    reference: Text | None = key(None, "local JSON list of `{instruction, output, generator}` to compare with")
    batch_size: Integer = key(8, "answers generated at once", role=Role.EXECUTION, ge=1)
    max_new_tokens: Integer = key(2048, "longest answer", ge=1)
    engine: Literal["transformers", "vllm"] = key(
        "transformers",
        "what generates answers; `vllm` must be installed (docs/howto/vllm.md), and rounds differently",
    )
    judge: Judge | None = key(None, "null: answers are written and not judged")


class Evaluation(Section):
    preference: PreferenceEvaluation = key(PreferenceEvaluation(), "accuracy on preference pairs")
    personalise: Personalise | None = key(
        None,
        "accuracy with a person's latent, of runs that have codes or learn from groups, on datasets with groups; null: "
        "none",
    )
    benchmarks: Benchmarks = key(Benchmarks(), "tasks of lm-eval")
    latents: LatentsEvaluation = key(LatentsEvaluation(), "diagnostics of the latent")
    tsne: TSNE = key(TSNE(), "map of the latents")
    completions: Completions | None = key(
        None, "completions of test prompts with each strong code forced, with the prior's z and with z = 0; null: none"
    )
    style: Style | None = key(
        None,
        "whether completions with a code forced are taken for those of its source, by a classifier of real completions;"
        " of runs that `personalise` scores; null: no",
    )
    alpacaeval: AlpacaEval | None = key(None, "null: no AlpacaEval")

    @model_validator(mode="after")
    def _style_needs_the_sources_of_codes(self) -> "Evaluation":
        if self.style is not None and self.personalise is None:
            raise fault("style", "requires personalise, which finds the source of each code; add it")
        return self


# Resources


class Resources(Section):
    """What the jobs of one rule may take; a key that is null is that of `resources.default`."""

    threads: Integer | None = key(None, "CPU cores", role=Role.EXECUTION, ge=1)
    mem_mb: Integer | None = key(
        None, "main memory in MB; as much again after each attempt that ran out of it", role=Role.EXECUTION, ge=1
    )
    mem_mb_per_billion: Integer | None = key(
        None, "MB more for each billion parameters of the base", role=Role.EXECUTION, ge=0
    )
    runtime: Integer | None = key(
        None,
        "minutes; each further attempt gets as much again, but for rule train, which goes on from its checkpoint",
        role=Role.EXECUTION,
        ge=1,
    )
    max_mem_mb: Integer | None = key(None, "memory that no attempt exceeds; null: none", role=Role.EXECUTION, ge=1)
    max_runtime: Integer | None = key(None, "minutes that no attempt exceeds; null: none", role=Role.EXECUTION, ge=1)
    gpus: Integer | None = key(None, "GPUs", role=Role.EXECUTION, ge=0)

    def requests(self) -> dict[str, int | str]:
        """Return the resources by which Snakemake's SLURM plugin requests GPUs and nodes."""
        return {"gpu": self.gpus}

    resumes: ClassVar[bool] = False
    """Whether the next attempt of a job goes on where the last one ended, and so needs no more time."""

    def memory_at(self, shares: int, parameters: int) -> int:
        """Return the MB of a job.

        shares: 1, and one more for each attempt that ran out of memory. parameters: of its base model, 0 for none.
        """
        needed = (self.mem_mb + round(self.mem_mb_per_billion * parameters / 1e9)) * shares
        return needed if self.max_mem_mb is None else min(needed, self.max_mem_mb)

    def minutes_at(self, attempt: int) -> int:
        """Return the minutes of a job at its attempt, from 1."""
        needed = self.runtime if self.resumes else self.runtime * attempt
        return needed if self.max_runtime is None else min(needed, self.max_runtime)


DEFAULT = Resources(threads=1, mem_mb=4000, mem_mb_per_billion=0, runtime=60, gpus=0)


class TrainResources(Resources):
    resumes: ClassVar[bool] = True

    nodes: Integer = key(
        1, "nodes, each with the `gpus`, `threads` and memory of this section", role=Role.EXECUTION, ge=1
    )
    launch: Text | None = key(
        None,
        "launch file of accelerate (`config/accelerate/`), which starts one process for each GPU, or one for each node"
        " without GPUs; needed for more than one",
        role=Role.EXECUTION,
    )

    @property
    def processes(self) -> int:
        """Processes of a training on all of its nodes together."""
        return self.nodes * max(1, self.gpus)

    def requests(self) -> dict[str, int | str]:
        """Return the requests of a job; for several nodes, a task on each of them and `gpus` on each of them.

        With `mpi`, the plugin leaves it to the job to start its tasks. The GPUs are asked for by `--gres`, since SLURM
        spreads those of `--gpus` unevenly. Without `tasks_per_gpu`, the plugin would ask for `tasks` on each GPU.
        """
        if self.nodes == 1:
            return super().requests()
        tasks = {"nodes": self.nodes, "tasks": self.nodes, "tasks_per_gpu": 0, "mpi": "srun", "gpu": 0}
        return tasks | ({"gres": f"gpu:{self.gpus}"} if self.gpus else {})


class AllResources(Section):
    default: Resources = key(Resources(), "of every rule without an own entry", role=Role.EXECUTION)
    world: Resources = key(Resources(), "of rule world", role=Role.EXECUTION)
    split: Resources = key(Resources(), "of rule split", role=Role.EXECUTION)
    pairs: Resources = key(Resources(), "of rules pairs and mix", role=Role.EXECUTION)
    flip: Resources = key(Resources(), "of rule flip", role=Role.EXECUTION)
    pretrain: Resources = key(Resources(), "of rule pretrain", role=Role.EXECUTION)
    quantize: Resources = key(Resources(), "of rule quantize", role=Role.EXECUTION)
    reference: Resources = key(Resources(), "of rule reference", role=Role.EXECUTION)
    train: TrainResources = key(TrainResources(), "of rule train", role=Role.EXECUTION)
    evaluate: Resources = key(Resources(), "of rule evaluate", role=Role.EXECUTION)
    benchmark: Resources = key(Resources(), "of rules benchmark and benchmark_base", role=Role.EXECUTION)
    alpacaeval_generate: Resources = key(Resources(), "of rule alpacaeval_generate", role=Role.EXECUTION)

    def of(self, rule: str) -> Resources:
        """Return the resources of a rule: its own entry, then `default`, then `DEFAULT`, key by key, all set."""
        own = getattr(self, rule, Resources())
        given = {
            name: value
            for section in (DEFAULT, self.default, own)
            for name, value in section.model_dump().items()
            if value is not None
        }
        return type(own)(**given)


# Images


def _by_digest(text: str) -> str:
    try:
        return images.check_reference(text)
    except ValueError as error:
        raise PydanticCustomError("reference", "{message}", {"message": str(error)}) from None


Reference = Annotated[str, AfterValidator(_by_digest)]
IMAGE = "`docker://host/name@sha256:…`, which Apptainer pulls; null: the image that `make images` built"


class Images(Section):
    training: Reference | None = key(None, IMAGE, role=Role.EXECUTION)
    evaluation: Reference | None = key(None, IMAGE, role=Role.EXECUTION)
    reporting: Reference | None = key(None, IMAGE, role=Role.EXECUTION)

    def references(self) -> dict[str, str]:
        """Return the images that come from a registry."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


# The whole


class Settings(Section):
    """A configuration."""

    project: Name = key(REQUIRED, "name of the folder under `results/`")
    datasets: dict[Name, Dataset] = key(REQUIRED, "preference data by name", min_length=1)
    noise: dict[Name, Noise] = key({}, "label noise by name")
    tokens: Tokens = key(Tokens(), "lengths")
    bases: dict[Name, AnyBase] = key(REQUIRED, "base models by name", min_length=1)
    training: Training = key(Training(), "how recipes are trained")
    recipes: dict[Name, RecipeEntry] = key(REQUIRED, "recipes by name", min_length=1)
    experiments: dict[Name, Experiment] = key(REQUIRED, "sets of runs by name", min_length=1)
    evaluation: Evaluation = key(Evaluation(), "what is measured")
    resources: AllResources = key(AllResources(), "what jobs may take")
    images: Images = key(Images(), "container images of a registry in place of local ones")


def dump(value: Any, *roles: Role) -> Any:
    """Return the JSON value of a section with only the keys of these roles, at any depth; none: all keys."""
    if isinstance(value, BaseModel):
        found = {}
        for name, field in type(value).model_fields.items():
            item = getattr(value, name)
            if isinstance(value, TrainingOverride) and name not in value.model_fields_set:
                continue
            nested = isinstance(item, BaseModel) or (
                isinstance(item, dict) and any(isinstance(entry, BaseModel) for entry in item.values())
            )
            extra = field.json_schema_extra or {}
            role = extra.get("role", Role.SCIENCE)
            if roles and extra.get("added") and item == field.get_default(call_default_factory=True):
                continue
            if roles and not nested and role not in roles:
                continue
            part = dump(item, *roles)
            if nested and not part:
                continue  # a section none of whose keys has the role
            found[name] = part
        return found
    if isinstance(value, dict):
        return {name: dump(item, *roles) for name, item in value.items()}
    return [dump(item, *roles) for item in value] if isinstance(value, list) else value
