"""The configuration: defaults, checks that list every fault at once, and the runs that its experiments name.

Read by the Snakefile and by each job of a workflow, so nothing heavy is imported here.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

from lpc.cli import UserError
from lpc.faults import Faults, closest, explain, kind, one_of
from lpc.layout import noisy, run_folder
from lpc.paths import is_local

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
CLEAN = "clean"  # how an experiment names a dataset without noise


class ConfigError(UserError):
    """All faults of a configuration, one a line."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One base, one dataset variant, one recipe, one seed: what is trained once, whoever asks for it."""

    base: str
    dataset: str
    noise: str
    recipe: str
    seed: int

    @property
    def variant(self) -> str:
        return self.dataset if self.noise == CLEAN else noisy(self.dataset, self.noise)

    @property
    def path(self) -> str:
        """Folder of the run, relative to `results/<project>/runs`."""
        return run_folder(self.base, self.variant, self.recipe, self.seed)


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration.

    `settings`: the sections with every default filled in. `recipes`: by name, those of sweeps included, each with its
    whole `training` section. `experiments`: by name, the runs of each. `runs`: all of them, each once, in order.
    """

    settings: dict
    recipes: dict[str, dict]
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
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{file}: {error}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: expected keys at top level, such as project: and datasets:")
        merged = _merge(merged, value)
    return resolve(merged, files)


def resolve(config: dict, files: tuple[str | Path, ...] | list[str | Path] = ()) -> Config:
    """Check `config` and fill in its defaults. `files` are where it was read from, for the messages.

    Raises ConfigError, which lists every fault with file and line, path of the key, value, and what is allowed.
    """
    faults = Faults(files)
    settings = _fill(_schema(), _plain(config, (), faults))
    for error in _validator().iter_errors(settings):
        explain(error, faults)
    faults.add_duplicates()
    _check_values(settings, faults)
    _check_references(settings, faults)
    recipes = {}
    if training := _sound(settings, faults, "training"):
        for name in _names(settings, "recipes"):
            if recipe := _sound(settings, faults, "recipes", name):
                recipes[name] = {**recipe, "training": {**training, **recipe["training"]}}
    experiments = {}
    for name in _names(settings, "experiments"):
        if experiment := _sound(settings, faults, "experiments", name):
            experiments[name] = tuple(_runs(name, experiment, recipes, faults))
    _check_batches(settings, recipes, faults)
    _check_latents(recipes, faults)
    if faults:
        raise ConfigError(str(faults))
    return Config(settings, recipes, experiments)


# Defaults and checks against the schema


@functools.cache
def _schema() -> dict:
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_schema())


def _follow(schema) -> dict:
    """`schema` with its reference resolved; keys beside `$ref` (a default) win."""
    if not isinstance(schema, dict):
        return {}
    if "$ref" not in schema:
        return schema
    target = _schema()
    for part in schema["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**_follow(target), **{key: value for key, value in schema.items() if key != "$ref"}}


def _branches(schema: dict, value) -> Iterator[dict]:
    """The `then` or `else` parts that apply to `value`."""
    for part in [schema, *schema.get("allOf", [])]:
        if "if" in part:
            fits = _validator().evolve(schema=part["if"]).is_valid(value)
            yield part.get("then" if fits else "else", {})


def _fill(schema, value):
    """`value` with the schema's defaults, and with every number of the type that the schema says.

    1 and 1.0 must become the same text, or writing one for the other would rerun a training.
    """
    schema = _follow(schema)
    kinds = schema.get("type", ())
    if isinstance(value, dict):
        value = _fill_keys(schema, value)
        for branch in _branches(schema, value):
            value = _fill_keys(branch, value)
    elif isinstance(value, list):
        value = [_fill(schema.get("items"), item) for item in value]
    elif isinstance(value, int) and not isinstance(value, bool) and "number" in kinds:
        value = float(value)
    elif isinstance(value, float) and value.is_integer() and "integer" in kinds:
        value = int(value)
    return value


def _fill_keys(schema: dict, value: dict) -> dict:
    properties = schema.get("properties", {})
    other = schema.get("additionalProperties")
    value = dict(value)
    for key, part in properties.items():
        part = _follow(part)
        if key not in value and "default" in part:
            value[key] = copy.deepcopy(part["default"])
    return {key: _fill(properties.get(key, other), item) for key, item in value.items()}


def _merge(first: dict, second: dict) -> dict:
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _plain(value, path: tuple, faults: Faults):
    """A copy of `value` as JSON can hold it. What YAML can hold besides is reported: dates, inf, keys that are no
    strings."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                faults.add((*path, key), f"{key!r} as a key is read by YAML as {kind(key)}; write it in quotes")
        return {key: _plain(item, (*path, key), faults) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, list):
        return [_plain(item, (*path, index), faults) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        faults.add(path, f"{value} is not a finite number")
    elif not isinstance(value, (str, int, float, bool, type(None))):
        faults.add(path, f"'{value}' is read by YAML as {kind(value)}; write it in quotes")
        return str(value)
    return value


# Cross-references, and checks that need more than one key


def _sound(settings: dict, faults: Faults, *path: str):
    """The value at `path`; None where there is none, or where it or something in it was found at fault."""
    value = settings
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value if faults.none_under(*path) else None


def _names(settings: dict, section: str) -> list[str]:
    entries = settings.get(section)
    return list(entries) if isinstance(entries, dict) else []


def _check_references(settings: dict, faults: Faults) -> None:
    """Names that stand in one section and must be defined in another."""
    lists = [
        (("experiments", name, section), section)
        for name in _names(settings, "experiments")
        for section in ("bases", "datasets", "noise", "recipes")
    ]
    lists.append((("evaluation", "preference", "datasets"), "datasets"))
    wanted = [
        ((*path, index), name, section)
        for path, section in lists
        for index, name in enumerate(_sound(settings, faults, *path) or [])
    ]
    for base in _names(settings, "bases"):
        path = ("bases", base, "scratch", "dataset")
        if name := _sound(settings, faults, *path):
            wanted.append((path, name, "datasets"))
    for path, name, section in wanted:
        names = [CLEAN] * (section == "noise") + _names(settings, section)
        if name not in names:
            faults.add(path, f"{name} is not defined under {section}{closest(name, names)} (defined: {one_of(names)})")


def _check_values(settings: dict, faults: Faults) -> None:
    """What one key's schema cannot say: relations between keys, and files that must exist."""

    def value(*path: str):
        return _sound(settings, faults, *path)

    if CLEAN in _names(settings, "noise"):
        faults.add(("noise", CLEAN), f"{CLEAN} is the name of a dataset without noise; choose another")
    if "base" in _names(settings, "recipes"):
        faults.add(("recipes", "base"), "base is how tables call a base model without training; choose another name")
    for name in _names(settings, "datasets"):
        file = value("datasets", name, "path")
        if file and is_local(file) and not Path(file).is_file():
            faults.add(("datasets", name, "path"), f"{file}: no such file; give a .jsonl, .jsonl.gz or .parquet")
    for name in _names(settings, "bases"):
        scratch, model = value("bases", name, "scratch"), value("bases", name, "model")
        if scratch and scratch["hidden_size"] % scratch["heads"]:
            faults.add(
                ("bases", name, "scratch", "hidden_size"),
                f"{scratch['hidden_size']} is no multiple of heads ({scratch['heads']})",
            )
        if model and is_local(model) and not (Path(model) / "config.json").is_file():
            faults.add(
                ("bases", name, "model"),
                f"{model} is no checkpoint; give a folder with config.json, weights and tokenizer, or a hub name",
            )
    if (tokens := value("tokens")) and tokens["max_prompt_length"] >= tokens["max_length"]:
        faults.add(
            ("tokens", "max_prompt_length"),
            f"{tokens['max_prompt_length']} leaves no room for a completion; must be less than max_length"
            f" ({tokens['max_length']})",
        )
    tasks = ("evaluation", "benchmarks", "tasks")
    for name in value(*tasks) or ():
        _check_task((*tasks, name), settings["evaluation"]["benchmarks"]["tasks"][name], faults)
    if resources := value("resources"):
        launch = resources["train"]["launch"]
        if launch is not None and not (ROOT / launch).is_file():
            faults.add(("resources", "train", "launch"), f"{launch}: no such file in {ROOT}")
        if launch is None and _devices(settings) > 1:
            faults.add(
                ("resources", "train"),
                f"{_devices(settings)} GPUs need launch, a file such as config/accelerate/ddp.yaml that starts a"
                " process for each",
            )


def _check_task(path: tuple, task: dict, faults: Faults) -> None:
    name = task["task"]
    if name is not None and name.endswith(".yaml") and not (Path(name).is_file() or (ROOT / name).is_file()):
        faults.add((*path, "task"), f"{name}: no such file")
    if task["data"] and task["questions"]:
        faults.add((*path, "questions"), "a task has either data or questions; drop one")
    for split, file in (task["data"] or {}).items():
        if not Path(file).is_file():
            faults.add((*path, "data", split), f"{file}: no such file")


def _devices(settings: dict) -> int:
    """Devices, and so processes, of rule train."""
    return max(1, {**settings["resources"]["default"], **settings["resources"]["train"]}["gpus"])


def _check_batches(settings: dict, recipes: dict, faults: Faults) -> None:
    if _sound(settings, faults, "resources") is None:
        return
    devices = _devices(settings)
    for name, recipe in recipes.items():
        training = recipe["training"]
        at_once = training["micro_batch_size"] * devices
        if training["batch_size"] % at_once:
            faults.add(
                ("recipes", name, "training", "batch_size"),
                f"{training['batch_size']} is no multiple of {at_once}, which is micro_batch_size"
                f" ({training['micro_batch_size']}) times the devices of rule train ({devices})",
            )


def _check_latents(recipes: dict, faults: Faults) -> None:
    for name, recipe in recipes.items():
        latent = recipe["latent"] or {}
        path = ("recipes", name, "latent")
        if latent.get("codebook_init") == "kmeans" and not latent["standardize"]:
            faults.add((*path, "codebook_init"), "kmeans needs standardize: true, or clusters are of raw features")
        if latent.get("information_weight") and recipe["training"]["micro_batch_size"] == 1:
            faults.add(
                (*path, "information_weight"),
                "needs a micro_batch_size above 1: one pair tells nothing of I(code; prompt)",
            )


# Runs


def _runs(name: str, experiment: dict, recipes: dict, faults: Faults) -> Iterator[Run]:
    """The runs of one experiment; recipes that its sweep makes are added to `recipes`."""
    path = ("experiments", name, "sweep")
    swept = []
    for recipe in experiment["recipes"]:
        if recipe in recipes:
            swept += _sweep(recipe, experiment["sweep"], recipes, path, faults)
    for key in itertools.product(
        experiment["bases"], experiment["datasets"], experiment["noise"], swept, experiment["seeds"]
    ):
        yield Run(*key)


def _sweep(name: str, sweep: dict, recipes: dict, path: tuple, faults: Faults) -> list[str]:
    """Names of the recipes that `name` becomes, one for each combination of the swept values.

    A value equal to the recipe's own leaves its name alone, so that its runs are shared with other experiments.
    """
    schema = _schema()["$defs"]["recipe"]
    names = []
    for combination in itertools.product(*sweep.values()):
        recipe = copy.deepcopy(recipes[name])
        for key, value in zip(sweep, combination, strict=True):
            place, last = _find(recipe, key)
            if place is None:
                known = _leaves(recipes[name])
                faults.add(
                    (*path, key), f"recipe {name} has no such key{closest(key, known)} (sweeps take: {one_of(known)})"
                )
                return []
            place[last] = value
        recipe = _fill(schema, recipe)
        for error in _validator().evolve(schema=schema).iter_errors(recipe):
            key = ".".join(str(part) for part in error.absolute_path)
            explain(error, faults, (*path, key) if key in sweep else path)
        derived = name
        for key in sweep:
            (own, last), (swept, _) = _find(recipes[name], key), _find(recipe, key)
            if own[last] != swept[last]:
                derived += f"+{key}={swept[last] if isinstance(swept[last], str) else json.dumps(swept[last])}"
        recipes.setdefault(derived, recipe)
        names.append(derived)
    return names


def _find(recipe: dict, key: str) -> tuple[dict | None, str]:
    """The section that holds the dotted `key`, and the key's last part; None where the recipe has no such value."""
    *parents, last = key.split(".")
    place = recipe
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
        return None, last
    return place, last


def _leaves(recipe: dict, prefix: str = "") -> list[str]:
    """Dotted keys of all values of a recipe."""
    names = []
    for key, value in recipe.items():
        names += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names
