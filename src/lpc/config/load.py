"""Files, lines, and all faults at once: from YAML to a checked configuration."""

import dataclasses
import functools
import itertools
import math
import typing
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from lpc.cli import UserError
from lpc.config import specs
from lpc.config.faults import Faults, closest, explain_all, kind, one_line, one_of
from lpc.config.keys import Name
from lpc.config.models import CLEAN, QuantizedBase, Recipe, Settings, Training, has_groups, members_of
from lpc.config.runs import Run, runs_of
from lpc.data.formats.mix import Mix
from lpc.paths import is_local

ROOT = Path(__file__).parents[3]


class ConfigError(UserError):
    """All faults of a configuration, one a line."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration.

    `settings`: the sections with every default filled in. `recipes`: by name, those of sweeps included, each with its
    whole `training` section. `experiments`: by name, the runs of each. `runs`: all of them, each once, in order.
    """

    settings: Settings
    recipes: dict[str, Recipe]
    experiments: dict[str, tuple[Run, ...]]

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        return tuple(dict.fromkeys(itertools.chain.from_iterable(self.experiments.values())))


def load(*files: str | Path) -> Config:
    """Read, merge (the later file wins key by key) and resolve YAML or JSON files, as Snakemake does."""
    merged: dict = {}
    for file in files:
        try:
            value = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except RecursionError:
            raise ConfigError(f"{file}: nested too deeply to be a configuration") from None
        except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: text that is not UTF-8, a date of month 13
            raise ConfigError(f"{file}: {one_line(error)}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: expected keys at top level, such as project: and datasets:")
        merged = specs.merge(merged, value)
    return resolve(merged, files)


def resolve(config: dict, files: tuple[str | Path, ...] | list[str | Path] = ()) -> Config:
    """Check `config` and fill in its defaults. `files`: where it was read from, for the messages.

    Raises ConfigError, which lists every fault with file and line, path of the key, value, and what is allowed.
    """
    faults = Faults(files)
    raw = _plain(config, (), faults)
    sound = _validate(raw, faults)
    faults.add_duplicates()
    _check_names(raw, faults)
    _check_files(sound, faults)
    _check_references(sound, raw, faults)
    _check_training_data(sound, faults)
    recipes = _recipes(sound, faults)
    experiments = {}
    for name, experiment in sound["experiments"].items():
        experiments[name] = tuple(runs_of(name, experiment, recipes, faults))
    _check_groups(sound, recipes, experiments, faults)
    _check_devices(sound, recipes, faults)
    if faults:
        raise ConfigError(str(faults))
    return Config(Settings.model_validate(raw), recipes, experiments)


DEPTH = 50
"""Levels of sections and lists; the deepest key has eight."""


