"""The figures of the page and of the step tsne, each from plain numbers."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lpc.report.svg import BLUE, COLOURS, DASHES, INK, MARKERS, MUTED, ORANGE, PAPER, figure, series, style


def scatter_panel(axes, points: np.ndarray | None, label: list[str], order: list[str], title: str) -> None:
    """Draw points [N, 2] in the colour and marker of their label; `order` names the labels, the rest is drawn in grey.

    With None for points, the panel states that there is nothing to draw.
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
    """Draw two panels, t-SNE of z and of h_x, coloured by data source; `note` stands above them."""
    with style():
        fig = figure(6.2, 4.1)
        left, right = fig.subplots(1, 2)
        names = sorted(set(source), key=lambda name: (-source.count(name), name))[: len(MARKERS)]
        scatter_panel(left, z, source, sorted(names), "z, what the latent adds")
        scatter_panel(right, h_x, source, sorted(names), "h of the prompt, what the latent reads")
        drawn = left if z is not None else right
        _finish_scatter(fig, drawn, f"t-SNE of test prompts by source. {note}", columns=3)
    return fig


def tsne_by_code(z, code: list[str], note: str) -> Figure:
    """Draw one panel, t-SNE of z, coloured by the strongest code of the prior; the most used codes are named."""
    with style():
        fig = figure(3.45, 4.1)
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


def reach(values, intervals, margin: float = 0.12) -> tuple[float, float]:
    """Return axis limits around `values`, and around `intervals` within reason: those of two seeds are huge."""
    low, high = min(values), max(values)
    room = max(12.0, high - low)
    ends = [*values, *(min(max(end, low - room), high + room) for end in intervals)]
    low, high = min(ends), max(ends)
    return low - margin * (high - low), high + margin * (high - low)


def dots(rows: list[dict], references: dict[str, float]) -> Figure:
    """Draw accuracy by recipe: a dot and its 95 % interval per row, ticks for single seeds, dotted lines for
    `references`.

    rows: {"label", "mean", "low", "high" (or None), "seeds": [accuracy, …], "group"}, in per cent; a group is
    plain, codes or control.
    """
    looks = {"plain": (MUTED, "o"), "codes": (BLUE, "s"), "control": (ORANGE, "D")}
    low, high = reach(
        [*(value for row in rows for value in (row["mean"], *row["seeds"])), *references.values()],
        [row[end] for row in rows for end in ("low", "high") if row[end] is not None],
        margin=0.03,
    )
    with style():
        fig = figure(4.8, 0.8 + 0.3 * len(rows) + (0.45 if references else 0))
        axes = fig.subplots()
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        for place, row in enumerate(rows):
            colour, marker = looks[row["group"]]
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.4, alpha=0.5)
            if len(row["seeds"]) > 1:
                axes.plot(row["seeds"], [place] * len(row["seeds"]), "|", color=colour, markersize=9)
            axes.plot(row["mean"], place, marker, color=colour, markersize=6, markeredgewidth=0)
        last, level = -np.inf, 0
        for label, value in sorted(references.items(), key=lambda item: item[1]):
            # Labels of lines close together stand one above the other.
            level = (level + 1) % 3 if value - last < 0.3 * (high - low) else 0
            last = value
            axes.axvline(value, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
            axes.text(value, -0.75 - 0.55 * level, f" {label}", color=MUTED, fontsize=8, va="center",
                      ha="left" if value < (low + high) / 2 else "right")  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -2.2 if references else -0.6)
        axes.set_xlim(low, high)
        axes.set_xlabel("accuracy on test pairs, %")
    return fig


def forest(rows: list[dict]) -> Figure:
    """Draw differences around zero: thick line over test prompts, thin line over seeds where there are several.

    rows: {"label", "difference", "low", "high", "seeds_low", "seeds_high" (or None), "sure"}, in points.
    """
    with style():
        fig = figure(4.8, 0.75 + 0.34 * len(rows))
        axes = fig.subplots()
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=INK, linewidth=1)
        for place, row in enumerate(rows):
            axes.plot(
                [row["low"], row["high"]], [place, place], color=BLUE, linewidth=3, alpha=1 if row["sure"] else 0.45
            )
            if row["seeds_low"] is not None:
                axes.plot([row["seeds_low"], row["seeds_high"]], [place, place], color=BLUE, linewidth=0.9)
            inside = BLUE if row["sure"] else PAPER
            axes.plot(row["difference"], place, "s", markersize=6.5, markerfacecolor=inside, markeredgecolor=BLUE)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        widest = 1.4 * max(1.0, *(abs(row[end]) for row in rows for end in ("low", "high")))
        axes.set_xlim(-widest, widest)
        axes.set_xlabel("accuracy with LPC minus without, points")
    return fig


