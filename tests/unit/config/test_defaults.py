"""The defaults that a training depends on, as numbers, and where each comes from."""

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lpc import latents, objectives
from lpc.config.models import Training

PAPER = {
    "training.epochs": 1,  # section 4.1
    "training.batch_size": 64,  # section 4.1
    "training.learning_rate": 5e-7,  # section 4.1
    "training.warmup_ratio": 0.1,  # section 4.1
    "latent.codes": 64,  # figure 2: best at 32 to 64
    "latent.gamma": {"start": 0.0, "end": 1.0, "until": 1.0},  # equation 11
    "latent.gumbel_noise": True,  # equation 11
    "objective.dpo.reduction": "sum",  # equation 5
    "objective.ipo.tau": "required",  # equation 13: chosen on validation pairs
    "objective.ipo.reduction": "sum",  # equation 13
}

# Where the paper is silent. What it does not have is off.
OURS = {
    "training.micro_batch_size": 1,
    "training.micro_batch_tokens": None,
    "training.weight_decay": 0.0,
    "training.max_grad_norm": 1.0,
    "training.optimizer": "adamw",
    "training.precision": "bfloat16",
    "training.save_dtype": None,
    "training.deterministic": False,
    "training.lora": None,
    "training.attention": "loop",
    "training.evaluate": None,
    "training.trackers": [],
    "training.gradient_checkpointing": False,
    "training.logging_steps": 10,
    "training.save_minutes": 10.0,
    "latent.learning_rate": 1e-4,  # at the backbone's 5e-7 new modules hardly move in one epoch
    "latent.code_scale": 0.02,  # the first loss of DPO is ln 2
    "latent.latent_first": 0.0,
    "latent.width": None,
    "latent.standardize": False,
    "latent.logit_scale": 1.0,
    "latent.detach": False,
    "latent.kl_weight": 0.05,  # the paper searches it
    "latent.kl_warmup": 0.0,
    "latent.free_bits": 0.0,
    "latent.group_size": 1,
    "latent.information_weight": 0.0,
    "latent.codebook_init": "normal",
    "latent.codebook_learning_rate": None,
    "latent.temperature": 1.0,
    "latent.temperature_end": None,
    "latent.straight_through": False,
    "latent.inference": "mean",
    "latent.inference_seed": 0,
    "latent.exact.inference": "mixture",
    "latent.exact.prior": "prompt",
    "latent.heads.inference": "mixture",
    "latent.heads.prior": "prompt",
    "latent.heads.rank": 8,
    "objective.cpo.beta": 0.1,
    "objective.cpo.nll_weight": 1.0,  # the paper's
    "objective.dpo.beta": 0.1,  # usual
    "objective.dpo.label_smoothing": 0.0,
    "objective.dpo.nll_weight": 0.0,
    "objective.ipo.nll_weight": 0.0,
    "objective.orpo.nll_weight": 1.0,  # the paper's
    "objective.orpo.weight": 0.1,
    "objective.robust_dpo.beta": 0.1,
    "objective.robust_dpo.label_smoothing": 0.1,
    "objective.robust_dpo.nll_weight": 0.0,
    "objective.simpo.beta": 2.0,
    "objective.simpo.margin": 1.0,
    "objective.simpo.nll_weight": 0.0,
    "objective.slic.beta": 0.1,
    "objective.slic.nll_weight": 0.0,
}


def defaults(section: type[BaseModel]) -> dict:
    values = {
        name: field.get_default(call_default_factory=True)
        for name, field in section.model_fields.items()
        if name not in ("kind", "name")
    }
    values = {name: "required" if value is PydanticUndefined else value for name, value in values.items()}
    return {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in values.items()}


def test_every_default_is_in_the_table():
    """Kinds of latents share their keys with `lpc`; a row of their own has what differs."""
    found = {f"training.{key}": value for key, value in defaults(Training).items()}
    shared = defaults(latents.kind("lpc").Settings)
    found |= {f"latent.{key}": value for key, value in shared.items()}
    for kind in latents.KINDS:
        own = defaults(latents.kind(kind).Settings)
        found |= {f"latent.{kind}.{key}": own[key] for key in own if key not in shared or own[key] != shared[key]}
    for name, objective in objectives.KINDS.items():
        found |= {f"objective.{name}.{key}": value for key, value in defaults(objective).items()}
    assert not PAPER.keys() & OURS.keys()
    assert found == PAPER | OURS
    assert latents.DEFAULT == "lpc"
