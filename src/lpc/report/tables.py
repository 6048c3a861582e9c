"""The tables of a project: lists of rows (dicts) read from its results, and CSV in and out.

Every run of the configuration has its row in every table that concerns it; where its result is absent, the row's
`status` says which file is missing. `run` below is a run as `resolve` gives it; `results` is the project's folder.
"""

import csv
import io
import itertools
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from lpc import files
from lpc.evaluation import diagnostics, statistics

RUN = ["base", "variant", "recipe", "objective", "latent", "seed"]
ACCURACIES = ["accuracy_zero", "accuracy_shuffled", "accuracy_posterior", "accuracy_posterior_swapped"]
ASPECTS = ["instruction_following", "honesty", "truthfulness", "helpfulness"]
# Settings that a latent with codes and one without have in common: in these a control should not differ.
LATENT_KEYS = {"width", "learning_rate", "standardize", "detach", "latent_first"}
COLUMNS = {
    "preference_accuracy": [
        "base", "dataset", "variant", "recipe", "objective", "latent", "seed", "n", "accuracy", "low", "high",
        "longer_accuracy", "ties", "dropped", "mean_margin", *ACCURACIES, "status",
    ],
    "comparisons": [
        "base", "dataset", "variant", "recipe", "against", "objective", "latent", "against_latent", "differs", "seed",
        "seeds", "n", "prompts", "difference", "low", "high", "seeds_low", "seeds_high", "wins", "losses", "mcnemar_p",
        "status",
    ],
    "benchmarks": [
        "base", "variant", "recipe", "objective", "latent", "seed", "task", "metric", "primary", "value", "stderr", "n",
        "status",
    ],
    "latents": [
        *RUN, "codes", "prompts", "kl", "mutual_information", "source_entropy", "prior_perplexity",
        "mean_prior_perplexity", "posterior_perplexity", "dead_codes", "z_norm", "h_norm", "z_spread", "h_spread",
        "nmi_code_source", "nmi_z_kmeans_source", "nmi_h_kmeans_source", "probe_z_source", "probe_h_source",
        "probe_chance", "accuracy", *ACCURACIES, "status",
    ],
    "codes": [*RUN, "code", "source", "prompts", "mean_prior", "strongest"],
    "code_correlations": [*RUN, "code", "measure", "n", "prior_correlation", "posterior_correlation"],
    "selection": [
        "experiment", "base", "variant", "recipe", "key", "value", "seeds", "n", "validation_accuracy", "low", "high",
        "chosen", "test_accuracy", "status",
    ],
    "training": [
        *RUN, "steps", "pairs", "dropped", "tokens", "seconds", "seconds_per_step", "tokens_per_second",
        "peak_memory_gib", "parameters", "latent_parameters", "first_loss", "last_loss", "device", "processes",
        "status",
    ],
    "cost": ["rule", "job", "seconds", "cpu_seconds", "max_rss_mib"],
}  # fmt: skip


def write(folder: str | Path, name: str, rows: list[dict]) -> None:
    """Write `<name>.csv` with the table's columns; numbers with up to eight decimals, None as an empty field."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS[name], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: round(value, 8) if isinstance(value, float) else value for key, value in row.items()})
    files.write_text(Path(folder) / f"{name}.csv", stream.getvalue())


def read(folder: str | Path, name: str) -> list[dict]:
    """Rows of `<name>.csv`: numbers as int or float, an empty field as None."""
    path = Path(folder) / f"{name}.csv"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [{key: _parse(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError:
        raise files.UserError(f"{path}: no such file; run the tables step first") from None


def _parse(text: str):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def resolve(runs: list[dict], recipes: dict[str, dict], datasets: list[str]) -> list[dict]:
    """Runs of a spec with their recipe's objective, latent and training, their `folder` and the datasets they were
    `heldout` on.
    """
    return [
        {
            **run,
            **{section: recipes[run["recipe"]][section] for section in ("objective", "latent", "training")},
            "folder": f"runs/{run['path']}",
            "heldout": list(dict.fromkeys([run["dataset"], *datasets])),
        }
        for run in runs
    ]


def keys(run: dict) -> dict:
    """The columns that name a run."""
    return {
        **{name: run[name] for name in ("base", "variant", "recipe", "seed")},
        "objective": run["objective"]["name"],
        "latent": latent_kind(run),
    }


def latent_kind(run: dict) -> str | None:
    return run["latent"]["kind"] if run["latent"] else None


def _load(results: Path, path: str) -> tuple[dict, str]:
    """A JSON file of the results and "ok", or {} and what is missing."""
    if not (results / path).exists():
        return {}, f"missing: {path}"
    return files.read_json(results / path), "ok"


def _select(name: str, *sources: dict) -> dict:
    """The columns of table `name` out of several dicts, the later winning."""
    merged = {key: value for source in sources for key, value in source.items()}
    return {key: merged[key] for key in COLUMNS[name] if key in merged}


class Rewards:
    """Outcome of each test pair of a run on a dataset, read once."""

    def __init__(self, results: Path) -> None:
        self.results, self.cache = results, {}

    def __call__(self, run: dict, dataset: str, latent: str = "") -> pa.Table | None:
        """Columns pair_id, prompt_id, outcome, ordered by pair_id; None where the file is missing. `latent` is "" for
        z of the prior, "_zero" for z = 0."""
        path = self.results / run["folder"] / "preference" / f"{dataset}.parquet"
        if (path, latent) not in self.cache:
            table = None
            if path.exists():
                rewards = [f"chosen_reward{latent}", f"rejected_reward{latent}"]
                table = files.read_parquet(path, ["pair_id", "prompt_id", *rewards])
                outcome = statistics.outcomes(*(table[name] for name in rewards))
                table = (
                    table.select(["pair_id", "prompt_id"])
                    .append_column("outcome", pa.array(outcome))
                    .sort_by("pair_id")
                )
            self.cache[path, latent] = table
        return self.cache[path, latent]


def preference_accuracy(results: Path, runs: list[dict], rewards: Rewards) -> list[dict]:
    rows = []
    for run in runs:
        for dataset in run["heldout"]:
            summary, status = _load(results, f"{run['folder']}/preference/{dataset}.json")
            interval, pairs = {}, rewards(run, dataset)
            if pairs is not None and len(pairs):
                found = statistics.accuracy_interval(pairs["outcome"].to_numpy(), pairs["prompt_id"].to_pylist())
                interval = {"low": found.low, "high": found.high}
            rows.append(
                _select("preference_accuracy", summary, interval, keys(run), {"dataset": dataset, "status": status})
            )
    return rows


def opponents(run: dict, runs: list[dict]) -> list[tuple[dict, list[str]]]:
    """The runs that `run` is held against, each with the settings in which they differ beyond the latent.

    A run with a latent is held against the plain run, one with codes also against each control: same base, variant,
    seed and objective, and of those of one kind the one that shares most settings.
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
        if against is None or (kind == "lpc" and against != "lpc"):
            differs = differences(run, other)
            if against not in closest or (len(differs), other["recipe"]) < (
                len(closest[against][1]), closest[against][0]["recipe"]
            ):  # fmt: skip
                closest[against] = (other, differs)
    return [closest[against] for against in sorted(closest, key=str)]


def differences(run: dict, other: dict) -> list[str]:
    """Dotted keys of objective and training, and of the latent where both have one, in which two runs differ."""
    found = []
    for section in ("objective", "training", "latent"):
        mine, theirs = run[section] or {}, other[section] or {}
        shared = mine.keys() & theirs.keys() & LATENT_KEYS if section == "latent" else mine.keys() | theirs.keys()
        found += [f"{section}.{key}" for key in sorted(shared) if mine.get(key) != theirs.get(key)]
    return found


