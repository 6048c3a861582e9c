"""The top of the page: does LPC help here, by how much, is the latent used, and what does it cost."""

from collections import defaultdict

import numpy as np

from lpc.report import figures
from lpc.report.page import Answer, Figure
from lpc.report.results import MOST_RECIPES, Results, in_words, verdict
from lpc.report.runs import has_codes
from lpc.report.words import count, duration, listed, number, objective, percent, span

# Below this many nats the prior is called collapsed: it distinguishes prompts like 1.05 equally likely groups.
UNUSED = 0.05


def answer(results: Results) -> Answer:
    """Return the top of the page."""
    rows, benchmarks = results.comparisons(), abilities(results)
    if not rows and any(has_codes(row["latent"]) and row["against"] for row in results.tables["comparisons"]):
        why = "No plain run and its counterpart with LPC are both scored. The end of the page lists missing results."
        return Answer("LPC is not compared with plain training yet", _said(why, benchmarks), facts(results))
    if not rows:
        why = (
            "A comparison needs two recipes with the same objective, one with a latent that has codes and one without "
            "a latent, trained on the same base, data and seed."
        )
        return Answer("These results do not compare LPC with plain training", _said(why, benchmarks), facts(results))
    spread = seed_spread(results.accuracy())
    findings = _said(
        effects(rows),
        benchmarks,
        caution(rows),
        people(results),
        latent(results),
        controls(results),
        cost(results),
    )
    title = headline(rows, spread)
    if of_people_alone(rows, results.tables["person"]):
        title += ", with no pair of a person known"
    return Answer(title, findings, facts(results), differences(results, rows))


def _said(*findings: str) -> list[str]:
    return [finding for finding in findings if finding]


def of_people_alone(rows: list[dict], person: list[dict]) -> bool:
    """Return whether all comparisons are on data whose people can be known, where z from the prior knows nobody."""
    return {row["variant"] for row in rows} <= {row["variant"] for row in person}


def seed_spread(rows: list[dict]) -> tuple[str, int, float] | None:
    """Return recipe, number of seeds and range in points of the plain recipe whose seeds differ most; None without any.

    rows: accuracy over seeds, as `Results.accuracy` returns it. The range is a measure of training noise alone.
    """
    found = [
        (row["recipe"], len(row["seeds"]), max(row["seeds"]) - min(row["seeds"]))
        for row in rows
        if row["latent"] is None and len(row["seeds"]) > 1
    ]
    return max(found, key=lambda each: each[2], default=None)


def headline(rows: list[dict], spread: tuple[str, int, float] | None = None) -> str:
    """Return the conclusion in one line. Only comparisons over several seeds support an effect.

    spread: as of `seed_spread`; it stands beside differences of one seed.
    """
    several = [row for row in rows if row["seeds"] > 1]
    if not several:
        points = span([100 * row["difference"] for row in rows], sign=True)
        where = f" in {len(rows)} comparisons" if len(rows) > 1 else ""
        noise = "run-to-run variance is unknown"
        if spread is not None:
            recipe, seeds, size = spread
            noise = f"{seeds} seeds of {recipe} alone differ by {number(size)}"
        return f"One seed: accuracy with LPC minus without is {points} points{where}; {noise}"
    higher, lower = (sum(verdict(row) == sign for row in several) for sign in (1, -1))
    if not higher and not lower:
        return "LPC made no measurable difference to preference accuracy"
    if higher and lower:
        return f"LPC raised preference accuracy in {higher} and lowered it in {lower} of {len(several)} comparisons"
    word, n = ("raised", higher) if higher else ("lowered", lower)
    if n == len(several):
        return f"LPC {word} preference accuracy" + (" in every comparison" if n > 1 else "")
    rest = "the other" if n == len(several) - 1 else "the others"
    return (
        f"LPC {word} preference accuracy in {n} of {len(several)} comparisons, with no measurable difference in {rest}"
    )


