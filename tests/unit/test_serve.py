"""A served run, asked by OpenAI's own client, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

import lpc
from lpc import files, latents, serve
from lpc.model.policy import LatentPolicy

pytest.importorskip("fastapi", reason="not installed: fastapi; pip install 'lpc[serve]'")
pytest.importorskip("uvicorn", reason="not installed: uvicorn; pip install 'lpc[serve]'")
openai = pytest.importorskip("openai", reason="not installed: openai; pip install 'lpc[test]'")

ROOT = Path(__file__).parents[2]
ASKED = [{"role": "user", "content": "quick fox"}]
TOKENS = 12


def context(swap: bool = False) -> list[dict]:
    sides = ("rejected", "chosen") if swap else ("chosen", "rejected")
    rows = make_pairs(4).to_pylist()
    return [
        {"prompt": row["messages"][0]["content"], "chosen": row[sides[0]], "rejected": row[sides[1]]} for row in rows
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run whose codes matter, with an objective that needs no base."""
    folder = tmp_path_factory.mktemp("serve") / "run"
    latent = {"kind": "exact", "codes": 5, "prior": "shared"}
    policy = LatentPolicy(make_backbone(), latents.build(latents.parse(latent), 32, seed=1))
    torch.nn.init.normal_(policy.latent.codebook, std=1.0, generator=torch.Generator().manual_seed(2))
    policy.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    spec = {"objective": {"name": "simpo", "beta": 2.0, "margin": 0.5}, "latent": latent}
    spec["tokens"] = {"max_length": 64, "max_prompt_length": 32}
    files.write_json(folder / "train.json", {"identity": {"spec": spec, "base": "ab"}})
    return folder


@pytest.fixture(scope="module")
def policy(run):
    return lpc.load(run)


@pytest.fixture(scope="module")
def server(run):
    """Address of a server in a process of its own."""
    command = [sys.executable, "-m", "lpc.serve", str(run), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    if not address:
        raise AssertionError(process.communicate()[1])
    yield address
    process.send_signal(signal.SIGINT)
    log = process.communicate(timeout=30)[1]
    assert process.returncode == 0, log
    assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server, api_key="none", max_retries=0)


def ask(client, run, messages=ASKED, temperature=0.0, extra=None, **options):
    options = {"max_tokens": TOKENS, **options}
    create = client.chat.completions.create
    return create(model=str(run), messages=messages, temperature=temperature, extra_body=extra, **options)


def text(answer) -> str:
    return answer.choices[0].message.content


def test_a_greedy_answer_is_the_policys(client, server, run, policy):
    assert server.startswith("http://127.0.0.1:") and [model.id for model in client.models.list()] == [str(run)]
    answer = ask(client, run)
    assert text(answer) == policy.generate("quick fox", max_new_tokens=TOKENS) and text(answer)
    assert answer.code is None and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(policy._ids(["quick fox"])[0]), TOKENS)
    turns = [
        {"role": "system", "content": "be brief"},
        *ASKED,
        {"role": "assistant", "content": "dog"},
        {"role": "user", "content": "why"},
    ]
    assert text(ask(client, run, turns)) == policy.generate(turns, max_new_tokens=TOKENS) != text(answer)
    three = client.chat.completions.create(
        model=str(run), messages=ASKED, temperature=0, max_completion_tokens=3, n=1, top_p=None
    )
    assert three.usage.completion_tokens == 3


def test_a_forced_code_is_that_of_generate(client, run, policy):
    answers = [ask(client, run, extra={"code": code}) for code in range(5)]
    assert [text(answer) for answer in answers] == [
        policy.generate("quick fox", code=code, max_new_tokens=TOKENS) for code in range(5)
    ]
    assert [answer.code for answer in answers] == list(range(5)) and len({*map(text, answers)}) > 1


def test_the_code_of_a_context_is_the_policys(client, run, policy):
    codes = {}
    for swap in (False, True):
        codes[swap] = int(policy.infer_code("quick fox", context(swap)).argmax())
        answer = ask(client, run, extra={"context": context(swap)})
        assert answer.code == codes[swap]
        assert text(answer) == policy.generate("quick fox", code=codes[swap], max_new_tokens=TOKENS)
    assert codes[False] != codes[True]


