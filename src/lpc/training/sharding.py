"""A training that FSDP2 shards over several processes: its weights from the first process, and its mixed precision."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lpc.model.policy import LatentPolicy


def launched() -> bool:
    """Return whether the launch file requests FSDP, by accelerate's own rule."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(policy: LatentPolicy, accelerator: Accelerator, weights: dict[str, Tensor], *, bfloat16: bool) -> None:
    """Shard a policy whose backbone is on the meta device, and fill in its weights; call before `prepare`.

    weights: on the first process the backbone's, by name, in any type (see `lpc.model.loading.load_empty`); they are
    taken out one by one. Each is sent to all processes, which keep their part in float32. So the first process alone
    holds a copy of the model, in the type it is stored in.
    """
    _set_precision(policy, accelerator, bfloat16=bfloat16)
    # accelerate would shard in `prepare`, which finds an optimizer's parameters by their addresses: on the meta device
    # they have none.
    fsdp2_prepare_model(accelerator, policy)
    kinds = [{name: value.dtype for name, value in weights.items()}]
    broadcast_object_list(kinds)
    device, empty, filled = accelerator.device, policy.backbone.state_dict(keep_vars=True), {}
    sizes = {name: empty[name].numel() * kind.itemsize for name, kind in kinds[0].items()}
    # In the same memory for all weights: freed blocks between the parts that stay would not be used again.
    room = None if accelerator.is_main_process else torch.empty(max(sizes.values()), dtype=torch.uint8, device=device)
    for name, kind in kinds[0].items():
        target = empty[name]
        if accelerator.is_main_process:
            whole = weights.pop(name).to(device)
        else:
            whole = room[: sizes[name]].view(kind).view(target.shape)
        distributed.broadcast(whole, 0)
        if isinstance(target, DTensor):
            filled[id(target)] = nn.Parameter(_part(whole, target))
        else:
            target.copy_(whole)  # a buffer, which every process has whole
    # Tied weights are one tensor under two names, and must stay one.
    state = {name: filled[id(value)] if isinstance(value, DTensor) else value for name, value in empty.items()}
    policy.backbone.load_state_dict(state, assign=True)


def _part(whole: Tensor, target: DTensor) -> DTensor:
    """A tensor sharded and typed as `target`; this process's part has memory of its own."""
    mesh, placements = target.device_mesh, target.placements
    part = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local().to(target.dtype, copy=True)
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=target.shape, stride=target.stride())


def _set_precision(policy: LatentPolicy, accelerator: Accelerator, *, bfloat16: bool) -> None:
    """Give a sharded training the arithmetic of `torch.autocast` over float32 weights.

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