def effects(rows: list[dict]) -> str:
    """Return the differences in words."""
    if len(rows) > 3:
        points = span([100 * row["difference"] for row in rows], sign=True)
        return f"On the same test pairs, accuracy with LPC minus without is {points} points in {len(rows)} comparisons."
    several = len({row["base"] for row in rows}) > 1
    return "On the same test pairs, " + "; ".join(f"on {row['base']} " * several + in_words(row) for row in rows) + "."


def abilities(results: Results) -> str:
    """Return in words how benchmark scores differ from the base model's, and which recipes lost."""
    rows = sorted(results.benchmark_changes(), key=lambda row: row["change"])
    if not rows:
        return ""
    many = [len({row[name] for row in rows}) > 1 for name in ("base", "variant")]

    def name(row: dict) -> str:
        return row["recipe"] + f" on {row['base']}" * many[0] + f" trained on {row['variant']}" * many[1]

    points = "; ".join(f"{name(row)} {number(row['change'], sign=True)}" for row in rows)
    if len(rows) > MOST_RECIPES:
        points = f"{span([row['change'] for row in rows], sign=True)} for {len(rows)} recipes"
    errors = [row["error"] for row in rows if row["error"] is not None]
    noise = f" (standard error {span(errors)})" if errors else ""
    lost = [name(row) for row in rows if row["error"] is not None and row["change"] < -2 * row["error"]]
    said = ""
    if lost:
        few = listed(lost, "and") if len(lost) <= MOST_RECIPES else f"{len(lost)} of {len(rows)} recipes"
        said = f" More than two standard errors below the base model: {few}."
    tasks = f"mean of {count(len(results.tasks), 'benchmark')}"
    return f"Points against the base model, {tasks}{noise}: {points}.{said}"


def caution(rows: list[dict]) -> str:
    """Return the limits of the comparisons: single seeds, then their number."""
    single, said = sum(row["seeds"] == 1 for row in rows), []
    if single:
        which = "This is one seed." if single == len(rows) else f"{single} of {len(rows)} comparisons have one seed."
        said.append(
            f"{which} {'These' if single == len(rows) else 'Their'} intervals reflect which test prompts were sampled, "
            "not run-to-run variance; with another seed a small difference could reverse."
        )
    if len(rows) > 1 and single < len(rows):
        chance = number(0.05 * len(rows))
        said.append(f"At 95 %, about {chance} of {len(rows)} comparisons would show a difference by chance alone.")
    return " ".join(said)


def people(results: Results) -> str:
    """Return what knowing a person is worth: accuracy with fewest and most known pairs, and of plain recipes.

    Accuracies are means over seeds.
    """
    curves = defaultdict(lambda: defaultdict(list))
    for row in results.tables["person"]:
        curves[row["base"], row["variant"], row["recipe"]][row["known_pairs"]].append(row["accuracy"])
    if not curves:
        return ""
    places = {(base, variant) for base, variant, _ in curves}
    found = [
        f"{row['recipe']} ranks {number(row['mean'])} % of their pairs right"
        for row in results.own_accuracy().values()
        if row["latent"] is None and (row["base"], row["variant"]) in places
    ]
    for (_, _, recipe), curve in curves.items():
        least, most = (number(percent(np.mean(curve[size]))) for size in (min(curve), max(curve)))
        known = f"{min(curve)} to {max(curve)} pairs of a person known"
        found.append(f"{recipe} {least} to {most} % with {known} ({count(len(curve[max(curve)]), 'seed')})")
    return f"Of people who disagree: {'; '.join(found)}."


