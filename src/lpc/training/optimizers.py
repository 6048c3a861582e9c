"""Parameter groups of the optimizer."""

from lpc.model.policy import LatentPolicy


def parameter_groups(
    policy: LatentPolicy, decayed: set[str], *, learning_rate: float, weight_decay: float
) -> list[dict]:
    """Sort the parameters into groups for AdamW, each with `params`, `lr` and `weight_decay`.

    The backbone has a group with decay, for the names in `decayed`, and one without. The latent's parameters have their
    own learning rates and no decay, which would pull the codes together.
    """
    decay, no_decay = [], []
    for name, parameter in policy.backbone.named_parameters(prefix="backbone"):
        if not parameter.requires_grad:
            continue  # of the base, beneath adapters
        (decay if name in decayed else no_decay).append(parameter)
    groups = [
        {"params": decay, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": no_decay, "lr": learning_rate, "weight_decay": 0.0},
    ]
    if policy.latent is not None:
        own = dict(policy.latent.named_parameters())
        groups += [
            {"params": [own[name] for name in names], "lr": rate, "weight_decay": 0.0}
            for names, rate in policy.latent.parameter_groups(learning_rate)
        ]
    return [group for group in groups if group["params"]]
