"""What each step reads of the configuration, as a type: the rule fills it in, `--help` prints it, the step gets it.

A rule passes the keys on which results depend as its one tracked parameter (`--spec`). It passes execution keys as an
untracked one (`--execution`), of which a change reruns nothing.
"""

import json
from typing import Annotated, Any, ClassVar

from pydantic import Field, JsonValue, ValidationError

from lpc import latents
from lpc.config import models
from lpc.config.faults import explain_all, sections
from lpc.config.keys import REQUIRED, Role, Section, Seed, key, role_of
from lpc.config.models import dump
from lpc.data import formats
from lpc.data.formats import mix, populations, world


def of(section: type[Section], name: str) -> Any:
    """Return the type of a spec's field that is the key `name` of a section, with its bounds, default and role."""
    field = section.model_fields[name]
    default = {} if field.is_required() else {"default": field.get_default(call_default_factory=True)}
    extra = {**field.json_schema_extra, "of": section.__name__}
    return Annotated[
        field.annotation, *field.metadata, Field(description=field.description, json_schema_extra=extra, **default)
    ]


class Inference(Section):
    """How z comes from the prior of a trained run: those settings of its latent that training does not read."""

    inference: str = key(REQUIRED, "rule by which z comes from the prior", role=Role.INFERENCE)
    inference_seed: Seed = key(0, "of a rule that samples", role=Role.INFERENCE)

    @classmethod
    def of_latent(cls, latent: models.Latent | None) -> "Inference | None":
        """Return those of a recipe's latent; None where it has no choice."""
        settings = dump(latent, Role.INFERENCE)
        return cls(**settings) if settings else None


class Spec(Section):
    """What one step reads. Subclasses name it."""

    tracked_roles: ClassVar = (Role.SCIENCE, Role.INFERENCE)

    def tracked(self) -> dict:
        """Return the keys on which the step's results depend."""
        return dump(self, *self.tracked_roles)

    def execution(self) -> dict:
        """Return the keys of execution and display."""
        return dump(self, Role.EXECUTION, Role.DISPLAY)

    @classmethod
    def parse(cls, tracked: dict, execution: dict) -> "Spec":
        """Return the spec of a command line's two parameters. Raises ValueError, which lists every fault."""
        merged = merge(tracked, execution)
        try:
            return cls.model_validate_json(json.dumps(merged))
        except ValidationError as error:
            faults = [
                f"{'.'.join(str(part) for part in path) or 'spec'}: {text}" for path, text in explain_all(error, cls)
            ]
            raise ValueError("; ".join(faults)) from None


def merge(first: dict, second: dict) -> dict:
    """Return both, at every depth; where both have a key, the second's value."""
    merged = dict(first)
    for name, value in second.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


# Data


class World(Spec):
    rows: of(world.World, "rows")
    completions: of(world.World, "completions")
    score_noise: of(world.World, "score_noise")
    seed: of(world.World, "seed")
    people: of(world.World, "people")


def own_split(name: str) -> Any:
    """Return the type of a spec's field that is the data's own split for `name`."""
    extra = {"role": str(Role.SCIENCE), "of": "Split"}
    words = f"the data's own split for {name}; null: its rows are drawn"
    return Annotated[str | None, Field(default=None, description=words, json_schema_extra=extra)]


class DownloadDataset(Spec):
    kind: str = key(REQUIRED, "kind of the dataset")
    path: of(formats.base.Rows, "path")
    revision: of(formats.base.Rows, "revision")
    hub_split: of(formats.base.Rows, "hub_split")
    hub_config: of(formats.base.Rows, "hub_config")
    data_dir: of(formats.base.Rows, "data_dir")
    validation: own_split("validation")
    test: own_split("test")
    group: of(formats.base.Rows, "group")
    columns: of(formats.base.Rows, "columns")

    @classmethod
    def of_dataset(cls, entry: formats.base.Rows) -> "DownloadDataset":
        """Return the spec of a dataset's section."""
        values = dict(entry) | {"validation": None, "test": None} | entry.split.own()
        return cls(**{name: values[name] for name in cls.model_fields})


