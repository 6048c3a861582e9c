"""One process of the FSDP test: a sharded latent step against the unsharded one. Run by torchrun."""

import torch
import torch.distributed as dist
from tiny import make_backbone, make_pairs, make_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_pairs
from lpc.model.controls import build_latent
from lpc.model.noise import counter_uniform
from lpc.model.policy import LatentPolicy


def policy() -> LatentPolicy:
    result = LatentPolicy(make_backbone())
    result.latent = build_latent({"kind": "lpc", "codes": 6}, 32, seed=0)
    return result


def step(model: LatentPolicy, batch: dict) -> torch.Tensor:
    noise = counter_uniform(0, 0, batch["index"], 12).unflatten(1, (2, 6))
    chosen, rejected, latent_step, _ = model(progress=0.5, noise=noise, **{key: batch[key] for key in MODEL_INPUTS})
    loss = (torch.nn.functional.softplus(0.1 * (rejected - chosen)) + 0.05 * latent_step.kl).mean()
    loss.backward()
    return loss.detach()


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    tokens = tokenize_pairs(make_pairs(8), make_tokenizer(), max_length=64, max_prompt_length=32)
    items = [tokens[i] for i in range(8)]

    whole = policy()
    expected = step(whole, collate(items))

    sharded = policy()
    mesh = init_device_mesh("cpu", (world,))
    for layer in sharded.backbone.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    loss = step(sharded, collate(items[rank::world]))
    dist.all_reduce(loss)
    torch.testing.assert_close(loss / world, expected)
    compared = 0
    for (name, a), (_, b) in zip(whole.named_parameters(), sharded.named_parameters(), strict=True):
        assert b.to_local().numel() < b.numel() or b.shape[0] < world, f"{name} is not sharded"
        torch.testing.assert_close(
            a.grad, b.grad.full_tensor(), rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
        compared += 1
    if rank == 0:
        print(f"compared {compared} gradients on {world} processes")
    dist.destroy_process_group()


main()
