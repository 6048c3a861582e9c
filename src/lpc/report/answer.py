"""The top of the page: does LPC help here, by how much, is the latent used, and what does it cost."""

import numpy as np

from lpc.report import figures
from lpc.report.page import Answer, Figure
from lpc.report.results import Results, in_words, verdict
from lpc.report.words import count, duration, number, objective, percent, span

# Below this many nats the prior is called unused: it tells prompts apart no better than 1.05 equally likely groups.
UNUSED = 0.05


def answer(results: Results) -> Answer:
    rows = results.comparisons()
    if not rows and any(row["latent"] == "lpc" and row["against"] for row in results.tables["comparisons"]):
        why = (
            "No plain run and its counterpart with LPC are both scored. What is missing stands at the end of the page."
        )
        return Answer("LPC is not compared with plain training yet", [why], facts(results))
    if not rows:
        why = (
            "A comparison needs two recipes with the same objective, one with a latent of kind lpc and one without a "
            "latent, trained on the same base, data and seed."
        )
        return Answer("These results do not compare LPC with plain training", [why], facts(results))
    findings = [effects(rows), caution(rows), latent(results), controls(results), cost(results)]
    return Answer(
        headline(rows), [finding for finding in findings if finding], facts(results), differences(results, rows)
    )


def headline(rows: list[dict]) -> str:
    higher, lower = (sum(verdict(row) == sign for row in rows) for sign in (1, -1))
    if not higher and not lower:
        return "LPC made no measurable difference to preference accuracy"
    if higher and lower:
        return f"LPC raised preference accuracy in {higher} and lowered it in {lower} of {len(rows)} comparisons"
    word, n = ("raised", higher) if higher else ("lowered", lower)
    if n == len(rows):
        return f"LPC {word} preference accuracy" + (" in every comparison" if n > 1 else "")
    rest = "the other" if n == len(rows) - 1 else "the others"
    return f"LPC {word} preference accuracy in {n} of {len(rows)} comparisons, with no measurable difference in {rest}"


def effects(rows: list[dict]) -> str:
    if len(rows) > 3:
        points = span([100 * row["difference"] for row in rows], sign=True)
        return (
            f"On the same test pairs, the {len(rows)} differences between LPC and plain training are {points} points."
        )
    several = len({row["base"] for row in rows}) > 1
    return "On the same test pairs, " + "; ".join(f"on {row['base']} " * several + in_words(row) for row in rows) + "."


def caution(rows: list[dict]) -> str:
    if max(row["seeds"] for row in rows) == 1:
        return (
            "This is one seed. The intervals cover the choice of test prompts, not the luck of training, so another "
            "seed may "
            "well turn a small difference round."
        )
    if len(rows) > 1:
        chance = number(0.05 * len(rows))
        return f"Of {len(rows)} comparisons at 95 %, about {chance} would look different by chance alone."
    return ""


def latent(results: Results) -> str:
    names = {(row["base"], row["variant"], row["recipe"]) for row in results.comparisons()}
    rows = [
        row
        for row in results.tables["latents"]
        if (row["base"], row["variant"], row["recipe"]) in names and row["mutual_information"] is not None
    ]
    if not rows:
        return ""
    known = [row["mutual_information"] for row in rows]
    source = number(rows[0]["source_entropy"], 2)
    says = f"The codes carry {span(known, 2)} nats about the prompt; naming its source would take {source}."
    unused = sum(value < UNUSED for value in known)
    if unused == len(known):
        says += " The prior is nearly the same for all prompts: the latent has collapsed, and z is one constant vector."
    elif unused:
        says += f" In {unused} of {len(known)} runs the prior is nearly the same for all prompts."
    change = [100 * (row["accuracy_zero"] - row["accuracy"]) for row in rows if row["accuracy_zero"] is not None]
    if change:
        says += f" Taking z away changes accuracy by {span(change, sign=True)} points."
    return says


def controls(results: Results) -> str:
    rows = results.comparisons(controls=True)
    if not rows:
        return ""
    found = "; ".join(map(in_words, rows))
    if len(rows) > 3:
        higher, same, lower = (sum(verdict(row) == sign for row in rows) for sign in (1, 0, -1))
        found = f"of {len(rows)} comparisons, {higher} higher, {same} not measurably different, {lower} lower"
    return f"Against controls with extra parameters but no codes: {found}."


def cost(results: Results) -> str:
    changes = [100 * (ratio - 1) for ratio in results.step_ratios.values()]
    added = [
        100 * row["latent_parameters"] / row["parameters"]
        for row in results.tables["training"]
        if row["latent"] == "lpc" and row["parameters"]
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
        "prompts"
        f"{over_seeds}. Filled square: every interval excludes zero; open square: not."
    )
    return Figure.of("differences", figures.forest(bars), caption)


def label(row: dict) -> str:
    """The objective, or the recipe's name where it says more than that."""
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
        found.append((duration(seconds), f"of computing, {count(len(results.tables['cost']), 'job')} added up"))
    return found