def comparisons(results: Path, runs: list[dict], rewards: Rewards) -> list[dict]:
    """Pair by pair, each latent run against its opponents and against itself with z = 0
    (`against_latent` is "zero"): a row a seed, then one of the mean over seeds.

    `low`, `high`: 95 % bootstrap interval over test prompts. `seeds_low`, `seeds_high`: 95 % t interval over seeds,
    from two seeds on.
    """
    rows, over_seeds = [], defaultdict(list)
    for run in runs:
        opposed = opponents(run, runs)
        for dataset in run["heldout"]:
            contests = [
                (other["recipe"], latent_kind(other), differs, rewards(other, dataset)) for other, differs in opposed
            ]
            if latent_kind(run):
                contests.append((f"{run['recipe']} with z = 0", "zero", [], rewards(run, dataset, "_zero")))
            for against, against_latent, differs, other_rewards in contests:
                names = {
                    **keys(run), "dataset": dataset, "against": against, "against_latent": against_latent,
                    "differs": " ".join(differs),
                }  # fmt: skip
                row, paired = _compare(rewards(run, dataset), other_rewards)
                rows.append({**names, "seeds": 1, **row})
                group = tuple(value for key, value in names.items() if key != "seed")
                if paired is not None:
                    over_seeds[group].append((names, paired))
            if latent_kind(run) and not any(latent_kind(other) is None for other, _ in opposed):
                status = "no plain run of the same base, data, objective and seed"
                rows.append({**keys(run), "dataset": dataset, "seeds": 0, "status": status})
    means = []
    for group in over_seeds.values():
        names = {**group[0][0], "seed": "mean", "seeds": len(group)}
        means.append({**names, **_mean_over_seeds([paired for _, paired in group])})
    return rows + means


def _compare(mine: pa.Table | None, theirs: pa.Table | None) -> tuple[dict, pa.Table | None]:
    """One seed's row, and the table of pair_id, prompt_id and difference that it rests on."""
    if mine is None or theirs is None:
        return {"status": "missing: rewards of " + ("this run" if mine is None else "the other run")}, None
    both = mine.join(theirs.rename_columns(["pair_id", "other_prompt", "other"]), "pair_id", join_type="inner")
    if not len(both):
        return {"n": 0, "status": "no pair in common"}, None
    difference = both["outcome"].to_numpy() - both["other"].to_numpy()
    paired = both.select(["pair_id", "prompt_id"]).append_column("difference", pa.array(difference)).sort_by("pair_id")
    wins, losses, p = statistics.mcnemar(difference)
    alone = len(mine) + len(theirs) - 2 * len(both)
    row = {
        **_interval(paired), "wins": wins, "losses": losses, "mcnemar_p": p,
        "status": f"ok but {alone} pairs scored in one run only" if alone else "ok",
    }  # fmt: skip
    return row, paired


def _interval(paired: pa.Table) -> dict:
    found = statistics.paired_bootstrap(paired["difference"].to_numpy(), paired["prompt_id"].to_pylist())
    prompts = len(set(paired["prompt_id"].to_pylist()))
    return {"n": len(paired), "prompts": prompts, "difference": found.estimate, "low": found.low, "high": found.high}


def _mean_over_seeds(seeds: list[pa.Table]) -> dict:
    """The mean difference: over prompts by the bootstrap of each pair's mean over seeds, over seeds by Student's t."""
    stacked = pa.concat_tables(seeds).group_by(["pair_id", "prompt_id"]).aggregate([("difference", "mean")])
    stacked = stacked.rename_columns({"difference_mean": "difference"}).sort_by("pair_id")
    row = {**_interval(stacked), "status": "ok"}
    over_seeds = statistics.t_interval([table["difference"].to_numpy().mean() for table in seeds])
    if over_seeds:
        row.update(difference=over_seeds.estimate, seeds_low=over_seeds.low, seeds_high=over_seeds.high)
    return row


def benchmarks(results: Path, runs: list[dict], tasks: list[str]) -> list[dict]:
    """A row a metric, of each base by itself and of each run."""
    rows = []
    bases = dict.fromkeys(run["base"] for run in runs)
    base_models = [({"base": base, "recipe": "base"}, f"bases/{base}") for base in bases]
    for names, folder in [*base_models, *((keys(run), run["folder"]) for run in runs)]:
        for task in tasks:
            scores, status = _load(results, f"{folder}/benchmarks/{task}.json")
            common = {**names, "task": task, "n": scores.get("n"), "status": status}
            if not scores:
                rows.append(common)
            for metric, score in scores.get("metrics", {}).items():
                values = {"metric": metric, "value": score["value"], "stderr": score.get("stderr")}
                rows.append({**common, **values, "primary": int(metric == scores["primary"])})
    return rows


def latents(results: Path, runs: list[dict]) -> list[dict]:
    rows = []
    for run in runs:
        if latent_kind(run):
            measures, status = _load(results, f"{run['folder']}/latents.json")
            accuracy, _ = _load(results, f"{run['folder']}/preference/{run['dataset']}.json")
            rows.append(_select("latents", accuracy, measures, keys(run), {"status": status}))
    return rows


