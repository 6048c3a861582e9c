"""Sections on the latent: is it used, what do the codes learn, do they find the known factors of a generated world."""

from collections import defaultdict

import numpy as np
from markupsafe import Markup

from lpc.report import figures
from lpc.report.accuracy import mean_cell
from lpc.report.page import (
    Cell,
    Column,
    Figure,
    Figures,
    Missing,
    Section,
    SideBySide,
    Table,
    Text,
    cell,
    figure_column,
    name,
    rough,
)
from lpc.report.results import Results
from lpc.report.words import count, listed, number, percent, significant, span

MOST_CODES, MOST_RECIPES, MOST_CHARACTERS = 24, 6, 600
# Columns of latents.csv: label, digits (None: three significant ones), meaning.
MEASURES = {
    "mutual_information": ("I(code; prompt)", 3, "nats that the prior's code tells about the prompt; 0: collapsed"),
    "kl": ("KL(q ‖ p)", 3, "nats by which the posterior, which sees who won, differs from the prior"),
    "accuracy": ("accuracy", 3, "preference accuracy with z from the prior"),
    "accuracy_zero": ("accuracy, z = 0", 3, "the same model without its latent"),
    "accuracy_shuffled": (
        "accuracy, z of another prompt",
        3,
        "equal to the accuracy where z says nothing of the prompt",
    ),
    "accuracy_posterior": ("accuracy with the posterior", 3, "leaks who won: a diagnostic, never a result"),
    "accuracy_posterior_swapped": ("… with completions swapped", 3, "far below: the posterior only repeats who won"),
    "z_norm": ("|z|", None, "mean length of z"),
    "z_spread": ("spread of z", None, "how far z moves from prompt to prompt; set it against |h|"),
    "h_norm": ("|h|", None, "mean length of the prompt's hidden state"),
    "h_spread": ("spread of h", None, "how far h moves from prompt to prompt"),
    "codes": ("codes", 0, "size of the codebook"),
    "prior_perplexity": ("perplexity of the prior", 1, "codes in use for one prompt"),
    "mean_prior_perplexity": ("perplexity of the mean prior", 1, "codes in use over all prompts"),
    "posterior_perplexity": ("perplexity of the posterior", 1, "codes in use for one pair"),
    "dead_codes": ("dead codes", 0, "mean prior below a tenth of the uniform one"),
    "nmi_code_source": ("NMI, strongest code and source", 2, "1: the codes name the sources"),
    "nmi_z_kmeans_source": (
        "NMI, clusters of z and source",
        2,
        "standardised first: means nothing where z hardly moves",
    ),
    "nmi_h_kmeans_source": ("NMI, clusters of h and source", 2, "what z has to add to"),
    "probe_z_source": ("probe of z for the source", 3, "cross-validated accuracy of a linear classifier"),
    "probe_h_source": ("probe of h for the source", 3, "the same from the hidden state"),
    "probe_chance": ("chance of the probes", 3, "share of the largest source"),
}


def codes(results: Results) -> Section:
    groups = defaultdict(list)
    for row in results.tables["latents"]:
        if results.in_main(row) and results.is_clean(row) and row["status"] == "ok":
            groups[row["base"], row["variant"], row["recipe"]].append(row)
    if not groups:
        return Section("codes", "What the codes learn", [Missing("No run of the main experiment has a latent.")])
    lead = (
        "Is the latent used at all, and if so, what for? Entropies in nats, over distinct test prompts. Clusters and "
        "t-SNE show "
        "structure in differences of any size, so they count only next to the spread of z, and next to the same "
        "measures of h, "
        "from which z is computed."
    )
    blocks: list = [Text(lead), diagnostics(results, groups)]
    first = {}
    for run in results.main:
        key = (run["base"], run["variant"], run["recipe"])
        if key in groups:
            first.setdefault(key, run)
    shown = list(first.values())[:MOST_RECIPES]
    for figure in (usage, embeddings):
        drawn = [drawing for run in shown for drawing in figure(results, run)]
        if drawn:
            blocks.append(Figures(drawn))
    if len(first) > len(shown):
        what = f"Figures of {len(shown)} recipes are shown; t-SNE of the others lies in the folders of their runs."
        blocks.append(Missing(what))
    blocks += correlations(results)
    return Section("codes", "What the codes learn", blocks)


