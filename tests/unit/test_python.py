"""The package from Python: what is imported, training without Snakemake, and a trained run in one's hands."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from steps import run_step
from tiny import make_backbone, make_pairs, make_tokenizer
from transformers import AutoModelForCausalLM

import lpc
from lpc import files
from lpc.data.pairs import PAIRS
from lpc.data.tokens import encode_completions, encode_prompts
from lpc.layout import Run
from lpc.steps import train as train_step
from lpc.training.checkpoints import Checkpointing
from lpc.training.trainer import PreferenceTrainer

ROOT = Path(__file__).parents[2]
TOKENS = {"max_length": 64, "max_prompt_length": 32}
TRAINING = {"batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2, "precision": "float32"}
LATENT = {"kind": "exact", "codes": 4, "code_scale": 1.0, "logit_scale": 10.0}
SETTINGS = {"training": TRAINING, "tokens": TOKENS}


def dicts(count: int = 24, seed: int = 0) -> list[dict]:
    names = ("messages", "chosen", "rejected", "group")
    return [{name: row[name] for name in names} for row in make_pairs(count, seed).to_pylist()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_backbone().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def base_section(base) -> dict:
    return {"model": str(base), "dtype": "float32"}


def trainers() -> set[int]:
    """Those in memory: other tests of this process leave some."""
    return {id(thing) for thing in gc.get_objects() if type(thing) is PreferenceTrainer}


@pytest.fixture(scope="module")
def run(tmp_path_factory, base):
    """The folder of a run with a latent, and its policy as training returns it."""
    folder = tmp_path_factory.mktemp("run")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    others = trainers()
    gc.disable()
    policy = lpc.train(dicts(), base_section(base), folder, latent=LATENT, **SETTINGS)
    assert trainers() <= others, "its memory is kept"
    gc.enable()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    return folder, policy


# ---- what is imported


LIGHT = """
import sys
import lpc
from lpc import objectives
assert objectives.parse({"name": "dpo", "beta": 0.5}).beta == 0.5
heavy = {"torch", "numpy", "pyarrow", "transformers", "snakemake"} & set(sys.modules)
assert not heavy, heavy
assert "train" in dir(lpc)
print(lpc.__file__)
"""


def test_the_wheel_holds_the_package_and_needs_neither_snakemake_nor_torch_to_be_imported(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lpc-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    packaged = {str(path.relative_to(tmp_path / "site/lpc")) for path in (tmp_path / "site/lpc").rglob("*.*")}
    ours = {str(path.relative_to(ROOT / "src/lpc")) for path in (ROOT / "src/lpc").rglob("*.*")}
    assert packaged == {name for name in ours if "__pycache__" not in name}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", LIGHT], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "site/lpc/__init__.py")


def test_extras_hold_what_is_imported():
    """The extra `train` has no Snakemake, `workflow` has everything, and `make` installs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(extra):
        found = set()
        for entry in project["optional-dependencies"][extra]:
            inner = re.fullmatch(r"lpc\[(.*)\]", entry)
            found |= set.union(*map(names, inner[1].split(","))) if inner else {re.match(r"[\w-]+", entry)[0]}
        return found

    assert not any("snakemake" in name for name in names("train") | set(project["dependencies"]))
    assert names("workflow") >= {"snakemake", "lm_eval", "matplotlib", "datasets", *names("train")}
    for extra in ("slurm", "test", "bench"):
        assert names(extra) >= names("workflow")
    make = (ROOT / "Makefile").read_text()
    for stamp, extras in re.findall(r"^\.venv/(\w+)\.stamp: EXTRAS := \[(.*)\]$", make, re.MULTILINE):
        # The documents are built from text alone.
        assert stamp == "docs" or set.union(*map(names, extras.split(","))) >= names("workflow"), stamp
    assert set(re.findall(r"\.venv/(\w+)\.stamp", make)) == set(re.findall(r"^\.venv/(\w+)\.stamp: EXTRAS", make, re.M))


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = lpc.trian


# ---- training


