"""Moments of clusters: means, and covariances shrunk towards a mean-variance trend and a shared correlation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from unpool.model._mixture import Array, Mixture

__all__ = ["one_gaussian", "overall_variance", "shrunk_mixture", "with_extras"]

TREND_CELLS = 20.0  # the trend's variance counts as much as this many cells
FLOOR = 1e-3  # share of a gene's overall variance that every component keeps
SIZES = (1.0, 0.5, 0.7, 1.4, 2.0)
# how weight at other sizes divides over them, so that the mean size is one
_OTHERS = np.array([0.35, 0.35, 0.2, 0.2]) / 1.1
_OTHERS_OF_PAIRS = np.array([2.0, 0.0, 0.0, 1.0]) / 3  # sizes between add nothing, and cost
PAIR_SHARE = 0.2  # of all weight, for the pairs
_LEVEL = 0.05  # share of a gene's overall mean added to a component's mean where the trend is read


def overall_variance(X: Array) -> Array:
    """Variance of each gene, with a floor far below all that matters: constant genes can still be moved by the pools."""
    typical = float(np.mean(np.square(X)))
    variance: Array = np.maximum(X.var(axis=0), 1e-6 * (typical if typical > 0 else 1.0))
    return variance


def shrunk_mixture(X: Array, labels: NDArray[np.intp]) -> Mixture:
    """One component a cluster.

    With n_k cells in the cluster, residuals e = x - mu_k and g genes:

    - trend: the variance of gene j at level l is t = W_j l^p / mean(l^p), W_j its pooled within-cluster variance, p one
      exponent for all genes, by regression within genes;
    - variances d = (n_k v + 20 t) / (n_k + 20) + 0.001 Var_j;
    - covariance S_k = (Σ e eᵀ + b diag(√d) C diag(√d) + a diag(d)) / (n_k + a + b), a = 0.6 g, b = 60 + g, C the
      correlation of the residuals of all clusters in units of their trend.

    Parameters
    ----------
    X
        Cells x genes, linear scale.
    labels
        Cluster of each cell, 0 .. K - 1, none empty.

    Notes
    -----
    Cost: cells * genes². Clusters of one cell are carried by the trend.
    """
    n, g = X.shape
    order = np.argsort(labels, kind="stable")
    labels, X = labels[order], X[order]
    count = np.bincount(labels)
    first = np.concatenate([[0], np.cumsum(count)])
    means = np.add.reduceat(X, first[:-1], axis=0) / count[:, None]
    E = X - means[labels]
    spread = np.add.reduceat(np.square(E), first[:-1], axis=0)
    total = overall_variance(X)

    trend = _trend(means, spread, count, X.mean(axis=0))
    d = (spread + TREND_CELLS * trend) / (count[:, None] + TREND_CELLS) + FLOOR * total
    z = E / np.sqrt(trend + FLOOR * total)[labels]
    a, b = 0.6 * g, 60.0 + g
    weight = count[:, None] + a + b
    factors, starts = _factors(E / np.sqrt(weight[labels]), first)
    return Mixture.of_sources(
        count / n, means, factors, starts, a * d / weight, np.sqrt(b * d / weight), _correlation(z)
    )


def with_extras(
    clusters: Mixture, types: Mixture, type_of: NDArray[np.intp], *, other_sizes: float = 0.1, sized_pairs: bool = False
) -> Mixture:
    """Let every cluster be seen at other sizes, and add the pairs of coarse types; the mean stays.

    Other sizes let a cell be brighter or dimmer than its cluster ever was: this helps most where the cells differ from the
    reference. Pairs stand for cells on the border of two types: spill-over, doublets, continua. Neither stores more than
    the moments of the types.

    Parameters
    ----------
    clusters, types
        Moments of the clusters and of the types that they are grouped to.
    type_of
        Type of each cluster.
    other_sizes
        Share of a component's weight at sizes other than one.
    sized_pairs
        Whether pairs are seen at other sizes, too: dim, and at two, the sum of two types.
    """
    K, T, w = clusters.n_components, types.n_components, types.weights
    pairs = np.column_stack(np.triu_indices(T, 1))
    shares = np.zeros((K + len(pairs), len(SIZES)))
    shares[:, 0] = 1.0
    shares[:K] = [1 - other_sizes, *other_sizes * _OTHERS]
    if sized_pairs:
        shares[K:] = [1 - other_sizes, *other_sizes * _OTHERS_OF_PAIRS]
    weights = clusters.weights
    if len(pairs):
        mixed = (1 - w) / (1 - w @ w)  # weight in pairs of a type, relative to its own and to that of all pairs
        share = min(PAIR_SHARE, 0.5 / mixed.max())  # no type gives more than half its cells to pairs
        likely = w[pairs[:, 0]] * w[pairs[:, 1]]
        weights = np.concatenate([weights * (1 - share * mixed[type_of]), share * likely / likely.sum()])
    return Mixture(
        weights=weights,
        means=np.concatenate([clusters.means, types.means]),
        factors=np.concatenate([clusters.factors, types.factors]),
        starts=np.concatenate([clusters.starts, clusters.starts[-1] + types.starts[1:]]),
        diagonal=np.concatenate([clusters.diagonal, types.diagonal]),
        scale=np.concatenate([clusters.scale, types.scale]),
        correlations=np.concatenate([clusters.correlations, types.correlations]),
        family=np.repeat([0, 1], [K, T]),
        pairs=pairs + K,
        sizes=np.array(SIZES),
        size_shares=shares,
    )


def _trend(means: Array, spread: Array, count: NDArray[np.intp], mean: Array) -> Array:
    """Variance that a gene's level lets expect: components x genes; spread: sums of squared residuals."""
    n, K = count.sum(), len(count)
    pooled = spread.sum(axis=0) / max(n - K, 1)
    level = means + _LEVEL * mean
    level = np.maximum(level, 1e-6 * mean.mean()) if mean.mean() > 0 else np.ones_like(level)
    # a constant gene's spread is the last bits of a sum, which differ with the units
    seen = (count[:, None] >= 5) & (spread > 1e-12 * count[:, None] * np.square(level))
    weight = count[:, None] * seen
    x = np.log(level)
    y = np.log(np.where(seen, spread / count[:, None], 1.0))
    among = np.maximum(weight.sum(axis=0), 1)
    x_centred = x - (weight * x).sum(axis=0) / among
    y_centred = y - (weight * y).sum(axis=0) / among
    information = float((weight * np.square(x_centred)).sum())
    p = float((weight * x_centred * y_centred).sum()) / information if information > 0 else 1.0
    shape = level ** min(max(p, 0.0), 2.0)
    return np.asarray(pooled * shape / ((count @ shape) / n))