class Split(Spec):
    split: formats.base.Split = key(REQUIRED, "sizes of the splits")
    max_rejected_rows: of(formats.base.OwnRows, "max_rejected_rows")
    annotators: populations.Annotators | None = key(None, "annotators to draw; null: rows are judged already")


class Pairs(Spec):
    ties: of(formats.base.Pairs, "ties")
    min_margin: of(formats.base.Pairs, "min_margin")
    score: of(formats.base.Pairs, "score")
    seed: of(formats.base.Pairs, "seed")
    drop_sources: of(formats.base.Pairs, "drop_sources")


class Mix(Spec):
    mix: of(mix.Mix, "mix")
    seed: of(mix.Mix, "seed")


class Flip(Spec):
    rate: of(models.Noise, "rate")
    marker: of(models.Noise, "marker")
    seed: of(models.Noise, "seed")


class DownloadBase(Spec):
    name: str = key(REQUIRED, "name of the base")
    model: of(models.PretrainedBase, "model")
    revision: of(models.PretrainedBase, "revision")
    chat_template: of(models.PretrainedBase, "chat_template")
    chat_template_kwargs: of(models.PretrainedBase, "chat_template_kwargs")
    trust_remote_code: of(models.PretrainedBase, "trust_remote_code")
    dtype: of(models.PretrainedBase, "dtype")


class Pretrain(Spec):
    name: str = key(REQUIRED, "name of the base")
    scratch: models.Scratch = key(REQUIRED, "shape and training of the model")
    tokens: models.Tokens = key(models.Tokens(), "lengths")
    dtype: of(models.ScratchBase, "dtype")


class Quantize(Spec):
    name: str = key(REQUIRED, "name of the base")
    quantize: of(models.QuantizedBase, "quantize")


# Training


class Reference(Spec):
    tokens: models.Tokens = key(models.Tokens(), "lengths")
    precision: of(models.Training, "precision")
    micro_batch_size: of(models.Training, "micro_batch_size")


class Train(Spec):
    tracked_roles = (Role.SCIENCE,)

    objective: models.Objective = key(REQUIRED, "the loss")
    latent: models.Latent | None = key(None, "null: the plain objective")
    training: models.Training = key(models.Training(), "how it is trained")
    tokens: models.Tokens = key(models.Tokens(), "lengths")
    seed: Seed = key(0, "of weights, order and noise")
    compared_pairs: int | None = key(
        None, "pairs over which the latent's own cost is taken at once, where that changes results: the micro-batch"
    )

    @classmethod
    def of_recipe(cls, recipe: models.Recipe, tokens: models.Tokens, seed: int) -> "Train":
        """Return the spec of a recipe's run."""
        compares = recipe.latent is not None and recipe.latent.compares_pairs
        compared = recipe.training.micro_batch_size if compares else None
        return cls(**dict(recipe), tokens=tokens, seed=seed, compared_pairs=compared)


# Evaluation


class Scoring(Spec):
    """What every step that scores a run's pairs reads."""

    tokens: models.Tokens = key(models.Tokens(), "lengths")
    precision: of(models.Training, "precision")
    inference: Inference | None = key(None, "how z comes from the prior; null: the latent has no choice")


class Preference(Scoring):
    objective: models.Objective = key(REQUIRED, "the loss, whose reward is compared")
    batch_size: of(models.PreferenceEvaluation, "batch_size")


class Personalise(Spec):
    tokens: models.Tokens = key(models.Tokens(), "lengths")
    precision: of(models.Training, "precision")
    objective: models.Objective = key(REQUIRED, "the loss, which weighs the codes")
    batch_size: of(models.PreferenceEvaluation, "batch_size")
    contexts: of(models.Personalise, "contexts")
    seed: of(models.Personalise, "seed")


class Latents(Scoring):
    seed: of(models.LatentsEvaluation, "seed")
    batch_size: of(models.PreferenceEvaluation, "batch_size")