def test_training_is_that_of_the_steps(tmp_path, base, run):
    """The same weights, bit by bit, as the rules' steps give."""
    folder, _ = run
    record, pairs = tmp_path / "base.json", folder / "pairs.parquet"
    run_step("download_base", {"name": "x", **base_section(base)}, "--output", record)
    reference, statistics = tmp_path / "reference.parquet", tmp_path / "statistics.safetensors"
    spec = {"tokens": TOKENS, "precision": "float32", "micro_batch_size": 4}
    words = ["--base", record, "--pairs", pairs]
    run_step("reference", spec, *words, "--output", reference, "--statistics", statistics)
    spec = {"objective": {"name": "dpo"}, "latent": LATENT, "training": TRAINING, "tokens": TOKENS, "seed": 0}
    words += ["--reference", reference, "--checkpoints", tmp_path / "checkpoints", "--output", tmp_path / "model"]
    run_step("train", spec, *words, "--metrics", tmp_path / "train.jsonl", "--summary", tmp_path / "train.json")
    mine, theirs = (files.read_json(place / "train.json") for place in (folder, tmp_path))
    assert mine["files"] == theirs["files"] and len(mine["files"]) > 4
    assert mine["identity"] == theirs["identity"]
    assert train_step.digests(folder / "model") == mine["files"]


def test_a_finished_run_is_loaded_whatever_the_order_of_its_pairs(base, run):
    folder, policy = run
    before = (folder / "train.json").stat().st_mtime_ns
    again = lpc.train(dicts()[::-1], base_section(base), folder, latent=LATENT, **SETTINGS)
    assert (folder / "train.json").stat().st_mtime_ns == before
    assert again.score("quick fox", "good dog", "bad dog") == policy.score("quick fox", "good dog", "bad dog")


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 1}, "spec.seed"), ({"pairs": dicts(24, seed=1)}, "pairs"), ({"latent": "exact"}, "spec.latent.codes")],
    ids=["seed", "pairs", "latent"],
)
def test_another_run_in_the_folder_is_kept(base, run, changed, named):
    folder, _ = run
    before = train_step.digests(folder)
    settings = {"pairs": dicts(), "latent": LATENT, **SETTINGS, **changed}
    with pytest.raises(lpc.UserError, match=rf"has another run \(.*{named}.* differ\); choose another folder"):
        lpc.train(base=base_section(base), folder=folder, **settings)
    assert train_step.digests(folder) == before


