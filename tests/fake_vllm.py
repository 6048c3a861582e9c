"""A package `vllm` with the interfaces that this project uses: vLLM itself cannot be installed where the tests run.

Its engine is slow and real: a checkpoint of transformers, greedy, without a cache. Requests share a batch that changes
as vLLM's does, and logits processors are asked as vLLM asks them.
"""

import enum
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import safetensors.torch
import torch
import transformers

BatchUpdate = namedtuple("BatchUpdate", "batch_size removed added moved")
MoveDirectionality = enum.Enum("MoveDirectionality", "UNIDIRECTIONAL SWAP")
V1 = "vllm.v1.sample.logits_processor"
V2 = "vllm.v1.worker.gpu.sample.logits_processor.interface"
SLOTS = 5


def install(monkeypatch) -> ModuleType:
    """Put the package into `sys.modules` for one test, and return it. Its `engines` are those that were made."""
    for name in (V1, V2):
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
    for name in (V1, V2):
        sys.modules[name].LogitsProcessor = type("LogitsProcessor", (), {})
    sys.modules[V1].BatchUpdate, sys.modules[V1].MoveDirectionality = BatchUpdate, MoveDirectionality
    package = sys.modules["vllm"]
    package.engines = []
    package.SamplingParams, package.LLM = SamplingParams, lambda **arguments: LLM(package.engines, **arguments)
    return package


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int]
    repetition_penalty: float = 1.0
    detokenize: bool = True
    extra_args: dict | None = None


class Request:
    """A prompt, what it asks for, and the tokens that it has so far."""

    def __init__(self, backbone, prompt: list[int], params):
        self.backbone, self.ids, self.params, self.output = backbone, prompt, params, []

    @property
    def finished(self) -> bool:
        stopped = self.output and self.output[-1] in self.params.stop_token_ids
        return bool(stopped) or len(self.output) == self.params.max_tokens

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        return self.backbone(torch.tensor([self.ids + self.output])).logits[0, -1].float()

    def penalise(self, logits: torch.Tensor) -> torch.Tensor:
        seen = torch.tensor(sorted({*self.ids, *self.output}))
        penalty = self.params.repetition_penalty
        logits = logits.clone()
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        return logits


class Batch:
    """vLLM's persistent batch, as `InputBatch` keeps it: a new request takes the lowest slot that became free in this
    step, the last ones move into slots that stay free, and an attention backend may swap two."""

    def __init__(self, processors: list, rng):
        self.processors, self.rng, self.slots = processors, rng, []

    def step(self, waiting: list[Request]) -> None:
        removed = [i for i, request in enumerate(self.slots) if request.finished]
        for i in removed:
            self.slots[i] = None
        added, moved = [], []
        while waiting and len([slot for slot in self.slots if slot]) < SLOTS and self.rng.random() < 0.7:
            request = waiting.pop(0)
            if removed:
                slot = removed.pop(0)
                self.slots[slot] = request
            else:
                slot = len(self.slots)
                self.slots.append(request)
            added.append((slot, request.params, request.ids, request.output))
        for free in list(removed):
            while self.slots and self.slots[-1] is None:
                self.slots.pop()
            if free < len(self.slots):
                moved.append((len(self.slots) - 1, free, MoveDirectionality.UNIDIRECTIONAL))
                self.slots[free] = self.slots.pop()
        if len(self.slots) > 1 and self.rng.random() < 0.5:
            a, b = self.rng.choice(len(self.slots), 2, replace=False).tolist()
            self.slots[a], self.slots[b] = self.slots[b], self.slots[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        changed = removed or added or moved
        update = BatchUpdate(len(self.slots), sorted(removed, reverse=True), added, moved) if changed else None
        for processor in self.processors:
            processor.update_state(update)
        if self.slots:
            logits = torch.stack([request.logits() for request in self.slots])
            for processor in self.processors:
                logits = processor.apply(logits)
            for request, row in zip(self.slots, logits, strict=True):
                request.output.append(int(request.penalise(row).argmax()))


class LLM:
    def __init__(
        self,
        engines: list,
        *,
        model: str,
        dtype: str,
        seed: int,
        trust_remote_code: bool,
        max_model_len: int,
        generation_config: str,
        logits_processors: list[type] | None = None,
    ):
        assert generation_config == "vllm", "else settings of the checkpoint are defaults"
        self.seed, self.trust_remote_code, self.max_model_len = seed, trust_remote_code, max_model_len
        self.backbone = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        known = self.backbone.state_dict()
        for file in Path(model).glob("*.safetensors"):
            for name in safetensors.torch.load_file(file):
                if name not in known:
                    raise ValueError(f"There is no module or parameter named {name!r}")
        kinds = logits_processors or []
        assert all(issubclass(kind, sys.modules[V1].LogitsProcessor) for kind in kinds)
        self.kinds, self.rng = kinds, np.random.default_rng(seed)
        self.processors = [kind(SimpleNamespace(), torch.device("cpu"), False) for kind in kinds]
        self.requests: list[Request] = []
        engines.append(self)

    def generate(self, prompts: list[dict], sampling_params: list[SamplingParams]) -> list:
        """Answers in the order of the prompts."""
        new = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            (ids,) = prompt.values()
            assert prompt.keys() == {"prompt_token_ids"} and params.temperature == 0
            assert len(ids) + params.max_tokens <= self.max_model_len
            for kind in self.kinds:
                kind.validate_params(params)
            new.append(Request(self.backbone, ids, params))
        self.requests += new
        waiting, batch = list(new), Batch(self.processors, self.rng)
        while waiting or batch.slots:
            batch.step(waiting)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(request.output))]) for request in new]