def _plain(value, path: tuple, faults: Faults):
    """A copy of `value` as JSON can hold it. What YAML can hold besides is reported: dates, inf, keys that are no
    strings; a list within itself ends the check."""
    if len(path) > DEPTH:
        faults.add(path[:3], f"nested more than {DEPTH} levels deep")
        raise ConfigError(str(faults))
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                faults.add((*path, key), f"{key!r} as a key is read by YAML as {kind(key)}; write it in quotes")
        return {key: _plain(item, (*path, key), faults) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, list):
        return [_plain(item, (*path, index), faults) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        faults.add(path, f"{value} is not a finite number")
    if not isinstance(value, (str, int, float, bool, type(None))):
        faults.add(path, f"'{value}' is read by YAML as {kind(value)}; write it in quotes")
        return str(value)
    return value


# Types and bounds: section by section and entry by entry, so that one fault hides no other


def _validate(raw: dict, faults: Faults) -> dict[str, Any]:
    """The sections that are sound: by name, of a section of named entries those entries that are."""
    for name in raw:
        if name not in Settings.model_fields:
            known = list(Settings.model_fields)
            faults.add((name,), f"unknown key{closest(name, known)} (allowed: {one_of(known)})")
    sound: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        named = typing.get_origin(field.annotation) is dict
        if name not in raw:
            sound[name] = {} if field.is_required() else field.get_default(call_default_factory=True)
            if field.is_required():
                faults.add((), f"{name} is missing")
        elif not named:
            sound[name] = _checked(name, raw[name], (name,), faults)
        else:
            entries = raw[name] if isinstance(raw[name], dict) else {}
            if not isinstance(raw[name], dict):
                faults.add((name,), f"{raw[name]!r} is {kind(raw[name])}, expected a section of keys")
            elif not entries and field.is_required():
                faults.add((name,), "{} is out of range, needs at least 1 entry")
            checked = {entry: _entry(name, entry, value, faults) for entry, value in entries.items()}
            sound[name] = {entry: value for entry, value in checked.items() if value is not None}
    return sound


def _entry(section: str, name: str, value: Any, faults: Faults) -> BaseModel | None:
    if _checked("name", name, (section,), faults) is None:
        return None
    return _checked(f"{section}.", value, (section, name), faults)


def _checked(which: str, value: Any, path: tuple, faults: Faults) -> Any:
    """`value` as its type, or None where it has faults."""
    adapter, annotation = _adapter(which)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        for found, message in explain_all(error, annotation):
            faults.add((*path, *found), message)
        return None


@functools.cache
def _adapter(which: str) -> tuple[TypeAdapter, Any]:
    """The type of a section, of its entries ("datasets."), or of an entry's name ("name")."""
    if which == "name":
        annotation = Name
    else:
        field = Settings.model_fields[which.rstrip(".")]
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        if which.endswith("."):
            annotation = typing.get_args(field.annotation)[1]
    return TypeAdapter(annotation), annotation


# Checks that need more than one section, or the file system


def _check_names(raw: dict, faults: Faults) -> None:
    """Names that mean something else already."""
    taken = {
        ("noise", CLEAN): "is the name of a dataset without noise",
        ("recipes", "base"): "is the name of a base model without training in the tables",
    }
    taken |= {("experiments", rule): "is the name of a rule of the workflow" for rule in ("all", *specs.RULES)}
    for (section, name), why in taken.items():
        if isinstance(raw.get(section), dict) and name in raw[section]:
            faults.add((section, name), f"{name} {why}; choose another name")


def _check_files(sound: dict, faults: Faults) -> None:
    for name, dataset in sound["datasets"].items():
        file = getattr(dataset, "path", None)
        if not file or not is_local(file):
            continue
        for path, place in [
            (("path",), file),
            *((("split", split), own) for split, own in dataset.split.own().items()),
        ]:
            if not Path(place).is_file():
                faults.add(("datasets", name, *path), f"{place}: no such file; use a .jsonl, .jsonl.gz or .parquet")
        for key in ("revision", "hub_config", "data_dir"):
            if getattr(dataset, key) is not None:
                faults.add(("datasets", name, key), f"only a dataset of the hub has it, and {file} is local; remove it")
    for name, base in sound["bases"].items():
        model = getattr(base, "model", None)
        if model and is_local(model) and not (Path(model) / "config.json").is_file():
            faults.add(
                ("bases", name, "model"),
                f"{model} is not a checkpoint; use a folder with config.json, weights and tokenizer, or a hub name",
            )
    if sound["evaluation"]:
        for name, task in sound["evaluation"].benchmarks.tasks.items():
            path = ("evaluation", "benchmarks", "tasks", name)
            if (
                task.task
                and task.task.endswith(".yaml")
                and not any((at / task.task).is_file() for at in (Path(), ROOT))
            ):
                faults.add((*path, "task"), f"{task.task}: no such file")
            for split, file in (task.data or {}).items():
                if not Path(file).is_file():
                    faults.add((*path, "data", split), f"{file}: no such file")


def _check_references(sound: dict, raw: dict, faults: Faults) -> None:
    """Names that stand in one section and must be defined in another."""
    wanted = []
    for name, experiment in sound["experiments"].items():
        for section in ("bases", "datasets", "noise", "recipes"):
            for index, entry in enumerate(getattr(experiment, section)):
                wanted.append((("experiments", name, section, index), entry, section))
    if sound["evaluation"]:
        for index, entry in enumerate(sound["evaluation"].preference.datasets):
            wanted.append((("evaluation", "preference", "datasets", index), entry, "datasets"))
    wanted += [(path, name, "datasets") for path, name in _sources_of_rows(sound)]
    sources = {name: base.quantize for name, base in sound["bases"].items() if isinstance(base, QuantizedBase)}
    wanted += [(("bases", name, "quantize"), source, "bases") for name, source in sources.items()]
    for path, name, section in wanted:
        # The names as written: an entry with a fault of its own is still defined.
        defined = raw.get(section)
        names = [CLEAN] * (section == "noise") + (list(defined) if isinstance(defined, dict) else [])
        if name not in names:
            faults.add(path, f"{name} is not defined under {section}{closest(name, names)} (defined: {one_of(names)})")
    for name, source in sources.items():
        if source in sources:
            faults.add(("bases", name, "quantize"), f"{source} is quantised itself; name the base that it rounds")


def _sources_of_rows(sound: dict) -> list[tuple[tuple, str]]:
    """Path and name of each dataset that a mixture takes pairs of, or a base model's training takes rows of."""
    bases = {name: getattr(base, "scratch", None) for name, base in sound["bases"].items()}
    found = [(("bases", name, "scratch", "dataset"), scratch.dataset) for name, scratch in bases.items() if scratch]
    for name, dataset in sound["datasets"].items():
        found += [(("datasets", name, "mix", member), member) for member in getattr(dataset, "mix", ())]
    return found


def _check_training_data(sound: dict, faults: Faults) -> None:
    """Datasets that something is trained on: a mixture has no rows, and a dataset for testing no training pairs."""
    rows = _sources_of_rows(sound)
    for path, name in rows:
        if isinstance(sound["datasets"].get(name), Mix):
            faults.add(path, f"{name} is a mixture, which has no rows of its own; name its datasets instead")
    trained = [
        (("experiments", name, "datasets", index), dataset)
        for name, experiment in sound["experiments"].items()
        for index, dataset in enumerate(experiment.datasets)
    ]
    for path, name in [*rows, *trained]:
        split = getattr(sound["datasets"].get(name), "split", None)
        if split is not None and split.is_test_alone:
            faults.add(
                path,
                f"{name} has `test: {split.test}`, so it has no training pairs; change its split, or name it under"
                " evaluation.preference.datasets",
            )


def _recipes(sound: dict, faults: Faults) -> dict[str, Recipe]:
    """The sound recipes, each with its whole training section."""
    if sound["training"] is None:
        return {}
    recipes = {}
    for name, entry in sound["recipes"].items():
        own = entry.training.model_dump(exclude_unset=True)
        training = sound["training"].model_dump() | own
        if training["precision"] != sound["training"].precision:
            # Every run of a base shares its reference log-probabilities.
            faults.add(("recipes", name, "training", "precision"), "must be that of the section training; set it there")
        try:
            recipes[name] = Recipe(
                objective=entry.objective, latent=entry.latent, training=Training.model_validate(training)
            )
        except ValidationError as error:
            for path, message in explain_all(error, Recipe):
                faults.add(("recipes", name, *path), message)
    return recipes


def _check_groups(sound: dict, recipes: dict[str, Recipe], experiments: dict[str, tuple], faults: Faults) -> None:
    """Datasets of recipes whose pairs share a code."""
    for name, runs in experiments.items():
        for dataset, recipe in dict.fromkeys((run.dataset, run.recipe) for run in runs):
            latent, members = recipes[recipe].latent, members_of(sound["datasets"], dataset)
            if latent is None or latent.pairs_together == 1 or not sound["datasets"].keys() >= set(members):
                continue
            if not has_groups(sound["datasets"], dataset):
                faults.add(
                    ("experiments", name, "datasets"),
                    f"recipe {recipe} has latent.group_size {latent.pairs_together}, but dataset {dataset} has no"
                    " groups; set its `group`, or `people` of a world",
                )


def _is_sharded(launch: str | None) -> bool:
    """Return whether a launch file of accelerate starts FSDP."""
    if launch is None or not (ROOT / launch).is_file():
        return False
    settings = yaml.safe_load((ROOT / launch).read_text(encoding="utf-8"))
    return isinstance(settings, dict) and settings.get("distributed_type") == "FSDP"


def _check_devices(sound: dict, recipes: dict[str, Recipe], faults: Faults) -> None:
    """Devices of rule train, and batches that they share evenly."""
    if sound["resources"] is None:
        return
    resources = sound["resources"].of("train")
    devices = resources.processes
    if resources.launch is not None and not (ROOT / resources.launch).is_file():
        faults.add(("resources", "train", "launch"), f"{resources.launch}: no such file in {ROOT}")
    if resources.launch is None and devices > 1:
        faults.add(
            ("resources", "train"),
            f"{devices} devices (nodes: {resources.nodes}, gpus: {resources.gpus}) need launch, a file such as"
            " config/accelerate/ddp.yaml that starts a process for each",
        )
    sharded = _is_sharded(resources.launch)
    for name, recipe in recipes.items():
        training = recipe.training
        if sharded and training.evaluate is not None:
            faults.add(
                ("recipes", name, "training", "evaluate"),
                f"not with FSDP, which resources.train.launch ({resources.launch}) starts; set that to"
                " config/accelerate/ddp.yaml, or evaluate to null",
            )
        if training.micro_batch_tokens is not None:
            if training.batch_size % devices:
                faults.add(
                    ("recipes", name, "training", "batch_size"),
                    f"{training.batch_size} must be a multiple of {devices}, the devices of rule train",
                )
            continue
        at_once = training.micro_batch_size * devices
        if training.batch_size % at_once:
            faults.add(
                ("recipes", name, "training", "batch_size"),
                f"{training.batch_size} must be a multiple of {at_once}, which is micro_batch_size"
                f" ({training.micro_batch_size}) times the devices of rule train ({devices})",
            )
