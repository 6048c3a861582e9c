"""A stock task from a hub on loopback: brought on a machine with a network, run on one without."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SOURCE = Path(__file__).parents[3] / "src"
NAME = "allenai/ai2_arc"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = {"question": "the quick?", "choices": {"text": ["fox", "dog"], "label": ["A", "B"]}, "answerKey": "A"}
CARD = "configs:\n- config_name: ARC-Easy\n  data_files:\n" + "".join(
    f"  - split: {split}\n    path: ARC-Easy/{split}.jsonl\n" for split in ("train", "validation", "test")
)
FILES = {f"ARC-Easy/{split}.jsonl": (json.dumps(ROW) + "\n") * 7 for split in ("train", "validation", "test")}
FILES = {name: text.encode() for name, text in ({"README.md": f"---\n{CARD}---\n"} | FILES).items()}


class Hub(BaseHTTPRequestHandler):
    """The calls of the hub's interface that `datasets` makes for one small public data set."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        _, _, file = path.partition(f"/datasets/{NAME}/resolve/")
        file = file.partition("/")[2]
        if file in FILES:
            return self.answer(FILES[file], ETag=f'"{hashlib.sha1(FILES[file]).hexdigest()}"')
        if path.startswith(f"/api/datasets/{NAME}/tree/"):
            folder = path.partition(COMMIT)[2].strip("/")
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in FILES.items()
                    if name.startswith(folder)
                ]
            )
        if path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in FILES]
            return self.answer({"id": NAME, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        return self.answer({"error": "no such entry"}, 404, **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, body, code=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def step(name, spec, environment, *arguments):
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")}
    return subprocess.run(
        [sys.executable, "-m", f"lpc.steps.{name}", "--spec", json.dumps(spec), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=kept | {"PYTHONPATH": str(SOURCE)} | environment,
        timeout=300,
    )


def test_what_was_downloaded_is_run_without_a_network(hub, checkpoint, tmp_path):
    entry = {"name": "arc", "task": "arc_easy", "metric": "acc", "num_fewshot": None, "limit": None}
    entry |= {"chat_template": False, "data": None}
    online = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub}
    done = step("download_task", entry, online, "--output", tmp_path / "task.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "task.json").read_text())
    assert record["hub"] == [{"path": NAME, "revision": COMMIT}]
    assert record["rows"] == {"arc_easy": {"train": 7, "validation": 7, "test": 7}}

    base = {
        "name": "tiny",
        "path": str(checkpoint),
        "dtype": "float32",
        "trust_remote_code": False,
    }
    (tmp_path / "base.json").write_text(json.dumps(base | {"chat_template": None, "chat_template_kwargs": {}}))
    folders = ("--finished", tmp_path / "finished", "--output", tmp_path / "benchmarks")
    # HF_HUB_OFFLINE is left to the step; its endpoint is one where nobody listens.
    nowhere = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    spec = {"tasks": {entry.pop("name"): entry | {"download": str(tmp_path / "task.json")}}, "batch_size": 4}
    done = step("benchmark", spec, nowhere, "--base", tmp_path / "base.json", *folders)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "benchmarks/arc.json").read_text())
    assert result["n"] == 7 and result["task"] == "arc" and result["hub"] == record["hub"]
