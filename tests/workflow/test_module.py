"""The workflow as a module of another one: ten lines that use its rules, run for real."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from checkout import PARTS, ROOT, SMALL

OUTER = """
configfile: "config.yaml"


rule first:
    input: "mine.txt"


module lpc:
    snakefile: "lpc/workflow/Snakefile"
    config: config["preferences"]


use rule * from lpc as lpc_*


rule mine:
    input: "results/small/data/world/pairs.json"
    output: "mine.txt"
    shell: 'echo "${{GOMP_SPINCOUNT-unset}} ${{PYTHONPATH-unset}}" > {output}'
"""


@pytest.fixture
def outer(checkout, tmp_path):
    """A workflow in a folder of its own, with the checkout as its folder lpc."""
    folder = tmp_path / "outer"
    (folder / "workflow").mkdir(parents=True)
    (folder / "workflow/Snakefile").write_text(OUTER.replace("lpc/workflow", f"{checkout.folder}/workflow"))
    (folder / "config.yaml").write_text(yaml.safe_dump({"preferences": SMALL, "project": "not ours"}))
    checkout.folder = folder
    return checkout


def test_without_a_target_all_is_planned(checkout):
    """The default target of the included file would be forgotten."""
    assert "rule report:" in checkout.forked("--dry-run", "--configfile", checkout.write(SMALL))


def test_another_workflow_runs_its_rules_and_keeps_its_own_shell(outer, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    output = outer.snakemake("--cores", "2")
    assert (outer.folder / "mine.txt").read_text() == "unset unset\n"
    assert (outer.folder / "results/small/data/world/pairs.parquet").exists()
    assert "rule lpc_pairs:" in output and "rule mine:" in output


def test_all_of_its_targets_are_planned(outer):
    output = outer.snakemake("lpc_all", "--dry-run")
    assert "../src/lpc/data/formats/world.py" in output  # as input: the package beside the module, not an installed one
    for rule in ("world", "split", "pretrain", "reference", "train", "evaluate", "tables", "report"):
        assert f"rule lpc_{rule}:" in output, rule
    assert "rule mine:" not in output
    assert "lpc_main" in outer.snakemake("--list-rules")


def test_a_fault_of_its_section_is_named_without_lines_of_other_sections(outer):
    faulty = {**SMALL, "project": "Not A Name"}
    (outer.folder / "config.yaml").write_text(yaml.safe_dump({"preferences": faulty, "project": "not ours"}))
    output = outer.snakemake("--dry-run", expect=1)
    assert "configuration: project: " in output and "config.yaml:" not in output


@pytest.mark.skipif(not find_spec("snakedeploy"), reason="not installed: snakedeploy; pip install 'lpc[test]'")
def test_snakedeploy_writes_a_workflow_that_runs_with_the_clone_inside(checkout, tmp_path):
    """From a local clone of git, with the line of the module's Snakefile changed as docs/howto/run.md says."""
    source, clone, folder = checkout.folder, tmp_path / "clone", tmp_path / "deployed"
    shutil.copy(ROOT / "LICENSE", source)
    git = ["git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for words in (["init", "--quiet"], ["add", *PARTS, "LICENSE"], ["commit", "--quiet", "--message", "a"]):
        subprocess.run([*git, *words], check=True)
    subprocess.run(["git", "clone", "--quiet", source, clone], check=True)
    tool = Path(sys.executable).with_name("snakedeploy")
    words = [tool, "deploy-workflow", clone, folder, "--branch", "main", "--name", "lpc"]
    subprocess.run(words, check=True, capture_output=True)
    assert (folder / "LICENSE").exists() and (folder / "profiles/default").is_dir()
    assert (folder / "config/config.yaml").read_text() == (ROOT / "config/config.yaml").read_text()

    (edit,) = re.findall(r"sed -i '(.*)' deployed/workflow/Snakefile", (ROOT / "docs/howto/run.md").read_text())
    shutil.move(clone, folder / "workflow/lpc")
    subprocess.run(["sed", "-i", edit, folder / "workflow/Snakefile"], check=True)
    (folder / "config/config.yaml").write_text(yaml.safe_dump(SMALL))
    checkout.folder = folder
    assert "rule report:" in checkout.forked("all", "--dry-run")
    checkout.snakemake("results/small/data/world/world.jsonl.gz", "--cores", "1")
    assert (folder / "results/small/data/world/dataset.json").exists()
