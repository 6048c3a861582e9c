"""Model cards: figures of the tables, what the hub reads, and the upload to a hub."""

import base64
import contextlib
import csv
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import results_tree
import yaml
from steps import run_step

from lpc import push
from lpc.cli import UserError
from lpc.files import write_json, write_text
from lpc.layout import Run
from lpc.report.card import card
from lpc.report.results import Results

SRC = Path(__file__).parents[3] / "src"


def the_card(results, recipe: str, seed: int = 0, **settings) -> str:
    spec = results_tree.report_spec()
    spec["settings"] |= settings
    found = Results(results, spec, results_tree.COMMIT)
    wanted = {"variant": "world", "recipe": recipe, "seed": seed}
    (run,) = [run for run in found.runs if all(run[key] == value for key, value in wanted.items())]
    return card(found, run)


def test_figures_are_those_of_the_tables(results):
    text = the_card(results, "dpo-lpc")
    with open(results / "tables/preference_accuracy.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    (row,) = [row for row in rows if (row["variant"], row["recipe"], row["seed"]) == ("world", "dpo-lpc", "0")]
    accuracy, low, high = (f"{100 * float(row[name]):.1f}" for name in ("accuracy", "low", "high"))
    assert f"| world | {row['n']} | {accuracy} | [{low}, {high}] |" in text
    assert re.search(r"^- dpo-lpc is .* dpo \(.* points, 95 % interval over", text, re.MULTILINE)
    assert "with another seed, a small difference could reverse" in text
    assert f"| sums | acc | {results_tree.SKILL['dpo-lpc']:.3f} | 0.0300 | 200 |" in text
    assert f"| commit of the workflow | {results_tree.COMMIT} |" in text
    assert "| training pairs, SHA-256 | " + "aa" * 32 in text and "cd" * 32 in text
    assert "6,000 training pairs of the dataset world." in text
    (recipe,) = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert json.loads(recipe)["latent"]["codes"] == results_tree.CODES


def test_the_hub_reads_names_of_the_hub_alone(results):
    def metadata(text):
        return yaml.safe_load(text.split("---\n")[1])

    plain = metadata(the_card(results, "simpo"))
    assert plain == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["preference-optimization", "simpo"],
    }  # fmt: skip
    datasets = {"world": {"kind": "pairs", "path": "a/data", "split": {"validation": 1, "test": 1}}}
    known = the_card(results, "dpo-lpc", bases={"tiny": {"model": "a/model"}}, datasets=datasets)
    assert metadata(known)["base_model"] == "a/model" and metadata(known)["datasets"] == ["a/data"]
    assert metadata(known)["tags"][-1] == "latent-preference-coding"
    assert "[a/model](https://huggingface.co/a/model)" in known
    local = the_card(results, "dpo-lpc", bases={"tiny": {"model": "./model"}})
    assert "base_model" not in metadata(local) and "./model" not in local

    bases = {"tiny": {"quantize": "whole"}, "whole": {"model": "a/model"}}
    short = the_card(results, "dpo-lpc", bases=bases)
    assert metadata(short)["base_model"] == "a/model"
    assert "Trained from [a/model](https://huggingface.co/a/model), rounded to 4 bits, with " in short


def test_a_latent_says_how_it_is_loaded(results):
    assert "lpc.load(" in the_card(results, "dpo-lpc") and "lpc.load(" not in the_card(results, "dpo")


def test_the_step_writes_a_card_beside_each_model(results, tmp_path):
    spec = results_tree.report_spec()
    spec["runs"] = [run for run in spec["runs"] if run["seed"] == 0]
    root = tmp_path / "results"
    root.mkdir()
    for entry in results.iterdir():
        (root / entry.name).symlink_to(entry)
    (root / "runs").unlink()
    for file in (results / "runs").rglob("*.json"):
        write_text(root / file.relative_to(results), file.read_text())
    run_step("cards", spec, "--results", root, "--commit", "abc")
    assert {path.parent.parent.name for path in root.rglob("README.md")} == {run["recipe"] for run in spec["runs"]}
    assert len(list(root.rglob("README.md"))) == len(spec["runs"])


# ---- push


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as creates a repository and takes a commit of small files."""

    def do_POST(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b"".join(self.chunks())
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            return self.answer({"url": f"http://{self.headers['Host']}/me/model", "name": "me/model"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/main" in self.path:
            return self.answer({"commitUrl": f"http://{self.headers['Host']}/me/model/commit/1", "commitOid": "1"})
        return self.answer({})

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()

    def answer(self, value, code=200):
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def finished(tmp_path):
    run = Run(tmp_path / "run")
    write_json(run.model / "config.json", {"model_type": "llama"})
    write_text(run.model / "model.safetensors", "weights")
    write_text(run.model / ".snakemake_timestamp", "")
    write_text(run.card, "---\nlibrary_name: transformers\n---\n\n# A card\n")
    return run


def test_push_uploads_model_and_card_in_one_commit(finished):
    with hub() as server:
        environment = {
            **os.environ, "PYTHONPATH": str(SRC), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_a",
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        }  # fmt: skip
        command = [sys.executable, "-m", "lpc.push", str(finished.folder), "me/model", "--private"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/model/commit/1")
    assert all(token == "Bearer hf_a" for _, _, token in server.seen)
    created = next(json.loads(body) for path, body, _ in server.seen if path == "/api/repos/create")
    assert created["visibility"] == "private" and created["name"] == "model"
    (commit,) = [body for path, body, _ in server.seen if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert sent == {
        "config.json": (finished.model / "config.json").read_bytes(),
        "model.safetensors": b"weights",
        "README.md": finished.card.read_bytes(),
    }


def test_push_says_what_is_missing(finished):
    finished.card.unlink()
    with pytest.raises(UserError, match=r"README\.md: no model card; make the cards with `snakemake cards`"):
        push.push(finished.folder, "me/model")
    with pytest.raises(UserError, match="no such folder; name the folder of a finished run"):
        push.push(finished.folder / "x", "me/model")
