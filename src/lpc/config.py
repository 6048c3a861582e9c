"""The configuration: defaults, checks that list every fault at once, and the runs that its experiments name.

Read by the Snakefile and by each job of a workflow, so nothing heavy is imported here.
"""

import copy
import dataclasses
import difflib
import functools
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

from lpc.cli import UserError

ROOT = Path(__file__).parents[2]
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
        return self.dataset if self.noise == CLEAN else f"{self.dataset}.{self.noise}"

    @property
    def path(self) -> str:
        """Folder of the run, relative to `results/<project>/runs`."""
        return f"{self.base}/{self.variant}/{self.recipe}/seed-{self.seed}"


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
    faults = _Faults(files)
    settings = _fill(_schema(), _plain(config, (), faults))
    for error in _validator().iter_errors(settings):
        _explain(error, faults)
    faults.add_duplicates()
    _check_values(settings, faults)
    _check_references(settings, faults)
    recipes = {
        name: {**recipe, "training": {**settings["training"], **recipe["training"]}}
        for name, recipe in _entries(settings, "recipes", faults)
        if faults.none_under("recipes", name) and faults.none_under("training")
    }
    _check_batches(settings, recipes, faults)
    experiments = {
        name: tuple(_runs(name, experiment, recipes, faults))
        for name, experiment in _entries(settings, "experiments", faults)
    }
    if faults:
        raise ConfigError(str(faults))
    return Config(settings, recipes, experiments)


def is_local(path: str) -> bool:
    """Whether a dataset or model is named by its place on disk rather than by its name on the hub."""
    return (
        path.startswith(("/", "./", "../")) or path.endswith((".jsonl", ".jsonl.gz", ".parquet")) or Path(path).exists()
    )


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


