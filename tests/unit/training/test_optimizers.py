"""Parameter groups of the optimizer."""

from small import LATENT
from tiny import make_backbone

from lpc import latents
from lpc.model.policy import LatentPolicy
from lpc.training.optimizers import parameter_groups


def test_parameter_groups():
    """Own rates for networks and codebook; decay for the backbone's matrices alone."""
    policy = LatentPolicy(make_backbone())
    policy.latent = latents.build(
        latents.parse(LATENT | {"learning_rate": 2e-3, "codebook_learning_rate": 3e-3}), 32, 0
    )
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    decayed = {name for name in names.values() if not name.endswith("norm.weight")}
    groups = parameter_groups(policy, decayed, learning_rate=1e-3, weight_decay=0.1)
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert found["latent.codebook"] == (3e-3, 0.0) and found["latent.prior.0.weight"] == (2e-3, 0.0)
    assert found["backbone.model.layers.0.mlp.up_proj.weight"] == (1e-3, 0.1)
    assert found["backbone.model.norm.weight"] == (1e-3, 0.0)
