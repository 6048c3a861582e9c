"""What is drawn for a prompt: a function of the seed and its tokens alone."""

import numpy as np
import pytest
import torch

from lpc.latents.parts.draws import STEP, prompt_uniform
from lpc.model.noise import counter_uniform

CPU = torch.device("cpu")
PROMPTS = [[1, 5, 6], [1, 5], [7], [], [1, 5, 6]]


def test_a_prompt_has_its_draw_in_any_batch():
    together = prompt_uniform(3, PROMPTS, 4, CPU)
    assert torch.equal(together[0], together[4])
    assert len({tuple(row) for row in together.tolist()}) == 4
    for row, prompt in zip(together, PROMPTS, strict=True):
        for same in (prompt, tuple(prompt), np.array(prompt, np.int32), torch.tensor(prompt, dtype=torch.int64)):
            assert torch.equal(prompt_uniform(3, [same], 4, CPU)[0], row)


def test_seeds_differ_and_numbers_are_uniform():
    prompts = [[i, i + 1] for i in range(2000)]
    first, second = prompt_uniform(0, prompts, 8, CPU), prompt_uniform(1, prompts, 8, CPU)
    assert (first == second).float().mean() < 0.001
    assert abs(first.mean().item() - 0.5) < 5 * (1 / 12 / first.numel()) ** 0.5
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()) < 5 / first.numel() ** 0.5


def test_no_training_step_has_these_numbers():
    key = torch.tensor([0])
    assert STEP < 0 and not torch.equal(counter_uniform(0, STEP, key, 8), counter_uniform(0, 0, key, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_devices_agree():
    assert torch.equal(prompt_uniform(3, PROMPTS, 4, CPU), prompt_uniform(3, PROMPTS, 4, torch.device("cuda")).cpu())
