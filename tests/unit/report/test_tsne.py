import csv
import re

import pyarrow as pa
import pytest
from results_tree import PAIRS, SETTINGS, a_run, folder_of
from steps import run_step

from lpc import files

OUTPUTS = ["tsne.csv", "tsne_source.svg", "tsne_source.png", "tsne_code.svg", "tsne_code.png"]


def embed(latents, folder, spec=SETTINGS["evaluation"]["tsne"]):
    run_step(
        "tsne",
        spec,
        "--latents",
        latents,
        "--coordinates",
        folder / "tsne.csv",
        "--by-source",
        folder / "tsne_source.svg",
        "--by-code",
        folder / "tsne_code.svg",
    )


@pytest.fixture(scope="module")
def folder(results):
    return results / folder_of(a_run("dpo-lpc", 0)) / "evaluation"


def test_files_are_the_same_bytes_twice(folder, tmp_path):
    embed(folder / "latents.parquet", tmp_path)
    for name in OUTPUTS:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_one_point_a_prompt(folder):
    with (folder / "tsne.csv").open() as stream:
        found = list(csv.DictReader(stream))
    assert list(found[0]) == ["prompt_id", "source", "code", "z_1", "z_2", "h_1", "h_2"]
    assert len({row["prompt_id"] for row in found}) == len(found) == PAIRS // 2
    assert (found[0]["source"], found[0]["code"]) == ("bank", "code 0")
    text = (folder / "tsne_code.svg").read_text()
    legend = len(set(re.findall(r">code \d<", text)))
    assert len(re.findall("<use ", text)) == PAIRS // 2 + legend


def words(svg) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", svg.read_text()).split())


def test_titles_say_how_much_the_codes_know(folder, results):
    measured = files.read_json(folder / "latents.json")
    for name in ("tsne_source.svg", "tsne_code.svg"):
        text = words(folder / name)
        assert f"Spread of z {measured['z_spread']:.2g}" in text
        assert f"{measured['mutual_information']:.2g} nats" in text
    assert "a latent without codes" in words(results / folder_of(a_run("dpo-mlp", 0)) / "evaluation/tsne_code.svg")


def test_svg_follows_the_theme_and_holds_no_date_font_or_style_sheet(folder):
    text = (folder / "tsne_source.svg").read_text()
    assert text.startswith("<svg ")
    for forbidden in ("<style", "<metadata", "DejaVu", "Matplotlib", "http://matplotlib"):
        assert forbidden not in text
    bare = re.sub(r"var\([^)]*\)", "", text)
    assert re.findall(r"#[0-9a-f]{6}\b", bare) == [], "every colour is a variable of the theme"
    assert set(re.findall(r'id="([^"]*)"', text)) >= set(re.findall(r'(?:href="#|url\(#)([^")]*)', text))


def test_z_that_is_the_same_for_every_prompt_is_not_drawn(folder, tmp_path):
    table = files.read_parquet(folder / "latents.parquet")
    same = pa.array([[0.25] * 16] * len(table), pa.list_(pa.float32()))
    files.write_parquet(tmp_path / "latents.parquet", table.set_column(table.column_names.index("z"), "z", same))
    embed(tmp_path / "latents.parquet", tmp_path)
    assert "the same for every prompt" in (tmp_path / "tsne_code.svg").read_text()
    with (tmp_path / "tsne.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert row["z_1"] == "" and row["h_1"] != ""


def test_perplexity_that_is_too_large_is_one_line(folder, tmp_path):
    with pytest.raises(files.UserError, match=r"evaluation.tsne.perplexity: 60.0 must lie .* \(60\); lower it$"):
        embed(folder / "latents.parquet", tmp_path, {"perplexity": 60, "seed": 0})
    assert list(tmp_path.iterdir()) == []
