"""The examples of CONTRIBUTING.md: each is added to a copy of the checkout, and used there by a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from workflow.checkout import SMALL, Checkout

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```(python|yaml|diff)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S
)
FILES = {text.partition("\n")[0].removeprefix("# "): text for kind, text in BLOCKS if kind != "diff"}
OBJECTIVE, LATENT, FORMAT, TASK, TABLE, STEP = FILES


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def add(checkout, name):
    """Write the one file of an example, which must be new."""
    with open(checkout.folder / name, "x", encoding="utf-8") as stream:
        stream.write(FILES[name])


def python(checkout, *arguments, path=()):
    """Run Python in the copy, with the copy's package and the folders `path`."""
    folders = [checkout.folder / "src", *path]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=checkout.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout


RESOLVES = """
import json, sys
from lpc.config import docs, load
load.resolve(json.loads(sys.argv[1]), [])
assert sys.argv[2] in docs.tables(docs.README.read_text(encoding="utf-8"))
"""


def assert_resolves(checkout, words, **changes):
    """A configuration that names the new kind is accepted, and `words` are in the tables of config/README.md."""
    python(checkout, "-c", RESOLVES, json.dumps({**SMALL, **changes}), words)


def test_objective(checkout):
    add(checkout, OBJECTIVE)
    program = """
import torch
from lpc import objectives
objective = objectives.parse({"name": "hinge2", "beta": 0.5})
logps = torch.tensor([[-3.0, -1.0], [-4.0, 1.0], [-5.0, -1.0], [-4.0, -1.0]], requires_grad=True)
losses, chosen, rejected = objective.formula(*logps)
losses.sum().backward()
assert losses.tolist() == [0.0, 4.0], losses
assert (chosen - rejected).tolist() == [1.0, -1.0]
assert logps.grad[0].tolist() == [0.0, -2.0], logps.grad
assert objective.formula(*logps[[2, 3, 2, 3]])[0].tolist() == [objective.first_loss()] * 2
"""
    python(checkout, "-c", program)
    recipe = {"objective": {"name": "hinge2", "beta": 0.2}}
    assert_resolves(checkout, "`hinge2`: squared hinge", recipes={**SMALL["recipes"], "dpo": recipe})


def test_latent(checkout):
    add(checkout, LATENT)
    program = """
import torch
from lpc import latents
latent = latents.build(latents.parse({"kind": "constant"}), 6, seed=0)
h = torch.randn(3, 3, 6)
z = latent(*h, progress=0.0).z
assert z.shape == (3, 6) and z.unique().numel() == 1 and z.requires_grad
assert torch.equal(latent.infer(h[0]), z)
assert [rate for _, rate in latent.parameter_groups(1e-6)] == [1e-4]
"""
    python(checkout, "-c", program)
    recipe = {"objective": {"name": "dpo"}, "latent": {"kind": "constant"}}
    assert_resolves(checkout, "`constant`: constant", recipes={**SMALL["recipes"], "dpo": recipe})