def codes(results: Path, runs: list[dict]) -> list[dict]:
    """Use of each code by each source over distinct test prompts: its mean prior, and how often it is the strongest."""
    rows = []
    for run, table in _with_codes(results, runs):
        table = table.take(diagnostics.distinct(table["prompt_id"].to_pylist()))
        prior, source = np.stack(table["prior"].to_numpy()), np.asarray(table["source"].to_pylist())
        strongest = np.eye(prior.shape[1])[prior.argmax(axis=1)]
        for name in sorted(set(source.tolist())):
            chosen = source == name
            for code, (mean, share) in enumerate(zip(prior[chosen].mean(0), strongest[chosen].mean(0), strict=True)):
                values = {"prompts": int(chosen.sum()), "mean_prior": float(mean), "strongest": float(share)}
                rows.append({**keys(run), "code": code, "source": name, **values})
    return rows


def code_correlations(results: Path, runs: list[dict]) -> list[dict]:
    """Spearman correlation over test pairs of each code's prior and posterior with what sets chosen apart from
    rejected.

    Measures: `length`, chosen minus rejected tokens; and chosen minus rejected score of each aspect that the data has.
    """
    rows, aspects = [], {}
    for run, table in _with_codes(results, runs):
        if run["dataset"] not in aspects:
            aspects[run["dataset"]] = _aspect_differences(results / "data" / run["dataset"] / "pairs.parquet")
        length = table["chosen_tokens"].to_numpy().astype(float) - table["rejected_tokens"].to_numpy()
        ids = table["pair_id"].to_pylist()
        measures = {"length": length}
        for name, values in aspects[run["dataset"]].items():
            measures[name] = np.array([values.get(pair, np.nan) for pair in ids])
        for measure, values in measures.items():
            known = np.isfinite(values)
            if known.sum() < 3:
                continue
            found = {
                kind: spearman(np.stack(table[kind].to_numpy())[known], values[known])
                for kind in ("prior", "posterior")
            }
            for code, (prior, posterior) in enumerate(zip(found["prior"], found["posterior"], strict=True)):
                values_of_code = {"prior_correlation": prior, "posterior_correlation": posterior, "n": int(known.sum())}
                rows.append({**keys(run), "code": code, "measure": measure, **values_of_code})
    return rows


def _with_codes(results: Path, runs: list[dict]):
    for run in runs:
        path = results / run["folder"] / "latents.parquet"
        if latent_kind(run) == "lpc" and path.exists():
            columns = ["pair_id", "prompt_id", "source", "prior", "posterior", "chosen_tokens", "rejected_tokens"]
            yield run, files.read_parquet(path, columns)


def _aspect_differences(path: Path) -> dict[str, dict[str, float]]:
    """Chosen minus rejected score of each aspect by pair; {} without data or without aspects."""
    if not path.exists():
        return {}
    table = files.read_parquet(path, ["pair_id", "split", "chosen_aspects", "rejected_aspects"])
    found: dict[str, dict[str, float]] = {}
    for pair in table.filter(pa.compute.equal(table["split"], "test")).to_pylist():
        chosen, rejected = pair["chosen_aspects"] or {}, pair["rejected_aspects"] or {}
        for name in ASPECTS:
            if chosen.get(name) is not None and rejected.get(name) is not None:
                found.setdefault(name, {})[pair["pair_id"]] = chosen[name] - rejected[name]
    return found


def spearman(columns: np.ndarray, values: np.ndarray) -> list[float | None]:
    """Rank correlation of each column of [N, K] with [N]; None where either does not vary."""
    ranks, other = rankdata(columns, axis=0), rankdata(values)
    ranks, other = ranks - ranks.mean(axis=0), other - other.mean()
    scale = np.sqrt((ranks**2).sum(axis=0) * (other**2).sum())
    return [float(r @ other / s) if s > 0 else None for r, s in zip(ranks.T, scale, strict=True)]


def at(settings: dict, key: str):
    """The value at a dotted key."""
    for part in key.split("."):
        settings = settings[part]
    return settings