def _plain(value, path: tuple, faults: "_Faults"):
    """A copy of `value` without what YAML can hold and JSON cannot, each reported: keys that are no strings, dates, inf."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                faults.add((*path, key), f"{key!r} as a key is read by YAML as {_kind(key)}; write it in quotes")
        return {key: _plain(item, (*path, key), faults) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, list):
        return [_plain(item, (*path, index), faults) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        faults.add(path, f"{value} is not a finite number")
    elif not isinstance(value, (str, int, float, bool, type(None))):
        faults.add(path, f"'{value}' is read by YAML as {_kind(value)}; write it in quotes")
        return str(value)
    return value


# Messages


class _Faults:
    """Collected faults, in the order found, with the line of the file where each stands."""

    def __init__(self, files) -> None:
        self.files = [str(file) for file in files]
        self.entries: list[tuple[tuple, str]] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, path: tuple, message: str) -> None:
        if (path, message) not in self.entries:
            self.entries.append((path, message))

    def none_under(self, *prefix: str) -> bool:
        return all(path[: len(prefix)] != prefix for path, _ in self.entries)

    @functools.cached_property
    def _trees(self) -> list[tuple[str, yaml.Node]]:
        trees = []
        for file in self.files:
            with open(file, encoding="utf-8") as stream:
                trees.append((file, yaml.compose(stream, Loader=yaml.SafeLoader)))
        return trees

    def add_duplicates(self) -> None:
        """A key given twice: YAML would quietly take the last one."""
        for file, tree in self._trees:
            stack: list[tuple[tuple, yaml.Node]] = [((), tree)]
            while stack:
                path, node = stack.pop()
                if isinstance(node, yaml.SequenceNode):
                    stack += [((*path, index), item) for index, item in enumerate(node.value)]
                if isinstance(node, yaml.MappingNode):
                    seen: dict[str, int] = {}
                    for key, item in node.value:
                        line = key.start_mark.line + 1
                        if key.value in seen:
                            self.add(
                                (*path, key.value),
                                f"given twice, in lines {seen[key.value]} and {line} of {file}; keep one",
                            )
                        seen[key.value] = line
                        stack.append(((*path, key.value), item))

    def _place(self, path: tuple) -> tuple[str, int]:
        """File and line of the key, or of the nearest one above it that is written down; line 0 where none is."""
        deepest, best = 0, (", ".join(self.files) or "configuration", 0)
        for file, tree in self._trees:
            depth, node, line = 0, tree, 1
            for part in path:
                if isinstance(node, yaml.MappingNode):
                    found = [(key, item) for key, item in node.value if key.value == str(part)]
                    if not found:
                        break
                    line, node = found[-1][0].start_mark.line + 1, found[-1][1]
                elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                    node = node.value[part]
                    line = node.start_mark.line + 1
                else:
                    break
                depth += 1
            if depth >= max(deepest, 1):
                deepest, best = depth, (file, line)
        return best

    def __str__(self) -> str:
        count = "1 fault" if len(self.entries) == 1 else f"{len(self.entries)} faults"
        placed = sorted((self._place(path), _dotted(path), message) for path, message in self.entries)
        lines = [f"{file}{f':{line}' if line else ''}: {key}: {message}" for (file, line), key, message in placed]
        return "\n  ".join([f"{count} in the configuration:", *lines])


def _dotted(path: tuple) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "top level"


def _kind(value) -> str:
    names = {str: "a string", bool: "true or false", int: "an integer", float: "a number", dict: "a section of keys"}
    return "nothing (null)" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _one_of(values) -> str:
    return ", ".join(json.dumps(value) if not isinstance(value, str) else value for value in values) or "none"


def _closest(name, names) -> str:
    close = difflib.get_close_matches(str(name), [str(known) for known in names], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: jsonschema.ValidationError, faults: _Faults, path: tuple | None = None) -> None:
    """Turn one error of the validator into what a person needs: the value, what is allowed, the likely slip."""
    value, rule, limit = error.instance, error.validator, error.validator_value
    path = tuple(error.absolute_path) if path is None else path
    shown = json.dumps(value, ensure_ascii=False)
    if rule == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        for key in value:
            if key not in known:
                faults.add((*path, key), f"unknown key{_closest(key, known)} (allowed: {_one_of(known)})")
    elif rule == "required":
        for key in limit:
            if key not in value:
                faults.add(path, f"{key} is missing")
    elif rule == "type":
        wanted = " or ".join(_ALLOWED[kind] for kind in ([limit] if isinstance(limit, str) else limit))
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"[-+]?[\d_]*\.?\d+([eE][-+]?\d+)?", value.strip()):
            hint = f"; YAML reads it as text: write {_yaml_number(value)}"
        faults.add(path, f"{shown} is {_kind(value)}, expected {wanted}{hint}")
    elif rule == "enum":
        faults.add(path, f"{shown} is not one of {_one_of(limit)}{_closest(value, limit)}")
    elif rule == "pattern":
        faults.add(path, f"{shown} is no name: allowed are {_PATTERNS[limit]}")
    elif rule in _BOUNDS:
        faults.add(path, f"{shown} is out of range, {_BOUNDS[rule].format(limit)}")
    elif rule == "uniqueItems":
        faults.add(path, f"{shown} names something twice")
    else:
        faults.add(path, error.message)


_ALLOWED = {
    "object": "a section of keys",
    "array": "a list",
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "null": "null",
}
_BOUNDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "minLength": "must not be empty",
    "minItems": "needs at least {} entry",
    "minProperties": "needs at least {} entry",
}
_PATTERNS = {
    "^[a-z0-9][a-z0-9-]*$": "small letters, digits and hyphens, not a hyphen first",
    "^[A-Za-z0-9][A-Za-z0-9_-]*$": "letters, digits, hyphens and underscores",
}


def _yaml_number(text: str) -> str:
    """`5e-7` as YAML 1.1 wants it: 5.0e-7."""
    mantissa, mark, exponent = text.strip().lower().replace("_", "").partition("e")
    if not mark:
        return mantissa
    return f"{float(mantissa)}e{exponent if exponent[0] in '+-' else '+' + exponent}"


# Cross-references, and checks that need more than one key


def _entries(settings: dict, section: str, faults: _Faults) -> list[tuple[str, dict]]:
    """The entries of a section that the schema found nothing wrong with."""
    entries = settings.get(section)
    if not isinstance(entries, dict):
        return []
    return [(name, entry) for name, entry in entries.items() if faults.none_under(section, name)]


def _check_references(settings: dict, faults: _Faults) -> None:
    """Names that stand in one section and must be defined in another."""
    wanted = [
        (("experiments", name, section, index), entry, section)
        for name, experiment in _entries(settings, "experiments", faults)
        for section in ("bases", "datasets", "noise", "recipes")
        for index, entry in enumerate(experiment[section])
    ]
    for name, base in _entries(settings, "bases", faults):
        if "scratch" in base:
            wanted.append((("bases", name, "scratch", "dataset"), base["scratch"]["dataset"], "datasets"))
    if faults.none_under("evaluation"):
        for index, name in enumerate(settings["evaluation"]["preference"]["datasets"]):
            wanted.append((("evaluation", "preference", "datasets", index), name, "datasets"))
    for path, name, section in wanted:
        entries = settings.get(section)
        names = [CLEAN] * (section == "noise") + list(entries if isinstance(entries, dict) else {})
        if name not in names:
            faults.add(
                path, f"{name} is not defined under {section}{_closest(name, names)} (defined: {_one_of(names)})"
            )


def _check_values(settings: dict, faults: _Faults) -> None:
    """What one key's schema cannot say: relations between keys, and files that must exist."""
    if CLEAN in (settings.get("noise") or {}):
        faults.add(("noise", CLEAN), f"{CLEAN} is the name of a dataset without noise; choose another")
    for name, dataset in _entries(settings, "datasets", faults):
        if dataset["kind"] != "world" and is_local(dataset["path"]) and not Path(dataset["path"]).is_file():
            faults.add(
                ("datasets", name, "path"), f"{dataset['path']}: no such file; give a .jsonl, .jsonl.gz or .parquet"
            )
    for name, base in _entries(settings, "bases", faults):
        if "scratch" in base:
            size, heads = base["scratch"]["hidden_size"], base["scratch"]["heads"]
            if size % heads:
                faults.add(("bases", name, "scratch", "hidden_size"), f"{size} is no multiple of heads ({heads})")
        elif is_local(base["model"]) and not (Path(base["model"]) / "config.json").is_file():
            faults.add(
                ("bases", name, "model"),
                f"{base['model']} is no checkpoint; give a folder with config.json, weights and tokenizer, or a hub name",
            )
    if faults.none_under("tokens"):
        prompt, total = settings["tokens"]["max_prompt_length"], settings["tokens"]["max_length"]
        if prompt >= total:
            faults.add(
                ("tokens", "max_prompt_length"),
                f"{prompt} leaves no room for a completion; must be less than max_length ({total})",
            )
    if faults.none_under("evaluation"):
        for name, task in settings["evaluation"]["benchmarks"]["tasks"].items():
            _check_task(("evaluation", "benchmarks", "tasks", name), task, faults)
    if faults.none_under("resources"):
        launch = settings["resources"]["train"]["launch"]
        if launch is not None and not (ROOT / launch).is_file():
            faults.add(("resources", "train", "launch"), f"{launch}: no such file in {ROOT}")
        if launch is None and _devices(settings) > 1:
            faults.add(
                ("resources", "train"),
                f"{_devices(settings)} GPUs need launch: a file such as config/accelerate/ddp.yaml, which starts a process for each",
            )