def test_sampling_follows_seed_temperature_and_top_p(client, run, policy):
    first, again, other = (text(ask(client, run, temperature=None, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert ask(client, run, temperature=None).choices != ask(client, run, temperature=None).choices
    torch.manual_seed(3)
    options = {"do_sample": True, "temperature": 0.5, "top_p": 0.8, "top_k": 0}
    expected = policy.generate("quick fox", max_new_tokens=TOKENS, **options)
    assert text(ask(client, run, temperature=0.5, top_p=0.8, seed=3)) == expected != first
    assert text(ask(client, run, temperature=1.0, top_p=1e-6)) == text(ask(client, run))


def test_a_stream_has_the_same_text_in_pieces(client, run):
    chunks = list(ask(client, run, extra={"code": 2}, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == text(ask(client, run, extra={"code": 2})) and len([*filter(None, pieces)]) > 3
    assert {chunk.code for chunk in chunks} == {2} and len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


REFUSED = {
    "tools": ({"tools": []}, r"tools: unknown key"),
    "stop": ({"stop": ["a"]}, r"stop: unknown key"),
    "two answers": ({"n": 2}, r"n: 2 is out of range, must be at most 1"),
    "code": ({"code": 5}, r"code: 5 is out of range, must be at most 4"),
    "negative code": ({"code": -1}, r"code: -1 is out of range"),
    "code and context": ({"code": 1, "context": []}, r"both choose the code"),
    "pair": ({"context": [{"prompt": "a", "chosen": "b"}]}, r"context\.0: rejected is missing"),
    "blank pair": ({"context": [{"prompt": "a", "chosen": " ", "rejected": "b"}]}, r"pair 1: empty"),
    "temperature": ({"temperature": 3}, r"temperature: 3 is out of range, must be at most 2"),
    "small temperature": ({"temperature": 1e-9}, r"temperature: 1e-09 is out of range, must be 0 or at least 0\.01"),
    "top_p": ({"top_p": 0}, r"top_p: 0 is out of range"),
    "no tokens": ({"max_tokens": 0}, r"max_tokens: 0 is out of range"),
    "both names": ({"max_completion_tokens": 3}, r"max_completion_tokens: unknown key"),
    "room": ({"max_tokens": 255}, r"max_tokens: 255 and the \d+ tokens of the messages exceed the model's 256"),
    "model": ({"model": "gpt"}, r"model: gpt is not served; use "),
    "roles": ({"messages": [*ASKED, *ASKED]}, r"messages does not alternate"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, r"content: .* a string"),
    "empty": ({"messages": [{"role": "user", "content": " "}]}, r"empty message in messages"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_honoured_is_refused_in_one_line(client, run, case):
    changes, message = REFUSED[case]
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        ask(client, run, extra=changes)
    assert raised.value.body["type"] == "invalid_request_error" and "\n" not in raised.value.body["message"]


def test_a_body_that_is_no_request_is_refused(server):
    for body, message in ((b"{", "the body must be a JSON object"), (b"[]", "expected a section")):
        headers = {"Content-Type": "application/json"}
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(urllib.request.Request(f"{server}/chat/completions", body, headers))
        assert raised.value.code == 400 and message in json.load(raised.value)["error"]["message"]


def test_the_page_lists_the_fields_and_its_example_runs(server, run, policy, capsys):
    page = (ROOT / "docs/howto/serve.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert rows == list(serve.Request.model_fields)
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(example.replace("http://127.0.0.1:8000/v1", server), "docs/howto/serve.md", "exec"), names)
    assert names["forced"].code == 3 and names["personal"].code in range(5)
    answer = names["answer"]
    expected = policy.generate("a prompt", max_new_tokens=answer.usage.completion_tokens)
    assert text(answer) == expected and expected in capsys.readouterr().out


def test_a_plain_model_has_neither_code_nor_context(checkpoint):
    service = serve.Service(lpc.load(checkpoint), "plain")
    body = {"model": "plain", "messages": ASKED, "temperature": 0, "max_tokens": 4}
    assert service.chat(body)["choices"][0]["message"]["content"]
    for name, value in (("code", 0), ("context", context())):
        with pytest.raises(lpc.UserError, match=f"{name}: plain has no codes; serve a run whose latent has codes"):
            service.chat({**body, name: value})


def test_without_max_tokens_the_answer_ends_at_the_turn_or_the_models_room(policy):
    service = serve.Service(policy, "m")
    answer = service.chat({"model": "m", "messages": ASKED, "temperature": 0})
    assert answer["usage"]["total_tokens"] == 256 and answer["choices"][0]["finish_reason"] == "length"
    ends = policy.model.backbone.generation_config.eos_token_id
    found = serve.Answer(policy, ASKED, None, max_new_tokens=1)
    found.ids = [7, ends if isinstance(ends, int) else ends[-1]]
    assert found.finish_reason == "stop"


def test_generation_stops_when_the_client_goes(policy):
    answer = serve.Answer(policy, ASKED, None, max_new_tokens=240)
    reader = iter(answer)
    next(reader)
    reader.close()
    answer.thread.join()
    assert isinstance(answer._error, InterruptedError) and not serve.ONE_AT_A_TIME.locked()


def test_an_error_of_generation_is_raised_where_the_answer_is_read(policy):
    with pytest.raises(ValueError, match="no_such_option"):
        list(serve.Answer(policy, ASKED, None, no_such_option=1))


def test_a_port_that_is_taken_is_named(server, run):
    port = server.removesuffix("/v1").rpartition(":")[2]
    with pytest.raises(lpc.UserError, match=rf"127\.0\.0\.1:{port}: .*in use; use another one"):
        serve.main(serve.parser().parse_args([str(run), "--port", port]))
