"""Section on swept settings: which one the accuracy on validation pairs selects."""

from lpc.report.page import Cell, Column, Missing, Points, Section, Table, Text, cell, number_column, text, text_column
from lpc.report.results import Results
from lpc.report.words import interval, number, percent


def section(results: Results) -> Section | None:
    """Return the section; None where nothing is swept."""
    rows = results.tables["selection"]
    if not rows:
        return None
    lead = Text(
        "In each sweep, the setting with the highest mean accuracy over seeds on validation pairs is selected; of "
        "equal ones, the first in the configuration. Test pairs are not used for selection: their accuracy is given "
        "for the selected setting alone."
    )
    points = [
        f"{row['experiment']}: {row['recipe']} on {row['base']}, trained on {row['variant']}: "
        f"{written(row)} ({number(percent(row['validation_accuracy']))} % on validation pairs, "
        f"{number(percent(row['test_accuracy']))} % on test pairs)."
        for row in rows
        if row["chosen"] == 1
    ]
    blocks: list = [lead, Points("Selected:", points)] if points else [lead]
    if any(row["chosen"] is None for row in rows):
        blocks.append(Missing("No setting is selected while runs of the sweep are missing."))
    of_people = [number_column("known pairs", "known_pairs")] if any(row["known_pairs"] for row in rows) else []
    columns = [
        text_column("experiment"),
        text_column("recipe"),
        text_column("base"),
        text_column("trained on", "variant"),
        Column("setting", lambda row: Cell(written(row), row["value"]), number=False),
        Column("validation %", validation_cell, "95 % interval over seeds; with one seed, over validation pairs"),
        number_column("seeds"),
        number_column("pairs", "n"),
        *of_people,
        Column("selected", lambda row: text("yes" if row["chosen"] == 1 else None), number=False),
        Column("test %", lambda row: cell(percent(row["test_accuracy"]))),
        text_column("status"),
    ]
    blocks.append(Table("Settings of every sweep", columns, rows, results.csv("selection")))
    return Section("selection", "Settings selected on validation", blocks)


def written(row: dict) -> str:
    pairs = zip(row["key"].split(" "), str(row["value"]).split(" "), strict=True)
    return ", ".join(f"{key} = {value}" for key, value in pairs)


def validation_cell(row: dict) -> Cell:
    return cell(percent(row["validation_accuracy"]), detail=interval(percent(row["low"]), percent(row["high"])))
