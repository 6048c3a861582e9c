"""Serve a trained run by OpenAI's protocol: `/v1/chat/completions`, with streaming, and `/v1/models`.

The server generates one answer at a time. It has no password, so everyone who reaches its address can use it.
"""

import argparse
import contextlib
import json
import queue
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import AliasChoices, ValidationError
from transformers.generation import BaseStreamer

from lpc import cli
from lpc.cli import UserError
from lpc.config.faults import explain_all, one_line
from lpc.config.keys import REQUIRED, Integer, Section, key
from lpc.data.formats.base import Malformed
from lpc.data.formats.dialogues import check_prompt
from lpc.data.tokens import encode_prompts
from lpc.extras import import_extra
from lpc.trained import Policy, load

ONE_AT_A_TIME = threading.Lock()
"""Generation changes the state of the model and of torch's random numbers."""
DEFAULT_MAX_TOKENS = 256
SERVE = {"extra": "serve", "needed_by": "lpc.serve"}


class Message(Section):
    role: Literal["system", "user", "assistant"]
    content: str


class Pair(Section):
    prompt: str | list[Message]
    chosen: str
    rejected: str


class Request(Section):
    """The fields of a request that are honoured; every other field is refused."""

    model: str = key(REQUIRED, "the name that `/v1/models` lists")
    messages: list[Message] = key(REQUIRED, "system turn or none, then user and assistant in turn, the user last")
    max_tokens: Integer | None = key(
        None,
        "tokens of the answer, at most, or `max_completion_tokens`. Without it 256, or what the model has room for",
        ge=1,
        validation_alias=AliasChoices("max_tokens", "max_completion_tokens"),
    )
    temperature: float | None = key(None, "0: greedy; otherwise 0.01 to 2, and 1 without it", ge=0, le=2)
    top_p: float | None = key(None, "sample from the most likely tokens of this total probability", gt=0, le=1)
    seed: Integer | None = key(None, "of sampling; without it each answer is drawn anew", ge=-(2**63), lt=2**63)
    n: Integer | None = key(None, "1", ge=1, le=1)
    stream: bool | None = key(None, "send the answer in pieces")
    code: Integer | None = key(None, "force this code in place of the prior", ge=0)
    context: list[Pair] | None = key(None, "labelled pairs of one person: force their most probable code")


class Answer(BaseStreamer):
    """One answer, generated in a thread of its own, from which transformers' `generate` streams its tokens here.

    Iteration yields the text in pieces; then `ids` and `finish_reason` are known.

    Args:
        policy: the run.
        prompt: messages that `Policy.generate` takes.
        seed: of sampling; None: a new one.
        options: those of `Policy.generate`.
    """

    def __init__(self, policy: Policy, prompt: list[dict], seed: int | None, **options):
        self.ids: list[int] = []
        self.thread = threading.Thread(target=self._generate, args=(policy, prompt, seed, options), daemon=True)
        self._policy, self._prompt_seen, self._abandoned = policy, False, False
        self._tokens: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._text, self._error = "", None

    def __iter__(self) -> Iterator[str]:
        self.thread.start()
        sent = ""
        try:
            while (new := self._tokens.get()) is not None:
                self.ids += new
                text = self._policy.tokenizer.decode(self.ids, skip_special_tokens=True)
                # A character of several tokens may not be whole yet.
                if text.startswith(sent) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                    yield text[len(sent) :]
                    sent = text
        finally:
            self._abandoned = True
        if self._error is not None:
            raise self._error
        if not self._text.startswith(sent):
            raise RuntimeError(f"the answer does not begin with what was streamed of it: {self._text!r}, {sent!r}")
        yield self._text[len(sent) :]

    @property
    def finish_reason(self) -> str:
        ends = self._policy.model.backbone.generation_config.eos_token_id
        return "stop" if self.ids[-1] in (ends if isinstance(ends, list) else [ends]) else "length"

    def _generate(self, policy: Policy, prompt: list[dict], seed: int | None, options: dict) -> None:
        try:
            with ONE_AT_A_TIME:
                torch.seed() if seed is None else torch.manual_seed(seed)
                self._text = policy.generate(prompt, streamer=self, **options)
        except BaseException as error:  # raised where the answer is read
            self._error = error
        self._tokens.put(None)

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, and then each token. Raises InterruptedError where nobody reads the answer any more."""
        if self._abandoned:
            raise InterruptedError("the client has gone")
        if self._prompt_seen:
            self._tokens.put(value.tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: the end is known when `generate` returns."""


