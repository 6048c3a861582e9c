"""Cells that several sections share: values with their intervals or standard errors."""

from lpc.report.page import Cell, cell
from lpc.report.results import verdict
from lpc.report.words import NONE, interval, number, percent


def mean_cell(row: dict) -> Cell:
    """Return the cell of an accuracy over seeds, in per cent, with its interval."""
    return cell(row["mean"], detail=interval(row["low"], row["high"]))


def difference_cell(row: dict) -> Cell:
    """Return the cell of a comparison's difference with its interval over prompts.

    A mean over seeds is strong where every interval excludes zero.
    """
    detail = interval(percent(row["low"]), percent(row["high"]), sign=True)
    strong = row["seed"] == "mean" and verdict(row) != 0
    return cell(percent(row["difference"]), detail=detail, sign=True, strong=strong)


def seeds_cell(row: dict) -> Cell:
    """Return the cell of a comparison's interval over seeds."""
    ends = interval(percent(row["seeds_low"]), percent(row["seeds_high"]), sign=True)
    return Cell(ends or ("one seed" if row["seed"] == "mean" else NONE), percent(row["seeds_low"]))


def score_detail(error: float | None, reported: float | None) -> str:
    """Return the small line below a score: its standard error, and the paper's number."""
    parts = [] if error is None else [f"± {number(error)}"]
    return "; ".join(parts if reported is None else [*parts, f"paper {reported:.2f}"])
