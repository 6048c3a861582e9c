"""Logits processor of vLLM for codes of Latent Preference Coding, by the interface of its Model Runner V2.

It serves the run's `model/` without the files latent.*, whose tensors vLLM does not know:
vllm serve model --logits-processors lpc_vllm_v2:CodeBias, with this folder on PYTHONPATH.
"""

import torch
from lpc_codes import check_vocabulary, codes, read_table, weights
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor


class CodeBias(LogitsProcessor):
    @classmethod
    def validate_params(cls, sampling_params) -> None:
        weights(sampling_params.extra_args, codes())

    def __init__(self, vllm_config, req_states):
        self.table = read_table(req_states.device)
        self.weights = torch.zeros(req_states.max_num_reqs, len(self.table), device=req_states.device)

    def add_request(self, req_idx: int, sampling_params) -> bool:
        self.weights[req_idx] = self.weights.new_tensor(weights(sampling_params.extra_args, len(self.table)))
        return True

    def apply(self, logits: Tensor, ctx) -> Tensor:
        check_vocabulary(self.table, logits)
        return logits.add_(self.weights[ctx.expanded_idx_mapping] @ self.table)