def test_a_reference_is_shared_and_checked(tmp_path, base, run):
    folder, _ = run
    made = lpc.make_reference(dicts(), base_section(base), tmp_path / "reference", **SETTINGS)
    stamp = made.stat().st_mtime_ns
    assert lpc.make_reference(dicts(), base_section(base), tmp_path / "reference", **SETTINGS) == made
    assert made.stat().st_mtime_ns == stamp
    settings = {"latent": LATENT, **SETTINGS}
    pairs = made.with_name("pairs.parquet")
    lpc.train(pairs, made.with_name("base.json"), tmp_path / "run", reference=made, **settings)
    assert files.read_json(tmp_path / "run/train.json")["files"] == files.read_json(folder / "train.json")["files"]
    assert not (tmp_path / "run/reference.parquet").exists() and not (tmp_path / "run/pairs.parquet").exists()
    other = tmp_path / "base"
    make_backbone(seed=1).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    for changes, reason in (
        ({"pairs": dicts(24, seed=1)}, "made of other pairs"),
        ({"tokens": {**TOKENS, "max_length": 48}}, "made with other `tokens`"),
        ({"base": base_section(other)}, "made with another base"),
    ):
        arguments = {"pairs": dicts(), "base": base_section(base), "folder": tmp_path / "other", **settings, **changes}
        with pytest.raises(lpc.UserError, match=reason):
            lpc.train(reference=made, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "dop"}, r"objective.*dop"),
        ({"latent": {"kind": "exact", "coeds": 3}}, r"latent\.coeds: unknown key; did you mean codes\?"),
        ({"training": {"batch_size": 0}}, r"training\.batch_size: 0"),
        ({"tokens": {"max_length": 8, "max_prompt_length": 8}}, r"max_prompt_length: 8 leaves no room"),
        ({"seed": -1}, r"seed: -1"),
        ({"pairs": [*dicts(1), {"prompt": "a", "chosen": "b"}]}, "pair 2: missing field rejected; a pair needs prompt"),
        ({"pairs": [{"prompt": "a", "chosen": "b", "rejected": "c", "group": 3}]}, "pair 1: group is not text"),
        ({"base": {"model": "x", "dtpye": "float32"}}, r"dtpye: unknown key; did you mean dtype\?"),
    ],
    ids=["objective", "latent", "training", "tokens", "seed", "pair", "group", "base"],
)
def test_faults_are_named(tmp_path, base, changes, message):
    arguments = {"pairs": dicts(1), "base": base_section(base), **SETTINGS, **changes}
    with pytest.raises(lpc.UserError, match=message):
        lpc.train(folder=tmp_path, **arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ---- a trained run


def by_full_logits(folder, prompt: str, completion: str) -> float:
    """log π(completion | prompt), from the whole logits of transformers."""
    tokenizer, model = make_tokenizer(), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [[{"role": "user", "content": prompt}]]
    start, end = encode_prompts(tokenizer, messages)[0], encode_completions(tokenizer, messages, [completion])[0]
    with torch.no_grad():
        logps = model(torch.tensor([start + end])).logits[0, len(start) - 1 : -1].log_softmax(-1)
    return float(logps.gather(-1, torch.tensor(end)[:, None]).sum())


def test_a_score_is_the_implicit_reward(tmp_path, base):
    """β (log π/π_ref of chosen − of rejected), by full logits; and SimPO's, which needs no base."""
    dpo = {"name": "dpo", "beta": 0.5}
    policy = lpc.train(dicts(), base_section(base), tmp_path / "dpo", objective=dpo, **SETTINGS)
    texts = ("quick fox", "good dog", "bad lazy cats")
    ratios = [
        by_full_logits(tmp_path / "dpo/model", texts[0], text) - by_full_logits(base, texts[0], text)
        for text in texts[1:]
    ]
    assert policy.score(*texts) == pytest.approx(0.5 * (ratios[0] - ratios[1]), abs=1e-4)
    assert abs(policy.score(*texts)) > 0.1
    chosen, rejected = policy.rewards([{"prompt": texts[0], "chosen": texts[1], "rejected": texts[2]}] * 2)
    assert chosen.tolist() == pytest.approx([0.5 * ratios[0]] * 2, abs=1e-4)
    assert rejected.tolist() == pytest.approx([0.5 * ratios[1]] * 2, abs=1e-4)
    messages = [{"role": "user", "content": texts[0]}]
    assert policy.score(messages, *texts[1:]) == policy.score(*texts)

    simpo = lpc.train(dicts(), base_section(base), tmp_path / "simpo", objective="simpo", **SETTINGS)
    assert not (tmp_path / "simpo/reference.parquet").exists()
    (tmp_path / "simpo/base.json").unlink()
    simpo = lpc.load(tmp_path / "simpo")
    lengths = [len(encode_completions(make_tokenizer(), [messages], [text])[0]) for text in texts[1:]]
    means = [by_full_logits(tmp_path / "simpo/model", texts[0], texts[1 + i]) / lengths[i] for i in (0, 1)]
    beta = simpo.settings.objective.beta
    assert simpo.score(*texts) == pytest.approx(beta * (means[0] - means[1]), abs=1e-4)


def test_rewards_with_a_latent_are_those_of_the_workflow(tmp_path, run):
    """Step `preference` on the same pairs, as test pairs."""
    folder, policy = run
    table = files.read_parquet(folder / "pairs.parquet").to_pylist()
    marked = [{**row, "split": split} for split in ("validation", "test") for row in table]
    files.write_rows(tmp_path / "pairs.parquet", marked, PAIRS)
    spec = {"tokens": TOKENS, "precision": "float32", "objective": {"name": "dpo"}, "batch_size": 8}
    words = ["--model", folder / "model", "--base", folder / "base.json", "--pairs", tmp_path / "pairs.parquet"]
    words += ["--reference", folder / "reference.parquet", "--output", tmp_path / "rewards.parquet"]
    run_step("preference", spec, *words, "--summary", tmp_path / "summary.json")
    expected = files.read_parquet(tmp_path / "rewards.parquet")
    chosen, rejected = policy.rewards(table)
    np.testing.assert_allclose(chosen, expected["chosen_reward"].to_numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rejected, expected["rejected_reward"].to_numpy(), rtol=1e-4, atol=1e-5)
    assert np.std(chosen - rejected) > 0.01


def test_codes_and_generation(run):
    _, policy = run
    ids = torch.tensor(encode_prompts(make_tokenizer(), [[{"role": "user", "content": "quick fox"}]]))
    h_x = policy.model.hidden(ids)[:, -1]
    weights = policy.codes("quick fox")
    torch.testing.assert_close(weights, policy.model.latent.prior_logits(h_x).softmax(-1)[0].detach())
    assert weights.shape == (4,) and float(weights.sum()) == pytest.approx(1)
    assert (policy.codes("lazy dog and cats") - weights).abs().max() > 1e-3
    texts = [policy.generate("quick fox", code=code, max_new_tokens=8) for code in range(4)]
    assert len(set(texts)) > 1
    output = policy.model.generate(ids, torch.ones_like(ids), code=2, max_new_tokens=8, do_sample=False)
    assert texts[2] == policy.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    torch.manual_seed(0)
    sampled = {policy.generate("quick fox", max_new_tokens=8, do_sample=True) for _ in range(3)}
    assert len(sampled) > 1


def test_what_a_run_cannot_answer_is_said(tmp_path, base, run):
    folder, policy = run
    with pytest.raises(lpc.UserError, match="pair 2: both completions have the same 64 tokens"):
        policy.rewards([*dicts(1), {"prompt": "a", "chosen": "b" * 200 + "c", "rejected": "b" * 200 + "d"}])
    plain = lpc.load(base)
    assert plain.generate("quick fox", max_new_tokens=4)
    with pytest.raises(lpc.UserError, match=r"its latent has no codes"):
        plain.codes("quick fox")
    with pytest.raises(lpc.UserError, match=r"train\.json is missing, which names the objective"):
        plain.score("a", "b", "c")
    shutil.copytree(folder, tmp_path / "moved")
    (tmp_path / "moved/base.json").rename(tmp_path / "base.json")
    moved = lpc.load(tmp_path / "moved")
    assert torch.equal(moved.codes("a"), policy.codes("a"))
    with pytest.raises(lpc.UserError, match=r"dpo compares with the base model; give the path of its base\.json"):
        moved.score("a", "b", "c")
    given = lpc.load(tmp_path / "moved", tmp_path / "base.json")
    assert given.score("a", "b", "c") == policy.score("a", "b", "c")
    record = files.read_json(tmp_path / "base.json")
    files.write_json(tmp_path / "base.json", record | {"sha256": "ab"})
    with pytest.raises(lpc.UserError, match="is of another model than the run's base"):
        lpc.load(tmp_path / "moved", tmp_path / "base.json").score("a", "b", "c")


def test_examples_of_the_documentation_run(tmp_path, monkeypatch, base, run, capsys):
    """Each in the order of the page, in one namespace, with small files where it names some."""
    monkeypatch.chdir(tmp_path)
    folder, _ = run
    shutil.copytree(base, "HuggingFaceTB/SmolLM2-135M-Instruct")
    with open("pairs.jsonl", "w") as stream:
        stream.writelines(json.dumps(pair) + "\n" for pair in dicts(16))
    workflow = Path("results/demo/runs/tiny/world/dpo-lpc/seed-0")
    shutil.copytree(folder, workflow)
    Path("results/demo/bases/tiny").mkdir(parents=True)
    (workflow / "base.json").rename("results/demo/bases/tiny/base.json")
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6 and "trust_remote_code" in blocks[5]  # of an export, see tests/unit/export
    names = {}
    for block in blocks[:5]:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert Run(Path("runs/dpo-lpc")).summary.exists() and len(names["runs"]) == 2
    assert names["weights"].shape == (4,) and len(names["chosen"]) == 1
    torch.testing.assert_close(names["losses"], names["same"])
    assert names["z"].shape == (1, 32) and names["output"].shape[0] == 1
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_an_interrupted_training_goes_on(tmp_path, base, run, monkeypatch):
    """The first call stops as by Ctrl-C and says so; the second one makes what an undisturbed call makes."""
    arguments = (dicts(), base_section(base), tmp_path)
    settings = {"latent": LATENT, **SETTINGS}
    original = Checkpointing.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointing, "on_step_end", interrupted)
        with pytest.raises(lpc.Stopped):
            lpc.train(*arguments, **settings)
    assert not (tmp_path / "model").exists()
    made = (tmp_path / "reference.parquet").stat().st_mtime_ns
    lpc.train(*arguments, **settings)
    assert (tmp_path / "reference.parquet").stat().st_mtime_ns == made
    assert files.read_json(tmp_path / "train.json")["resumed_from"] == [2]
    assert train_step.digests(tmp_path / "model") == train_step.digests(run[0] / "model")
