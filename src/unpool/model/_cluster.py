"""Clusterings of the reference: six feature scales, k-means on each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

__all__ = ["SCALES", "cluster", "coarse_types"]

Array = NDArray[np.float64]

CELLS_PER_CLUSTER = 15
MIN_CLUSTERS = 4
MAX_CLUSTERS = 400
MAX_CELLS = 20_000  # k-means sees an even random subset of larger references; then all cells join their nearest centre
_MAX_ITER = 100
_DECIMALS = 9  # of features, which are about one: the last bits of a sum then decide no tie between clusters


def _standardised(Y: Array) -> Array:
    sd = Y.std(axis=0)
    return np.asarray((Y - Y.mean(axis=0)) / np.where(sd > 0, sd, 1.0))


def _arcsinh(X: Array, fraction: float) -> Array:
    """Linear near zero and logarithmic beyond the given fraction of each gene's sd: steadies the variance."""
    sd = X.std(axis=0)
    return _standardised(np.arcsinh(X / (fraction * np.where(sd > 0, sd, 1.0))))


def _linear(X: Array) -> Array:
    sd = X.std(axis=0)
    return X / np.where(sd > 0, sd, 1.0)


def _composition(X: Array) -> Array:
    total = X.sum(axis=1, keepdims=True)
    share = X / np.where(total > 0, total, 1.0)
    return np.hstack([_arcsinh(share, 0.3), 2 * _arcsinh(total, 0.3)])


SCALES: dict[str, Callable[[Array], Array]] = {
    "arcsinh": lambda X: _arcsinh(X, 0.3),
    "sqrt": lambda X: _standardised(np.sqrt(X)),
    "linear": _linear,
    "arcsinh-fine": lambda X: _arcsinh(X, 0.1),
    "arcsinh-coarse": lambda X: _arcsinh(X, 1.0),
    "composition": _composition,
}


def n_clusters(n: int, most: int = MAX_CLUSTERS) -> int:
    """Clusters for n cells: one for 15, at least 4 and at most 400 (or `most`), never fewer than two cells each."""
    return max(1, min(max(n // CELLS_PER_CLUSTER, MIN_CLUSTERS), most, n // 2))


def cluster(X: Array, scale: str, rng: np.random.Generator, *, most: int = MAX_CLUSTERS) -> NDArray[np.intp]:
    """Cluster of each cell, 0 .. K - 1, none empty.

    Parameters
    ----------
    X
        Cells x genes, linear scale, >= 0.
    scale
        Key of `SCALES`: the scale on which distances are taken.
    rng
        Seeds k-means (one start).
    most
        Clusters at most.

    Notes
    -----
    Cost: min(cells, 20,000) * K * genes a sweep, at most 100 sweeps. Duplicated cells can leave fewer clusters than asked
    for; scikit-learn warns then, which the caller silences.
    """
    features = SCALES[scale](X).round(_DECIMALS)
    n = len(features)
    sample = features
    if n > MAX_CELLS:
        sample = features[np.sort(rng.choice(n, MAX_CELLS, replace=False))]
    seed = int(rng.integers(2**31))
    means = KMeans(n_clusters(n, most), n_init=1, max_iter=_MAX_ITER, random_state=seed).fit(sample)
    labels = means.labels_ if sample is features else means.predict(features)
    return np.unique(labels, return_inverse=True)[1].astype(np.intp)


def coarse_types(means: Array, weights: Array, sd: Array, most: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Group clusters into at most `most` types: weighted k-means of arcsinh(mean / 0.3 sd). Type of each, none empty."""
    features = np.arcsinh(means / (0.3 * np.where(sd > 0, sd, 1.0))).round(_DECIMALS)
    n = min(most, len(means))
    fit = KMeans(n, n_init=1, random_state=int(rng.integers(2**31))).fit(features, sample_weight=weights)
    return np.unique(fit.labels_, return_inverse=True)[1].astype(np.intp)
