import re

import numpy as np
import pytest

from lpc.report import figures, svg
from lpc.report.page import HERE

DOTS = [
    {"label": "dpo", "mean": 70.0, "low": 66.0, "high": 74.0, "seeds": [70.0], "group": "plain"},
    {"label": "dpo-lpc", "mean": 71.0, "low": 0.0, "high": 100.0, "seeds": [69.0, 73.0], "group": "codes"},
    {"label": "dpo-mlp", "mean": 79.0, "low": None, "high": None, "seeds": [79.0], "group": "control"},
]
FOREST = [
    {"label": "DPO", "difference": 3.0, "low": 1.0, "high": 5.0, "seeds_low": None, "seeds_high": None, "sure": True},
    {"label": "IPO", "difference": -1.0, "low": -3.0, "high": 1.0, "seeds_low": -9.0, "seeds_high": 7.0, "sure": False},
]
LINE = {
    "name": "dpo-lpc",
    "x": [8, 16, 32],
    "mean": [70.0, 72.0, 71.0],
    "low": [66.0, 68.0, 67.0],
    "high": [74.0, 76.0, 75.0],
}
POINT = {"mean": 70.0, "low": 66.0, "high": 74.0}
# Code k is the strongest of 11 − k prompts: the first nine can be named.
CODES = [f"code {k}" for k in range(11) for _ in range(11 - k)]
CLOUD = np.random.default_rng(0).normal(size=(len(CODES), 2))
DRAWN = {
    "dots": lambda: figures.dots(DOTS, {"longer wins": 55.0, "blind to source": 56.0, "oracle": 90.0}),
    "dots without references": lambda: figures.dots(DOTS, {}),
    "forest": lambda: figures.forest(FOREST),
    "curves": lambda: figures.curves("DPO: loss", [{"name": "dpo", "x": [1, 2, 3], "y": [0.7, 0.6, 0.5]}] * 2),
    "sweep": lambda: figures.sweep("latent.codes", [LINE], log2=True, level={"dpo": 70.0}),
    "noise": lambda: figures.noise(["clean", "flip50"], [{"name": "dpo", "points": [POINT, None]}]),
    "heat map": lambda: figures.heat_map(np.array([[0.9, 0.1], [0.5, 0.5]]), ["bank", "poet"], ["3", "1"]),
    "heat map of nothing": lambda: figures.heat_map(np.zeros((1, 2)), ["bank"], ["0", "1"]),
    "t-SNE by source": lambda: figures.tsne_by_source(CLOUD, None, ["bank", "poet"] * 33, "Spread of z 0."),
    "t-SNE by code": lambda: figures.tsne_by_code(CLOUD, CODES, "Spread of z 1."),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_figure_is_themed_deterministic_and_alone(name):
    text = svg.markup(DRAWN[name](), name)
    assert text == svg.markup(DRAWN[name](), name)
    assert text.startswith("<svg ")
    assert re.findall(r"#[0-9a-f]{6}\b", re.sub(r"var\([^)]*\)", "", text)) == [], "a colour outside the theme"
    identities = re.findall(r'\bid="([^"]*)"', text)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', text)) <= set(identities)


def test_ids_of_two_figures_do_not_meet():
    def ids(name):
        return set(re.findall(r'\bid="([^"]*)"', svg.markup(DRAWN["forest"](), name)))

    assert ids("one") and not ids("one") & ids("two")


def test_the_most_used_labels_are_named_and_the_rest_is_other():
    text = svg.markup(DRAWN["t-SNE by code"](), "codes")
    assert set(re.findall(r">(code \d+)<", text)) == {f"code {i}" for i in range(len(svg.MARKERS))}
    assert text.count(">other<") == 1


def test_series_past_the_palette_stay_distinct():
    looks = list(svg.series(range(len(svg.MARKERS))).values())
    assert len(set(looks)) == len(looks)
    assert len({marker for _, marker in looks}) == len(looks), "told apart without colour"


def test_smoothing_is_a_running_mean_that_shrinks_at_the_ends():
    assert figures.smooth([1, 2, 6], width=3) == pytest.approx([1.5, 3, 4])
    assert figures.smooth([1, 2], width=9) == pytest.approx([1.5, 1.5])


def test_an_interval_of_two_seeds_does_not_dwarf_the_values():
    assert figures.reach([70, 74], [0, 100], margin=0) == (58, 86)
    assert figures.reach([70, 74], [68, 77], margin=0) == (68, 77)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(theme):
    """WCAG 2 AA: 4.5 for text, 3 for what a figure needs."""
    blocks = re.findall(r":root \{(.*?)\}", (HERE / "page.css").read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[theme]))
    for text in ("ink", "muted", "accent"):
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    for line in ("blue", "orange", "green", "red", "purple", "sky"):
        assert contrast(colours[line], colours["paper"]) >= 3, line