def diagnostics(results: Results, groups: dict[tuple, list[dict]]) -> Table:
    """Measures down, recipes across: means over seeds, and their range where it shows."""
    several = len({base for base, _, _ in groups}) > 1
    columns = [Column("measure", lambda row: Cell(row["label"], row["label"], row["meaning"]), number=False)]
    for key in groups:
        columns.append(Column(f"{key[0]}, " * several + key[2], lambda row, key=key: row[key]))
    body = []
    for measure, (label, digits, meaning) in MEASURES.items():
        row = {"label": label, "meaning": meaning}
        for key, seeds in groups.items():
            values = [seed[measure] for seed in seeds if seed[measure] is not None]
            mean = float(np.mean(values)) if values else None
            spread = span(values, 2 if digits is None else digits) if values else ""
            written = significant(mean) if digits is None else number(mean, digits)
            row[key] = Cell(written, mean, spread if " to " in spread else "")
        body.append(row)
    return Table("Diagnostics of the latent, means over seeds", columns, body, results.csv("latents"))


def usage(results: Results, run: dict) -> list[Figure]:
    """Heat map of the mean prior of each code by source."""
    names = ("base", "variant", "recipe", "seed")
    rows = [row for row in results.tables["codes"] if all(row[key] == run[key] for key in names)]
    if not rows:
        return []
    sources = sorted({row["source"] for row in rows})
    prior, prompts = np.zeros((len(sources), 1 + max(row["code"] for row in rows))), np.zeros(len(sources))
    for row in rows:
        prior[sources.index(row["source"]), row["code"]] = row["mean_prior"]
        prompts[sources.index(row["source"])] = row["prompts"]
    order = np.argsort(-(prompts @ prior), kind="stable")[:MOST_CODES]
    shown = f"all {len(order)} codes" if len(order) == prior.shape[1] else f"{len(order)} of {prior.shape[1]} codes"
    caption = (
        f"{run['recipe']}, seed {run['seed']}: mean prior by source, {shown}, the most used first. Numbers are per "
        f"cent, "
        "from 10. Rows that look alike: the codes do not tell the sources apart."
    )
    drawing = figures.heat_map(prior[:, order], sources, [str(code) for code in order])
    return [Figure.of(f"codes-{run['base']}-{run['recipe']}-{run['seed']}", drawing, caption, wide=len(order) > 16)]


def embeddings(results: Results, run: dict) -> list[Figure]:
    """t-SNE as the step tsne drew it; by code only where there are codes."""
    of = f"{run['recipe']}, seed {run['seed']}: t-SNE of z"
    captions = {"source": f"{of} and of the hidden state it comes from, by source (Figure 2, right)."}
    if run["latent"]["kind"] == "lpc":
        captions["code"] = f"{of} by strongest code."
    found = []
    for kind, caption in captions.items():
        path = results.root / run["folder"] / f"tsne_{kind}.svg"
        if path.exists():
            title = f"tsne-{kind}-{run['base']}-{run['recipe']}-{run['seed']}"
            found.append(Figure(title, Markup(path.read_text(encoding="utf-8")), caption, wide=kind == "source"))
    return found


def correlations(results: Results) -> list[Table]:
    """For each run and measure the code whose posterior correlates most."""
    best: dict[tuple, dict] = {}
    for row in results.tables["code_correlations"]:
        value = row["posterior_correlation"]
        if results.in_main(row) and value is not None:
            key = tuple(row[name] for name in ("base", "variant", "recipe", "seed", "measure"))
            if key not in best or abs(value) > abs(best[key]["posterior_correlation"]):
                best[key] = row
    if not best:
        return []
    columns = [
        name("recipe"),
        name("base"),
        figure_column("seed"),
        name("measure"),
        figure_column("code"),
        Column(
            "posterior", lambda row: cell(row["posterior_correlation"], 2, sign=True), "Spearman's rank correlation"
        ),
        Column("prior", lambda row: cell(row["prior_correlation"], 2, sign=True), "Spearman's rank correlation"),
        figure_column("pairs", "n"),
    ]
    notes = [
        "Measures are chosen minus rejected: tokens, and scores of the aspects where the data has them. The strongest "
        "of many "
        "codes is shown, so values near 0.1 are to be expected by chance on a thousand pairs."
    ]
    fold = "Correlation of codes with length and aspects"
    csv = results.csv("code_correlations")
    return [Table("The code that correlates most with each measure", columns, list(best.values()), csv, notes, fold)]


# Completions with codes forced


def completions(results: Results) -> Section | None:
    """What the strongest codes say, for the first seed of each recipe with codes; None where no recipe has codes."""
    first = {}
    for run in results.main:
        if results.is_clean(run) and (run["latent"] or {}).get("kind") == "lpc":
            first.setdefault((run["base"], run["variant"], run["recipe"]), run)
    if not first:
        return None
    title = "Completions with codes forced"
    if results.settings["evaluation"]["completions"] is None:
        how = "Not configured: add evaluation.completions, such as {prompts: 4, codes: 4}."
        return Section("completions", title, [Missing(how)])
    lead = (
        "Greedy completions of the same test prompts with z from the prior, with z = 0, and with one code in place of "
        "the prior. Equal ones share a box."
    )
    blocks: list = [Text(lead)]
    for run in list(first.values())[:MOST_RECIPES]:
        path = f"{run['folder']}/completions.json"
        found = results.json(path)
        blocks += said(run, found, len(first)) if found else [Missing(f"missing: {path}")]
    if len(first) > MOST_RECIPES:
        what = f"{MOST_RECIPES} of {len(first)} recipes are shown; the others' lie in the folders of their runs."
        blocks.append(Missing(what))
    return Section("completions", title, blocks)


def said(run: dict, found: dict, recipes: int) -> list:
    """One run's completions: in words whether z changes them, then prompt by prompt."""
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
    """In how many prompts the prior's z, and a forced code, changes what is said."""
    texts = [{completion["z"]: completion["text"] for completion in prompt["completions"]} for prompt in prompts]
    if all(len(set(by_z.values())) == 1 for by_z in texts):
        return (
            "All completions of a prompt are identical, whichever code is forced and without any: on these prompts the "
            "latent does not change what the model says."
        )
    prior = sum(by_z["prior"] != by_z["zero"] for by_z in texts)
    forced = sum(any(by_z[z] != by_z["zero"] for z in by_z if z != "prior") for by_z in texts)
    return (
        f"Against z = 0, the prior's z changes the completion of {prior} of {count(len(texts), 'prompt')}, and some "
        f"forced code that of {forced}."
    )


def name_of_z(z: str | int) -> str:
    return {"prior": "z of the prior", "zero": "z = 0"}.get(z, f"code {z}")


def shortened(messages: list[dict]) -> str:
    """A prompt as text: with roles where it has several turns, and its end alone where it is long."""
    turns = [f"{message['role']}: " * (len(messages) > 1) + message["content"] for message in messages]
    text = "\n".join(turns)
    return text if len(text) <= MOST_CHARACTERS else "… " + text[-MOST_CHARACTERS:]


# Known factors

JUDGES = {
    "score_oracle": "oracle: knows each source's rule, not the noise",
    "source_blind": "best rule blind to the source",
    "longer": "the longer completion wins",
}


def factors(results: Results) -> Section | None:
    """Ceilings of generated data and how well the codes find its sources; None where no data was generated."""
    worlds = [name for name, entry in results.settings["datasets"].items() if entry["kind"] == "world"]
    if not worlds:
        return None
    lead = Text("This data was generated, so what can be reached is known, and so is what the codes should find.")
    return Section("factors", "Known factors and ceilings", [lead, *map_all(worlds, results)])


def map_all(worlds: list[str], results: Results) -> list:
    blocks: list = []
    for dataset in worlds:
        rows = [
            {"judge": JUDGES[key], "mean": percent(value), "low": None, "high": None}
            for key, value in results.ceilings(dataset).items()
        ]
        scored = [
            row for row in results.accuracy() if row["dataset"] == row["variant"] == dataset and results.in_main(row)
        ]
        rows += [{**row, "judge": f"{row['recipe']} on {row['base']}"} for row in scored]
        rows.sort(key=lambda row: -row["mean"])
        columns = [name("judge"), Column("accuracy %", mean_cell)]
        blocks.append(Table(f"Between chance and oracle, test pairs of {dataset}", columns, rows))
    found = [row for row in results.tables["latents"] if row["variant"] in worlds and results.in_main(row)]
    found = [row for row in found if row["status"] == "ok"]
    columns = [
        name("recipe"),
        figure_column("seed"),
        figure_column("NMI code", "nmi_code_source", 2, "strongest code and source"),
        figure_column("NMI z", "nmi_z_kmeans_source", 2, "k-means clusters of z and source"),
        figure_column("NMI h", "nmi_h_kmeans_source", 2, "k-means clusters of h and source"),
        figure_column("probe z", "probe_z_source", 3),
        figure_column("probe h", "probe_h_source", 3),
        figure_column("chance", "probe_chance", 3),
        Column("spread of z", lambda row: rough(row["z_spread"])),
        Column("|h|", lambda row: rough(row["h_norm"])),
    ]
    note = (
        "Each source of this world judges by one hidden rule, so the sources are the true factors. z is computed from "
        "h: a probe "
        "of z cannot know more than one of h, and where the spread of z is tiny beside |h|, a good score of z means "
        "little."
    )
    if found:
        table = Table("Do the codes find the known factors?", columns, found, results.csv("latents"), [note])
        blocks.append(table)
    return blocks
