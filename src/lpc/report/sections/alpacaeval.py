"""Section on AlpacaEval 2 (shape of the paper's Table 3)."""

from lpc.report import paper
from lpc.report.cells import score_detail
from lpc.report.page import Cell, Column, Missing, Section, Table, cell, text_column
from lpc.report.results import Results

RATES = {"length_controlled_winrate": "length-controlled win rate %", "win_rate": "win rate %"}


def section(results: Results) -> Section:
    body, why = [], "it is not configured (evaluation.alpacaeval), and it needs a judge model behind an API key"
    for run in results.main:
        found = results.json(results.layout.of(run).judged)
        if found:
            why = found["reason"] or ""
            judge = found["judge"].get("annotator") if found["status"] == "judged" else "not judged"
            body.append({"model": run["recipe"], "base": run["base"], "judge": judge, **found["metrics"]})
    for base, entry in results.settings["bases"].items():
        for objective, methods in paper.ALPACAEVAL.get(paper.base_name(entry), {}).items():
            for model, rates in zip((objective, f"{objective}-lpc"), methods, strict=True):
                values = {key: {"value": value} for key, value in zip(RATES, rates, strict=True)}
                body.append({"model": f"{model}, in the paper", "base": base, "judge": "GPT-4", **values})
    blocks: list = [Missing(f"Not judged: {why}.")] if why else []
    if body:
        columns = [text_column("model"), text_column("base")]
        for key, title in RATES.items():
            columns.append(Column(title, lambda row, key=key: rate_cell(row.get(key, {}))))
        blocks.append(Table("AlpacaEval 2 (shape of the paper's Table 3)", [*columns, text_column("judge")], body))
    return Section("alpacaeval", "AlpacaEval", blocks)


def rate_cell(rate: dict) -> Cell:
    return cell(rate.get("value"), 2, score_detail(rate.get("stderr"), None))
