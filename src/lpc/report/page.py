"""Building blocks of the page, and the page as one HTML file that needs no other file."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from lpc.report import svg
from lpc.report.words import NONE, number, significant

HERE = Path(__file__).parent
WIDEST = 5.8
"""Inches of a figure that a phone can shrink to its width with readable text."""


@dataclass
class Cell:
    """A cell: its text, and the value it sorts by. `strong` only where every interval excludes zero."""

    text: str
    sort: float | str | None = None
    detail: str = ""  # second line, small: an interval, a number of the paper
    strong: bool = False


def cell(value: float | None, digits: int = 1, detail: str = "", *, sign: bool = False, strong: bool = False) -> Cell:
    return Cell(number(value, digits, sign=sign), value, detail, strong)


def text(value) -> Cell:
    return Cell(NONE, None) if value is None else Cell(str(value), str(value))


def rough(value: float | None) -> Cell:
    """Return the cell of a number with three significant digits."""
    return Cell(significant(value), value)


@dataclass
class Column:
    label: str
    cell: Callable[[dict], Cell]
    hint: str = ""  # what the column means, on hovering
    number: bool = True  # aligned right


def text_column(label: str, key: str = "") -> Column:
    """Return a column of words, those under `key` of a row (default: `label`)."""
    return Column(label, lambda row: text(row[key or label]), number=False)


def number_column(label: str, key: str = "", digits: int = 0, hint: str = "") -> Column:
    """Return a column of numbers, those under `key` of a row (default: `label`)."""
    return Column(label, lambda row: cell(row[key or label], digits), hint)


@dataclass
class Table:
    caption: str
    columns: list[Column]
    rows: list[dict]
    csv: tuple[str, str] | None = None  # name and content of the file behind the link
    notes: list[str] = field(default_factory=list)
    folded: str = ""  # title of the fold that hides it at first; empty: shown

    @property
    def cells(self) -> list[list[Cell]]:
        return [[column.cell(row) for column in self.columns] for row in self.rows]

    @property
    def href(self) -> str:
        """The link that holds the CSV inside the page, so that a page sent alone still has its data."""
        return "data:text/csv;base64," + base64.b64encode(self.csv[1].encode()).decode()


@dataclass
class Figure:
    name: str
    svg: Markup
    caption: str
    wide: bool = False  # too wide for a phone: scrolled there, not shrunk

    @classmethod
    def of(cls, name: str, drawing: Drawing, caption: str) -> "Figure":
        return cls(name, Markup(svg.markup(drawing, name)), caption, drawing.get_figwidth() > WIDEST)


@dataclass
class Figures:
    """Figures side by side where the screen has room."""

    items: list[Figure]


@dataclass
class Text:
    paragraph: str


@dataclass
class Points:
    """A list with a sentence above it."""

    lead: str
    points: list[str]


@dataclass
class Missing:
    """A result that is missing, and how to get it."""

    text: str


@dataclass
class Preformatted:
    """A fold with preformatted text."""

    title: str
    text: str


@dataclass
class SideBySide:
    """Texts (label, text) next to each other where the screen has room, below the prompt that they answer."""

    caption: str
    prompt: str
    texts: list[tuple[str, str]]


@dataclass
class Section:
    id: str
    title: str
    blocks: list


@dataclass
class Answer:
    """The top of the page: the answer in one line, its sentences, facts (value, label) and one figure."""

    headline: str
    findings: list[str]
    facts: list[tuple[str, str]]
    figure: Figure | None = None


def render(project: str, answer: Answer, sections: list[Section]) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.tests["instance"] = lambda value, name: type(value).__name__ == name
    template = environment.from_string((HERE / "page.html.j2").read_text(encoding="utf-8"))
    text = template.render(
        project=project,
        answer=answer,
        sections=sections,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )
    return text.strip() + "\n"
