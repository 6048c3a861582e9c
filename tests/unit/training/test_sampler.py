"""The order in which a training sees its pairs."""

import numpy as np
from small import LATENT, run

from lpc.training.sampler import EpochSampler
from lpc.training.trainer import PreferenceTrainer


def test_epochs_have_whole_batches_of_distinct_pairs():
    sampler = EpochSampler(50, 16, 3, lambda: 0)
    assert len(list(sampler)) == len(set(sampler)) == len(sampler) == 48
    assert list(sampler) == list(sampler) != list(EpochSampler(50, 16, 3, lambda: 1))


def test_plain_and_latent_runs_see_the_same_pairs_in_the_same_order(tmp_path, monkeypatch):
    seen = []
    original = PreferenceTrainer.compute_loss

    def spy(self, model, inputs, *rest, **options):
        seen[-1].append(inputs["index"].tolist())
        return original(self, model, inputs, *rest, **options)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", spy)
    for i, latent in enumerate((None, LATENT)):
        seen.append([])
        run(tmp_path / str(i), latent=latent)
    assert seen[0] == seen[1] and len(seen[0]) == 12
    first_epoch, second_epoch = np.concatenate(seen[0][:6]).tolist(), np.concatenate(seen[0][6:]).tolist()
    assert sorted(first_epoch) == sorted(second_epoch) == list(range(48)) and first_epoch != second_epoch
