"""Runs of the configuration: their settings, their names in tables, and which of them are compared."""

from lpc import latents


def resolve(runs: list[dict], recipes: dict[str, dict], datasets: list[str]) -> list[dict]:
    """Return the runs of a spec, each with its recipe's settings, and its `heldout` data sets.

    Args:
        runs: as the rules list them.
        recipes: by name, each with sections objective, latent and training.
        datasets: held-out data sets besides the one that a run was trained on.
    """
    return [
        {
            **run,
            **{section: recipes[run["recipe"]][section] for section in ("objective", "latent", "training")},
            "heldout": list(dict.fromkeys([run["dataset"], *datasets])),
        }
        for run in runs
    ]


def names(run: dict) -> dict:
    """Return the columns that name a run in a table."""
    return {
        **{name: run[name] for name in ("base", "variant", "recipe", "seed")},
        "objective": run["objective"]["name"],
        "latent": latent_kind(run),
    }


def latent_kind(run: dict) -> str | None:
    """Return the kind of a run's latent; None for a plain run."""
    return run["latent"]["kind"] if run["latent"] else None


def has_codes(kind: str | None) -> bool:
    """Tell whether a kind of latent, or None for a plain run, has codes."""
    return kind is not None and latents.kind(kind).has_codes


def has_posterior(kind: str | None) -> bool:
    """Tell whether a kind of latent has a posterior, so that its KL divergence is a measure."""
    return kind is not None and latents.kind(kind).has_posterior


def setting(run: dict, key: str):
    """Return the value at a dotted key of a run's settings."""
    for part in key.split("."):
        run = run[part]
    return run


def opponents(run: dict, runs: list[dict]) -> list[tuple[dict, list[str]]]:
    """Return the runs to compare `run` with, and for each the settings beyond the latent in which the two differ.

    A run with a latent is compared with the plain run, one with codes also with each kind of control. They share base,
    variant, seed and objective. Of several runs of one kind, the one with the fewest differences is taken.
    """
    kind = latent_kind(run)
    if kind is None:
        return []
    closest: dict[str | None, tuple[dict, list[str]]] = {}
    for other in runs:
        same = all(other[name] == run[name] for name in ("base", "variant", "seed"))
        against = latent_kind(other)
        if not same or other["objective"]["name"] != run["objective"]["name"] or against == kind:
            continue
        if against is None or (has_codes(kind) and not has_codes(against)):
            found = differences(run, other)
            best = closest.get(against)
            if best is None or (len(found), other["recipe"]) < (len(best[1]), best[0]["recipe"]):
                closest[against] = (other, found)
    return [closest[against] for against in sorted(closest, key=str)]


def differences(run: dict, other: dict) -> list[str]:
    """Return dotted keys of objective, training and latent in which two runs differ.

    Of the latent they are the keys that both kinds have: in these a control should not differ. The number of codes is
    the subject of the comparison.
    """
    found = []
    for section in ("objective", "training", "latent"):
        mine, theirs = run[section] or {}, other[section] or {}
        shared = (
            (mine.keys() & theirs.keys()) - {"kind", "codes"} if section == "latent" else mine.keys() | theirs.keys()
        )
        found += [f"{section}.{key}" for key in sorted(shared) if mine.get(key) != theirs.get(key)]
    return found
