"""Is the latent used, and do the codes find the sources? Measures of prior, posterior, z and h_x over test pairs.

Cluster measures of z mislead by themselves: they are computed after standardising, so a z that varies by a
thousandth of |h| can score as well as one that matters. So the spread of z, I(code; prompt) and the same measures of
h_x stand beside them, always.
"""

import warnings
from collections import Counter

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lpc.cli import UserError

FOLDS = 5
# Directions kept for clustering and probing: hidden states of large bases have thousands, test sets a thousand prompts.
COMPONENTS = 64
# A code is dead when its mean prior is below this share of the uniform 1/K.
DEAD = 0.1


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return the Shannon entropy in nats over the last axis; 0 log 0 = 0."""
    p = np.asarray(probabilities, np.float64)
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def mutual_information(prior: np.ndarray) -> float:
    """Return I(code; prompt) = H(mean p) − mean H(p) in nats of the prior [N, K] over prompts. It is 0 when the prior
    ignores the prompt."""
    # Rounding can leave −1e-16 where the prior is the same for every prompt.
    return float(max(entropy(np.mean(prior, axis=0, dtype=np.float64)) - entropy(prior).mean(), 0.0))


def spread(features: np.ndarray) -> float:
    """Return the root of the summed variance of [N, d] over N: the typical L2 distance from the mean."""
    return float(np.sqrt(np.var(features, axis=0, dtype=np.float64).sum()))


def distinct(prompt_id) -> np.ndarray:
    """Return the indices of the first pair of each prompt, in the order of the pairs."""
    return np.sort(np.unique(np.asarray(prompt_id), return_index=True)[1])


def latent_diagnostics(prior, posterior, z, h_x, source, *, prompt_id=None, seed: int) -> dict:
    """Return diagnostics of a run's latent over N pairs, as written to `latents.json`.

    prior, posterior: [N, K] probabilities of the codes, or None for a latent without codes, or without a posterior. z,
    h_x: [N, d]. source: [N] names. prompt_id: [N]; None: every pair is a prompt of its own. Pairs of one prompt share
    prior, z, h_x and source. They count once in all but `kl` and the posterior's perplexity, since a probe would
    memorise a prompt in both halves of its cross-validation. Entropies in nats. A measure that does not exist for the
    input (no codes, one source) is None.
    """
    z, h_x, source = np.asarray(z, np.float64), np.asarray(h_x, np.float64), np.asarray(source)
    for name, value in {"prior": prior, "posterior": posterior, "z": z, "h_x": h_x}.items():
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"{name} holds a value that is not finite")
    ids = np.arange(len(z)) if prompt_id is None else np.asarray(prompt_id)
    first = distinct(ids)
    z, h_x, source = z[first], h_x[first], source[first]
    shares = np.array(list(Counter(source.tolist()).values())) / len(source)

    result = {
        "prompts": len(first),
        "z_norm": float(np.linalg.norm(z, axis=1).mean()),
        "h_norm": float(np.linalg.norm(h_x, axis=1).mean()),
        "z_spread": spread(z),
        "h_spread": spread(h_x),
        "source_entropy": float(entropy(shares)),
        "probe_chance": float(shares.max()),
        **code_measures(prior, posterior, source, first),
    }
    for name, value in {"z": z, "h": h_x}.items():
        result[f"nmi_{name}_kmeans_source"] = kmeans_nmi(value, source, seed)
        result[f"probe_{name}_source"] = probe(value, source, seed)
    return result


def code_measures(prior, posterior, source, first) -> dict:
    """Return the measures that need codes: [N, K] over pairs, of which `first` are one a prompt; source: one a
    prompt."""
    keys = ["codes", "kl", "mutual_information", "prior_perplexity", "mean_prior_perplexity", "posterior_perplexity"]
    if prior is None:
        return dict.fromkeys([*keys, "dead_codes", "nmi_code_source"])
    p, kl, posterior_perplexity = np.asarray(prior, np.float64), None, None
    if posterior is not None:
        q = np.asarray(posterior, np.float64)
        # p is a softmax in float32: a code can underflow to 0 where the posterior does not.
        kl = np.sum(q * (np.log(np.maximum(q, 1e-38)) - np.log(np.maximum(p, 1e-38))), axis=1)
        kl, posterior_perplexity = float(kl.mean()), float(np.exp(entropy(q).mean()))
    p = p[first]
    mean = p.mean(axis=0)
    values = [
        p.shape[1],
        kl,
        mutual_information(p),
        float(np.exp(entropy(p).mean())),
        float(np.exp(entropy(mean))),
        posterior_perplexity,
    ]
    several = len(set(source.tolist())) > 1
    return {
        **dict(zip(keys, values, strict=True)),
        "dead_codes": int((mean < DEAD / p.shape[1]).sum()),
        "nmi_code_source": nmi(source, p.argmax(axis=1)) if several else None,
    }


def varying(features: np.ndarray) -> np.ndarray:
    """Return the columns that vary by more than float32 can resolve: below that, standardising would blow rounding up
    to structure."""
    resolution = np.finfo(np.float32).eps * np.abs(features).max(axis=0)
    return features[:, features.std(axis=0) > 4 * resolution]


def reduce(features: np.ndarray, samples: int, seed: int) -> list:
    """Return steps that standardise, and above `COMPONENTS` features keep the directions of most variance."""
    components = min(COMPONENTS, samples - 1)
    steps = [StandardScaler()]
    if features.shape[1] > components:
        steps.append(PCA(components, svd_solver="randomized", random_state=seed))
    return steps


def nmi(source, label) -> float:
    """Return the normalised mutual information, by the arithmetic mean of both entropies; rounding can lift 1 by
    2e-16."""
    return min(float(normalized_mutual_info_score(source, label)), 1.0)


def kmeans_nmi(features: np.ndarray, source: np.ndarray, seed: int) -> float | None:
    """Return the NMI between source and the clusters of k-means, k = number of sources; None for one source."""
    classes, features = len(set(source.tolist())), varying(features)
    if classes < 2:
        return None
    if features.shape[1] == 0:
        return 0.0
    with warnings.catch_warnings():
        # Fewer distinct points than clusters is a finding (few codes in use), not a fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = make_pipeline(
            *reduce(features, len(features), seed), KMeans(classes, n_init=10, random_state=seed)
        ).fit_predict(features)
    return nmi(source, clusters)


def probe(features: np.ndarray, source: np.ndarray, seed: int) -> float | None:
    """Return the cross-validated accuracy of a logistic regression that reads the source from `features`.

    Sources with fewer prompts than folds are left out; None when fewer than two remain. Features that do not vary:
    the share of the largest source, which is all that such a probe can reach.
    """
    counts = Counter(source.tolist())
    keep = np.array([counts[name] >= FOLDS for name in source.tolist()])
    features, source = features[keep], source[keep]
    if len(set(source.tolist())) < 2:
        return None
    features = varying(features)
    if features.shape[1] == 0:
        return max(counts.values()) / len(source)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    smallest_training_set = len(source) - -(-len(source) // FOLDS)
    model = make_pipeline(*reduce(features, smallest_training_set, seed), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        # Perfectly separable sources never converge without limit; the accuracy has settled long before.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(model, features, source, cv=folds).mean())


def embed(features: np.ndarray, *, perplexity: float, seed: int) -> np.ndarray | None:
    """Return t-SNE of [N, d] in two dimensions (van der Maaten & Hinton 2008), or None when the features do not vary.

    One thread: the order of a parallel sum would change the last bits, and a thousand steps later the picture.
    """
    samples, features = len(features), varying(np.asarray(features, np.float64))
    if not 0 < perplexity < samples:
        raise UserError(
            f"evaluation.tsne.perplexity: {perplexity} must lie between 0 and the number of test prompts ({samples}); "
            f"lower it"
        )
    if features.shape[1] == 0:
        return None
    # t-SNE sees relative distances only. It computes in float32, so a tiny spread is first brought to 1.
    features = (features - features.mean(axis=0)) / spread(features)
    with threadpool_limits(1):
        if features.shape[1] > COMPONENTS and samples > COMPONENTS:
            features = PCA(COMPONENTS, svd_solver="randomized", random_state=seed).fit_transform(features)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(features)