def latent(results: Results) -> str:
    """Return whether the latent is used: information of its codes, and the change of accuracy with z = 0."""
    names = {(row["base"], row["variant"], row["recipe"]) for row in results.comparisons()}
    rows = [
        row
        for row in results.tables["latents"]
        if (row["base"], row["variant"], row["recipe"]) in names and row["mutual_information"] is not None
    ]
    if not rows:
        return ""
    known = [row["mutual_information"] for row in rows]
    entropy = number(rows[0]["source_entropy"], 2)
    found = (
        f"The codes carry {span(known, 2)} nats of information about the prompt; identifying its source would take "
        f"{entropy}."
    )
    unused = sum(value < UNUSED for value in known)
    if unused == len(known):
        found += " The prior is nearly the same for all prompts (posterior collapse), so z is nearly constant."
    elif unused:
        found += f" In {unused} of {len(known)} runs the prior is nearly the same for all prompts (posterior collapse)."
    change = [100 * (row["accuracy_zero"] - row["accuracy"]) for row in rows if row["accuracy_zero"] is not None]
    if change:
        found += f" Setting z = 0 changes accuracy by {span(change, sign=True)} points."
    return found


def controls(results: Results) -> str:
    """Return the comparisons with controls in words."""
    rows = results.comparisons(controls=True)
    if not rows:
        return ""
    found = "; ".join(map(in_words, rows))
    if len(rows) > 3:
        higher, same, lower = (sum(verdict(row) == sign for row in rows) for sign in (1, 0, -1))
        found = f"of {len(rows)} comparisons, {higher} higher, {same} not measurably different, {lower} lower"
    return f"Against controls with extra parameters but no codes: {found}."


def cost(results: Results) -> str:
    """Return the cost of the latent in words: time of a step, and parameters."""
    changes = [100 * (ratio - 1) for ratio in results.step_ratios.values()]
    added = [
        100 * row["latent_parameters"] / row["parameters"]
        for row in results.tables["training"]
        if has_codes(row["latent"]) and row["parameters"]
    ]
    if not changes or not added:
        return ""
    change, pairs = number(float(np.median(changes)), 0, sign=True), count(len(changes), "pair")
    return (
        f"LPC changes the measured time of a training step by {change} % (median of {pairs} of runs: "
        f"{span(changes, 0, sign=True)} %) and adds {span(added)} % parameters."
    )


def differences(results: Results, rows: list[dict]) -> Figure:
    several = len({row["base"] for row in rows}) > 1
    ends = ("difference", "low", "high", "seeds_low", "seeds_high")
    bars = [
        {
            "label": f"{row['base']}, " * several + label(row),
            "sure": verdict(row) != 0,
            **{key: percent(row[key]) for key in ends},
        }
        for row in rows
    ]
    over_seeds = "; thin: 95 % t interval over seeds" if any(row["seeds"] > 1 for row in rows) else ""
    caption = (
        "Preference accuracy with LPC minus without, on the same test pairs. Thick: 95 % bootstrap interval over test "
        f"prompts{over_seeds}. Filled square: every interval excludes zero; open square: not."
    )
    return Figure.of("differences", figures.forest(bars), caption)


def label(row: dict) -> str:
    """Return the objective's title, or the name of a recipe that is not simply its LPC variant."""
    return objective(row["objective"]) if row["recipe"] == f"{row['objective']}-lpc" else row["recipe"]


def facts(results: Results) -> list[tuple[str, str]]:
    done = {
        (row["base"], row["variant"], row["recipe"], row["seed"])
        for row in results.tables["preference_accuracy"]
        if row["status"] == "ok"
    }
    found = [(f"{len(done)} of {len(results.runs)}", "runs trained and scored"), results.seeds()]
    test_pairs = {row["dataset"]: row["n"] for row in results.tables["preference_accuracy"] if row["n"]}
    found += [(f"{n:,}", f"test pairs of {dataset}") for dataset, n in test_pairs.items()]
    seconds = sum(row["seconds"] or 0 for row in results.tables["cost"])
    if seconds:
        found.append((duration(seconds), f"of computing in {count(len(results.tables['cost']), 'job')}"))
    return found
