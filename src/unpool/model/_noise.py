"""Noise variance, estimated from the pools by EM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unpool.kernels.mixture import condition, posterior_moments
from unpool.model._mixture import Array, Mixture

__all__ = ["estimate_variance"]

SAMPLE = 4096  # cells that the estimate looks at, evenly strided
LEAST = 1e-6  # of a pool's variance: the smallest noise that is ever estimated
_START = 0.05
_CYCLES = 12  # of two EM steps each
_CLOSE = 1e-3  # change of a log ratio at which it ends
_PRIOR_CELLS = 20.0  # the noise-to-signal ratio common to all pools counts as much as this many cells
_TAILS = 12.0  # degrees of freedom: noise is Gaussian, but cells that the model lacks must not pass for noise


def estimate_variance(mixture: Mixture, D: Array, P: Array, stage: str, nu: float) -> Array:
    """Noise variance of each pool ("pool": a vector) or of every entry of M ("expression": a number), by EM.

    The E-step is the posterior of the noise itself, by the code that decodes genes; the M-step its mean square, in which a
    cell counts for less the worse its components explain it. The pools are put on unit scale (pool stage) or into
    coordinates where the noise is white (expression stage).

    Parameters
    ----------
    mixture
        What expression looks like.
    D
        Cells x pools, a few thousand cells.
    P
        Genes x pools.
    nu
        Degrees of freedom of the components: infinity, and every cell counts the same; else lighter tails are used here.

    Notes
    -----
    Cost: at most 25 steps of cells * components * pools².
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
    m, pooled, tails = T.shape[1], stage == "expression", _TAILS if nu < np.inf else nu
    if m == 0:
        return np.zeros(P.shape[1]) if stage == "pool" else np.zeros(())
    P, D = P @ T, (D - mixture.mean @ P) @ T
    scale = np.diag(T.T @ signal @ T)
    scale = np.full(m, scale.mean()) if pooled else scale
    pool_means = (mixture.means - mixture.mean) @ P
    pool_covariances = P.T @ mixture.times(P)
    zeros = np.zeros_like(pool_means)

    def step(log_ratio: Array) -> Array:
        """One EM step of the logarithms of noise to signal."""
        v = np.exp(log_ratio) * scale
        R = np.diag(v)
        noise = condition(
            mixture.weights,
            zeros,
            np.broadcast_to(v, zeros.shape),
            np.broadcast_to(R, pool_covariances.shape),
            pool_means,
            pool_covariances + R,
        )
        mean, variance, distance = posterior_moments(D, [noise], np.ones(1), tails)
        explained = (tails - 2 + m) / (tails - 2 + distance) if tails < np.inf else np.ones(len(D))
        ratio = explained @ (np.square(mean) + variance) / len(D) / scale
        common = np.full(m, ratio.mean())
        ratio = common if pooled else (len(D) * ratio + _PRIOR_CELLS * common) / (len(D) + _PRIOR_CELLS)
        return np.asarray(np.log(np.maximum(ratio, LEAST)))

    v = np.exp(_fixed_point(step, np.full(m, np.log(_START)))) * scale
    if pooled:
        return np.asarray(v[0])
    answer = np.zeros(len(size))
    answer[used] = v * size[used] ** 2
    return answer


def _fixed_point(step: Callable[[Array], Array], x: Array) -> Array:
    """Fixed point of logarithms under EM, by squared extrapolation (Varadhan & Roland 2008, Scand. J. Stat. 35:335-353)."""
    for _ in range(_CYCLES):
        once = step(x)
        twice = step(once)
        first, bend = once - x, twice - 2 * once + x
        if np.abs(twice - once).max() < _CLOSE:
            return twice
        reach = float(np.clip(np.linalg.norm(first) / max(float(np.linalg.norm(bend)), 1e-12), 1.0, 16.0))
        x = np.clip(x + 2 * reach * first + reach**2 * bend, np.log(LEAST), -np.log(LEAST))
    return step(x)