def _correlation(z: Array) -> Array:
    """Uncentred correlation; a gene without variation is correlated with none."""
    second = z.T @ z
    size = np.sqrt(np.diag(second))
    size[size == 0] = 1.0
    correlation = second / np.outer(size, size)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation)


def _factors(E: Array, first: NDArray[np.intp]) -> tuple[Array, NDArray[np.intp]]:
    """F_k with F_kᵀ F_k = E_kᵀ E_k and at most as many rows as genes, stacked; and where each starts."""
    g = E.shape[1]
    roots = []
    for a, b in pairwise(first):
        rows = E[a:b]
        if b - a == 1:
            rows = rows[:0]  # a single cell has no residual
        roots.append(np.linalg.qr(rows, mode="r") if len(rows) > g else rows)
    return np.concatenate(roots), np.concatenate([[0], np.cumsum([len(F) for F in roots])])


def one_gaussian(X: Array) -> Mixture:
    """One component: the mean and the covariance, shrunk by Ledoit & Wolf (2004) on genes of unit variance."""
    from sklearn.covariance import ledoit_wolf

    n, g = X.shape
    sd, mean = np.sqrt(overall_variance(X)), X.mean(axis=0)
    correlation = ledoit_wolf((X - mean) / sd, assume_centered=True)[0] if n > 1 else np.eye(g)
    return Mixture.of_sources(
        np.ones(1), mean[None, :], np.zeros((0, g)), np.zeros(2), np.zeros((1, g)), sd[None, :], np.asarray(correlation)
    )