def selection(results: Path, runs: list[dict], sweeps: dict[str, list]) -> list[dict]:
    """Each setting of each sweep with its accuracy on validation pairs, and which one that chooses.

    sweeps: by experiment, [key, values] of each swept key, in the configuration's order. Settings compete within one
    base, data variant and recipe, by `choose`, once all their runs are there. `low`, `high`: 95 % t interval over
    seeds, of one seed that over validation pairs. The test accuracy is read of the chosen setting alone.
    """
    rows = []
    for experiment, sweep in sweeps.items():
        keys = [key for key, _ in sweep]
        contests = defaultdict(lambda: defaultdict(list))
        for run in runs:
            if experiment in run["experiments"]:
                names = (run["base"], run["variant"], run["recipe"].split("+")[0])
                contests[names][tuple(at(run, key) for key in keys)].append(run)
        for (base, variant, recipe), runs_of in contests.items():
            names = {"experiment": experiment, "base": base, "variant": variant, "recipe": recipe}
            settings = itertools.product(*(values for _, values in sweep))
            rows += [{**names, **row} for row in _contest(results, keys, [runs_of[values] for values in settings])]
    return rows


def _contest(results: Path, keys: list[str], settings: list[list[dict]]) -> list[dict]:
    """A row for each setting, given as its runs (one a seed), in the configuration's order."""
    rows = [_validation(results, runs) for runs in settings]
    complete = all(row["status"] == "ok" for row in rows)
    best = choose([row["validation_accuracy"] for row in rows]) if complete else None
    for i, (row, runs) in enumerate(zip(rows, settings, strict=True)):
        row |= {"key": " ".join(keys), "value": " ".join(_written(at(runs[0], key)) for key in keys)}
        if complete:
            row["chosen"] = int(i == best)
        if i == best:
            row["test_accuracy"] = _mean([_load(results, _preference(run))[0]["accuracy"] for run in runs])
    return rows


def choose(accuracies: list[float]) -> int:
    """Position of the highest validation accuracy; of equal ones the first."""
    return accuracies.index(max(accuracies))


def _validation(results: Path, runs: list[dict]) -> dict:
    """Mean validation accuracy of one setting over its seeds; without it where a run is missing."""
    found, states = zip(*(_load(results, _preference(run)) for run in runs), strict=True)
    missing = [status for status in states if status != "ok"]
    if missing:
        return {"seeds": len(runs), "status": missing[0]}
    parts = [summary["validation"] for summary in found]
    accuracies = [part["accuracy"] for part in parts]
    over_seeds = statistics.t_interval(accuracies)
    low, high = parts[0]["low"], parts[0]["high"]
    if over_seeds:
        low, high = max(over_seeds.low, 0.0), min(over_seeds.high, 1.0)
    row = {"seeds": len(runs), "n": parts[0]["n"], "validation_accuracy": _mean(accuracies), "low": low, "high": high}
    return {**row, "status": "ok"}


def _preference(run: dict) -> str:
    return f"{run['folder']}/preference/{run['dataset']}.json"


def _mean(values: list[float]) -> float:
    """Exact before the division, so that the order of seeds makes no difference and a tie is one."""
    return math.fsum(values) / len(values)


def _written(value) -> str:
    """A value as recipes are named by it."""
    return value if isinstance(value, str) else json.dumps(value)


def training(results: Path, runs: list[dict]) -> list[dict]:
    rows = []
    for run in runs:
        summary, status = _load(results, f"{run['folder']}/train.json")
        rows.append(_select("training", summary, keys(run), {"status": status}))
    return rows


def cost(results: Path) -> list[dict]:
    """Time and peak memory of each job, from Snakemake's benchmark files (timing/<rule>/<job>.tsv)."""
    rows = []
    for path in sorted((results / "timing").rglob("*.tsv")):
        rule, *_ = path.relative_to(results / "timing").parts
        with path.open(encoding="utf-8", newline="") as stream:
            for measured in csv.DictReader(stream, delimiter="\t"):
                # Snakemake writes "NA" or "-" for a job that was too short to be measured.
                number = {key: _parse(value) for key, value in measured.items()}
                number = {key: value if isinstance(value, (int, float)) else None for key, value in number.items()}
                job = (
                    path.relative_to(results / "timing" / rule).with_suffix("").as_posix() if rule != path.name else ""
                )
                rows.append(
                    {
                        "rule": rule.removesuffix(".tsv"), "job": job, "seconds": number.get("s"),
                        "cpu_seconds": number.get("cpu_time"), "max_rss_mib": number.get("max_rss"),
                    }
                )  # fmt: skip
    return rows
