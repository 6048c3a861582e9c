"""From experiments and their sweeps to runs."""

import dataclasses
import itertools
import json
from collections.abc import Iterator

from pydantic import ValidationError

from lpc.config.faults import Faults, closest, explain_all, one_of
from lpc.config.keys import Role
from lpc.config.models import CLEAN, Experiment, Recipe, dump
from lpc.layout import noisy

LONGEST = 255
"""Bytes of a file name, on every common file system."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One base, one dataset variant, one recipe, one seed: trained once, however many experiments name it."""

    base: str
    dataset: str
    noise: str
    recipe: str
    seed: int

    @property
    def variant(self) -> str:
        return self.dataset if self.noise == CLEAN else noisy(self.dataset, self.noise)


def runs_of(name: str, experiment: Experiment, recipes: dict[str, Recipe], faults: Faults) -> Iterator[Run]:
    """Yield the runs of one experiment; the recipes that its sweep makes are added to `recipes`."""
    swept = []
    for recipe in experiment.recipes:
        if recipe in recipes:
            swept += _sweep(recipe, experiment.sweep, recipes, ("experiments", name, "sweep"), faults)
    for key in itertools.product(experiment.bases, experiment.datasets, experiment.noise, swept, experiment.seeds):
        run = Run(*key)
        # The longest name of a file is that of a log: all parts of the run, and the data set that it is scored on.
        if len("~".join([run.base, run.variant, run.recipe, str(run.seed), "x" * 40]).encode()) > LONGEST:
            faults.add(
                ("experiments", name, "sweep"),
                f"the name {run.recipe} is too long for a file; sweep fewer keys at once, or shorten the names",
            )
            return
        yield run


def _sweep(name: str, sweep: dict, recipes: dict[str, Recipe], path: tuple, faults: Faults) -> list[str]:
    """Names of the recipes that `name` becomes, one for each combination of the swept values.

    A value equal to the recipe's own leaves its name alone, so that its runs are shared with other experiments.
    """
    own = recipes[name].model_dump()
    known = _leaves(dump(recipes[name], Role.SCIENCE, Role.INFERENCE))  # a sweep over other keys would compare nothing
    for key in sweep:
        if key not in known:
            faults.add(
                (*path, key), f"recipe {name} has no such key{closest(key, known)} (sweeps take: {one_of(known)})"
            )
            return []
    names = []
    for combination in itertools.product(*sweep.values()):
        changed = recipes[name].model_dump()
        for key, value in zip(sweep, combination, strict=True):
            place, last = _find(changed, key)
            place[last] = value
        try:
            recipe = Recipe.model_validate(changed)
        except ValidationError as error:
            for found, message in explain_all(error, Recipe):
                key = ".".join(str(part) for part in found)
                faults.add((*path, key) if key in sweep else path, message)
            continue
        swept = recipe.model_dump()
        derived = name
        for key in sweep:
            (before, last), (after, _) = _find(own, key), _find(swept, key)
            if before[last] != after[last]:
                derived += f"+{key}={after[last] if isinstance(after[last], str) else json.dumps(after[last])}"
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
