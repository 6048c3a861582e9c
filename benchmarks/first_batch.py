"""The check of a training's first batch at the width of an 8B model: over seeds, it must fire for another base alone.

    python benchmarks/first_batch.py --seeds 20

Each seed has its own base (one layer, width 4,096, a small vocabulary), pairs and latent. The check compares the policy
without z with the reference (`PreferenceTrainer._check_first_batch`). It must pass with the base's own reference,
though z moves the loss, and stop the training with the reference of another base. Exit code 1 if it does not.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lpc import latents, objectives
from lpc.cli import UserError
from lpc.config.models import Training
from lpc.data.tokens import PairTokens, collate
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps
from lpc.training.train import training_arguments
from lpc.training.trainer import PreferenceTrainer

OBJECTIVES = {"dpo-lpc": {"name": "dpo", "beta": 0.1}, "ipo-lpc": {"name": "ipo", "tau": 0.1}}
WIDTH, VOCABULARY, PAIRS = 4096, 2000, 2


@dataclass(frozen=True)
class Outcome:
    recipe: str
    precision: str
    seed: int
    moved: float
    """How far z moves the first loss, as a share of the loss without z."""
    own: str
    """Error of the check with the base's own reference; "" if it passes."""
    other: str
    """Error of the check with another base's reference."""


def backbone(seed: int, head_dim: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": head_dim},
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def outcomes(
    seed: int, *, precisions: tuple[str, ...], width: int | None = None, head_dim: int = WIDTH // 4
) -> Iterator[Outcome]:
    """Run the first micro-batch of both recipes. width: of the latent's networks; None: as wide as the model. head_dim:
    features of each of the four attention heads."""
    rng = np.random.default_rng(seed)
    parts = [[rng.integers(3, VOCABULARY, n).astype(np.int32) for n in (60, 90)] for _ in range(3)]
    tokens = PairTokens(np.arange(PAIRS), *parts, 0)
    policy, other = (LatentPolicy(backbone(number, head_dim)) for number in (seed, seed + 1000))
    latent = latents.build(latents.parse({"kind": "lpc", "codes": 64, "width": width}), WIDTH, seed)
    latent.rescale(policy.logit_unit())
    for precision in precisions:
        policy.latent = None
        # Pair by pair, where the training takes both at once: rounding differs.
        references = [
            reference_logps(model, tokens, np.ones(PAIRS, bool), batch_size=1, precision=precision)[0]
            for model in (policy, other)
        ]
        policy.latent = latent
        settings = Training(batch_size=PAIRS, micro_batch_size=PAIRS, precision=precision)
        for recipe, objective in OBJECTIVES.items():
            objective = objectives.parse(objective)
            with tempfile.TemporaryDirectory() as folder:
                arguments = training_arguments(settings, seed=seed, output_dir=Path(folder), processes=1)
                trainer = PreferenceTrainer(policy, arguments, tokens, objective, Path(folder) / "log")
                said = []
                for tokens.reference in references:
                    trainer.check_first_loss = True
                    try:
                        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
                            trainer.compute_loss(policy, collate([tokens[0], tokens[1]]))
                        said.append("")
                    except UserError as error:
                        said.append(str(error))
                    if not said[1:]:
                        moved = abs(trainer.totals["first_loss"] / objective.first_loss() - 1)
            yield Outcome(recipe, precision, seed, moved, *said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    found = []
    for seed in range(parser.parse_args().seeds):
        found += outcomes(seed, precisions=("float32", "bfloat16"))
        print(*found[-4:], sep="\n", flush=True)
        gc.collect()  # trainers are in cycles, and each holds two models
    for recipe in OBJECTIVES:
        for precision in ("float32", "bfloat16"):
            rows = [o for o in found if (o.recipe, o.precision) == (recipe, precision)]
            false, missed = sum(bool(o.own) for o in rows), sum(not o.other for o in rows)
            largest = max(o.moved for o in rows)
            print(
                f"{recipe} {precision}: {len(rows)} seeds, {false} false alarms, {missed} other bases missed; "
                f"z moves the first loss by up to {largest:.2%}"
            )
    return int(any(o.own or not o.other for o in found))


if __name__ == "__main__":
    sys.exit(main())
