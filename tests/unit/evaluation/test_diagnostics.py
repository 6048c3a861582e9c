import json
import time

import numpy as np
import pytest

from lpc.cli import UserError
from lpc.evaluation.diagnostics import embed, entropy, latent_diagnostics, mutual_information, spread

SOURCES = np.array(["poems", "recipes", "letters"])


def world(n: int, d: int, *, separation: float, seed: int = 0):
    """n hidden states around one centre a source, far from the origin as real ones are; and the source of each."""
    generator = np.random.default_rng(seed)
    source = generator.integers(3, size=n)
    h_x = 14 + separation * generator.normal(size=(3, d))[source] + generator.normal(size=(n, d))
    return h_x, SOURCES[source], source


def one_hot(index, codes: int) -> np.ndarray:
    return np.eye(codes)[index]


def test_entropy_by_hand():
    """H(1/2, 1/2) = ln 2; H(1) = 0 with 0 log 0 = 0; H(1/4, 3/4) = ln 4 − 3/4 ln 3."""
    by_hand = [np.log(2), 0, np.log(4) - 0.75 * np.log(3)]
    assert entropy(np.array([[0.5, 0.5], [1, 0], [0.25, 0.75]])) == pytest.approx(by_hand)


def test_mutual_information_by_hand():
    """p = (1/4, 3/4) and (3/4, 1/4): mean (1/2, 1/2), so I = ln 2 − (ln 4 − 3/4 ln 3) = 3/4 ln 3 − ln 2."""
    assert mutual_information(np.array([[0.25, 0.75], [0.75, 0.25]])) == pytest.approx(0.75 * np.log(3) - np.log(2))
    assert mutual_information(np.array([[0.1, 0.9], [0.1, 0.9]])) == 0
    assert mutual_information(np.full((5, 7), 1 / 7, np.float32)) == pytest.approx(0, abs=1e-7)


def test_spread_by_hand():
    """Points (0, 0) and (6, 8): variance 9 + 16 = 25, spread 5."""
    assert spread(np.array([[0, 0], [6, 8]])) == 5


def test_code_measures_by_hand():
    """Two prompts with q = (1, 0, 0) and (0, 1, 0), p = (1/2, 1/2, 0) for both.

    KL = ln 2 each. mean p = p, so I = 0 and both prior perplexities are 2. H(q) = 0: perplexity 1. The third code is
    dead. Both argmax are code 0, so it tells nothing of the source: NMI 0.
    """
    prior = np.array([[0.5, 0.5, 0.0]] * 2)
    posterior = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    features = np.array([[3.0, 4.0], [3.0, 4.0]])
    found = latent_diagnostics(prior, posterior, features, features, ["a", "b"], seed=0)
    expected = {
        "codes": 3, "prompts": 2, "kl": np.log(2), "mutual_information": 0, "prior_perplexity": 2,
        "mean_prior_perplexity": 2, "posterior_perplexity": 1, "dead_codes": 1, "z_norm": 5, "h_norm": 5, "z_spread": 0,
        "source_entropy": np.log(2), "nmi_code_source": 0, "nmi_z_kmeans_source": 0, "probe_chance": 0.5,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_code_is_dead_below_a_tenth_of_the_uniform_prior():
    """Of four codes the uniform prior is 0.25: a mean of 0.024 is dead; 0.026 and 0.04 are not."""
    prior = np.array([[0.91, 0.026, 0.04, 0.024]] * 2)
    features = np.ones((2, 2))
    assert latent_diagnostics(prior, prior, features, features, ["a", "b"], seed=0)["dead_codes"] == 1


def test_a_source_with_as_many_prompts_as_folds_is_probed():
    """Five prompts of one source and twenty of another, far apart; with four prompts only one source is left."""
    source = np.array(["rare"] * 5 + ["common"] * 20)
    features = np.where(source == "rare", 5.0, -5.0)[:, None] + np.random.default_rng(0).normal(size=(25, 2))
    assert latent_diagnostics(None, None, features, features, source, seed=0)["probe_h_source"] == 1
    assert latent_diagnostics(None, None, features[1:], features[1:], source[1:], seed=0)["probe_h_source"] is None


def test_codes_that_name_the_sources_score_one():
    h_x, source, index = world(300, 8, separation=5)
    prior = one_hot(index, 8)
    found = latent_diagnostics(prior, prior, prior, h_x, source, seed=0)
    for name in ("nmi_code_source", "nmi_z_kmeans_source", "nmi_h_kmeans_source", "probe_z_source", "probe_h_source"):
        assert found[name] == pytest.approx(1), name
    assert found["mutual_information"] == pytest.approx(found["source_entropy"])
    assert (found["dead_codes"], found["kl"]) == (5, pytest.approx(0))


def test_a_latent_that_knows_nothing_scores_as_chance():
    h_x, source, _ = world(600, 8, separation=5)
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(600, 8))
    prior = one_hot(generator.integers(8, size=600), 8)
    found = latent_diagnostics(prior, prior, noise, h_x, source, seed=0)
    assert found["nmi_code_source"] < 0.03
    assert found["nmi_z_kmeans_source"] < 0.03
    assert found["probe_z_source"] == pytest.approx(found["probe_chance"], abs=0.07)
    assert found["probe_h_source"] > 0.99


