"""TRL's DPOTrainer as an outside oracle: the same checkpoint, reference and pairs give the same loss and gradients."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make_backbone, make_pairs, make_tokenizer

from lpc import objectives
from lpc.data.tokens import MODEL_INPUTS, collate, tokenize_pairs
from lpc.model.policy import LatentPolicy
from lpc.reference import reference_logps

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[test]'")


@pytest.mark.parametrize(
    "theirs,ours",
    [
        ({"loss_type": ["sigmoid"], "beta": 0.3}, {"name": "dpo", "beta": 0.3}),
        # TRL calls τ β and averages log-ratios over tokens.
        ({"loss_type": ["ipo"], "beta": 0.2}, {"name": "ipo", "tau": 0.2, "reduction": "mean"}),
        (
            {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
            {"name": "robust_dpo", "beta": 0.3, "label_smoothing": 0.2},
        ),
    ],
)
def test_losses_and_gradients_equal_trl(tmp_path, theirs, ours):
    from datasets import Dataset

    os.environ["WANDB_DISABLED"] = "true"
    tokenizer = make_tokenizer()
    policy, reference = make_backbone(seed=0), make_backbone(seed=1)
    tokens = tokenize_pairs(make_pairs(8), tokenizer, max_length=64, max_prompt_length=32)
    columns = {
        f"{k}_ids": [x.tolist() for x in v]
        for k, v in (("prompt", tokens.prompts), ("chosen", tokens.chosen), ("rejected", tokens.rejected))
    }
    trainer = trl.DPOTrainer(
        policy,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=True,
            max_length=None,
            bf16=False,
            per_device_train_batch_size=8,
            gradient_checkpointing=False,
            **theirs,
        ),
        train_dataset=Dataset.from_dict(columns | {"prompt": ["x"] * 8, "chosen": ["y"] * 8, "rejected": ["z"] * 8}),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([{k: v[i] for k, v in columns.items()} for i in range(8)])
    policy.train()
    expected = trainer.compute_loss(policy, batch)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()

    tokens.reference, _ = reference_logps(
        LatentPolicy(reference), tokens, np.ones(8, bool), batch_size=8, precision="float32"
    )
    batch = collate([tokens[i] for i in range(8)])
    chosen, rejected, _, _ = LatentPolicy(policy)(progress=0.0, **{key: batch[key] for key in MODEL_INPUTS})
    losses, _, _ = objectives.parse(ours).evaluate(chosen, rejected, batch)
    losses.mean().backward()
    assert abs(losses.mean().item() - expected.item()) < 1e-5 * max(1, abs(expected.item()))
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)


def test_orpo_and_cpo_are_the_formulas_of_trl():
    """TRL's loss functions, on log-probabilities of these pairs; its trainers would count the prompt into the NLL."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    tokens = tokenize_pairs(make_pairs(8), make_tokenizer(), max_length=64, max_prompt_length=32)
    batch = collate([tokens[i] for i in range(8)])
    policy = LatentPolicy(make_backbone(seed=0))
    chosen, rejected, _, _ = policy(progress=0.0, **{key: batch[key] for key in MODEL_INPUTS})
    here = SimpleNamespace(device="cpu")
    theirs = SimpleNamespace(beta=0.3, alpha=0.0, label_smoothing=0.0, loss_type="sigmoid", accelerator=here)
    expected, *rewards = CPOTrainer.cpo_loss(theirs, chosen, rejected)
    actual, *own = objectives.parse({"name": "cpo", "beta": 0.3}).evaluate(chosen, rejected, batch)
    for a, b in zip((actual, *own), (expected, *rewards), strict=True):
        torch.testing.assert_close(a, b)
    means = chosen / batch["chosen_tokens"], rejected / batch["rejected_tokens"]
    expected, _, _, _, log_odds = ORPOTrainer.odds_ratio_loss(theirs, *means)
    actual, *own = objectives.parse({"name": "orpo", "weight": 0.3}).evaluate(chosen, rejected, batch)
    torch.testing.assert_close(actual, -expected)  # TRL subtracts it
    torch.testing.assert_close((own[0] - own[1]).mean(), 0.3 * log_odds.detach())