def curves(title: str, lines: list[dict], *, smoothing: int = 9) -> Figure:
    """Draw a quantity over training steps.

    lines: {"name", "x", "y"}; those of one name (seeds) share colour and dash. smoothing: the width of `smooth`.
    """
    names = dict.fromkeys(line["name"] for line in lines)
    look = {name: (COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i, name in enumerate(names)}
    with style():
        fig = figure(3.1, 2.5)
        axes = fig.subplots()
        shown = set()
        for line in lines:
            colour, dash = look[line["name"]]
            label = None if line["name"] in shown else line["name"]
            shown.add(line["name"])
            y = smooth(line["y"], smoothing)
            axes.plot(line["x"], y, color=colour, linestyle=dash, linewidth=1.5, label=label, alpha=0.9)
        axes.set_title(title)
        axes.set_xlabel("step")
        fig.legend(loc="outside lower left", ncols=2 if max(map(len, names)) < 16 else 1, fontsize=8)
    return fig


def smooth(values, width: int) -> np.ndarray:
    """Return the mean over the `width` (odd) points around each; at the ends, over fewer."""
    values, kernel, half = np.asarray(values, np.float64), np.ones(width), width // 2
    sums, counts = (np.convolve(row, kernel)[half : half + len(row)] for row in (values, np.ones_like(values)))
    return sums / counts


def sweep(key: str, lines: list[dict], *, log2: bool, level: dict[str, float]) -> Figure:
    """Draw accuracy in per cent against a swept key.

    lines: {"name", "x", "mean", "low", "high"}; level: accuracy without latent, by recipe.
    """
    with style():
        fig = figure(3.6, 2.9)
        axes = fig.subplots()
        look = series([line["name"] for line in lines])
        for line in lines:
            colour, marker = look[line["name"]]
            axes.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(line["x"], line["mean"], marker=marker, markersize=5, color=colour, label=line["name"])
        for dash, (name, value) in zip(DASHES[1:], level.items(), strict=False):
            axes.axhline(value, color=MUTED, linestyle=dash, linewidth=1, label=f"{name} (no latent)")
        if log2:
            axes.set_xscale("log", base=2)
        values = sorted({x for line in lines for x in line["x"]})
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        ends = [end for line in lines for end in (*line["low"], *line["high"])]
        axes.set_ylim(reach([*(y for line in lines for y in line["mean"]), *level.values()], ends))
        axes.set_xlabel(key)
        axes.set_ylabel("accuracy, %")
        fig.legend(loc="outside lower left", ncols=2, fontsize=8)
    return fig


def noise(variants: list[str], lines: list[dict]) -> Figure:
    """Draw accuracy in per cent by dataset variant.

    lines: {"name", "points"}; one point for each variant, {"mean", "low", "high"} or None.
    """
    points = [point for line in lines for point in line["points"] if point]
    with style():
        fig = figure(3.6, 2.9)
        axes = fig.subplots()
        axes.grid(axis="x", visible=False)
        look = series([line["name"] for line in lines])
        step = 0.6 / max(len(lines) - 1, 1)
        for number, line in enumerate(lines):
            colour, marker = look[line["name"]]
            label = line["name"]
            for place, point in enumerate(line["points"]):
                if point:
                    x = place + (number - (len(lines) - 1) / 2) * step
                    axes.plot([x, x], [point["low"], point["high"]], color=colour, linewidth=2, alpha=0.55)
                    axes.plot(x, point["mean"], marker, color=colour, markersize=6, markeredgewidth=0, label=label)
                    label = None
        axes.set_xticks(range(len(variants)), variants)
        axes.set_xlim(-0.6, len(variants) - 0.4)
        axes.set_ylim(
            reach([point["mean"] for point in points], [point[end] for point in points for end in ("low", "high")])
        )
        axes.set_ylabel("accuracy, %")
        fig.legend(loc="outside lower left", ncols=2, fontsize=8)
    return fig


def heat_map(usage: np.ndarray, sources: list[str], codes: list[str], label: str = "code, by use") -> Figure:
    """Draw the share of each code for each source [S, K], darker for more; from 0.1 up, with its per cent."""
    with style():
        fig = figure(max(3.2, 1.4 + 0.27 * len(codes)), 1.0 + 0.28 * len(sources))
        axes = fig.subplots()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        top = max(usage.max(), 1e-12)
        for row, column in np.ndindex(*usage.shape):
            value = usage[row, column]
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (column - 0.47, row - 0.46), 0.94, 0.92, color=BLUE, alpha=value / top, lw=0
                )
            )
            if value >= 0.1:
                colour = PAPER if value / top > 0.55 else INK
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xlim(-0.6, len(codes) - 0.4)
        axes.set_ylim(len(sources) - 0.4, -0.6)
        axes.set_yticks(range(len(sources)), sources, color=INK)
        axes.set_xticks(range(len(codes)), codes, fontsize=7)
        axes.set_xlabel(label)
    return fig
