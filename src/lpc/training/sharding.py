"""Mixed precision of a training that FSDP2 shards over several processes."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lpc.model.policy import LatentPolicy


def prepare_sharding(policy: LatentPolicy, accelerator: Accelerator, *, bfloat16: bool) -> None:
    """Give a sharded training the arithmetic of `torch.autocast` over float32 weights; call before `prepare`.

    Then a reference or an evaluation that is scored with autocast on one device matches the training. accelerate's own
    policy casts inputs and outputs to bfloat16 too: a sum of log-probabilities near -300 becomes a multiple of 2.
    Here the backbone's weights are gathered in bfloat16 and its gradients are reduced in float32. `autocast` decides
    the rest, as on one device, if the embeddings' output, the start of the residual stream, is float32. The latent is
    a part of its own that stays in float32.
    """
    policy_of = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    accelerator.state.fsdp_plugin.mixed_precision_policy = policy_of if bfloat16 else None
    if policy.latent is not None:
        fully_shard(policy.latent, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    if bfloat16:
        for module in policy.backbone.modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(lambda module, inputs, output: output.float())
