"""A mixture given a design and its noise: what each component needs to answer for a cell; see `mixture` for the algebra."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["JITTER", "Conditioned", "condition"]

Array = NDArray[np.float64]

# Relative jitter of a pool covariance: carries noise-free and nearly dependent pools.
JITTER = 1e-9
LEADING = 4  # the bound looks at one in so many pool coordinates, the most variable first


class Conditioned(NamedTuple):
    """A mixture given a design and its noise: what each component needs to answer for a cell.

    Attributes
    ----------
    log_weights
        Components x sizes: log w - ½ log |C|; -inf where a component is not seen at a size.
    sizes
        Sizes s.
    rotation
        Components x pools x pools: Vᵀ.
    shift, precision
        Components x sizes x pools: s Vᵀ Pᵀ mu_k (relative to the origin of the pools), and 1 / (s² (1 - rho) + rho).
    gain
        Components x (1 + pools) x genes: mu_k and (S_k P V)ᵀ; the posterior mean is (s, s² (Vᵀ d - shift) * precision) gain.
    variance
        Components x sizes x genes: Gaussian posterior variance.
    gain32
        The gain in float32, for components that hardly matter to a cell.
    looks, first
        Looks x 2: component and size of each density that there is; components + 1: where those of a component begin.
    bound
        (looks * p) x (1 + p): whitening of the first p pool coordinates.
    """

    log_weights: Array
    sizes: Array
    rotation: Array
    shift: Array
    precision: Array
    gain: Array
    variance: Array
    gain32: NDArray[np.float32]
    looks: NDArray[np.intp]
    first: NDArray[np.intp]
    bound: Array


def condition(
    weights: Array,
    means: Array,
    variances: Array,
    cross: Array,
    pool_means: Array,
    pool_covariances: Array,
    *,
    noise: Array | None = None,
    sizes: Array | None = None,
    origin: Array | None = None,
    jitter: float = JITTER,
) -> Conditioned:
    """Precompute the posterior of every component at every size.

    Parameters
    ----------
    weights
        Components, or components x sizes.
    means, variances
        Components x genes: mu_k and the diagonal of S_k.
    cross
        Components x genes x pools: S_k P.
    pool_means, pool_covariances
        Components x pools: Pᵀ mu_k; components x pools x pools: Pᵀ S_k P + R, both at size one.
    noise
        R, pools x pools; needed where there are sizes other than one.
    sizes
        Sizes; one by default.
    origin
        Pools: what will have been subtracted from the pools of a cell; nothing by default.
    jitter
        Added to the diagonal of C_k, relative to its mean.

    Notes
    -----
    Cost: components * (20 pools³ + 2 genes * pools²); memory 12 * components * pools * (genes + pools) bytes, and as much
    again while it runs.
    """
    K, m = pool_means.shape
    sizes = np.ones(1) if sizes is None else np.asarray(sizes, dtype=np.float64)
    weights = np.asarray(weights, dtype=np.float64).reshape(K, len(sizes))
    origin = np.zeros(m) if origin is None else origin
    size = np.trace(pool_covariances, axis1=1, axis2=2) / max(m, 1)
    extra = jitter * np.where(size > 0, size, 1.0)[:, None, None] * np.eye(m)
    C = pool_covariances + extra
    L = np.linalg.cholesky(C)
    rotation = np.tril(np.linalg.inv(L))
    rho = np.zeros((K, m))
    resized = (weights[:, sizes != 1] > 0).any(axis=1)
    if resized.any():
        R = extra[resized] + (0.0 if noise is None else noise)
        rho[resized], vector = np.linalg.eigh(rotation[resized] @ R @ rotation[resized].transpose(0, 2, 1))
        rotation[resized] = vector.transpose(0, 2, 1) @ rotation[resized]
    rho = np.clip(rho, 0.0, 1.0)[:, None, :]
    spread = np.square(sizes)[:, None] * (1 - rho) + rho
    gain = (cross @ rotation.transpose(0, 2, 1)).transpose(0, 2, 1)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights) - np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)[:, None]
    log_weights -= np.log(spread).sum(axis=2) / 2
    explained = (np.square(sizes)[:, None] / spread) @ np.square(gain)
    gain = np.ascontiguousarray(np.concatenate([means[:, None, :], gain], axis=1))
    looks = np.argwhere(weights > 0)
    return Conditioned(
        log_weights=log_weights,
        sizes=sizes,
        rotation=np.ascontiguousarray(rotation),
        shift=np.einsum("kpc,ksc->ksp", rotation, sizes[:, None] * pool_means[:, None, :] - origin),
        precision=1 / spread,
        gain=gain,
        variance=np.maximum(np.square(sizes)[:, None] * (variances[:, None, :] - explained), 0.0),
        gain32=gain.astype(np.float32),
        looks=looks,
        first=np.searchsorted(looks[:, 0], np.arange(K + 1)),
        bound=_bounds(looks, sizes, pool_means, pool_covariances, extra, noise, origin),
    )


def _bounds(
    looks: NDArray[np.intp],
    sizes: Array,
    means: Array,
    covariances: Array,
    extra: Array,
    noise: Array | None,
    origin: Array,
) -> Array:
    """Whitening of the leading pool coordinates: [-L⁻¹ mean, L⁻¹] of each component at each size at which it is seen."""
    p = int(-(-means.shape[1] // LEADING))
    k, s = looks[:, 0], sizes[looks[:, 1]]
    R = extra[:, :p, :p] + (0.0 if noise is None else noise[:p, :p])
    signal = covariances[:, :p, :p] + extra[:, :p, :p] - R
    C = (s * s)[:, None, None] * signal[k] + R[k]
    inverse = np.tril(np.linalg.inv(np.linalg.cholesky(C)))
    start = -(inverse @ (s[:, None] * means[k, :p] - origin[:p])[:, :, None])
    return np.concatenate([start, inverse], axis=2).reshape(len(k) * p, p + 1)
