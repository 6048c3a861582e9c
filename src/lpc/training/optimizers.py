"""Parameter groups of the optimizer."""

from lpc.model.policy import LatentPolicy


def parameter_groups(
    policy: LatentPolicy, decayed: set[str], *, learning_rate: float, weight_decay: float
) -> list[dict]:
    """Sort the parameters into groups for AdamW, each with `params`, `lr` and `weight_decay`.

    The backbone has a group with decay, for the names in `decayed`, and one without. The latent's networks and its
    codebook have their own learning rates and no decay, which would pull the codes together.
    """
    groups: dict[str, list] = {"decay": [], "no_decay": [], "latent": [], "codebook": []}
    for name, parameter in policy.named_parameters():
        if name.startswith("latent."):
            groups["codebook" if name.endswith("codebook") else "latent"].append(parameter)
        else:
            groups["decay" if name in decayed else "no_decay"].append(parameter)
    rates = dict.fromkeys(groups, learning_rate)
    if policy.latent is not None:
        rates["latent"] = policy.latent.config.learning_rate or learning_rate
        rates["codebook"] = policy.latent.config.codebook_learning_rate or rates["latent"]
    return [
        {"params": parameters, "lr": rates[name], "weight_decay": weight_decay if name == "decay" else 0.0}
        for name, parameters in groups.items()
        if parameters
    ]
