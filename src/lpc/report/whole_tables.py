"""Tables that no section arranges itself: the rows of the file, with the meaning of each column on hovering."""

from lpc.report.page import Column, Section, Table, rough, text
from lpc.report.results import Results
from lpc.report.tables import TABLES, definition

MOST_ROWS = 100


def whole_tables(results: Results, section: Section) -> list[Table]:
    """Return a folded table for each file of the section that none of its blocks links to."""
    linked = {block.csv[0] for block in section.blocks if isinstance(block, Table) and block.csv}
    names = [name for name in TABLES if definition(name).section == section.id and f"{name}.csv" not in linked]
    return [whole_table(results, name) for name in names if results.tables[name]]


def whole_table(results: Results, name: str) -> Table:
    """Return the first rows of a table; the file behind its link has all."""
    table, rows = definition(name), results.tables[name]
    columns = [value_column(rows, key, meaning) for key, meaning in table.columns.items()]
    shown = "all" if len(rows) <= MOST_ROWS else f"the first {MOST_ROWS} of"
    title = f"{name.replace('_', ' ').capitalize()}, {shown} {len(rows):,} rows"
    return Table(table.caption, columns, rows[:MOST_ROWS], results.csv(name), folded=title)


def value_column(rows: list[dict], key: str, meaning: str) -> Column:
    """Return a column of numbers if it holds nothing else, or of words."""
    numbers = all(isinstance(row[key], int | float | None) for row in rows)
    shown = rough if numbers else text
    return Column(key, lambda row: shown(row[key]), meaning, number=numbers)