def test_cluster_measures_mislead_and_the_spread_tells():
    """z = h/10,000 clusters as well as h: only the spread shows that it changes nothing."""
    h_x, source, _ = world(300, 8, separation=5)
    found = latent_diagnostics(None, None, h_x / 1e4, h_x, source, seed=0)
    assert found["nmi_z_kmeans_source"] == pytest.approx(found["nmi_h_kmeans_source"])
    assert found["z_spread"] == pytest.approx(found["h_spread"] / 1e4)


def test_rounding_is_not_structure():
    """One vector for all prompts, as float32 sums leave it: equal but for the last bit, and that bit follows the
    source.
    """
    h_x, source, index = world(300, 8, separation=5)
    z = np.full((300, 8), 0.3, np.float32)
    z[index == 1] = np.nextafter(np.float32(0.3), np.float32(1))
    found = latent_diagnostics(None, None, z, h_x, source, seed=0)
    assert (found["nmi_z_kmeans_source"], found["probe_z_source"]) == (0, found["probe_chance"])
    assert embed(z, perplexity=30, seed=0) is None


def test_a_latent_without_codes_has_no_measures_of_codes():
    h_x, source, _ = world(60, 4, separation=5)
    found = latent_diagnostics(None, None, h_x, h_x, source, seed=0)
    of_codes = [
        "codes",
        "kl",
        "mutual_information",
        "prior_perplexity",
        "mean_prior_perplexity",
        "posterior_perplexity",
    ]
    for name in [*of_codes, "dead_codes", "nmi_code_source"]:
        assert found[name] is None, name
    assert found["probe_z_source"] > 0.9
    json.dumps(found, allow_nan=False)


def test_one_source_has_nothing_to_find():
    h_x, _, index = world(60, 4, separation=5)
    found = latent_diagnostics(one_hot(index, 4), one_hot(index, 4), h_x, h_x, ["only"] * 60, seed=0)
    for name in ("nmi_code_source", "nmi_z_kmeans_source", "nmi_h_kmeans_source", "probe_z_source", "probe_h_source"):
        assert found[name] is None, name
    assert (found["source_entropy"], found["probe_chance"]) == (0, 1)


def test_pairs_of_one_prompt_count_once():
    """Sources drawn at random for each prompt cannot be read from noise; with the prompts' copies in both folds they
    would be.
    """
    generator = np.random.default_rng(0)
    h_x = np.repeat(generator.normal(size=(60, 64)), 6, axis=0)
    source = np.repeat(SOURCES[generator.integers(3, size=60)], 6)
    prompt_id = np.repeat([f"prompt {i}" for i in range(60)], 6)
    by_pair = latent_diagnostics(None, None, h_x, h_x, source, seed=0)
    by_prompt = latent_diagnostics(None, None, h_x, h_x, source, prompt_id=prompt_id, seed=0)
    assert by_pair["probe_h_source"] > 0.9
    assert by_prompt["probe_h_source"] < 0.6
    assert (by_pair["prompts"], by_prompt["prompts"]) == (360, 60)


def test_a_value_that_is_not_finite_is_named():
    z = np.ones((3, 2))
    with pytest.raises(ValueError, match="h_x holds"):
        latent_diagnostics(None, None, z, z * np.nan, ["a", "b", "a"], seed=0)


def test_large_input_is_quick_and_the_same_twice():
    h_x, source, _ = world(1200, 128, separation=0.3)
    prior = np.random.default_rng(0).dirichlet(np.full(64, 0.1), size=1200)
    started = time.process_time()
    first = latent_diagnostics(
        prior, prior, prior @ np.random.default_rng(1).normal(size=(64, 128)), h_x, source, seed=0
    )
    assert time.process_time() - started < 10
    assert first == latent_diagnostics(
        prior, prior, prior @ np.random.default_rng(1).normal(size=(64, 128)), h_x, source, seed=0
    )


def test_embedding_is_the_same_twice_keeps_clusters_apart_and_ignores_scale():
    h_x, _, index = world(90, 8, separation=20)
    points = embed(h_x, perplexity=10, seed=0)
    assert (points == embed(h_x, perplexity=10, seed=0)).all()
    centres = np.stack([points[index == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == index).all()
    small = embed((h_x - 14) * 1e-7, perplexity=10, seed=0)
    assert np.isfinite(small).all()
    assert small.std() == pytest.approx(points.std(), rel=0.5)


def test_perplexity_above_the_number_of_prompts_names_the_key():
    with pytest.raises(UserError, match=r"evaluation.tsne.perplexity: 30 .* \(12\); lower it"):
        embed(np.random.default_rng(0).normal(size=(12, 3)), perplexity=30, seed=0)
