"""Section on people who disagree: accuracy by what is known of a person, and which source each code stands for."""

from collections import defaultdict

import numpy as np

from lpc.report import figures
from lpc.report.cells import mean_cell
from lpc.report.page import Cell, Column, Figure, Figures, Section, Table, Text, text_column
from lpc.report.results import MOST_CODES, MOST_RECIPES, Results, over_seeds
from lpc.report.words import part_of, significant


def section(results: Results) -> Section | None:
    """Return the section; None where no run was scored with what is known of a person."""
    by_size = defaultdict(list)
    for row in results.tables["person"]:
        by_size[row["base"], row["variant"], row["recipe"], row["known_pairs"]].append(row)
    if not by_size:
        return None
    lead = Text(
        "Some labelled pairs of a test person are known. They determine the person's latent, and the person's other "
        "pairs are scored with it. All sizes are measured on the same pairs, none of which is ever a known one."
    )
    curves = defaultdict(dict)
    for (base, variant, recipe, known), rows in by_size.items():
        nmi = [row["nmi"] for row in rows if row["nmi"] is not None]
        curves[base, variant, recipe][known] = over_seeds(rows) | {"nmi": float(np.mean(nmi)) if nmi else None}
    sizes = sorted({known for curve in curves.values() for known in curve})
    several = [len({names[place] for names in curves}) > 1 for place in range(3)]
    body = []
    for names, curve in curves.items():
        label = ", ".join(name for name, differs in zip(names[::-1], several[::-1], strict=True) if differs)
        body.append({"recipe": label or names[2], **curve})
    columns = [text_column("recipe")]
    columns += [Column(f"{size} known", lambda row, size=size: mean_cell(row[size])) for size in sizes]
    largest = max(sizes)
    columns.append(
        Column(
            f"NMI, {largest} known",
            lambda row: Cell(significant(row[largest]["nmi"]), row[largest]["nmi"]),
            "of a person's code with the source of the person's pairs",
        )
    )
    table = Table("Accuracy %, by number of known pairs", columns, body, results.csv("person"))
    lines = [
        {"name": row["recipe"], "x": sizes} | {key: [row[x][key] for x in sizes] for key in ("mean", "low", "high")}
        for row in body
    ]
    curve = figures.sweep("known pairs of a person", lines, log2=False, level={})
    caption = "Accuracy by number of known pairs. Bands: 95 %, over seeds, or over people where there is one seed."
    drawn = [Figure.of("known-pairs", curve, caption), *code_maps(results)]
    return Section("people", "People who disagree", [lead, table, Figures(drawn)])


def code_maps(results: Results) -> list[Figure]:
    """Return for each recipe's first seed the accuracy of each code on each source, and P(code | source)."""
    groups = defaultdict(list)
    for row in results.tables["person_codes"]:
        groups[row["base"], row["variant"], row["recipe"]].append(row)
    found = []
    for (base, variant, recipe), rows in list(groups.items())[:MOST_RECIPES]:
        seed = rows[0]["seed"]
        rows = [row for row in rows if row["seed"] == seed]
        which, name = f"{recipe} on {base} and {variant}, seed {seed}", f"{base}-{variant}-{recipe}"
        accuracy, sources, codes = matrix(rows, "accuracy")
        best = sorted(codes, key=lambda code: -accuracy[:, code].max())[:MOST_CODES]
        best.sort(key=lambda code: (accuracy[:, code].argmax(), -accuracy[:, code].max()))
        caption = f"{which}: accuracy % of each code alone on each source's pairs"
        caption += (
            "." if len(best) == len(codes) else f"; {part_of(len(best), len(codes), 'code')}, the best of a source."
        )
        found.append(map_of(accuracy, sources, best, f"person-codes-{name}", caption))
        people = [row for row in rows if row["share"] is not None]
        if people:
            share, sources, codes = matrix(people, "share")
            order = sorted(codes, key=lambda code: -share[:, code].mean())[:MOST_CODES]
            caption = (
                f"{which}: mean probability % of each code for the people of each source, with the most known pairs; "
                f"{part_of(len(order), len(codes), 'code')}, by use. Equal rows mean that the codes do not distinguish "
                "the sources."
            )
            found.append(map_of(share, sources, order, f"person-shares-{name}", caption))
    return found


def matrix(rows: list[dict], value: str) -> tuple[np.ndarray, list[str], list[int]]:
    """Return a value of rows by source and code [S, K], the sources, and the codes."""
    sources, codes = sorted({row["source"] for row in rows}), sorted({row["code"] for row in rows})
    found = np.zeros((len(sources), len(codes)))
    for row in rows:
        found[sources.index(row["source"]), codes.index(row["code"])] = row[value]
    return found, sources, codes


def map_of(values: np.ndarray, sources: list[str], order: list[int], name: str, caption: str) -> Figure:
    """Return a heat map [S, K] of the codes in `order`."""
    return Figure.of(name, figures.heat_map(values[:, order], sources, [str(code) for code in order], "code"), caption)
