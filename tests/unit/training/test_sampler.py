"""The order in which a training sees its pairs."""

import numpy as np
import pytest
import torch
from small import LATENT, run, tokenised

from lpc.training.sampler import EpochSampler, GroupSampler
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


GROUPS = np.array([4, 0, 0, 9, 4, 0, 4, 4, 0, 7, 4, 7, 0, 4, 4] * 4, np.int32)


@pytest.mark.parametrize("size,batch_size", [(2, 4), (3, 6), (5, 5), (1, 7)])
def test_an_epoch_of_groups_has_whole_chunks_of_distinct_pairs(size, batch_size):
    sampler = GroupSampler(GROUPS, size, batch_size, 3, lambda: 0)
    order = list(sampler)
    usable = sum(n // size * size for n in np.unique(GROUPS, return_counts=True)[1])
    assert len(order) == len(set(order)) == len(sampler) == usable // batch_size * batch_size
    chunks = GROUPS[order].reshape(-1, size)
    assert (chunks == chunks[:, :1]).all()
    assert (np.diff(chunks[:, 0]) < 0).any(), "chunks of different groups are mixed"


def test_the_order_of_groups_depends_on_seed_and_epoch_alone():
    epoch = 0
    sampler = GroupSampler(GROUPS, 4, 8, 3, lambda: epoch)
    first = list(sampler)
    torch.rand(5)  # the global generator's state does not matter
    assert first == list(sampler) == list(GroupSampler(GROUPS, 4, 8, 3, lambda: 0))
    assert first != list(GroupSampler(GROUPS, 4, 8, 4, lambda: 0))
    epoch = 1
    partners = lambda order: {frozenset(chunk) for chunk in np.reshape(order, (-1, 4)).tolist()}  # noqa: E731
    common = partners(first) & partners(list(sampler))
    assert common <= {frozenset(np.flatnonzero(GROUPS == 9).tolist())}, "each epoch cuts other chunks where it can"


def test_every_pair_of_a_large_enough_group_is_seen_in_some_epoch():
    seen = {i for epoch in range(30) for i in GroupSampler(GROUPS, 5, 10, 0, lambda epoch=epoch: epoch)}
    sizes = np.bincount(GROUPS)
    assert seen == {i for i, group in enumerate(GROUPS) if sizes[group] >= 5}


def test_a_training_with_groups_takes_their_chunks(tmp_path, monkeypatch):
    """48 pairs of 7 people, 4 at a time: 6 people have 7 pairs and one 6, so 28 in chunks, of which a batch of 16."""
    seen = []
    original = PreferenceTrainer.compute_loss

    def spy(self, model, inputs, *rest, **options):
        seen.append((inputs["groups"].tolist(), inputs["index"].tolist()))
        return original(self, model, inputs, *rest, **options)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", spy)
    _, lines = run(tmp_path, latent={"kind": "exact", "codes": 3, "group_size": 4}, epochs=3)
    assert [line["step"] for line in lines] == [1, 2, 3] and [line["epoch"] for line in lines] == [1, 2, 3]
    assert [len(groups) for groups, _ in seen] == [8] * 6
    chunks = np.reshape([groups for groups, _ in seen], (-1, 4))
    assert (chunks == chunks[:, :1]).all() and len(np.unique(chunks)) > 3
    groups = tokenised().groups
    assert all(number == groups[row] for numbers, rows in seen for number, row in zip(numbers, rows, strict=True))
    epochs = [{*seen[i][1], *seen[i + 1][1]} for i in (0, 2, 4)]
    assert epochs[0] != epochs[1] != epochs[2]
