import base64
import html.parser
import re

import pytest
import results_tree
from results_tree import ABSENT, COMMIT, SETTINGS, folder_of, report_spec
from steps import run_step

from lpc import files
from lpc.report import paper, words
from lpc.report.sections.completions import shortened
from lpc.report.tables import TABLES, definition

VOID = ("meta", "link")


class Page(html.parser.HTMLParser):
    """What a test asks of the page; fails on a tag that is closed out of order."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open, self.rows, self.links, self.ids, self.text = [], [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append({"text": "", "strong": False})
        if tag == "strong":
            self.rows[-1][-1]["strong"] = True
        self.links += [attrs[name] for name in ("href", "src", "xlink:href") if name in attrs]
        if "id" in attrs:
            self.ids.append(attrs["id"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open:
            self.text.append(data)
        if {"td", "th"} & set(self.open[-3:]):
            self.rows[-1][-1]["text"] += data.replace("\n", "")


def report(results, spec: dict, folder) -> str:
    run_step("report", spec, "--results", results, "--commit", COMMIT, "--output", folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markup(results, tmp_path_factory) -> str:
    return report(results, report_spec(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(markup) -> Page:
    return Page(markup)


def words_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_the_page_needs_nothing_else(markup, page):
    for link in page.links:
        assert link.startswith(("#", "data:")), link
    for url in re.findall(r"url\(([^)]*)\)", markup):
        assert url.startswith("#"), url
    assert set(re.findall(r"https?://[^\s\"'<]*", markup)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    targets = [link[1:] for link in page.links if link.startswith("#")]
    assert set(targets) <= set(page.ids)


def test_the_same_results_give_the_same_bytes(results, markup, tmp_path):
    assert report(results, report_spec(), tmp_path) == markup


def test_the_answer_comes_first_and_follows_the_numbers(results, page):
    text = words_of(page)
    assert text.index("LPC made no measurable difference") < text.index(
        "Preference accuracy Preference accuracy is the"
    )
    assert "dpo-lpc is not measurably different from dpo" in text
    assert "12 of 13" in text
    mi = {
        files.read_json(results / folder_of(results_tree.a_run(r, s)) / "evaluation/latents.json")["mutual_information"]
        for r, s in (("dpo-lpc", 0), ("dpo-lpc", 1), ("simpo-lpc", 0))
    }
    assert f"The codes carry {words.span(list(mi), 2)} nats of information about the prompt" in text


def test_no_difference_is_strong_whose_interval_spans_zero(page):
    strong = [cell["text"] for row in page.rows for cell in row if cell["strong"]]
    assert strong, "the control is far above plain training in this tree"
    for cell in strong:
        low, high = (float(end.replace("−", "-")) for end in re.search(r"\[(\S+), (\S+)\]", cell).groups())
        assert low * high > 0, cell


def test_every_section_is_there_and_a_missing_run_says_so(page):
    for section in (
        "answer",
        "preference",
        "benchmarks",
        "alpacaeval",
        "experiments",
        "selection",
        "comparisons",
        "codes",
        "completions",
        "factors",
        "training",
        "cost",
        "missing",
        "provenance",
    ):
        assert section in page.ids
    assert f"missing: {ABSENT}/train.json" in words_of(page)
    for origin in (COMMIT, "training-0123.sif", "ef" * 32, "ab" * 32, "cd" * 32):
        assert words_of(page).count(origin) == 1, f"{origin} is part of where the results come from"
    assert "Not judged: it is not configured" in words_of(page)


def test_the_page_says_which_share_is_cut_and_warns_once_of_a_large_one(page):
    assert words_of(page).count(" 12.5 / 6.2 prompts 2.0 ") == len(results_tree.RUNS) - 1
    for variant in ("world", "world.flip50"):
        note = f"Of the training pairs of {variant}, as tiny reads them, 12 % have a chosen completion without its end"
        assert words_of(page).count(note) == 1


def test_each_table_file_is_inside_the_page(results, markup):
    found = dict(re.findall(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', markup))
    assert set(found) == {f"{name}.csv" for name in TABLES}
    for name, content in found.items():
        assert base64.b64decode(content) == (results / "tables" / name).read_bytes()


def test_completions_stand_side_by_side_and_identical_ones_are_said_to_be(page, markup):
    text = words_of(page)
    assert (
        "dpo-lpc on tiny, seed 0. Strongest codes, by mean prior over test prompts: 5 (25.0 %) and 2 (12.5 %)" in text
    )
    assert (
        "the prior's z changes the completion of 0 of 2 prompts, and at least one forced code changes that of 1."
        in text
    )
    assert "simpo-lpc on tiny, seed 0. Strongest codes" in text and "All completions of a prompt are identical" in text
    assert text.count("What is 3 plus four?") == text.count("What is 4 plus four?") == 2
    assert text.count("z of the prior, z = 0, code 5 and code 2 Seven.") == 3, "equal texts share a box"
    assert "z of the prior and z = 0 Seven. code 5 A very long word" in text and "code 2 (nothing)" in text
    assert "&lt;b&gt;markup&lt;/b&gt;" in markup and "<b>markup</b>" not in markup


def test_long_prompts_keep_their_end_and_turns_their_roles():
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert shortened(turns) == "user: a\nassistant: b\nuser: c"
    assert shortened([{"role": "user", "content": "x" * 600}]) == "x" * 600
    assert shortened([{"role": "user", "content": "x" * 600 + "y"}]) == "… " + "x" * 599 + "y"


def test_what_validation_chose_stands_in_words_and_in_the_table(results, page):
    """72 % with 8 codes against 70 % with 16, as the tree has it; the test accuracy is that of the chosen run."""
    folder = results / folder_of(results_tree.a_run("dpo-lpc", 0))
    tested = words.number(100 * files.read_json(folder / "evaluation/preference/world.json")["accuracy"])
    said = f"latent.codes = 8 (72.0 % on validation pairs, {tested} % on test pairs)."
    assert f"codebook: dpo-lpc on tiny, trained on world: {said}" in words_of(page)
    rows = {row[4]["text"]: [cell["text"] for cell in row] for row in page.rows if row[0]["text"] == "codebook"}
    assert rows["latent.codes = 8"][5:] == ["72.0[52.0, 82.0]", "1", "20", "yes", tested, "ok"]
    assert rows["latent.codes = 16"][8:] == ["–", "–", "ok"]


def test_ceilings_are_those_of_the_test_pairs(page):
    """Of the rejected "7 and more." every chosen text has more full stops or exclamation marks, or fewer figures."""
    (row,) = [row for row in page.rows if row and row[0]["text"] == "best rule blind to the source"]
    assert row[1]["text"] == "100.0"


def test_figures_of_sweep_noise_codes_and_training_are_drawn(page, markup):
    for name in (
        "sweep-codebook",
        "noise-tiny-world",
        "codes-tiny-dpo-lpc-0",
        "person-codes-tiny-world-dpo-lpc",
        "person-shares-tiny-world-dpo-lpc",
        "tsne-source-tiny-dpo-lpc-0",
        "tsne-code-tiny-dpo-lpc-0",
        "training-tiny-world-dpo-loss",
        "training-tiny-world-dpo-codes",
        "training-tiny-world-dpo-validation-loss",
        "training-tiny-world-dpo-validation-accuracy",
        "accuracy-world",
        "differences",
    ):
        assert f'data-name="{name}"' in markup, name
    assert 'data-name="tsne-code-tiny-dpo-mlp-0"' not in markup, "a latent without codes has no picture by code"


def test_only_what_exists_is_shown(results, tmp_path):
    """Plain runs alone: no comparison, no codes, no sweep; each says how to get it."""
    spec = report_spec()
    spec["settings"]["experiments"] = {"main": SETTINGS["experiments"]["main"]}
    spec["runs"] = [run for run in spec["runs"] if run["recipe"] == "dpo" and run["noise"] == "clean"]
    spec["settings"]["evaluation"] = {**SETTINGS["evaluation"], "benchmarks": {"batch_size": 1, "tasks": {}}}
    root = tmp_path / "results"
    results_tree.write_data(root)
    for run in results_tree.RUNS:
        if folder_of(run) in map(folder_of, spec["runs"]):
            results_tree.write_run(root, run)
    tables = {**results_tree.tables_spec(), "runs": spec["runs"], "tasks": [], "sweeps": {}}
    run_step("tables", tables, "--results", root, "--output", root / "tables")
    text = words_of(Page(report(root, spec, tmp_path)))
    for expected in (
        "These results do not compare LPC with plain training",
        "No run has a latent, so nothing is compared",
        "No sweep over the number of codes",
        "No training on flipped labels",
        "No benchmark is configured",
        "No run of the main experiment has a latent",
        "no timing files",
    ):
        assert expected in text
    assert "selected on validation" not in text


def test_nothing_trained_yet_still_makes_a_page(tmp_path):
    run_step("tables", results_tree.tables_spec(), "--results", tmp_path, "--output", tmp_path / "tables")
    text = words_of(Page(report(tmp_path, report_spec(), tmp_path)))
    assert "0 of 13" in text
    assert "No setting is selected while runs of the sweep are missing." in text
    assert "missing: runs/tiny/world/dpo-lpc/seed-0/evaluation/completions.json" in text
    assert "LPC is not compared with plain training yet" in text
    assert "No run of the main experiment is scored on world yet" in text
    # A dataset of other experiments alone is not awaited.
    spec = report_spec()
    spec["runs"].append({**spec["runs"][0], "dataset": "people", "variant": "people", "experiments": ["people"]})
    spec["settings"]["datasets"]["people"] = spec["settings"]["datasets"]["world"]
    tables = {**results_tree.tables_spec(), "runs": spec["runs"]}
    run_step("tables", tables, "--results", tmp_path, "--output", tmp_path / "tables")
    text = words_of(Page(report(tmp_path, spec, tmp_path)))
    assert "scored on world yet" in text and "scored on people yet" not in text


def test_the_papers_numbers_stand_beside_ours_where_base_and_task_are_the_same(results, tmp_path):
    spec = report_spec()
    spec["settings"]["bases"]["tiny"] = {"model": "meta-llama/Meta-Llama-3-8B"}
    spec["settings"]["evaluation"]["benchmarks"]["tasks"]["sums"]["task"] = "gsm8k"
    page = Page(report(results, spec, tmp_path))
    (row,) = [row for row in page.rows if row[0]["text"] == "DPO" and len(row) == 11]
    assert [cell["text"] for cell in row[-3:]] == ["69.3", "70.8", "+1.5"]
    cells = {row[0]["text"]: [cell["text"] for cell in row] for row in page.rows if len(row) == 5}
    assert cells["base model"][2] == "40.0± 3.0; paper 49.51"
    assert cells["dpo"][2].endswith("paper 54.36")
    assert "paper" not in cells["dpo"][3], "a task of our own has no number in the paper"
    assert "paper" not in cells["dpo-lpc"][2], "and the paper's with LPC did not survive"


def test_paper_tables_hold_together():
    """Each average of Table 1 is that of its row, rounded or cut to two digits."""
    for base, methods in paper.BENCHMARKS.items():
        assert set(methods) == {("base", False)} | {
            (name, lpc) for name in ("dpo", "ipo", "simpo") for lpc in (False, True)
        }
        for method, (*scores, average) in methods.items():
            if None not in scores:
                assert sum(scores) / 4 == pytest.approx(average, abs=0.008), (base, method)
    assert set(paper.BENCHMARKS) == set(paper.PREFERENCE) == set(paper.BASES.values())
    assert paper.base_name({"model": "mistralai/Mistral-7B-v0.1"}) == "Mistral-7B"
    assert paper.base_name({"scratch": {}}) is None


def test_every_section_of_a_table_exists(page):
    assert {definition(name).section for name in TABLES} <= set(page.ids)


def test_tokens_of_codes_are_shown_with_their_logits(page, markup):
    """Of every code, since there are eight; simpo-lpc's are in a fold. A token is JSON, and no markup."""
    rows = [[cell["text"] for cell in row] for row in page.rows if len(row) == 4 and '" up 3"' in row[2]["text"]]
    assert [row[0] for row in rows] == ["3", "3"]
    assert rows[0][2:] == ['" up 3"  "<b>"+1.50 to +0.50', '"7"  "\\n"−2.50 to −0.25']
    assert words_of(page).count("All 8 codes, the most used first. Small:") == 2
    assert "Tokens of the codes of simpo-lpc on tiny, seed 0" in words_of(page)


def test_benchmarks_against_the_base_model_stand_on_the_first_screen(page):
    """Base 40 %, recipes as in SKILL, 200 questions each: standard error √2 · 3/√2 = 3 points."""
    said = words_of(page)
    answer = said[: said.index("Preference accuracy is the share")]
    assert (
        "Points against the base model, mean of 2 benchmarks (standard error 3.0): simpo +20.0; simpo-lpc +20.0; "
        "dpo +30.0; dpo-lpc+latent.codes=16 +30.0; dpo-lpc +32.0; dpo-mlp +45.0." in answer
    )
    assert "More than two standard errors below" not in answer


def test_a_table_that_no_section_arranges_is_shown_as_it_is(results, page):
    """The use of codes has a figure but no table of its own: its first rows are in a fold, with the file behind it."""
    rows = [[cell["text"] for cell in row] for row in page.rows]
    header = rows.index(list(definition("codes").columns))
    assert rows[header + 1] == ["tiny", "world", "dpo-lpc", "dpo", "lpc", "0", "0", "bank", "10", "0.700", "1.00"]
    assert "Codes, the first 100 of 288 rows" in words_of(page)
