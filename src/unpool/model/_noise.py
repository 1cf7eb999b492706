"""Noise variance, estimated from the pools by EM."""

from __future__ import annotations

import numpy as np

from unpool.kernels.mixture import condition, posterior_moments
from unpool.model._mixture import Array, Mixture

__all__ = ["estimate_variance"]

SAMPLE = 4096  # cells that the estimate looks at, evenly strided
LEAST = 1e-6  # of a pool's variance: the smallest noise that is ever estimated
_START = 0.05
_STEPS = 25
_PRIOR_CELLS = 20.0  # the noise-to-signal ratio common to all pools counts as much as this many cells


def estimate_variance(mixture: Mixture, D: Array, P: Array, stage: str, nu: float) -> Array:
    """Noise variance of each pool ("pool": a vector) or of every entry of M ("expression": a number), by EM.

    The E-step is the posterior of the noise itself, by the code that decodes genes; the M-step its mean square, in which a
    cell counts for less the worse its components explain it, or what the reference lacks would be taken for noise. The
    pools are put on unit scale (pool stage) or into coordinates where the noise is white (expression stage).

    Parameters
    ----------
    mixture
        What expression looks like.
    D
        Cells x pools, a few thousand cells.
    P
        Genes x pools.

    Notes
    -----
    Cost: 25 steps of cells * components * pools².
    """
    mixture = mixture.plain()
    signal = P.T @ mixture.covariance() @ P
    if stage == "pool":
        size = np.sqrt(np.maximum(np.diag(signal), 0.0))
        used = size > 1e-9 * size.max(initial=0.0)
        T = np.eye(len(size))[:, used] / size[used]
    else:
        eigenvalue, vector = np.linalg.eigh(P.T @ P)
        kept = eigenvalue > 1e-9 * eigenvalue[-1]
        T = vector[:, kept] / np.sqrt(eigenvalue[kept])
    m = T.shape[1]
    if m == 0:
        return np.zeros(P.shape[1]) if stage == "pool" else np.zeros(())
    P, D = P @ T, (D - mixture.mean @ P) @ T
    scale = np.diag(T.T @ signal @ T)
    pool_means = (mixture.means - mixture.mean) @ P
    pool_covariances = P.T @ mixture.times(P)

    pooled = stage == "expression"
    v = _START * (np.full(m, scale.mean()) if pooled else scale)
    least = LEAST * (np.full(m, scale.mean()) if pooled else scale)
    zeros = np.zeros_like(pool_means)
    for _ in range(_STEPS):
        R = np.diag(v)
        noise = condition(
            mixture.weights,
            zeros,
            np.broadcast_to(v, zeros.shape),
            np.broadcast_to(R, pool_covariances.shape),
            pool_means,
            pool_covariances + R,
        )
        mean, variance, distance = posterior_moments(D, [noise], np.ones(1), nu)
        explained = (nu - 2 + m) / (nu - 2 + distance) if nu < np.inf else np.ones(len(D))  # one where q is m, as expected
        square = explained @ (np.square(mean) + variance) / len(D)
        common = float(np.mean(square / scale)) * scale
        v = np.full(m, square.mean()) if pooled else (len(D) * square + _PRIOR_CELLS * common) / (len(D) + _PRIOR_CELLS)
        v = np.maximum(v, least)
    if pooled:
        return np.asarray(v[0])
    answer = np.zeros(len(size))
    answer[used] = v * size[used] ** 2
    return answer
