"""Section on completions with codes forced, side by side."""

from collections import defaultdict

from lpc.report.page import Missing, Section, SideBySide, Text
from lpc.report.results import MOST_RECIPES, Results
from lpc.report.runs import has_codes, latent_kind
from lpc.report.words import count, listed, number, percent

MOST_CHARACTERS = 600


def section(results: Results) -> Section | None:
    """Return the section, with the first seed of each recipe with codes; None where no recipe has codes."""
    first = {}
    for run in results.main:
        if results.is_clean(run) and has_codes(latent_kind(run)):
            first.setdefault((run["base"], run["variant"], run["recipe"]), run)
    if not first:
        return None
    title = "Completions with codes forced"
    if results.settings["evaluation"]["completions"] is None:
        how = "Not configured. To get this section, add evaluation.completions, such as {prompts: 4, codes: 4}."
        return Section("completions", title, [Missing(how)])
    lead = (
        "Greedy completions of the same test prompts with z from the prior, with z = 0, and with one code in place of "
        "the prior. Equal completions share a box."
    )
    blocks: list = [Text(lead)]
    for run in list(first.values())[:MOST_RECIPES]:
        path = results.layout.of(run).completions
        found = results.json(path)
        missing = Missing(f"missing: {path.relative_to(results.layout.root)}")
        blocks += of_run(run, found, len(first)) if found else [missing]
    if len(first) > MOST_RECIPES:
        what = (
            f"{MOST_RECIPES} of {len(first)} recipes are shown; the other completions are in the folders of their runs."
        )
        blocks.append(Missing(what))
    return Section("completions", title, blocks)


def of_run(run: dict, found: dict, recipes: int) -> list:
    """Return one run's completions: a sentence on the effect of z, then prompt by prompt."""
    which = f"{run['recipe']} on {run['base']}, seed {run['seed']}"
    shares = [f"{entry['code']} ({number(percent(entry['mean_prior']))} %)" for entry in found["codes"]]
    strongest = f"{which}. Strongest codes, by mean prior over test prompts: {listed(shares, 'and')}."
    blocks: list = [Text(f"{strongest} {effect(found['prompts'])}")]
    for prompt in found["prompts"]:
        boxes: dict[str, list] = defaultdict(list)
        for completion in prompt["completions"]:
            boxes[completion["text"]].append(completion["z"])
        texts = [(listed([*map(name_of_z, zs)], "and"), text or "(nothing)") for text, zs in boxes.items()]
        caption = f"{run['recipe']}: " * (recipes > 1) + f"prompt of {prompt['source']}"
        blocks.append(SideBySide(caption, shortened(prompt["messages"]), texts))
    return blocks


def effect(prompts: list[dict]) -> str:
    """Return in words for how many prompts the prior's z, and a forced code, changes the completion."""
    texts = [{completion["z"]: completion["text"] for completion in prompt["completions"]} for prompt in prompts]
    if all(len(set(by_z.values())) == 1 for by_z in texts):
        return (
            "All completions of a prompt are identical, with any forced code and with z = 0. On these prompts, the "
            "latent does not change the greedy completion."
        )
    prior = sum(by_z["prior"] != by_z["zero"] for by_z in texts)
    forced = sum(any(by_z[z] != by_z["zero"] for z in by_z if z != "prior") for by_z in texts)
    return (
        f"Compared with z = 0, the prior's z changes the completion of {prior} of {count(len(texts), 'prompt')}, and "
        f"at least one forced code changes that of {forced}."
    )


def name_of_z(z: str | int) -> str:
    return {"prior": "z of the prior", "zero": "z = 0"}.get(z, f"code {z}")


def shortened(messages: list[dict]) -> str:
    """Return a prompt as text: with roles if it has several turns, and only its end if it is long."""
    turns = [f"{message['role']}: " * (len(messages) > 1) + message["content"] for message in messages]
    text = "\n".join(turns)
    return text if len(text) <= MOST_CHARACTERS else "… " + text[-MOST_CHARACTERS:]
