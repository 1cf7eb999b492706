"""Posterior of a bag of mixtures given pools: matrix products and three fused loops, no loop over cells in Python.

Component k says: expression has mean mu_k and covariance S_k, so pools have mean Pᵀ mu_k and covariance
C_k = Pᵀ S_k P + R. With r = d - Pᵀ mu_k and q = rᵀ C_k⁻¹ r, the responsibility of a component is proportional to

    w_k |C_k|^(-1/2) (1 + q / (nu - 2))^(-(nu + m)/2)         (nu = inf: w_k |C_k|^(-1/2) exp(-q/2))

the component's posterior mean is mu_k + S_k P C_k⁻¹ r, and its covariance is that of the Gaussian times
(nu - 2 + q) / (nu - 2 + m). Members are averaged; the variance follows from the law of total variance over components and
members. Student components as in Liu & Rubin (1995), Statistica Sinica 5:19-39, scaled so that S_k is the covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unpool.kernels._numba import njit

__all__ = ["Conditioned", "condition", "posterior_moments"]

Array = NDArray[np.float64]

# Relative jitter of a pool covariance: carries noise-free and nearly dependent pools.
JITTER = 1e-9
# All components dropped from a cell's answer carry together at most this share of its weight.
DROPPED = 1e-8
# Components that carry together at most this share of a cell's weight are worked in float32.
WEAK = 1e-2
# Cells worked at once: the whitened pools of a few components then stay in the cache.
TILE = 1024
_CHUNK = 200  # rows of one product of whitening matrices with a tile


class Conditioned(NamedTuple):
    """A mixture given a design and its noise: what each component needs to answer for a cell.

    Attributes
    ----------
    log_weights
        log w_k - ½ log |C_k|, one a component.
    whitening
        (components * pools) x (1 + pools): [-Lᵏ Pᵀmu_k, Lᵏ] with Lᵏ C_k Lᵏᵀ = I, so that q is the squared norm of its
        product with (1, d).
    intercept, gain
        Components x genes and components x pools x genes: the posterior mean is intercept_k + d gain_k.
    variance
        Components x genes: Gaussian posterior variance.
    gain32
        The gain in float32, for components that hardly matter to a cell.
    """

    log_weights: Array
    whitening: Array
    intercept: Array
    gain: Array
    variance: Array
    gain32: NDArray[np.float32]


def condition(
    weights: Array,
    means: Array,
    variances: Array,
    cross: Array,
    pool_means: Array,
    pool_covariances: Array,
    *,
    jitter: float = JITTER,
) -> Conditioned:
    """Precompute the posterior of every component.

    Parameters
    ----------
    weights
        Components.
    means, variances
        Components x genes: mu_k and the diagonal of S_k.
    cross
        Components x genes x pools: S_k P.
    pool_means, pool_covariances
        Components x pools: Pᵀ mu_k; components x pools x pools: C_k.
    jitter
        Added to the diagonal of C_k, relative to its mean.

    Notes
    -----
    Cost: components * (pools³ + 2 genes * pools²); memory 12 * components * pools * genes bytes, and as much
    again while it runs.
    """
    K, m = pool_means.shape
    identity = np.eye(m)
    size = np.trace(pool_covariances, axis1=1, axis2=2) / max(m, 1)
    size = np.where(size > 0, size, 1.0)
    L = np.linalg.cholesky(pool_covariances + (jitter * size)[:, None, None] * identity)
    L_inverse = np.tril(np.linalg.inv(L))
    white_cross = cross @ L_inverse.transpose(0, 2, 1)
    gain = np.ascontiguousarray((white_cross @ L_inverse).transpose(0, 2, 1))
    shift = -(L_inverse @ pool_means[:, :, None])
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights) - np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)
    return Conditioned(
        log_weights=log_weights,
        whitening=np.concatenate([shift, L_inverse], axis=2).reshape(K * m, m + 1),
        intercept=means - (pool_means[:, None, :] @ gain)[:, 0, :],
        gain=gain,
        variance=np.maximum(variances - np.square(white_cross).sum(axis=2), 0.0),
        gain32=gain.astype(np.float32),
    )


def posterior_moments(
    D: Array,
    members: Sequence[Conditioned],
    member_weights: Array,
    nu: float,
    *,
    second: bool = True,
    dropped: float = DROPPED,
    responsibilities: Sequence[NDArray[np.floating]] | None = None,
) -> tuple[Array, Array | None, Array]:
    """Posterior mean, variance and mean squared Mahalanobis distance of each cell.

    Parameters
    ----------
    D
        Cells x pools, in the coordinates of the members.
    members, member_weights
        Conditioned mixtures and their shares (sum 1).
    nu
        Degrees of freedom of the components, > 2; infinity: Gaussian.
    second
        Whether the variance is wanted.
    dropped
        Bound on the share of a cell's weight that is given up by skipping negligible components; 0 keeps all.
    responsibilities
        One array (cells x components) a member to write into, or None.

    Returns
    -------
    mean, variance, distance
        Cells x genes, cells x genes or None, cells.

    Notes
    -----
    Cost a cell: for each component pools², and pools * genes for those that are not negligible. With spread d between the
    component means of a cell, the mean changes by at most 2 * dropped * d.
    """
    n = D.shape[0]
    g = members[0].intercept.shape[1]
    mean = np.zeros((n, g))
    square = np.zeros((n, g) if second else (0, g))
    distance = np.zeros(n)
    for start in range(0, n, TILE):
        tile = slice(start, min(start + TILE, n))
        D_tile = np.ascontiguousarray(D[tile])
        augmented = np.concatenate([np.ones((1, D_tile.shape[0])), D_tile.T])
        for b, (member, share) in enumerate(zip(members, member_weights, strict=True)):
            q = _squared_distances(member.whitening, augmented, len(member.log_weights))
            r = _responsibilities(q, member.log_weights, nu, D.shape[1], dropped)
            if responsibilities is not None:
                responsibilities[b][tile] = r.T
            distance[tile] += share * np.einsum("ki,ki->i", r, q)
            moments = (mean[tile], square[tile] if second else square)
            weak = WEAK / len(r)
            for X, gain, above, upto in (
                (D_tile, member.gain, weak, np.inf),
                (D_tile.astype(np.float32), member.gain32, 0.0, weak),
            ):
                _accumulate(X, q, r, above, upto, share, member.intercept, gain, member.variance, nu, *moments, second)
    return mean, np.maximum(square - np.square(mean), 0.0) if second else None, distance


@njit(fastmath={"contract"})
def _squared_distances(whitening: Array, augmented: Array, K: int) -> Array:
    """q, components x cells: squared norms of whitening @ (1, d), a few components at a time."""
    m, n = augmented.shape[0] - 1, augmented.shape[1]
    q = np.zeros((K, n))
    if m == 0:
        return q
    step = max(1, _CHUNK // m)
    product = np.empty((step * m, n))
    for first in range(0, K, step):
        last = min(first + step, K)
        y = product[: (last - first) * m]
        np.dot(whitening[first * m : last * m], augmented, y)
        for k in range(first, last):
            qk = q[k]
            for row in range((k - first) * m, (k - first + 1) * m):
                yr = y[row]
                for i in range(n):
                    qk[i] += yr[i] * yr[i]
    return q


@njit(fastmath={"contract"})
def _responsibilities(q: Array, log_weights: Array, nu: float, m: int, dropped: float) -> Array:
    """Responsibilities, components x cells; those that are negligible are exactly zero.

    For Student components the density is a power of u = (1 + q / (nu - 2)) / c_k, so that finding the largest and those
    close to it needs no logarithm.
    """
    K, n = q.shape
    student = nu < np.inf
    power = (nu + m) / 2 if student else 1.0
    cut = np.log(K / dropped) if dropped > 0 else np.inf  # below the largest, in log density
    u = np.empty((K, n))
    smallest = np.full(n, np.inf)
    highest = np.max(log_weights)
    for k in range(K):
        uk, qk = u[k], q[k]
        if student:
            factor = np.exp((highest - log_weights[k]) / power)
            for i in range(n):
                uk[i] = (1.0 + qk[i] / (nu - 2.0)) * factor
        else:
            shift = highest - log_weights[k]
            for i in range(n):
                uk[i] = qk[i] / 2 + shift
        for i in range(n):
            smallest[i] = min(smallest[i], uk[i])
    total = np.zeros(n)
    limit = smallest * np.exp(cut / power) if student else smallest + cut
    for k in range(K):
        uk = u[k]
        for i in range(n):
            if uk[i] <= limit[i]:
                uk[i] = np.exp(power * np.log(smallest[i] / uk[i])) if student else np.exp(smallest[i] - uk[i])
                total[i] += uk[i]
            else:
                uk[i] = 0.0
    for k in range(K):
        uk = u[k]
        for i in range(n):
            uk[i] /= total[i]
    return u


@njit(fastmath={"contract"})
def _accumulate(
    D: NDArray[np.floating],
    q: Array,
    r: Array,
    above: float,
    upto: float,
    share: float,
    intercept: Array,
    gain: NDArray[np.floating],
    variance: Array,
    nu: float,
    mean: Array,
    square: Array,
    second: bool,
) -> None:
    """Add r (mean) and r (mean² + variance) of the components with above < r <= upto to the cells.

    D is cells x pools in the precision of the gain; q and r are components x cells.
    """
    n, m = D.shape
    K, g = intercept.shape
    cells = np.empty(n, np.int64)
    gathered = np.empty((n, m), D.dtype)
    answers = np.empty((n, g), D.dtype)
    for k in range(K):
        count = 0
        for i in range(n):
            if above < r[k, i] <= upto:
                cells[count] = i
                gathered[count] = D[i]
                count += 1
        if count == 0:
            continue
        np.dot(gathered[:count], gain[k], answers[:count])
        for a in range(count):
            i = cells[a]
            w = share * r[k, i]
            if second:
                stretch = (nu - 2.0 + q[k, i]) / (nu - 2.0 + m) if nu < np.inf else 1.0
                for j in range(g):
                    x = answers[a, j] + intercept[k, j]
                    mean[i, j] += w * x
                    square[i, j] += w * (x * x + stretch * variance[k, j])
            else:
                for j in range(g):
                    mean[i, j] += w * (answers[a, j] + intercept[k, j])