class Service:
    """A policy that answers the requests of the protocol. name: the model's name there."""

    def __init__(self, policy: Policy, name: str):
        self.policy, self.name, self.started = policy, name, int(time.time())
        latent = policy.model.latent
        self.codes = len(latent.codebook) if latent is not None and latent.has_codes else 0
        self.room = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)

    def models(self) -> dict:
        """Return the content of `/v1/models`."""
        about = {"id": self.name, "object": "model", "created": self.started, "owned_by": "lpc"}
        return {"object": "list", "data": [about]}

    def chat(self, body: Any) -> dict | Iterator[str]:
        """Return the content of `/v1/chat/completions`, or the events of a stream.

        body: JSON of the request. Raises UserError for one that cannot be answered as it asks.
        """
        request = self._request(body)
        try:
            prompt = check_prompt([dict(message) for message in request.messages], "messages")
        except Malformed as error:
            raise UserError(f"{error}; correct the messages") from None
        (ids,) = encode_prompts(self.policy.tokenizer, [prompt])
        code, temperature = self._code(request, prompt), 1.0 if request.temperature is None else request.temperature
        options = {"code": code, "max_new_tokens": self._max_tokens(request, len(ids)), "do_sample": temperature > 0}
        if temperature > 0:
            # Without top_k transformers takes the 50 most likely tokens alone.
            top_p = 1.0 if request.top_p is None else request.top_p
            options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
        answer = Answer(self.policy, prompt, request.seed, **options)
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name, "code": code}
        if request.stream:
            return _events({**about, "object": "chat.completion.chunk"}, answer)
        text = "".join(answer)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": answer.finish_reason}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(answer.ids)}
        usage["total_tokens"] = sum(usage.values())
        return {**about, "object": "chat.completion", "choices": [choice], "usage": usage}

    def _request(self, body: Any) -> Request:
        try:
            request = Request.model_validate(body)
        except ValidationError as error:
            found = [f"{'.'.join(map(str, path)) or 'request'}: {text}" for path, text in explain_all(error, Request)]
            raise UserError("; ".join(found)) from None
        if request.model != self.name:
            raise UserError(f"model: {request.model} is not served; use {self.name}")
        if request.temperature and request.temperature < 0.01:
            raise UserError(f"temperature: {request.temperature} is out of range, must be 0 or at least 0.01")
        given = [name for name in ("code", "context") if getattr(request, name) is not None]
        if len(given) > 1:
            raise UserError("code, context: both choose the code; use one of them")
        if given and not self.codes:
            raise UserError(f"{given[0]}: {self.name} has no codes; serve a run whose latent has codes")
        if request.code is not None and request.code >= self.codes:
            raise UserError(f"code: {request.code} is out of range, must be at most {self.codes - 1}")
        return request

    def _code(self, request: Request, prompt: list[dict]) -> int | None:
        """The code that the request forces; None: z is from the prior."""
        if request.context is None:
            return request.code
        with ONE_AT_A_TIME:
            return int(self.policy.infer_code(prompt, [pair.model_dump() for pair in request.context]).argmax())

    def _max_tokens(self, request: Request, prompt: int) -> int:
        wanted, room = request.max_tokens, None if self.room is None else self.room - prompt
        if room is not None and (wanted or 1) > room:
            raise UserError(
                f"max_tokens: {wanted or 1} and the {prompt} tokens of the messages exceed the model's {self.room}; "
                "shorten them"
            )
        return wanted or min(DEFAULT_MAX_TOKENS, room or DEFAULT_MAX_TOKENS)


def _events(about: dict, answer: Answer) -> Iterator[str]:
    """Yield the server-sent events of an answer. about: what each of them says."""

    def event(delta: dict, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return f"data: {json.dumps({**about, 'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": ""})
    for piece in answer:
        if piece:
            yield event({"content": piece})
    yield event({}, answer.finish_reason)
    yield "data: [DONE]\n\n"


def make_app(service: Service):
    """Return the FastAPI application of a service. Raises UserError where FastAPI is not installed."""
    fastapi, exceptions, responses = (
        import_extra(name, **SERVE) for name in ("fastapi", "fastapi.exceptions", "fastapi.responses")
    )
    app = fastapi.FastAPI(openapi_url=None)

    # Both without `async`: FastAPI calls them in threads, and stays able to answer others.
    @app.get("/v1/models")
    def models():
        return service.models()

    @app.post("/v1/chat/completions")
    def chat(body: Annotated[Any, fastapi.Body()]):
        answer = service.chat(body)
        if isinstance(answer, dict):
            return answer
        return responses.StreamingResponse(answer, media_type="text/event-stream")

    def refuse(request, error):
        message = str(error) if isinstance(error, UserError) else "request: the body must be a JSON object"
        fault = {"message": one_line(message), "type": "invalid_request_error", "param": None, "code": None}
        return responses.JSONResponse({"error": fault}, 400)

    app.add_exception_handler(UserError, refuse)
    app.add_exception_handler(exceptions.RequestValidationError, refuse)
    return app


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a run or its model/, or any checkpoint")
    parser.add_argument("--base", help="base.json of the run's base, for `context`; needed outside of results/")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free port (default: 8000)")
    return parser


def main(args: argparse.Namespace) -> None:
    uvicorn = import_extra("uvicorn", **SERVE)
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((args.host, args.port))  # before the model is loaded, which may take minutes
        except (OSError, OverflowError) as error:
            raise UserError(f"--host, --port: {args.host}:{args.port}: {error}; use another one") from None
        app = make_app(Service(load(args.run, args.base), args.run))
        listener.listen()  # so that the printed address can be used at once
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{host}:{listener.getsockname()[1]}/v1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])


if __name__ == "__main__":
    cli.run(parser(), main)
