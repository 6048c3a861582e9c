"""Section on the latent of the main experiment: whether it is used, and how codes relate to sources and measures."""

from collections import defaultdict

import numpy as np
from markupsafe import Markup

from lpc.report import figures
from lpc.report.page import (
    Cell,
    Column,
    Figure,
    Figures,
    Missing,
    Section,
    Table,
    Text,
    cell,
    number_column,
    text_column,
)
from lpc.report.results import MOST_CODES, MOST_RECIPES, Results
from lpc.report.runs import has_codes, latent_kind
from lpc.report.tables import definition
from lpc.report.words import number, part_of, percent, significant, span

MOST_ROWS = 8
MOST_TOKENS = 6
# Columns of latents.csv: label, digits (None: three significant ones).
MEASURES = {
    "mutual_information": ("I(code; prompt)", 3),
    "kl": ("KL(q ‖ p)", 3),
    "accuracy": ("accuracy", 3),
    "accuracy_zero": ("accuracy, z = 0", 3),
    "accuracy_shuffled": ("accuracy, z of another prompt", 3),
    "accuracy_posterior": ("accuracy with the posterior", 3),
    "accuracy_posterior_swapped": ("… with completions swapped", 3),
    "z_norm": ("|z|", None),
    "z_spread": ("spread of z", None),
    "h_norm": ("|h|", None),
    "h_spread": ("spread of h", None),
    "codes": ("codes", 0),
    "prior_perplexity": ("perplexity of the prior", 1),
    "mean_prior_perplexity": ("perplexity of the mean prior", 1),
    "posterior_perplexity": ("perplexity of the posterior", 1),
    "dead_codes": ("dead codes", 0),
    "nmi_code_source": ("NMI, strongest code and source", 2),
    "nmi_z_kmeans_source": ("NMI, clusters of z and source", 2),
    "nmi_h_kmeans_source": ("NMI, clusters of h and source", 2),
    "probe_z_source": ("probe of z for the source", 3),
    "probe_h_source": ("probe of h for the source", 3),
    "probe_chance": ("chance of the probes", 3),
}


