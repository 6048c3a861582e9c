"""Tasks of the Language Model Evaluation Harness: finding them, loading their data, and recording what was loaded.

An entry of the configuration (`evaluation.benchmarks.tasks.<name>`), with its defaults filled in, is a dict:

    name           the entry's name, as in tables
    task           lm-eval's name of a task or group (arc_challenge, mmlu), or the path of a task's YAML file
    metric         the metric that the page shows, by lm-eval's name: "acc"; with a filter "exact_match,strict-match"
    num_fewshot    examples in the prompt; None: the task's own number
    limit          number of questions of each task, from the first; None: all
    chat_template  whether prompts use the base's chat template, with examples as turns
    data           {split: local file} in place of the task's data set on the hub; None: the hub's, from the cache

The paper says of its four columns only that they are lm-eval's defaults, and ARC has two scores there. Its numbers of
the base models fit `acc`: 50.43 and 80.05 for Llama3-8B, where length normalisation is known to raise ARC-Challenge by
some three points and to lower ARC-Easy by two or three; 49.74 and 80.72 for Mistral-7B show the same. GSM8K: five
examples, "exact_match,strict-match". TruthfulQA: 41.13 and 43.82 are in the range of mc2; mc1 is near 28.
"""

import csv
import gzip
import io
import json
import re
import zlib
from importlib.metadata import version
from pathlib import Path

import datasets
import huggingface_hub.errors
import jinja2
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lpc import files
from lpc.cli import UserError

# The seed of few-shot examples in lm-eval's own command line, so that examples are the usual ones.
FEWSHOT_SEED = 1234
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


def load_task(entry: dict) -> dict:
    """Load the task or group of an entry with its data sets, as `lm_eval.evaluator.evaluate` takes it.

    Returns {"tasks": {name: task}, "groups": …}. Raises UserError for a faulty entry or missing data.
    """
    path = _definition(entry)
    config = load_yaml(path)
    single = "group" not in config
    try:
        if entry["data"]:
            if not single:
                raise UserError(f"task {entry['name']}: `data` is for single tasks, and {entry['task']} is a group")
            loaded = {"tasks": {entry["name"]: _local_task(entry, config)}, "groups": {}, "group_map": {}}
        elif single or entry["task"].endswith(".yaml"):
            # Only its own folder is indexed: reading all of lm-eval's 14,000 definitions takes eight seconds.
            manager = TaskManager(include_path=path.parent, include_defaults=False)
            loaded = manager.load(config.get("group", config["task"]))
        else:
            loaded = TaskManager().load(entry["task"])
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        # ConnectionError, DatasetNotFoundError and OfflineModeIsEnabled are kinds of OSError.
        raise UserError(
            f"task {entry['name']}: its data set cannot be loaded ({error}); run download_task where there is a "
            "network, or set `data` to local files"
        ) from None
    for task in loaded["tasks"].values():
        _check(task, entry)
    return loaded


def _definition(entry: dict) -> Path:
    """Return the file that defines the entry's task or group."""
    task = entry["task"]
    if task.endswith(".yaml"):
        if not Path(task).is_file():
            raise UserError(f"{task}: no such task file; correct `task` of this benchmark")
        return Path(task).resolve()
    line = re.compile(rf"^(task|group): *['\"]?{re.escape(task)}['\"]?\s*$", re.MULTILINE)
    for pattern in (f"*{task}.yaml", "*.yaml"):  # nearly all are named after their task
        for path in sorted(Path(lm_eval.tasks.__file__).parent.rglob(pattern)):
            if line.search(path.read_text(encoding="utf-8")):
                return path
    known = f"lm-eval {version('lm_eval')} has no task or group {task!r}"
    raise UserError(f"task {entry['name']}: {known}; `lm-eval ls tasks` lists them")


def _check(task: ConfigurableTask, entry: dict) -> None:
    """Set the number of examples, and stop before hours of scoring if the metric does not exist."""
    own = task.config.num_fewshot
    if entry["num_fewshot"] is None:
        task.set_config("num_fewshot", own or 0)
    elif own == 0 and entry["num_fewshot"] != 0:
        # lm-eval itself would go on with 0 and only log it.
        raise UserError(f"task {entry['name']}: {entry['task']} fixes its number of examples at 0; drop `num_fewshot`")
    else:
        task.set_config("num_fewshot", entry["num_fewshot"])
    task.set_fewshot_seed(FEWSHOT_SEED)
    metrics = {metric_name(f"{metric},{f.name}") for metric in task.aggregation() for f in task._filters}
    if entry["metric"] not in metrics:
        known = ", ".join(sorted(metrics))
        raise UserError(f"task {entry['name']}: {entry['task']} has no metric {entry['metric']!r}; it has {known}")


def metric_name(key: str) -> str:
    """Return a metric's name without the filter "none": lm-eval's "acc,none" is "acc"."""
    return key.removesuffix(",none")


# ---- local files


class LocalTask(ConfigurableTask):
    """A task on loaded rows. lm-eval's own way, `load_dataset`, would copy them into a cache first."""

    def __init__(self, config: dict, dataset: datasets.DatasetDict) -> None:
        self.dataset = dataset
        super().__init__(config=config)

    def download(self, *args, **kwargs) -> None:
        """Set `dataset`; lm-eval calls it."""


