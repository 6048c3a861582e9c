"""Style of the figures, and their SVG, which follows the page's light or dark theme and works alone as well.

Every colour is one of `THEME`; in the SVG it becomes a CSS variable with that colour as fallback. Text stays text, in
the page's font. The categorical colours are those of Okabe and Ito (2008), which readers with any colour vision can
distinguish; series also differ in marker or dash, for grey print.
"""

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from lpc import files

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
INK, MUTED, RULE, PAPER = "#24292f", "#6a737d", "#d8dee4", "#ffffff"
THEME = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red", PURPLE: "purple", SKY: "sky",
    INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper",
}  # fmt: skip
COLOURS = [BLUE, ORANGE, GREEN, RED, PURPLE, SKY]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
DASHES = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)), (0, (2, 2))]

STYLE = {
    "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none", "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.edgecolor": RULE, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    "lines.linewidth": 1.6, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches. Axes are added inside `with style():`."""
    return Figure(figsize=(width, height), layout="constrained")


def style():
    return matplotlib.rc_context(STYLE)


def markup(fig: Figure, name: str) -> str:
    """Return the figure as one `<svg>` element: reproducible, without date, theme colours as CSS variables.

    `name` makes ids unique among the figures of a page.
    """
    stream = io.StringIO()
    # Without the version of matplotlib, date and type, so that equal figures have equal bytes.
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        fig.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<!--.*?-->", "", text, flags=re.DOTALL)
    # Ids of groups repeat from figure to figure and nothing refers to them; those of definitions are hashes.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans, system-ui, sans-serif)", text)
    # A style sheet inside would reach every other figure of the page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = text.replace("<svg ", '<svg stroke-linejoin="round" ', 1)
    # Scattered points repeat one style for each point: move it to their group.
    text = re.sub(r"<g( clip-path=\"[^\"]*\")?>\s*((?:<use [^>]*/>\s*){2,})</g>", _hoist_style, text)
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return re.sub(r"\n\s*", "\n", text)


def _hoist_style(match: re.Match) -> str:
    styles = set(re.findall(r' style="([^"]*)"', match[2]))
    if len(styles) != 1:
        return match[0]
    uses = re.sub(r' style="[^"]*"', "", match[2])
    return f'<g{match[1] or ""} style="{styles.pop()}">{uses}</g>'


def save(fig: Figure, path: str | Path) -> None:
    """Write the figure as SVG at `path` and as PNG, on white, beside it."""
    path = Path(path)
    files.write_text(path, markup(fig, path.stem))
    with files.atomic(path.with_suffix(".png")) as temporary, style():
        fig.savefig(temporary, dpi=160, facecolor=PAPER, metadata={"Software": None})


def series(names) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each name; past the palette, colours repeat with other markers."""
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