class Completions(Scoring):
    prompts: of(models.Completions, "prompts")
    codes: of(models.Completions, "codes")
    max_new_tokens: of(models.Completions, "max_new_tokens")
    seed: of(models.Completions, "seed")


class Style(Spec):
    tokens: models.Tokens = key(models.Tokens(), "lengths")
    precision: of(models.Training, "precision")
    prompts: of(models.Style, "prompts")
    max_new_tokens: of(models.Style, "max_new_tokens")
    batch_size: of(models.Style, "batch_size")
    seed: of(models.Style, "seed")


class TSNE(Spec):
    perplexity: of(models.TSNE, "perplexity")
    seed: of(models.TSNE, "seed")


class Evaluate(Spec):
    """The steps that evaluate a run, those of them that its recipe and its dataset allow."""

    datasets: list[str] = key(REQUIRED, "datasets whose test pairs are scored, that of the run first")
    preference: Preference = key(REQUIRED, "preference accuracy")
    latents: Latents | None = key(None, "diagnostics of the latent; null: the run has none")
    tsne: TSNE | None = key(None, "map of the latents; null: the run has none")
    completions: Completions | None = key(None, "completions with codes forced; null: none")
    personalise: Personalise | None = key(None, "accuracy with a person's latent; null: none")
    style: Style | None = key(None, "manner of the completions under each code; null: not classified")

    @classmethod
    def of_run(cls, settings: models.Settings, recipe: models.Recipe, dataset: str) -> "Evaluate":
        """Return the spec of a recipe's run on a dataset."""
        evaluation, latent = settings.evaluation, recipe.latent
        # Log-probabilities of a base's pairs and of its runs are computed alike, or their difference would not be zero.
        alike = {"tokens": settings.tokens, "precision": settings.training.precision}
        scoring = alike | {"inference": Inference.of_latent(latent)}
        batches = {"batch_size": evaluation.preference.batch_size}
        found = {"preference": Preference(**scoring, **batches, objective=recipe.objective)}
        has_codes = latent is not None and latents.kind(latent.kind).has_codes
        if latent is not None:
            found["latents"] = Latents(**scoring, **batches, seed=evaluation.latents.seed)
            found["tsne"] = TSNE(**dict(evaluation.tsne))
        if has_codes and evaluation.completions:
            found["completions"] = Completions(**scoring, **dict(evaluation.completions))
        of_people = has_codes or (latent is not None and latent.pairs_together > 1)
        if of_people and evaluation.personalise and models.has_groups(settings.datasets, dataset):
            about = dict(evaluation.personalise)
            found["personalise"] = Personalise(**alike, **batches, **about, objective=recipe.objective)
            if has_codes and evaluation.style:
                found["style"] = Style(**alike, **dict(evaluation.style))
        return cls(datasets=list(dict.fromkeys((dataset, *evaluation.preference.datasets))), **found)


class Task(Spec):
    """A benchmark task without what tables show of it."""

    task: of(models.Task, "task")
    num_fewshot: of(models.Task, "num_fewshot")
    limit: of(models.Task, "limit")
    chat_template: of(models.Task, "chat_template")
    data: of(models.Task, "data")
    metric: of(models.Task, "metric")


class DownloadTask(Task):
    name: str = key(REQUIRED, "name of the task in the configuration")


class BenchmarkTask(Task):
    download: str | None = key(None, "record of the download of its data set; null: the task has `data`, or no record")


class BenchmarkBase(Spec):
    tasks: dict[models.TaskName, BenchmarkTask] = key(REQUIRED, "benchmarks by name; `data` of generated questions too")
    batch_size: of(models.Benchmarks, "batch_size")


class Benchmark(BenchmarkBase):
    inference: Inference | None = key(None, "how z comes from the prior; null: the latent has no choice")


class Questions(Spec):
    kind: of(models.Questions, "kind")
    count: of(models.Questions, "count")
    seed: of(models.Questions, "seed")


class AlpacaEvalDownload(Spec):
    instructions: of(models.AlpacaEval, "instructions")
    reference: of(models.AlpacaEval, "reference")


class AlpacaEvalGenerate(Spec):
    name: str = key(REQUIRED, "name of the model in the file of answers")
    max_new_tokens: of(models.AlpacaEval, "max_new_tokens")
    batch_size: of(models.AlpacaEval, "batch_size")
    engine: of(models.AlpacaEval, "engine")
    inference: Inference | None = key(None, "how z comes from the prior; null: the latent has no choice")


class AlpacaEvalJudge(Spec):
    judge: models.Judge | None = key(None, "null: no judge")


# Report


class RunEntry(Section):
    """A run, as tables and page name it."""

    base: str = key(REQUIRED, "base model")
    dataset: str = key(REQUIRED, "dataset")
    noise: str = key(REQUIRED, "noise, or clean")
    variant: str = key(REQUIRED, "dataset with its noise")
    recipe: str = key(REQUIRED, "recipe")
    seed: Seed = key(REQUIRED, "seed")
    experiments: list[str] = key(REQUIRED, "experiments that name it")


class Tables(Spec):
    tracked_roles = (Role.SCIENCE, Role.INFERENCE, Role.DISPLAY)

    runs: list[RunEntry] = key(REQUIRED, "all runs")
    recipes: dict[str, models.TrackedRecipe] = key(REQUIRED, "recipes by name, those of sweeps included")
    tasks: list[tuple[str, of(models.Task, "metric")]] = key(REQUIRED, "benchmark tasks with their metrics, in order")
    datasets: list[str] = key(REQUIRED, "further held-out datasets")
    sweeps: dict[str, list[tuple[str, list[JsonValue]]]] = key(REQUIRED, "swept keys and their values, by experiment")


class Report(Spec):
    tracked_roles = (Role.SCIENCE, Role.INFERENCE, Role.DISPLAY)

    settings: models.Settings = key(REQUIRED, "the configuration")
    runs: list[RunEntry] = key(REQUIRED, "all runs")
    recipes: dict[str, models.TrackedRecipe] = key(REQUIRED, "recipes by name, those of sweeps included")


RULES: dict[str, type[Spec]] = {
    "world": World,
    "download_dataset": DownloadDataset,
    "split": Split,
    "pairs": Pairs,
    "mix": Mix,
    "flip": Flip,
    "download_base": DownloadBase,
    "pretrain": Pretrain,
    "quantize": Quantize,
    "reference": Reference,
    "train": Train,
    "evaluate": Evaluate,
    "download_task": DownloadTask,
    "questions": Questions,
    "benchmark": Benchmark,
    "benchmark_base": BenchmarkBase,
    "alpacaeval_download": AlpacaEvalDownload,
    "alpacaeval_generate": AlpacaEvalGenerate,
    "alpacaeval_judge": AlpacaEvalJudge,
    "tables": Tables,
    "report": Report,
    "cards": Report,
}
"""The spec of each rule."""


def readers(section: type[Section], name: str) -> list[str]:
    """Return the rules that rerun when the key `name` of a section changes, in the order of the workflow."""
    role = role_of(section, name)
    found = []
    for rule, spec in RULES.items():
        if rule in ("tables", "report", "cards"):
            continue  # they show what the others made, and depend on every key
        if role in spec.tracked_roles and _reads(spec, section, name):
            found.append(rule)
    return found


def _reads(reader: type[Section], section: type[Section], name: str) -> bool:
    """Whether a spec, or a section in it, has this key as one of its fields."""
    if name in reader.model_fields and (issubclass(section, reader) or reader is Inference):
        return True
    for own, field in reader.model_fields.items():
        origin = (field.json_schema_extra or {}).get("of")
        if own == name and origin in [ancestor.__name__ for ancestor in section.__mro__]:
            return True
        if any(_reads(inner, section, name) for inner in sections(field.annotation)):
            return True
    return False
