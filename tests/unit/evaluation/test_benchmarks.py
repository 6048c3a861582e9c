"""Benchmarks under our model class and under lm-eval's own: the same scores, for own and stock tasks and groups."""

import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from task_entry import entry
from tiny import make_backbone, make_tokenizer

from lpc import files, latents
from lpc.cli import UserError
from lpc.evaluation import benchmarks, questions, tasks
from lpc.evaluation.harness import LatentLM
from lpc.model.policy import LatentPolicy

REPOSITORY = Path(__file__).parents[3]
DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real benchmark files are not there ({DATA})")
TASKS = REPOSITORY / "config" / "tasks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with a latent whose codebook is zero: it must score as its backbone alone."""
    folder = tmp_path_factory.mktemp("model")
    LatentPolicy(
        make_backbone(), latents.build(latents.parse({"codes": 4, "code_scale": 0.0}), 32, seed=0)
    ).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """{kind: file of generated questions}."""
    folder = tmp_path_factory.mktemp("world")
    for kind in ("easy", "hard", "generate", "truth"):
        rows = questions.generate(kind, count=12, seed=0)
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {path.stem: path for path in folder.iterdir()}


def run(lm, entry):
    return benchmarks.run_task(lm, tasks.load_task(entry), entry)


def lpc(folder, **options):
    return LatentLM(folder, batch_size=8, device="cpu", **options)


def hf(folder, **options):
    return HFLM(str(folder), batch_size=8, device="cpu", dtype="float32", **options)


def assert_same_samples(folder, entry, **options):
    """Every response and metric of every sample equals that of lm-eval's own model class."""
    result, samples = run(lpc(folder, **options), entry)
    expected, expected_samples = run(hf(folder, **options), entry)
    assert len(samples) == len(expected_samples) > 0
    for sample, other in zip(samples, expected_samples, strict=True):
        assert sample["prompt"] == other["prompt"] and sample["requests"] == other["requests"]
        for response, wanted in zip(sample["responses"], other["responses"], strict=True):
            assert response == (wanted if isinstance(wanted, str) else (pytest.approx(wanted[0], abs=1e-3), wanted[1]))
        assert sample["metrics"] == pytest.approx(other["metrics"], abs=1e-3)
    for name, score in expected["metrics"].items():
        assert result["metrics"][name] == pytest.approx(score, abs=1e-3, nan_ok=False)
    return result


# ---- our own tasks


@pytest.mark.parametrize(
    "kind, task, metric",
    [
        ("easy", "world_choice", "acc"),
        ("hard", "world_choice", "acc_norm"),
        ("generate", "world_generate", "exact_match,sum"),
        ("truth", "world_truth", "acc"),
    ],
)
@pytest.mark.parametrize("chat_template", [False, True])
def test_own_tasks_score_as_under_hf(folder, world, kind, task, metric, chat_template):
    own = entry(
        task=str(TASKS / f"{task}.yaml"), metric=metric, data={"test": str(world[kind])}, chat_template=chat_template
    )
    result = assert_same_samples(folder, own)
    assert result["task"] == "mine" and result["n"] == 12 and metric in result["metrics"]
    assert result["harness_version"] == lm_eval.__version__ and result["task_version"] == 1.0


def test_own_tasks_examples_come_as_turns_of_a_chat(folder, world, tmp_path):
    (tmp_path / "with_examples.yaml").write_text(
        (TASKS / "world_choice.yaml").read_text().replace("world_choice", "with_examples") + "fewshot_split: train\n"
    )
    own = entry(
        task=str(tmp_path / "with_examples.yaml"),
        metric="acc",
        num_fewshot=2,
        chat_template=True,
        data={"test": str(world["easy"]), "train": str(world["hard"])},
        limit=4,
    )
    assert_same_samples(folder, own)
    _, samples = run(lpc(folder), own)
    assert samples[0]["prompt"].count("<|user|>Question: ") == 3 and samples[0]["prompt"].endswith("<|assistant|>")
    assert len(samples) == 4


def test_the_share_of_truth_is_that_of_the_probabilities():
    doc = {"labels": [1, 0, 1]}
    # Probabilities 0.2, 0.5 and 0.1: the true ones' share is 0.3 / 0.8, and stays so where all underflow.
    logps = [-1.6094379, -0.6931472, -2.3025851]
    for shift in (0.0, -5000.0):
        share = benchmarks.share_of_truth(doc, [(logp + shift, False) for logp in logps])
        assert share["acc"] == pytest.approx(0.375, abs=1e-6)


# ---- stock definitions on local files


