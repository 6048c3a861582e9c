"""Figures as SVG that follow the page's light or dark theme, and stand alone as well.

Every colour drawn is one of `THEME`; in the SVG it becomes a CSS variable with that colour as fallback. Text stays text, in the page's font.
The categorical colours are those of Okabe and Ito (2008), told apart by readers with any colour vision; series differ in marker or dash too, for grey.
"""

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
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
    "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none",
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.edgecolor": RULE, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    "lines.linewidth": 1.6, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


def figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. Axes are added inside `with style():`."""
    return Figure(figsize=(width, height), layout="constrained")


def style():
    return matplotlib.rc_context(STYLE)


def svg(fig: Figure, name: str) -> str:
    """The figure as one `<svg>` element: same bytes for the same figure, no date, theme colours as CSS variables.

    `name` keeps the ids of several figures in one page apart.
    """
    stream = io.StringIO()
    # No version of matplotlib, no date, no type: what is left is the figure.
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
    # Scattered points repeat one style a point: say it once, on their group.
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
    files.write_text(path, svg(fig, path.stem))
    with files.atomic(path.with_suffix(".png")) as temporary, style():
        fig.savefig(temporary, dpi=160, facecolor=PAPER, metadata={"Software": None})


def series(names) -> dict[str, tuple[str, str]]:
    """Colour and marker of each name; past the palette, another marker with the same colour keeps them apart."""
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def scatter_panel(axes, points: np.ndarray | None, label: list[str], order: list[str], title: str) -> None:
    """Points [N, 2] in the colour and marker of their label; `order` names the labels, the rest is drawn in grey.

    None for points says that there is nothing to draw.
    """
    axes.set_title(title, fontsize=9.5)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    if points is None:
        axes.text(0.5, 0.5, "the same for every prompt:\nnothing to draw", ha="center", va="center", color=MUTED)
        return
    label = np.asarray(label)
    rest = ~np.isin(label, order)
    for name, (colour, marker) in series(order).items():
        chosen = points[label == name]
        axes.plot(*chosen.T, marker, color=colour, markersize=4, alpha=0.75, markeredgewidth=0, label=name)
    if rest.any():
        axes.plot(
            *points[rest].T, ".", color=MUTED, markersize=3, markeredgewidth=0, alpha=0.75, zorder=1, label="other"
        )


def tsne_by_source(z, h_x, source: list[str], note: str) -> Figure:
    """Two panels, t-SNE of z and of h_x, coloured by data source; `note` stands above them."""
    with style():
        fig = figure(7.4, 4.4)
        left, right = fig.subplots(1, 2)
        names = sorted(set(source), key=lambda name: (-source.count(name), name))[: len(MARKERS)]
        scatter_panel(left, z, source, sorted(names), "z, what the latent adds")
        scatter_panel(right, h_x, source, sorted(names), "h of the prompt, what the latent reads")
        drawn = left if z is not None else right
        _finish_scatter(fig, drawn, f"t-SNE of test prompts by source. {note}", columns=3)
    return fig


def tsne_by_code(z, code: list[str], note: str) -> Figure:
    """One panel, t-SNE of z, coloured by the strongest code of the prior; the most used codes are named."""
    with style():
        fig = figure(4.6, 4.8)
        axes = fig.subplots()
        names = sorted(set(code), key=lambda name: (-code.count(name), name))[: len(MARKERS)]
        scatter_panel(axes, z, code, names, "z")
        _finish_scatter(fig, axes, f"t-SNE of test prompts by strongest code. {note}", columns=3)
    return fig


def _finish_scatter(fig: Figure, axes, title: str, columns: int) -> None:
    fig.suptitle(title, fontsize=8.5, x=0.01, ha="left", wrap=True)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        fig.legend(handles, labels, loc="outside lower center", ncols=columns, markerscale=1.6, fontsize=8.5)