def section(results: Results) -> Section:
    groups = defaultdict(list)
    for row in results.tables["latents"]:
        if results.in_main(row) and results.is_clean(row) and row["status"] == "ok":
            groups[row["base"], row["variant"], row["recipe"]].append(row)
    if not groups:
        return Section("codes", "Use of the codes", [Missing("No run of the main experiment has a latent.")])
    lead = (
        "These measures show whether the latent is used, and what its codes carry. Entropies are in nats, over "
        "distinct test prompts. Clusters and t-SNE show structure in differences of any size. Compare them with the "
        "spread of z, and with the same measures of h, from which z is computed."
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
        what = f"Figures of {len(shown)} recipes are shown; t-SNE of the others is in the folders of their runs."
        blocks.append(Missing(what))
    blocks += [table for place, run in enumerate(shown) for table in tokens(results, run, folded=place > 0)]
    blocks += correlations(results)
    return Section("codes", "Use of the codes", blocks)


def diagnostics(results: Results, groups: dict[tuple, list[dict]]) -> Table:
    """Return a table of measures (rows) by recipe (columns): means over seeds, and their range."""
    meanings = definition("latents").columns
    several = len({base for base, _, _ in groups}) > 1
    columns = [Column("measure", lambda row: Cell(row["label"], row["label"], row["meaning"]), number=False)]
    for key in groups:
        columns.append(Column(f"{key[0]}, " * several + key[2], lambda row, key=key: row[key]))
    body = []
    for measure, (label, digits) in MEASURES.items():
        row = {"label": label, "meaning": meanings[measure]}
        for key, seeds in groups.items():
            values = [seed[measure] for seed in seeds if seed[measure] is not None]
            mean = float(np.mean(values)) if values else None
            spread = span(values, 2 if digits is None else digits) if values else ""
            written = significant(mean) if digits is None else number(mean, digits)
            row[key] = Cell(written, mean, spread if " to " in spread else "")
        body.append(row)
    return Table("Diagnostics of the latent, means over seeds", columns, body, results.csv("latents"))


def of_run(results: Results, table: str, run: dict) -> list[dict]:
    """Return the rows of a table that are of one run."""
    names = ("base", "variant", "recipe", "seed")
    return [row for row in results.tables[table] if all(row[key] == run[key] for key in names)]


def usage(results: Results, run: dict) -> list[Figure]:
    """Return the heat map of the mean prior of each code by source."""
    rows = of_run(results, "codes", run)
    if not rows:
        return []
    sources = sorted({row["source"] for row in rows})
    prior, prompts = np.zeros((len(sources), 1 + max(row["code"] for row in rows))), np.zeros(len(sources))
    for row in rows:
        prior[sources.index(row["source"]), row["code"]] = row["mean_prior"]
        prompts[sources.index(row["source"])] = row["prompts"]
    order = np.argsort(-(prompts @ prior), kind="stable")[:MOST_CODES]
    shown = part_of(len(order), prior.shape[1], "code")
    caption = (
        f"{run['recipe']}, seed {run['seed']}: mean prior by source, {shown}, the most used first. Numbers are "
        "per cent, from 10 up. Equal rows mean that the codes do not distinguish the sources."
    )
    drawing = figures.heat_map(prior[:, order], sources, [str(code) for code in order])
    return [Figure.of(f"codes-{run['base']}-{run['recipe']}-{run['seed']}", drawing, caption)]


def tokens(results: Results, run: dict, *, folded: bool) -> list[Table]:
    """Return a table of the tokens of a run's most used codes; nothing where it has none."""
    of_codes = defaultdict(lambda: {"raised": [], "lowered": []})
    for row in of_run(results, "code_tokens", run):
        of_codes[row["code"]][row["end"]].append(row)
    if not of_codes:
        return []
    used, prompts = defaultdict(float), 0
    for row in of_run(results, "codes", run):
        used[row["code"]] += row["mean_prior"] * row["prompts"]
        prompts += row["prompts"] if row["code"] == 0 else 0
    order = sorted(of_codes, key=lambda code: -used[code])[:MOST_ROWS]
    body = [{"code": code, "use": percent(used[code] / prompts), **of_codes[code]} for code in order]
    columns = [number_column("code"), number_column("mean prior %", "use", 1)]
    columns += [Column(f"{end} most", lambda row, end=end: tokens_cell(row[end]), number=False) for end in ENDS]
    which = f"{run['recipe']} on {run['base']}, seed {run['seed']}"
    caption = f"Tokens that each code makes likelier (raised) and less likely (lowered), {which}"
    notes = [
        f"{part_of(len(order), len(of_codes), 'code').capitalize()}, the most used first. Small: the logits of the "
        "first and the last token shown, against the mean of all codes and tokens. Logits far below 1 hardly change "
        "a text."
    ]
    csv = results.csv("code_tokens")
    return [Table(caption, columns, body, csv, notes, f"Tokens of the codes of {which}" if folded else "")]


ENDS = ("raised", "lowered")


def tokens_cell(rows: list[dict]) -> Cell:
    """Return the cell of a code's tokens, the strongest first, with the range of their logits."""
    shown = sorted(rows, key=lambda row: row["rank"])[:MOST_TOKENS]
    ends = " to ".join(number(shown[place]["logit"], 2, sign=True) for place in (0, -1))
    return Cell("  ".join(row["token"] for row in shown), shown[0]["logit"], ends)


def embeddings(results: Results, run: dict) -> list[Figure]:
    """Return the figures of the step tsne; by code only where there are codes."""
    of = f"{run['recipe']}, seed {run['seed']}: t-SNE of z"
    captions = {"source": f"{of} and of the hidden state it comes from, by source (Figure 2, right)."}
    if has_codes(latent_kind(run)):
        captions["code"] = f"{of} by strongest code."
    found = []
    for kind, caption in captions.items():
        path = results.layout.of(run).tsne_figure(kind)
        if path.exists():
            title = f"tsne-{kind}-{run['base']}-{run['recipe']}-{run['seed']}"
            found.append(Figure(title, Markup(path.read_text(encoding="utf-8")), caption, wide=kind == "source"))
    return found


def correlations(results: Results) -> list[Table]:
    """Return a table of the code whose posterior, or prior where there is none, correlates most, for each run and
    measure."""
    best: dict[tuple, tuple[float, dict]] = {}
    for row in results.tables["code_correlations"]:
        value = row["posterior_correlation"]
        value = row["prior_correlation"] if value is None else value
        if results.in_main(row) and value is not None:
            key = tuple(row[name] for name in ("base", "variant", "recipe", "seed", "measure"))
            if key not in best or abs(value) > best[key][0]:
                best[key] = abs(value), row
    if not best:
        return []
    columns = [
        text_column("recipe"),
        text_column("base"),
        number_column("seed"),
        text_column("measure"),
        number_column("code"),
        Column(
            "posterior", lambda row: cell(row["posterior_correlation"], 2, sign=True), "Spearman's rank correlation"
        ),
        Column("prior", lambda row: cell(row["prior_correlation"], 2, sign=True), "Spearman's rank correlation"),
        number_column("pairs", "n"),
    ]
    notes = [
        "Measures are chosen minus rejected: tokens, and aspect scores where the data has them. The strongest of many "
        "codes is shown, so values near 0.1 occur by chance on a thousand pairs."
    ]
    fold = "Correlation of codes with length and aspects"
    csv = results.csv("code_correlations")
    return [
        Table(
            "The code that correlates most with each measure",
            columns,
            [row for _, row in best.values()],
            csv,
            notes,
            fold,
        )
    ]
