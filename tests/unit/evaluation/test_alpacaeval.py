"""AlpacaEval: what is prepared, what a model answers, and what a judge on loopback makes of it."""

import importlib.util
import json
import logging
import math
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from steps import run_step

from lpc import cli
from lpc.cli import UserError
from lpc.evaluation import alpacaeval
from lpc.steps import alpacaeval_judge

SOURCE = Path(__file__).parents[3] / "src"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None, reason="the package alpaca_eval is not installed"
)
JUDGE = {
    "annotator": "weighted_alpaca_eval_gpt4_turbo",
    "model": "judge-of-the-test",
    "base_url": None,
    "key_variable": "TEST_JUDGE_KEY",
}
COUNT = 33


def rows(word, generator, low=1):
    return [
        {"instruction": f"Say {i}.", "output": f"{word} " * (low + i % 7), "generator": generator, "dataset": "test"}
        for i in range(COUNT)
    ]


# ---- preparing


def test_instructions_of_ones_own_have_no_reference_outputs_by_themselves(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([{"instruction": "Say it.", "input": ""}]))
    assert alpacaeval.prepare(str(tmp_path / "mine.json"), None) == (
        [{"instruction": "Say it.", "dataset": "local"}],
        [],
    )


def test_reference_outputs_bring_their_instructions(tmp_path):
    reference = rows("good", "them")
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    instructions, outputs = alpacaeval.prepare(None, str(tmp_path / "reference.json"))
    assert outputs == reference
    assert instructions == [{"instruction": row["instruction"], "dataset": "test"} for row in reference]


@pytest.mark.parametrize("content", ["{}", "[]", '[{"output": "x"}]', '[{"instruction": 3}]', '["x"]', "[", None])
def test_bad_files_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "mine.json").write_text(content)
    with pytest.raises(UserError, match=r"mine\.json"):
        alpacaeval.prepare(str(tmp_path / "mine.json"), None)


def test_the_hubs_baseline_without_a_network(tmp_path):
    """A fresh cache and no hub: the error names the cure. In its own process, since the cache's place is read once."""
    done = step(
        "download",
        {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        *("--spec", '{"instructions": null, "reference": null}'),
        *("--instructions", tmp_path / "i.json", "--reference", tmp_path / "r.json"),
    )
    assert done.returncode == 1 and "cannot be fetched" in done.stderr and "to local files" in done.stderr
    assert not (tmp_path / "i.json").exists() and not (tmp_path / "r.json").exists()


# ---- answering


def test_a_models_answers_have_the_packages_format(checkpoint, tmp_path):
    from lpc.evaluation.harness import LatentLM

    lm = LatentLM(checkpoint, batch_size=2, device="cpu")
    instructions = [{"instruction": text, "dataset": "test"} for text in ("the quick", "brown fox jumps over", "dog")]
    outputs = alpacaeval.answer(lm, instructions, generator="tiny/dpo", max_new_tokens=8)
    assert [set(row) for row in outputs] == [{"instruction", "dataset", "output", "generator"}] * 3
    assert [row["instruction"] for row in outputs] == [row["instruction"] for row in instructions]
    # Each is what the model writes after that chat prompt alone.
    for row in outputs:
        ids = lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        written = lm.policy.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert row["output"] == lm.tokenizer.decode(written, skip_special_tokens=True).strip()
    with pytest.raises(UserError, match="leaves no room"):
        alpacaeval.answer(lm, instructions, generator="tiny", max_new_tokens=256)


def test_the_step_that_answers(checkpoint, tmp_path):
    base = {"path": str(checkpoint), "dtype": "float32", "trust_remote_code": False}
    (tmp_path / "base.json").write_text(json.dumps(base | {"chat_template": None, "chat_template_kwargs": {}}))
    (tmp_path / "i.json").write_text(json.dumps([{"instruction": "the quick", "dataset": "test"}]))
    run_step(
        "alpacaeval_generate",
        {"name": "tiny", "batch_size": 2, "max_new_tokens": 4},
        *("--base", tmp_path / "base.json", "--instructions", tmp_path / "i.json", "--output", tmp_path / "o.json"),
    )
    (row,) = json.loads((tmp_path / "o.json").read_text())
    assert row["generator"] == "tiny" and row["dataset"] == "test"


# ---- judging


def preference(i, mine, theirs):
    """The judge's probability that instruction i's output of length `mine` is better: longer and easier ones are."""
    return 0.5 + 0.3 * (mine - theirs) / (mine + theirs) + 0.02 * (i % 11 - 5)


class Judge(BaseHTTPRequestHandler):
    """Answers chat completions as OpenAI does, with log-probabilities, by `preference`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], request))
        text = request["messages"][-1]["content"]
        first, second = (part.split('"""')[1] for part in text.split('"output": ')[1:3])
        i = int(re.search(r"Say (\d+)\.", text)[1])
        sure = preference(i, len(first), len(second)) if "mine" in first else 1 - preference(i, len(second), len(first))
        top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (("m", sure), ("M", 1 - sure))]
        choice = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": "m"},
            "logprobs": {"content": [top[0] | {"top_logprobs": top}]},
        }
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": request["model"]}
        body = json.dumps(answer | {"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def judge_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub_cache(tmp_path):
    """A cache of the hub in which the package's table for length control is, made for the test's instructions."""
    folder = tmp_path / "hub" / "hub" / "datasets--tatsu-lab--alpaca_eval"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    table = folder / "snapshots" / ("0" * 40) / "df_gamed.csv"
    table.parent.mkdir(parents=True)
    lines = ["model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model, length, preference in (("concise", 1.2, 0.3), ("verbose", -1.2, 0.7)):
        lines += [f"{model},{preference},{i},{length},{(i % 11 - 5) / 5},False" for i in range(COUNT)]
    table.write_text("\n".join(lines) + "\n")
    return {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}


def step(name, environment, *arguments):
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")}
    return subprocess.run(
        [sys.executable, "-m", f"lpc.steps.alpacaeval_{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=kept | {"PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, sys.path)])} | environment,
        timeout=300,
    )


