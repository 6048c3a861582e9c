"""Logits processor of vLLM for codes of Latent Preference Coding, by the interface `vllm.v1.sample.logits_processor`.

It serves the run's `model/` without the files latent.*, whose tensors vLLM does not know:
vllm serve model --logits-processors lpc_vllm:CodeBias, with this folder on PYTHONPATH. Newer versions of vLLM need
`lpc_vllm_v2:CodeBias`, unless VLLM_USE_V2_MODEL_RUNNER is 0.
"""

import torch
from lpc_codes import check_vocabulary, codes, read_table, weights
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality


class CodeBias(LogitsProcessor):
    @classmethod
    def validate_params(cls, sampling_params) -> None:
        weights(sampling_params.extra_args, codes())

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool):
        self.table = read_table(device)
        self.requests: dict[int, list[float]] = {}
        self._index()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.requests.pop(row, None)
        for row, params, *_ in batch_update.added:
            self.requests[row] = weights(params.extra_args, len(self.table))
        for source, target, direction in batch_update.moved:
            moved, replaced = self.requests.pop(source, None), self.requests.pop(target, None)
            if moved is not None:
                self.requests[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self.requests[source] = replaced
        self._index()

    def _index(self) -> None:
        device = self.table.device
        self.rows = torch.tensor(list(self.requests), dtype=torch.int64, device=device)
        values = torch.tensor(list(self.requests.values()), dtype=torch.float32, device=device)
        self.weights = values.reshape(-1, len(self.table))

    def apply(self, logits: Tensor) -> Tensor:
        check_vocabulary(self.table, logits)
        return logits.index_add_(0, self.rows, (self.weights @ self.table).to(logits.dtype))