def _local_task(entry: dict, config: dict) -> ConfigurableTask:
    """Return the task of a stock definition on the entry's own files, under the entry's name.

    It has only the splits for which a file is given, and takes examples only from a split given for them.
    """
    rows = {split: read_rows(path) for split, path in entry["data"].items()}
    if "mc1_targets" in str(config.get("doc_to_choice")) or "mc2_targets" in str(config.get("doc_to_choice")):
        rows = {split: [truthfulqa_targets(row) for row in part] for split, part in rows.items()}

    shots = entry["num_fewshot"] if entry["num_fewshot"] is not None else config.get("num_fewshot") or 0
    scored = config.get("test_split") or config.get("validation_split")
    examples = config.get("fewshot_split") or config.get("training_split") if shots else None
    for split in {scored, examples} - {None} - set(rows):
        role = "questions" if split == scored else "examples"
        raise UserError(f"task {entry['name']}: {entry['task']} takes its {role} from split {split}; add it to `data`")
    if unknown := ", ".join(sorted(set(rows) - {config.get(split) for split in SPLITS})):
        raise UserError(f"task {entry['name']}: {entry['task']} has no split {unknown}; correct `data`")
    if shots and examples is None:
        raise UserError(f"task {entry['name']}: {entry['task']} names no split for examples; set `num_fewshot` to 0")

    config = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list", "dataset_kwargs")}
    config |= {split: config[split] if config.get(split) in rows else None for split in SPLITS}
    tables = datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in rows.items()})
    config |= {"task": entry["name"], "dataset_path": None, "dataset_name": None}
    if not shots:
        config["num_fewshot"] = 0  # else lm-eval looks for examples that are not wanted
    try:
        return LocalTask(config, tables)
    except (KeyError, TypeError, ValueError, jinja2.TemplateError) as error:
        raise UserError(
            f"task {entry['name']}: the files of `data` do not have the columns of {entry['task']} ({error!r}); "
            f"they have {', '.join(next(iter(tables.values())).column_names)}"
        ) from None


def read_rows(path: str | Path) -> list[dict]:
    """Return the rows of a .jsonl, .json (a list) or .csv file, each also with .gz, or of a .parquet file.

    Raises UserError for a missing, unsupported, broken or empty file.
    """
    path = Path(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "parquet":
            return files.read_parquet(path).to_pylist()
        if kind not in ("jsonl", "json", "csv"):
            raise UserError(f"{path}: unsupported file type; use .jsonl, .json, .csv (also .gz) or .parquet")
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")  # TruthfulQA has a BOM
        if kind == "csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        elif kind == "json":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]  # splitlines() would cut at U+2028
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: truncated or not {kind} ({error}); download it again") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: holds no rows; expected a list of objects")
    return rows


def truthfulqa_targets(row: dict) -> dict:
    """Return a row of TruthfulQA's published CSV in the form of its multiple-choice data set; keep a row in that form.

    mc1: the best answer, then the incorrect ones; mc2: all correct ones, then the incorrect ones. The data set's own
    choices were worded a little differently in places (full sentences), so scores compare only among runs on this file.
    """
    if "mc1_targets" in row:
        return row
    try:
        best = row["Best Answer"].strip()
        correct, incorrect = (
            list(dict.fromkeys(part.strip() for part in row[column].split(";") if part.strip()))
            for column in ("Correct Answers", "Incorrect Answers")
        )
        question = row["Question"].strip()
    except (KeyError, AttributeError):
        raise UserError(
            "TruthfulQA: a row has neither mc1_targets nor Question, Best Answer, Correct Answers, Incorrect Answers"
        ) from None

    def targets(true: list[str]) -> dict:
        return {"choices": true + incorrect, "labels": [1] * len(true) + [0] * len(incorrect)}

    return {"question": question, "mc1_targets": targets([best]), "mc2_targets": targets(correct)}


# ---- records


def describe_files(entry: dict) -> dict | None:
    """Return {split: {"file", "sha256"}} of the entry's local files; None without local files."""
    if not entry["data"]:
        return None
    return {split: {"file": str(path), "sha256": files.sha256(path)} for split, path in entry["data"].items()}


def describe_hub(loaded: dict) -> list[dict]:
    """Return the hub's data sets that the tasks were loaded from, each with the commit in the cache."""
    found = set()
    for task in loaded["tasks"].values():
        for table in task.dataset.values():
            # A data set from the hub lies in the cache as <name>/<configuration>/<version>/<commit>/<file>.
            found |= {(task.DATASET_PATH, Path(file["filename"]).parent.name) for file in table.cache_files}
    return [{"path": path, "revision": revision} for path, revision in sorted(found)]


def describe_task(loaded: dict, entry: dict) -> dict:
    """Return the download record of an entry."""
    return {
        "task": entry["name"],
        "harness_task": entry["task"],
        "harness_version": version("lm_eval"),
        "data": describe_files(entry),
        "hub": describe_hub(loaded),
        "rows": {
            name: {split: len(table) for split, table in task.dataset.items()} for name, task in loaded["tasks"].items()
        },
    }