def _check_task(path: tuple, task: dict, faults: _Faults) -> None:
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


def _check_batches(settings: dict, recipes: dict, faults: _Faults) -> None:
    if not faults.none_under("resources"):
        return
    devices = _devices(settings)
    for name, recipe in recipes.items():
        training = recipe["training"]
        at_once = training["micro_batch_size"] * devices
        if training["batch_size"] % at_once:
            own = settings["recipes"][name]["training"].keys() & {"batch_size", "micro_batch_size"}
            faults.add(
                (*(("recipes", name) if own else ()), "training", "batch_size"),
                f"{training['batch_size']} is no multiple of {at_once}, which is micro_batch_size"
                f" ({training['micro_batch_size']}) times the devices of rule train ({devices})",
            )


# Runs


def _runs(name: str, experiment: dict, recipes: dict, faults: _Faults) -> Iterator[Run]:
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


def _sweep(name: str, sweep: dict, recipes: dict, path: tuple, faults: _Faults) -> list[str]:
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
                    (*path, key), f"recipe {name} has no such key{_closest(key, known)} (sweeps take: {_one_of(known)})"
                )
                return []
            place[last] = value
        recipe = _fill(schema, recipe)
        for error in _validator().evolve(schema=schema).iter_errors(recipe):
            key = ".".join(str(part) for part in error.absolute_path)
            _explain(error, faults, (*path, key) if key in sweep else path)
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