def judge_words(folder, settings, output="judged.json", outputs="outputs.json"):
    files = {"outputs": outputs, "reference": "reference.json", "output": output}
    files |= {"annotations": f"annotations-of-{output}"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
    return [*words, "--spec", json.dumps({"judge": settings})]


def write_answers(folder, reference=None):
    (folder / "outputs.json").write_text(json.dumps(rows("mine", "tiny/dpo", 2)))
    (folder / "reference.json").write_text(json.dumps(rows("theirs", "base") if reference is None else reference))


def reason_of(folder):
    """Why the answers in the folder are not judged."""
    result = json.loads((folder / "judged.json").read_text())
    assert result["status"] == "not judged" and result["metrics"] == {}
    assert json.loads((folder / "annotations-of-judged.json").read_text()) == []
    assert result["n"] == COUNT and result["mean_length"] > 0
    return result["reason"]


@pytest.fixture
def not_judged(tmp_path, monkeypatch):
    """Call to the step in this process, for what is known before the package is imported; the reason."""
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH"):
        monkeypatch.setenv(name, "of the shell")  # the step sets them: as they were after the test
    monkeypatch.delenv(JUDGE["key_variable"], raising=False)
    levels = {logger: logger.level for logger in (logging.getLogger(), logging.getLogger("lpc"))}

    def call(settings, **keys):
        write_answers(tmp_path, **keys)
        alpacaeval_judge.main(cli.parse(alpacaeval_judge.parser(), judge_words(tmp_path, settings)))
        return reason_of(tmp_path)

    yield call
    for logger, level in levels.items():
        logger.setLevel(level)


def test_without_a_judge_or_its_key_the_result_says_so(not_judged):
    assert not_judged(None) == "no judge is configured"
    assert "TEST_JUDGE_KEY is not set" in not_judged(JUDGE)


def test_without_reference_outputs_the_result_says_so(not_judged, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    assert not_judged(JUDGE, reference=[]) == f"{COUNT} of {COUNT} instructions have no reference output"


def test_without_the_package_the_result_says_so(not_judged, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    (tmp_path / "alpaca_eval.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "alpaca_eval is not installed (not here)" in not_judged(JUDGE)


@needs_package
def test_a_judge_that_cannot_be_reached(tmp_path, hub_cache):
    write_answers(tmp_path)
    settings = JUDGE | {"base_url": "http://127.0.0.1:9/v1"}  # port 9: nobody listens
    done = step("judge", {"TEST_JUDGE_KEY": "secret"} | hub_cache, *judge_words(tmp_path, settings))
    assert done.returncode == 0, done.stderr
    assert "the judge could not be asked (APIConnectionError" in reason_of(tmp_path)


SEVERAL = """
import json, sys
import alpaca_eval
from lpc import cli
from lpc.steps import alpacaeval_judge as step
for words in json.loads(sys.argv[1]):
    step.main(cli.parse(step.parser(), words))
table, _ = alpaca_eval.evaluate(
    'outputs.json', 'reference.json', output_path=None, annotators_config='weighted_alpaca_eval_gpt4_turbo',
    precomputed_leaderboard=None, caching_path=None, is_cache_leaderboard=False, is_return_instead_of_print=True,
    metric_kwargs={'save_weights_dir': None},
)
print(json.dumps(table.iloc[0].to_dict(), default=str))
"""


@needs_package
def test_win_rates_down_to_the_length_controlled_one(tmp_path, judge_server, hub_cache):
    """In one process, since each import of the package takes seconds: the step; the step again, which asks the judge
    nothing; the step with another judge; the step on a few answers; and the package's own entry point."""
    write_answers(tmp_path)
    (tmp_path / "few.json").write_text(json.dumps(rows("mine", "tiny/dpo", 2)[:5]))
    settings = JUDGE | {"base_url": f"http://127.0.0.1:{judge_server.server_port}/v1"}
    names = {"judged.json": {}, "again.json": {}, "other.json": {"model": "another"}}
    commands = [judge_words(tmp_path, settings | changes, name) for name, changes in names.items()]
    commands += [judge_words(tmp_path, settings | {"model": "third"}, "few-judged.json", outputs="few.json")]
    path = os.pathsep.join([str(SOURCE), *filter(None, sys.path)])
    environment = {"TEST_JUDGE_KEY": "secret", "PYTHONPATH": path} | hub_cache
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result, again, other, few = (json.loads((tmp_path / name).read_text()) for name in (*names, "few-judged.json"))
    annotations = json.loads((tmp_path / "annotations-of-judged.json").read_text())
    assert result["status"] == "judged" and result["reason"] is None and result["n"] == COUNT == len(annotations)

    assert {(path, key) for path, key, _ in judge_server.requests} == {("/v1/chat/completions", "Bearer secret")}
    assert [request["model"] for _, _, request in judge_server.requests[:COUNT]] == ["judge-of-the-test"] * COUNT
    written = "".join(file.read_text() for file in tmp_path.glob("*judged.json"))
    assert "win_rate" in written and "secret" not in written

    expected = [preference(i, len("mine ") * (2 + i % 7), len("theirs ") * (1 + i % 7)) for i in range(COUNT)]
    assert result["metrics"]["win_rate"]["value"] == pytest.approx(100 * sum(expected) / COUNT, abs=1e-3)
    assert result["wins"] == sum(p > 0.5 for p in expected) and result["losses"] == sum(p < 0.5 for p in expected)
    controlled = result["metrics"]["length_controlled_winrate"]
    assert 0 < controlled["value"] < 100 and controlled["stderr"] > 0.01

    kept = sorted(len(json.loads(file.read_text())) for file in tmp_path.glob(".judge-*.json"))
    assert kept == [5, COUNT, COUNT], "a file for each judge, for later processes"
    assert again["metrics"]["win_rate"] == pytest.approx(result["metrics"]["win_rate"])
    asked = Counter(request["model"] for _, _, request in judge_server.requests)
    assert asked["judge-of-the-test"] == COUNT == asked["another"] == other["n"] and asked["third"] == 5
    table = json.loads(done.stdout.splitlines()[-1])
    assert sum(asked.values()) == 3 * COUNT + 5, "the package's entry point has asked for itself"
    assert result["metrics"]["win_rate"]["value"] == pytest.approx(table["win_rate"])
    assert controlled["value"] == pytest.approx(table["length_controlled_winrate"])

    # Length control is for the whole set alone.
    assert few["status"] == "judged" and set(few["metrics"]) == {"win_rate"} and few["n"] == 5
    assert (
        few["reason"] == f"no length-controlled win rate: it is defined for all {COUNT} instructions, and 5 were judged"
    )
