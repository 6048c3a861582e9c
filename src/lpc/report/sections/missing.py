"""Section on missing results, and on the conclusions that these results cannot support."""

from lpc import latents
from lpc.report.page import Points, Section, Table, Text, text_column
from lpc.report.results import Results
from lpc.report.runs import has_codes, latent_kind
from lpc.report.tables import TABLES, definition
from lpc.report.words import count, listed


def section(results: Results) -> Section:
    rows = []
    of_runs = [name for name in TABLES if {"seed", "status"} <= definition(name).columns.keys()]
    for table in of_runs:
        for row in results.tables[table]:
            if row["status"] != "ok":
                names = [str(row[key]) for key in ("base", "variant", "recipe", "seed") if row[key] is not None]
                rows.append({"table": table.replace("_", " "), "run": " / ".join(names), "why": row["status"]})
    blocks: list = [Text("Every configured run has all its results.")]
    if rows:
        blocks = [Table("Missing results", [text_column("table"), text_column("run"), text_column("why")], rows)]
    limits = []
    seeds = len({run["seed"] for run in results.main})
    if seeds < 3:
        few = "no estimate of" if seeds == 1 else "too few seeds to estimate"
        limits.append(f"{count(seeds, 'seed')} in the main experiment: {few} run-to-run variance.")
    absent = [kind for kind in latents.KINDS if not has_codes(kind) and kind not in set(map(latent_kind, results.main))]
    if absent:
        kinds = listed(absent, "or")
        limits.append(
            f"No control of kind {kinds}: an effect of LPC could come from its parameters, not from its codes."
        )
    if results.settings["evaluation"].get("alpacaeval") is None:
        limits.append("AlpacaEval is not configured.")
    if limits:
        blocks.append(Points("Limits of these results:", limits))
    return Section("missing", "Missing results and limits", blocks)
