"""What every objective shares: the registry, the reduction over tokens, the reference, the first loss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from objective_checks import close

import lpc
from lpc import objectives
from lpc.cli import UserError
from lpc.config.keys import Section
from lpc.objectives.base import Objective

REQUIRED = {"ipo": {"tau": 0.2}}
"""Settings without a default."""
BATCH = {
    "reference_chosen_logps": torch.tensor([-3.0, -8.0]),
    "reference_rejected_logps": torch.tensor([-5.0, -1.0]),
    "chosen_tokens": torch.tensor([2, 4]),
    "rejected_tokens": torch.tensor([5, 1]),
}
CHOSEN, REJECTED = torch.tensor([-2.0, -9.0]), torch.tensor([-6.0, -0.5])


def make(name: str, **settings) -> Objective:
    return objectives.parse({"name": name} | REQUIRED.get(name, {}) | settings)


def test_importing_every_objective_imports_no_torch():
    """Each job of a workflow reads the configuration, and so the settings of all objectives."""
    program = "import sys, lpc.objectives; assert len(lpc.objectives.KINDS) > 2; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(lpc.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_a_file_of_the_package_is_an_objective():
    folder = Path(objectives.__file__).parent
    assert sorted(objectives.KINDS) == sorted({file.stem for file in folder.glob("*.py")} - {"__init__", "base"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dop"}, r"objective\.name: 'dop' is not one of cpo, dpo, ipo.*did you mean dpo\?"),
        ({}, r"objective\.name: '' is not one of"),
        ({"name": "ipo"}, r"objective\.tau: Field required"),
        ({"name": "dpo", "beta": 0}, r"objective\.beta: Input should be greater than 0 \(it is 0\)"),
        ({"name": "simpo", "tau": 1.0}, r"objective\.tau: Extra inputs are not permitted"),
    ],
)
def test_faulty_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        objectives.parse(settings)


@pytest.mark.parametrize("name", objectives.KINDS)
def test_every_setting_says_what_it_means(name):
    kind = objectives.kind(name)
    assert issubclass(kind, Section) and kind.title
    assert [key for key, field in kind.model_fields.items() if not field.description] == ["name"]


@pytest.mark.parametrize("name", objectives.KINDS)
def test_evaluate_gives_the_formula_what_it_takes(name):
    """Sums or means over the tokens of each completion, those of the reference only where it is needed."""
    for reduction in ("sum", "mean"):
        has_choice = "reduction" in objectives.kind(name).model_fields
        objective = make(name, **({"reduction": reduction} if has_choice else {}))
        lengths = [BATCH["chosen_tokens"], BATCH["rejected_tokens"]] if objective.reduction == "mean" else [1, 1]
        logps = [CHOSEN / lengths[0], REJECTED / lengths[1]]
        if objective.needs_reference:
            logps += [BATCH["reference_chosen_logps"] / lengths[0], BATCH["reference_rejected_logps"] / lengths[1]]
        batch = BATCH if objective.needs_reference else {key: BATCH[key] for key in BATCH if "tokens" in key}
        for actual, expected in zip(
            objective.evaluate(CHOSEN, REJECTED, batch), objective.formula(*logps), strict=True
        ):
            close(actual, expected)


@pytest.mark.parametrize("name", objectives.KINDS)
def test_first_loss_is_that_of_a_policy_equal_to_the_reference(name):
    objective = make(name)
    if not objective.needs_reference:
        assert objective.first_loss() is None
        return
    losses, _, _ = objective.evaluate(BATCH["reference_chosen_logps"], BATCH["reference_rejected_logps"], BATCH)
    close(losses, [objective.first_loss()] * 2)


@pytest.mark.parametrize("name", objectives.KINDS)
def test_nll_is_added_a_token_and_moves_neither_rewards_nor_the_first_loss(name):
    """Weight 0.5: 0.5 · 2 / 2 and 0.5 · 9 / 4; without a weight nothing, and no gradient."""
    plain, weighted = make(name, nll_weight=0.0), make(name, nll_weight=0.5)
    close(weighted.regularization(CHOSEN, BATCH), [0.5, 1.125])
    assert plain.regularization(CHOSEN, BATCH) == 0.0
    assert weighted.first_loss() == plain.first_loss()
    for a, b in zip(weighted.evaluate(CHOSEN, REJECTED, BATCH), plain.evaluate(CHOSEN, REJECTED, BATCH), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", objectives.KINDS)
def test_rewards_carry_no_gradient_and_rank_as_the_loss(name):
    chosen_logps, rejected_logps = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    losses, chosen, rejected = make(name).evaluate(chosen_logps, rejected_logps, BATCH)
    assert losses.shape == chosen.shape == rejected.shape == (2,)
    assert losses.requires_grad and not chosen.requires_grad and not rejected.requires_grad
    _, more, _ = make(name).evaluate(CHOSEN + 1, REJECTED, BATCH)
    assert (more > chosen).all()