def test_data_format(checkout):
    add(checkout, FORMAT)
    data = checkout.folder / "mine.jsonl"
    rows = [{"question": f"What is {i}?", "better": f"It is {i}.", "worse": "No idea."} for i in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": "What?", "better": "This."}]))
    dataset = {"kind": "better-worse", "path": "mine.jsonl", "split": {"validation": 2, "test": 3}}
    record, made = checkout.folder / "dataset.json", checkout.folder / "rows.parquet"
    spec = {"kind": "better-worse", "path": "mine.jsonl"}
    python(checkout, "-m", "lpc.steps.download_dataset", "--spec", json.dumps(spec), "--output", record)
    spec = json.dumps({"split": dataset["split"], "max_rejected_rows": 0.1})
    outputs = [
        "--output",
        made,
        "--rejects",
        checkout.folder / "rejects.jsonl",
        "--summary",
        checkout.folder / "s.json",
    ]
    python(checkout, "-m", "lpc.steps.split", "--spec", spec, "--record", record, *outputs)
    program = """
import sys
from lpc import files
rows = files.read_parquet(sys.argv[1]).to_pylist()
assert len(rows) == len({row["prompt_id"] for row in rows}) == 20
assert sorted(row["messages"][0]["content"] for row in rows)[0] == "What is 0?"
assert {tuple(completion["score"] for completion in row["completions"]) for row in rows} == {(1.0, 0.0)}
assert {row["completions"][1]["response"] for row in rows} == {"No idea."}
"""
    python(checkout, "-c", program, made)
    rejected = json.loads((checkout.folder / "rejects.jsonl").read_text())
    assert (rejected["row"], rejected["reason"]) == (21, "missing field worse")
    words = "`better-worse`: `question`, `better` and `worse`"
    assert_resolves(checkout, words, datasets={**SMALL["datasets"], "mine": dataset})
    (checkout.folder / "held.jsonl").write_text(json.dumps(rows[0]))
    own = {**dataset, "split": {"validation": 2, "test": "held.jsonl"}}
    config = checkout.write({**SMALL, "datasets": {**SMALL["datasets"], "mine": own}})
    target = "results/small/data/mine/rows.parquet"
    planned = checkout.forked(target, "--dry-run", "--configfile", config)
    assert re.search(r"input: mine.jsonl, held.jsonl\n    output: results/small/data/mine/dataset.json", planned)
    (inputs,) = re.findall(rf"input: (.*)\n    output: {target}", planned)
    assert [Path(file).name for file in inputs.split(", ") if "/formats/" in file] == ["better_worse.py"]


def test_task(checkout):
    add(checkout, TASK)
    questions = [{"question": "Capital of Italy?", "choices": ["Rome", "Oslo"], "answer": 0}] * 2
    (checkout.folder / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    entry = {
        "name": "capitals", "task": TASK, "metric": "acc", "num_fewshot": None, "limit": None, "chat_template": False,
        "data": {"test": "capitals.jsonl"},
    }  # fmt: skip
    program = """
import json, sys
from lpc.evaluation import tasks
task = tasks.load_task(json.loads(sys.argv[1]))["tasks"]["capitals"]
docs = list(task.test_docs())
assert len(docs) == 2 and task.doc_to_text(docs[0]) == "Question: Capital of Italy?\\nAnswer:"
assert task.doc_to_choice(docs[0])[task.doc_to_target(docs[0])] == "Rome"
"""
    python(checkout, "-c", program, json.dumps(entry))


def test_table(checkout):
    add(checkout, TABLE)
    program = """
import csv, sys
from pathlib import Path
import results_tree
from steps import run_step
root = Path(sys.argv[1])
results_tree.write_data(root)
run_step("tables", results_tree.tables_spec(), "--results", root, "--output", root / "tables")
rows = list(csv.DictReader((root / "tables" / "pair_counts.csv").open()))
assert [(row["variant"], row["source"], row["pairs"]) for row in rows if row["status"] == "ok"] == [
    ("world", source, "20") for source in sorted(results_tree.SOURCES)
], rows
noisy = [row["status"] for row in rows if row["variant"] == "world.flip50"]
assert noisy == ["missing: data/world.flip50/pairs.parquet"]
assert ":pairs: number of pairs" in (root / "tables" / "pair_counts.rst").read_text()
"""
    python(checkout, "-c", program, checkout.folder / "tree", path=[ROOT / "tests", ROOT / "tests/unit/report"])


def test_rule(checkout):
    add(checkout, STEP)
    (diff,) = (text for kind, text in BLOCKS if kind == "diff")
    # Git looks for a repository above the folder, and would apply nothing outside of it.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.folder.parent)}
    subprocess.run(["git", "apply"], input=diff, cwd=checkout.folder, env=environment, text=True, check=True)
    target = "results/small/data/world/lengths.json"
    config = checkout.write(SMALL)
    planned = checkout.forked(target, "--dry-run", "--configfile", config)
    assert re.findall(r"^(?:local)?rule (\w+):", planned, re.MULTILINE) == ["world", "split", "pairs", "lengths"]
    program = """
import sys
import pyarrow as pa
from lpc import files
from lpc.config import specs
pair = {"messages": [{"role": "user", "content": "Why?"}], "chosen": "So.", "rejected": "é" * 8}
files.write_parquet(sys.argv[1], pa.Table.from_pylist([pair, {**pair, "rejected": "é" * 9}]))
assert "lengths" in specs.readers(specs.models.Tokens, "max_length")
"""
    pairs, made = checkout.folder / "pairs.parquet", checkout.folder / "lengths.json"
    python(checkout, "-c", program, pairs)
    spec = json.dumps({"max_length": 20})
    python(checkout, "-m", "lpc.steps.lengths", "--spec", spec, "--pairs", pairs, "--output", made)
    assert json.loads(made.read_text()) == {"spec": {"max_length": 20}, "pairs": 2, "uncut": 1}


def test_configuration_of_the_page_on_running_plans_every_stage(checkout):
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/howto/run.md").read_text(encoding="utf-8"), re.M | re.S)
    (checkout.folder / "my.yaml").write_text(text, encoding="utf-8")
    (checkout.folder / "mine.jsonl.gz").touch()
    planned = checkout.forked("all", "--dry-run", "--configfile", "my.yaml")
    assert {"download_base", "split", "train", "report"} <= set(re.findall(r"rule (\w+):", planned))
