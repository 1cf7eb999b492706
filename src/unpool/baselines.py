"""Decoders that need no decoder: what any method must beat. A baseline is one function per design, pools -> genes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from unpool.design import Design

__all__ = ["Baseline", "affine", "linear", "neighbours", "total"]

N_NEIGHBOURS = 15
_NOISE_SEED = 0  # of the neighbours' simulated pools: a baseline must not depend on luck that the user can draw again

Floats = NDArray[np.float64]
Baseline = Sequence[Callable[[Floats], Floats]]


def affine(A: Floats, offset: Floats | float = 0.0, *, clip: bool = False) -> Callable[[Floats], Floats]:
    """Return pools -> pools A + offset, at zero where it is negative if `clip`."""

    def predict(D: Floats) -> Floats:
        Y = D @ A + offset
        return np.maximum(Y, 0.0) if clip else Y

    return predict


def total(D: Floats, mean: Floats) -> Callable[[Floats], Floats]:
    """Every gene proportional to the cell's total over its pools, relative to the design's cells."""
    scale = float(D.sum(axis=1).mean()) if len(D) else 0.0
    return lambda D: np.outer(D.sum(axis=1) / scale if scale > 0 else np.ones(len(D)), mean)


def linear(X: Floats, design: Design, R: Sequence[Floats], genes: NDArray[np.intp]) -> Baseline:
    """Posterior mean of one Gaussian, mu + Σ P (PᵀΣP + R)⁻¹ (d - Pᵀmu), clipped at zero; Σ by Ledoit and Wolf.

    The correlation is shrunk, not the covariance: shrinking all variances to their mean would favour loud genes.
    """
    from sklearn.covariance import ledoit_wolf

    mu, scale = X.mean(axis=0), X.std(axis=0)
    S = scale[:, None] * ledoit_wolf((X - mu) / np.where(scale > 0, scale, 1.0), assume_centered=True)[0] * scale
    found = []
    for P, R_b in zip(design.matrices, R, strict=True):
        C = P.T @ S @ P + R_b
        C += 1e-9 * (np.trace(C) / len(C) or 1.0) * np.eye(len(C))
        A = np.linalg.solve(C, P.T @ S)[:, genes]
        found.append(affine(A, mu[genes] - mu @ P @ A, clip=True))
    return found


def neighbours(X: Floats, design: Design, R: Sequence[Floats], genes: NDArray[np.intp]) -> Baseline:
    """Mean of the reference cells whose simulated noisy pools are nearest, pools at unit standard deviation."""
    from sklearn.neighbors import NearestNeighbors

    found: list[Callable[[Floats], Floats]] = []
    expressed = X[:, genes]
    for P, R_b, rng in zip(design.matrices, R, np.random.default_rng(_NOISE_SEED).spawn(len(R)), strict=True):
        eigenvalue, vector = np.linalg.eigh((R_b + R_b.T) / 2)
        noise = rng.standard_normal((len(X), len(R_b))) * np.sqrt(np.maximum(eigenvalue, 0.0)) @ vector.T
        pools = X @ P + noise
        sd = pools.std(axis=0)
        sd[sd == 0] = 1.0
        search = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(X))).fit(pools / sd)
        found.append(lambda D, search=search, sd=sd: _mean_of(expressed, search.kneighbors(D / sd)[1]))  # type: ignore[misc]
    return found


def _mean_of(X: Floats, neighbours: NDArray[np.intp]) -> Floats:
    """Mean of the rows of X that each row of `neighbours` lists, without a cells x neighbours x genes array."""
    mean = np.zeros((len(neighbours), X.shape[1]))
    for column in neighbours.T:
        mean += X[column] / neighbours.shape[1]
    return mean