def test_results_are_those_of_lm_evals_own_entry_point(folder, arc_rows, tmp_path):
    """Seeds, examples, metrics and errors as `lm_eval --model hf` has them, by the recipe of lm-eval's documentation
    for local files: a definition that includes the stock one."""
    stock = Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"
    (tmp_path / "local.yaml").write_text(
        f"include: {stock}\ntask: local\ntag: []\ndataset_path: json\ndataset_name: null\nvalidation_split: null\n"
        f"dataset_kwargs: {{data_files: {{train: {arc_rows}, test: {arc_rows}}}}}\n"
    )
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    arguments = {"pretrained": str(folder), "dtype": "float32"}
    expected = lm_eval.simple_evaluate(
        "hf", arguments, tasks=["local"], num_fewshot=3, task_manager=manager, device="cpu", batch_size=4
    )
    data = {"train": str(arc_rows), "test": str(arc_rows)}
    own = entry(task="arc_easy", metric="acc", num_fewshot=3, data=data)
    result, samples = run(lpc(folder), own)
    for metric in ("acc", "acc_norm"):
        assert result["metrics"][metric]["value"] == expected["results"]["local"][f"{metric},none"]
        assert result["metrics"][metric]["stderr"] == pytest.approx(
            expected["results"]["local"][f"{metric}_stderr,none"]
        )
    wanted = {sample["doc_id"]: sample for sample in expected["samples"]["local"]}
    for sample in samples:
        assert sample["prompt"] == wanted[sample["doc_id"]]["arguments"][0][0]
        for response, other in zip(sample["responses"], wanted[sample["doc_id"]]["resps"], strict=True):
            assert response[0] == pytest.approx(other[0][0], abs=1e-3)
    assert result["data"]["test"]["sha256"] == files.sha256(arc_rows)


@needs_data
def test_stock_gsm8k_on_the_real_files(folder):
    data = {split: str(DATA / f"gsm8k_{split}.jsonl.gz") for split in ("train", "test")}
    own = entry(task="gsm8k", metric="exact_match,strict-match", data=data, limit=4, num_fewshot=1)
    result = assert_same_samples(folder, own, max_length=1024)
    with pytest.raises(UserError, match="writes up to 256 tokens, but this base's context has 256"):
        run(lpc(folder), own)
    assert set(result["metrics"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    (task,) = tasks.load_task(entry(task="gsm8k", metric="exact_match,strict-match", data=data))["tasks"].values()
    assert task.config.num_fewshot == 5 and len(task.eval_docs) == 1319


@needs_data
@pytest.mark.parametrize("task", ["truthfulqa_mc1", "truthfulqa_mc2"])
def test_stock_truthfulqa_on_the_published_csv(folder, task):
    data = {"validation": str(DATA / "truthfulqa.csv.gz")}
    result = assert_same_samples(folder, entry(task=task, metric="acc", data=data, limit=6))
    assert 0 <= result["metrics"]["acc"]["value"] <= 1
    (loaded,) = tasks.load_task(entry(task=task, metric="acc", data=data))["tasks"].values()
    assert len(loaded.eval_docs) == 817


@needs_data
def test_stock_arc_definition_on_two_choice_questions_is_not_called_arc(folder):
    data = {"test": str(DATA / "arc_two_choice.jsonl.gz")}
    own = entry(name="two-choice-science", task="arc_challenge", metric="acc", data=data, limit=20)
    result = assert_same_samples(folder, own)
    assert result["task"] == "two-choice-science" and "acc_norm" in result["metrics"]
    _, samples = run(lpc(folder), own)
    assert {sample["task"] for sample in samples} == {"two-choice-science"}


# ---- groups


def test_a_group_has_its_own_score_and_those_of_its_tasks(folder, arc_rows, tmp_path):
    stock = Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text(
            f"include: {stock}\ntask: {name}\ntag: []\ndataset_path: json\ndataset_name: null\ntraining_split: null\n"
            f"validation_split: null\ndataset_kwargs: {{data_files: {{test: {arc_rows}}}}}\n"
        )
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [first, second]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
        "metadata: {version: 2.0}\n"
    )
    result, samples = run(lpc(folder), entry(name="pair", task=str(tmp_path / "both.yaml"), metric="acc"))
    parts = [part["metrics"]["acc"]["value"] for part in result["subtasks"].values()]
    assert set(result["subtasks"]) == {"first", "second"} and result["n"] == 18 and len(samples) == 18
    assert result["metrics"]["acc"]["value"] == pytest.approx(sum(parts) / 2)
    assert result["task"] == "pair" and float(result["task_version"]) == 2.0


def test_a_chat_template_that_is_not_there(folder, world):
    lm = lpc(folder)
    lm.tokenizer.chat_template = None
    own = entry(
        task=str(TASKS / "world_choice.yaml"), metric="acc", data={"test": str(world["easy"])}, chat_template=True
    )
    with pytest.raises(UserError, match="no chat template"):
        run(lm, own)
