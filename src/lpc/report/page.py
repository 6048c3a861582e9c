"""The page as a whole: sections of text, tables and figures, put into one HTML file that needs nothing else."""

import base64
import dataclasses
from pathlib import Path

import jinja2
from markupsafe import Markup

from lpc.report import figures

HERE = Path(__file__).parent


@dataclasses.dataclass
class Cell:
    """What a cell shows, what it sorts by, and how sure it is: `strong` only where an interval excludes zero."""

    text: str
    sort: float | str | None = None
    detail: str = ""  # second line, small: an interval, a paper's number
    strong: bool = False


@dataclasses.dataclass
class Column:
    label: str
    number: bool = True
    hint: str = ""  # what the column means, on hovering and for screen readers


@dataclasses.dataclass
class Table:
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    csv: tuple[str, str] | None = None  # file name and content behind the link
    notes: list[str] = dataclasses.field(default_factory=list)
    folded: str = ""  # title of the fold that hides it at first; empty: shown

    @property
    def href(self) -> str:
        """The CSV inside the page, so that a page sent alone still has its data."""
        return "data:text/csv;base64," + base64.b64encode(self.csv[1].encode()).decode()


@dataclasses.dataclass
class Figure:
    name: str
    svg: Markup
    caption: str
    wide: bool = False


@dataclasses.dataclass
class Figures:
    """Figures in a row on a wide screen, one below another on a narrow one."""

    items: list[Figure]


@dataclasses.dataclass
class Text:
    """Paragraphs."""

    paragraphs: list[str]


@dataclasses.dataclass
class Points:
    """A list with a sentence above it."""

    lead: str
    points: list[str]


@dataclasses.dataclass
class Missing:
    """What is not there, and how to get it."""

    text: str


@dataclasses.dataclass
class Code:
    """A fold with preformatted text."""

    title: str
    text: str


@dataclasses.dataclass
class Section:
    id: str
    title: str
    blocks: list


def drawn(name: str, fig, caption: str, *, wide: bool = False) -> Figure:
    return Figure(name, Markup(figures.svg(fig, name)), caption, wide)


def render(
    title: str,
    subtitle: str,
    headline: str,
    findings: list[str],
    facts: list[tuple[str, str]],
    forest: Figure | None,
    sections: list[Section],
) -> str:
    """The page. `headline` answers the question, `findings` are its sentences, `facts` (value, label) stand beside it."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.tests["instance"] = lambda value, name: type(value).__name__ == name
    template = environment.from_string((HERE / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        headline=headline,
        findings=findings,
        facts=facts,
        forest=forest,
        sections=sections,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )
