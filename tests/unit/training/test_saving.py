"""The finished model."""

import numpy as np
from small import LATENT, run, tokenised

from lpc.evaluation.preference import reference_logps
from lpc.model.policy import LatentPolicy


def test_the_finished_model_scores_as_the_trainer_left_it(tmp_path):
    """save_pretrained after training and from_pretrained give the trainer's own log-probabilities."""
    tokens = tokenised()
    trainer, _ = run(tmp_path, latent=LATENT, tokens=tokens)
    trainer.policy.save_pretrained(tmp_path / "model")
    loaded = LatentPolicy.from_pretrained(tmp_path / "model")
    options = {"batch_size": 16, "precision": "float32"}
    everything = np.ones(len(tokens), bool)
    a, _ = reference_logps(trainer.policy.eval(), tokens, everything, **options)
    b, _ = reference_logps(loaded.eval(), tokens, everything, **options)
    assert np.array_equal(a, b)
