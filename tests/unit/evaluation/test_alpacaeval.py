"""AlpacaEval: what is prepared, what a model answers, and what a judge on loopback makes of it."""

import importlib.util
import json
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

from lpc.cli import UserError
from lpc.evaluation import alpacaeval

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
COUNT = 60


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


def judge_words(folder, settings, output="judged.json"):
    files = {"outputs": "outputs.json", "reference": "reference.json", "output": output}
    files |= {"annotations": "annotations.json"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
    return [*words, "--spec", json.dumps({"judge": settings})]


def judged(tmp_path, settings, environment, outputs=None, reference=None):
    (tmp_path / "outputs.json").write_text(json.dumps(rows("mine", "tiny/dpo", 2) if outputs is None else outputs))
    (tmp_path / "reference.json").write_text(json.dumps(rows("theirs", "base") if reference is None else reference))
    done = step("judge", environment, *judge_words(tmp_path, settings))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "judged.json").read_text())
    return result, json.loads((tmp_path / "annotations.json").read_text())


def not_judged(tmp_path, *arguments, **keys):
    result, annotations = judged(tmp_path, *arguments, **keys)
    assert result["status"] == "not judged" and result["metrics"] == {} and annotations == []
    assert result["n"] == COUNT and result["mean_length"] > 0
    return result["reason"]


def test_without_a_judge_or_its_key_the_result_says_so(tmp_path):
    assert not_judged(tmp_path, None, {}) == "no judge is configured"
    assert "TEST_JUDGE_KEY is not set" in not_judged(tmp_path, JUDGE, {})


def test_without_reference_outputs_the_result_says_so(tmp_path):
    reason = not_judged(tmp_path, JUDGE, {"TEST_JUDGE_KEY": "secret"}, reference=[])
    assert reason == f"{COUNT} of {COUNT} instructions have no reference output"


def test_without_the_package_the_result_says_so(tmp_path):
    (tmp_path / "alpaca_eval.py").write_text("raise ImportError('not here')")
    environment = {
        "TEST_JUDGE_KEY": "secret",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SOURCE), *filter(None, sys.path)]),
    }
    assert "alpaca_eval is not installed (not here)" in not_judged(tmp_path, JUDGE, environment)


@needs_package
def test_a_judge_that_cannot_be_reached(tmp_path, hub_cache):
    settings = JUDGE | {"base_url": "http://127.0.0.1:9/v1"}  # port 9: nobody listens
    assert "the judge could not be asked (APIConnectionError" in not_judged(
        tmp_path, settings, {"TEST_JUDGE_KEY": "secret"} | hub_cache
    )


@needs_package
def test_win_rates_down_to_the_length_controlled_one(tmp_path, judge_server, hub_cache):
    settings = JUDGE | {"base_url": f"http://127.0.0.1:{judge_server.server_port}/v1"}
    environment = {"TEST_JUDGE_KEY": "secret"} | hub_cache
    result, annotations = judged(tmp_path, settings, environment)
    assert result["status"] == "judged" and result["reason"] is None and result["n"] == COUNT == len(annotations)

    assert len(judge_server.requests) == COUNT
    assert {(path, key) for path, key, _ in judge_server.requests} == {("/v1/chat/completions", "Bearer secret")}
    assert {request["model"] for _, _, request in judge_server.requests} == {"judge-of-the-test"}
    assert "secret" not in (tmp_path / "judged.json").read_text() + (tmp_path / "annotations.json").read_text()

    expected = [preference(i, len("mine ") * (2 + i % 7), len("theirs ") * (1 + i % 7)) for i in range(COUNT)]
    assert result["metrics"]["win_rate"]["value"] == pytest.approx(100 * sum(expected) / COUNT, abs=1e-3)
    assert result["wins"] == sum(p > 0.5 for p in expected) and result["losses"] == sum(p < 0.5 for p in expected)
    controlled = result["metrics"]["length_controlled_winrate"]
    assert 0 < controlled["value"] < 100 and controlled["stderr"] > 0.01

    # In another process, since each import of the package takes seconds: run again, the judge is not asked again;
    # another judge is; and the package's own entry point says the same of the same files.
    code = (
        "import json, sys; from lpc import cli; from lpc.steps import alpacaeval_judge as step\n"
        "for words in json.loads(sys.argv[1]): step.main(cli.parse(step.parser(), words))\n"
        "import alpaca_eval; table, _ = alpaca_eval.evaluate('outputs.json', 'reference.json', output_path=None,"
        " annotators_config='weighted_alpaca_eval_gpt4_turbo', precomputed_leaderboard=None, caching_path=None,"
        " is_cache_leaderboard=False, is_return_instead_of_print=True, metric_kwargs={'save_weights_dir': None})\n"
        "print(json.dumps(table.iloc[0].to_dict(), default=str))"
    )
    other = settings | {"model": "another"}
    commands = [judge_words(tmp_path, settings, "again.json"), judge_words(tmp_path, other, "other.json")]
    path = os.pathsep.join([str(SOURCE), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        capture_output=True, text=True, cwd=tmp_path, env=environment | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again, other = (json.loads((tmp_path / name).read_text()) for name in ("again.json", "other.json"))
    assert again["metrics"]["win_rate"] == pytest.approx(result["metrics"]["win_rate"])
    asked = Counter(request["model"] for _, _, request in judge_server.requests)
    assert asked["judge-of-the-test"] == COUNT == asked["another"] == other["n"]
    table = json.loads(done.stdout.splitlines()[-1])
    assert sum(asked.values()) == 3 * COUNT, "the package's entry point has asked for itself"
    assert result["metrics"]["win_rate"]["value"] == pytest.approx(table["win_rate"])
    assert controlled["value"] == pytest.approx(table["length_controlled_winrate"])


@needs_package
def test_length_control_is_for_the_whole_set_alone(tmp_path, judge_server, hub_cache):
    settings = JUDGE | {"base_url": f"http://127.0.0.1:{judge_server.server_port}/v1"}
    few = rows("mine", "tiny/dpo", 2)[:5]
    result, _ = judged(tmp_path, settings, {"TEST_JUDGE_KEY": "secret"} | hub_cache, outputs=few)
    assert result["status"] == "judged" and set(result["metrics"]) == {"win_rate"} and result["n"] == 5
    assert (
        result["reason"]
        == f"no length-controlled win rate: it is defined for all {COUNT} instructions, and 5 were judged"
    )
