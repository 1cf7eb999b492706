"""Posterior of a bag of mixtures given pools: matrix products and a few fused loops, no loop over cells in Python.

Component k seen at size s says: expression has mean s mu_k and covariance s² S_k, so pools have mean s Pᵀ mu_k and
covariance C = s² Pᵀ S_k P + R. With r = d - s Pᵀ mu_k and q = rᵀ C⁻¹ r, its responsibility is proportional to

    w |C|^(-1/2) (1 + q / (nu - 2))^(-(nu + m)/2)         (nu = inf: w |C|^(-1/2) exp(-q/2))

its posterior mean is s mu_k + s² S_k P C⁻¹ r, and its covariance is that of the Gaussian times
(nu - 2 + q) / (nu - 2 + m). Members are averaged; the variance follows from the law of total variance over components,
sizes and members. Student components as in Liu & Rubin (1995), Statistica Sinica 5:19-39, scaled so that S_k is the
covariance.

One rotation V serves all sizes: with Vᵀ (Pᵀ S P + R) V = I and Vᵀ R V = diag(rho) the covariance of Vᵀ d at size s is
diag(s² (1 - rho) + rho), so that a size costs pools, not pools².

Most components are nowhere near a cell. q over the first few pool coordinates is a lower bound on q over all, hence an
upper bound on a density: components whose bound is below a negligible share of the best one are skipped, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from unpool.kernels._numba import njit

__all__ = ["Conditioned", "condition", "posterior_moments", "sparse_responsibilities"]

Array = NDArray[np.float64]

# Relative jitter of a pool covariance: carries noise-free and nearly dependent pools.
JITTER = 1e-9
# All components dropped from a cell's answer carry together at most this share of its weight.
DROPPED = 5e-8
# Components that carry together at most this share of a cell's weight are worked in float32.
WEAK = 1e-2
# Cells worked at once: the whitened pools of a few components then stay in the cache.
TILE = 256
_MANY = 50  # components from which a bound pays
_WORTH = 0.7  # share of the components that a bound may leave, to be worth its cost
_CHUNK = 200  # rows of one product of whitening matrices with a tile
_FAR = 1e300  # remoteness of what was not looked at
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
    means
        Components x genes: mu_k.
    gain
        Components x pools x genes: (S_k P V)ᵀ; the posterior mean is s mu_k + s² ((Vᵀ d - shift) * precision) gain.
    variance
        Components x sizes x genes: Gaussian posterior variance.
    gain32
        The gain in float32, for components that hardly matter to a cell.
    bound
        (bounds * p) x (1 + p): for each component and size that exists, whitening of the first p pool coordinates.
    bound_of
        Bounds x 2: component and size that a bound belongs to.
    """

    log_weights: Array
    sizes: Array
    rotation: Array
    shift: Array
    precision: Array
    means: Array
    gain: Array
    variance: Array
    gain32: NDArray[np.float32]
    bound: Array
    bound_of: NDArray[np.intp]


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
    gain = np.ascontiguousarray((cross @ rotation.transpose(0, 2, 1)).transpose(0, 2, 1))
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights) - np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)[:, None]
    log_weights -= np.log(spread).sum(axis=2) / 2
    explained = (np.square(sizes)[:, None] / spread) @ np.square(gain)
    bound, bound_of = _bounds(weights, sizes, pool_means, pool_covariances, extra, noise, origin)
    return Conditioned(
        log_weights=log_weights,
        sizes=sizes,
        rotation=np.ascontiguousarray(rotation),
        shift=np.einsum("kpc,ksc->ksp", rotation, sizes[:, None] * pool_means[:, None, :] - origin),
        precision=1 / spread,
        means=np.ascontiguousarray(means),
        gain=gain,
        variance=np.maximum(np.square(sizes)[:, None] * (variances[:, None, :] - explained), 0.0),
        gain32=gain.astype(np.float32),
        bound=bound,
        bound_of=bound_of,
    )


def _bounds(
    weights: Array, sizes: Array, means: Array, covariances: Array, extra: Array, noise: Array | None, origin: Array
) -> tuple[Array, NDArray[np.intp]]:
    """Whitening of the leading pool coordinates: [-L⁻¹ mean, L⁻¹] of each component and size with any weight."""
    p = int(-(-means.shape[1] // LEADING))
    which = np.argwhere(weights > 0)
    k, s = which[:, 0], sizes[which[:, 1]]
    R = extra[:, :p, :p] + (0.0 if noise is None else noise[:p, :p])
    signal = covariances[:, :p, :p] + extra[:, :p, :p] - R
    C = (s * s)[:, None, None] * signal[k] + R[k]
    inverse = np.tril(np.linalg.inv(np.linalg.cholesky(C)))
    start = -(inverse @ (s[:, None] * means[k, :p] - origin[:p])[:, :, None])
    return np.concatenate([start, inverse], axis=2).reshape(len(k) * p, p + 1), which


def posterior_moments(
    D: Array,
    members: Sequence[Conditioned],
    member_weights: Array,
    nu: float,
    *,
    centre: Array | None = None,
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
    centre
        Genes: a typical answer, from which squares are taken; 0 by default. It steadies the variance.
    second
        Whether the variance is wanted.
    dropped
        Bound on the share of a cell's weight that is given up by skipping negligible components; 0 keeps all, in float64.
    responsibilities
        One array (cells x components, or cells x components x sizes) a member to write into, or None.

    Returns
    -------
    mean, variance, distance
        Cells x genes, cells x genes or None, cells.

    Notes
    -----
    Cost a cell: for each component and size pools² / 32, for those that pass the bound pools², and pools * genes for those
    that are not negligible. With spread d between the component means of a cell, the mean changes by at most
    2 * dropped * d.
    """
    n, g = len(D), members[0].means.shape[1]
    centre = np.zeros(g) if centre is None else centre
    mean = np.zeros((n, g))
    square = np.zeros((n, g) if second else (0, g))
    distance = np.zeros(n)
    for b, (member, share) in enumerate(zip(members, member_weights, strict=True)):
        bounded = True  # a bound that skips little is given up
        for tile, D_tile, r in _tiles(D, member):
            counts, weight, _, far = _survivors(D_tile, member, nu, dropped, r, bounded)
            bounded = bounded and counts.sum() < _WORTH * weight.size
            distance[tile] += share * far
            if responsibilities is not None:
                dense = _by_cell(r, counts, member.log_weights)
                out = responsibilities[b]
                out[tile] = dense if out.ndim == 3 else dense.sum(axis=2)
            moments = (mean[tile], square[tile] if second else square)
            weak = _limit(weight, WEAK) if dropped > 0 else np.zeros(len(far))
            for gain, strong in ((member.gain, True), (member.gain32, False)):
                _accumulate(
                    D_tile, r, weight, weak, strong, share, member.log_weights, member.sizes, member.rotation, member.shift,
                    member.precision, member.means, gain, member.variance, centre, nu, *moments, second,
                )  # fmt: skip
    return mean, np.maximum(square - np.square(mean - centre), 0.0) if second else None, distance


def sparse_responsibilities(
    D: Array, member: Conditioned, nu: float, *, dropped: float = DROPPED
) -> tuple[sparse.csr_matrix, Array]:
    """Responsibilities, cells x (components * sizes), and log density of each cell up to a constant that members share."""
    parts, evidence = [], np.empty(len(D))
    for tile, D_tile, r in _tiles(D, member):
        counts, _, evidence[tile], _ = _survivors(D_tile, member, nu, dropped, r)
        parts.append(sparse.csr_matrix(_by_cell(r, counts, member.log_weights).reshape(len(r), -1)))
    return sparse.vstack(parts, format="csr"), evidence


def _tiles(D: Array, member: Conditioned) -> Iterator[tuple[slice, Array, Array]]:
    """Rows of each tile of cells, its pools (pools x cells), and room for its responsibilities."""
    table = np.empty(member.log_weights.size * min(len(D), TILE))
    for start in range(0, len(D), TILE):
        D_tile = np.ascontiguousarray(D[start : start + TILE].T)
        n = D_tile.shape[1]
        r = table[: member.log_weights.size * n].reshape(*member.log_weights.shape, n)
        yield slice(start, start + n), D_tile, r


def _survivors(
    D_tile: Array, member: Conditioned, nu: float, dropped: float, r: Array, bounded: bool = True
) -> tuple[NDArray[np.intp], Array, Array, Array]:
    """Responsibilities of one tile (pools x cells), written into r; see `_responsibilities`."""
    K, m = len(member.log_weights), len(D_tile)
    p = member.bound.shape[1] - 1
    nearest = np.empty((0, D_tile.shape[1]))
    if bounded and dropped > 0 and K >= _MANY and 0 < p < m:
        augmented = np.concatenate([np.ones((1, D_tile.shape[1])), D_tile[:p]])
        q = _squared_distances(member.bound, augmented, len(member.bound_of))
        nearest = _nearest(q, member.bound_of, member.log_weights, nu, m)
    answer: tuple[NDArray[np.intp], Array, Array, Array] = _responsibilities(
        D_tile, nearest, member.log_weights, member.rotation, member.shift, member.precision, nu, dropped, r
    )
    return answer


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
def _power(nu: float, m: int) -> float:
    return (nu + m) / 2 if nu < np.inf else 1.0


@njit(fastmath={"contract"})
def _nearest(q: Array, of: NDArray[np.intp], log_weights: Array, nu: float, m: int) -> Array:
    """Lower bound on a component's remoteness u from each cell (see `_responsibilities`), over its sizes."""
    K, n = log_weights.shape[0], q.shape[1]
    nearest = np.full((K, n), np.inf)
    highest = np.max(log_weights)
    for b in range(len(of)):
        k, s = of[b]
        uk, qb = nearest[k], q[b]
        below = highest - log_weights[k, s]
        if nu < np.inf:
            factor = np.exp(below / _power(nu, m))
            scale = factor / (nu - 2.0)
            for i in range(n):
                uk[i] = min(uk[i], factor + qb[i] * scale)
        else:
            for i in range(n):
                uk[i] = min(uk[i], qb[i] / 2 + below)
    return nearest


@njit(fastmath={"contract"})
def _rotated(D: Array, rotation: Array, cells: NDArray[np.int32], gathered: Array, product: Array) -> Array:
    """Vᵀ d of some cells, in ascending order: pools x cells."""
    (m, n), count = D.shape, len(cells)
    z = product[: m * count].reshape(m, count)
    if m == 0:
        return z
    if count == n:
        np.dot(rotation, D, z)
        return z
    G = gathered[: m * count].reshape(m, count)
    for j in range(m):
        row, source = G[j], D[j]
        for i in range(count):
            row[i] = source[cells[i]]
    np.dot(rotation, G, z)
    return z


@njit(fastmath={"contract"})
def _remoteness(
    z: Array, shift: Array, precision: Array, below: float, nu: float, power: float, u: Array
) -> None:
    """u of some cells (rotated pools z: pools x cells) under one component at one size."""
    for i in range(len(u)):
        u[i] = 0.0
    for j in range(len(z)):
        zj, a, c = z[j], shift[j], precision[j]
        for i in range(len(u)):
            u[i] += (zj[i] - a) * (zj[i] - a) * c
    if nu < np.inf:
        factor = np.exp(below / power)
        scale = factor / (nu - 2.0)
        for i in range(len(u)):
            u[i] = factor + u[i] * scale
    else:
        for i in range(len(u)):
            u[i] = u[i] / 2 + below


@njit(fastmath={"contract"})
def _raised(x: Array, power: float, base: Array) -> None:
    """Raise x to a power, in place; by multiplication where twice the power is a whole number."""
    n, twice = len(x), int(np.round(2 * power))
    if twice != 2 * power or twice > 400:
        for i in range(n):
            x[i] = np.exp(power * np.log(x[i])) if x[i] > 0 else 0.0
        return
    left = twice if twice % 2 else twice // 2
    for i in range(n):
        base[i] = np.sqrt(x[i]) if twice % 2 else x[i]
        x[i] = 1.0
    while left:
        if left % 2:
            for i in range(n):
                x[i] *= base[i]
        left //= 2
        for i in range(n):
            base[i] *= base[i]


@njit(fastmath={"contract"})
def _responsibilities(
    D: Array,
    nearest: Array,
    log_weights: Array,
    rotation: Array,
    shift: Array,
    precision: Array,
    nu: float,
    dropped: float,
    u: Array,
) -> tuple[NDArray[np.intp], Array, Array, Array]:
    """Responsibilities of the components that are not negligible.

    A density is a falling function of the remoteness u: for Student components its power -(nu + m)/2, with
    u = (1 + q / (nu - 2)) / c; for Gaussian ones exp(-u), with u = q / 2 - log c; c the weight with its determinant. So
    finding the largest density, and those close to it, needs no logarithm.

    Responsibilities replace u[k, s] where component k was looked at, which was for `counts[k]` cells, and exists at size s;
    elsewhere u has no meaning. D is pools x cells; `nearest`, components x cells, bounds u from below, or has no rows.
    Also returned: the weights, components x cells, that are their sums over the sizes; log density of each cell up to a
    constant, and its mean q.
    """
    K, S = log_weights.shape
    m, n = D.shape
    student = nu < np.inf
    power = _power(nu, m)
    highest = np.max(log_weights)
    # components that cannot reach this share of the best one's density are not even looked at
    cut = np.log(2 * K * S / dropped) if dropped > 0 else np.inf
    reach = np.exp(cut / power) if student else cut
    counts = np.zeros(K, np.intp)
    gathered, product = np.empty(m * n), np.empty(m * n)
    q, base = np.empty(n), np.empty(n)
    smallest = np.full(n, _FAR)
    some = np.arange(n).astype(np.int32)

    if len(nearest) > 0:  # the component that the bound puts first gives each cell a density to compare with
        best = np.zeros(n, np.intp)
        for k in range(1, K):
            for i in range(n):
                if nearest[k, i] < nearest[best[i], i]:
                    best[i] = k
        for k in range(K):
            count = 0
            for i in range(n):
                if best[i] == k:
                    some[count] = i
                    count += 1
            if count > 0:
                z = _rotated(D, rotation[k], some[:count], gathered, product)
                for s in range(S):
                    if log_weights[k, s] > -np.inf:
                        _remoteness(z, shift[k, s], precision[k, s], highest - log_weights[k, s], nu, power, q[:count])
                        for a in range(count):
                            smallest[some[a]] = min(smallest[some[a]], q[a])
    for k in range(K):
        count = n
        if len(nearest) > 0:
            count = 0
            for i in range(n):
                if nearest[k, i] <= (smallest[i] * reach if student else smallest[i] + reach):
                    some[count] = i
                    count += 1
        counts[k] = count
        if count == 0:
            continue
        z = _rotated(D, rotation[k], some[:count], gathered, product)
        for s in range(S):
            if log_weights[k, s] == -np.inf:
                continue
            us, below = u[k, s], highest - log_weights[k, s]
            if count == n:
                _remoteness(z, shift[k, s], precision[k, s], below, nu, power, us)
            else:
                _remoteness(z, shift[k, s], precision[k, s], below, nu, power, q[:count])
                for i in range(n):
                    us[i] = _FAR
                for a in range(count):
                    us[some[a]] = q[a]
            for i in range(n):
                smallest[i] = min(smallest[i], us[i])

    total, distance = np.zeros(n), np.zeros(n)
    weight = np.zeros((K, n))
    for k in range(K):
        for s in range(S):
            if counts[k] == 0 or log_weights[k, s] == -np.inf:
                continue
            us, below = u[k, s], highest - log_weights[k, s]
            if student:
                back = (nu - 2.0) / np.exp(below / power)
                for i in range(n):
                    q[i] = us[i] * back - (nu - 2.0)
                    us[i] = smallest[i] / us[i]
                _raised(us, power, base)
            else:
                for i in range(n):
                    q[i] = 2 * (us[i] - below)
                    us[i] = np.exp(smallest[i] - us[i])
            for i in range(n):
                weight[k, i] += us[i]
                distance[i] += q[i] * us[i]
        for i in range(n):
            total[i] += weight[k, i]
    log_density, inverse, limit = np.empty(n), np.empty(n), np.zeros(n)
    for i in range(n):
        log_density[i] = np.log(total[i]) + highest - (power * np.log(smallest[i]) if student else smallest[i])
        distance[i] /= total[i]
        inverse[i] = 1.0 / total[i]
    for k in range(K):
        for i in range(n):
            weight[k, i] *= inverse[i]
    if dropped > 0:
        limit = _limit(weight, dropped / 2)
    left = np.zeros(n)
    for k in range(K):
        for i in range(n):
            weight[k, i] = weight[k, i] if weight[k, i] >= limit[i] else 0.0
            left[i] += weight[k, i]
    for i in range(n):
        inverse[i] /= left[i]
        left[i] = 1.0 / left[i]
    for k in range(K):
        if counts[k] == 0:
            continue
        for i in range(n):
            weight[k, i] *= left[i]
            q[i] = inverse[i] if weight[k, i] > 0 else 0.0
        for s in range(S):
            if log_weights[k, s] > -np.inf:
                us = u[k, s]
                for i in range(n):
                    us[i] *= q[i]
    return counts, weight, log_density, distance


@njit(fastmath={"contract"})
def _limit(weight: Array, share: float) -> Array:
    """For each cell a weight such that all components (components x cells) below it carry together at most `share`."""
    K, n = weight.shape
    levels = int(np.ceil(np.log(2 * K) / np.log(4.0)))
    below = np.zeros((levels, n))
    for k in range(K):
        threshold = share
        for t in range(levels):
            for i in range(n):
                below[t, i] += weight[k, i] if weight[k, i] < threshold else 0.0
            threshold /= 4
    limit = np.zeros(n)
    for i in range(n):
        threshold = share
        for t in range(levels):
            if below[t, i] <= share:
                limit[i] = threshold
                break
            threshold /= 4
    return limit


@njit()
def _by_cell(r: Array, counts: NDArray[np.intp], log_weights: Array) -> Array:
    """Responsibilities as cells x components x sizes."""
    K, S, n = r.shape
    dense = np.zeros((n, K, S))
    for k in range(K):
        for s in range(S):
            if counts[k] > 0 and log_weights[k, s] > -np.inf:
                for i in range(n):
                    dense[i, k, s] = r[k, s, i]
    return dense


@njit(fastmath={"contract"})
def _accumulate(
    D: Array,
    r: Array,
    weight: Array,
    weak: Array,
    strong: bool,
    share: float,
    log_weights: Array,
    sizes: Array,
    rotation: Array,
    shift: Array,
    precision: Array,
    means: Array,
    gain: NDArray[np.floating],
    variance: Array,
    centre: Array,
    nu: float,
    mean: Array,
    square: Array,
    second: bool,
) -> None:
    """Add r (mean) and r ((mean - centre)² + variance) of the components that are, or are not, weak in a cell.

    Without the variance, the sizes of a component share one product with its gain.
    """
    m, n = D.shape
    K, g = means.shape
    S = len(sizes)
    mine, at = np.empty(n, np.int32), np.empty(n, np.int32)
    w, q, level = np.empty(n), np.empty(n), np.empty(n)
    gathered, product, total = np.empty(m * n), np.empty(m * n), np.empty(m * n)
    coefficients = np.empty(m * n, gain.dtype)
    answers = np.zeros((n, g), gain.dtype)
    for k in range(K):
        count, wk = 0, weight[k]
        for i in range(n):
            mine[count] = i
            count += wk[i] > 0 and (wk[i] >= weak[i]) == strong
        if count == 0:
            continue
        z = _rotated(D, rotation[k], mine[:count], gathered, product)
        if second:
            for s in range(S):
                if log_weights[k, s] == -np.inf:
                    continue
                some, size, rs = 0, sizes[s], r[k, s]
                for a in range(count):
                    at[some] = a
                    w[some] = share * rs[mine[a]]
                    some += w[some] > 0
                if some == 0:
                    continue
                C = coefficients[: m * some].reshape(m, some)
                q[:some] = 0.0
                for j in range(m):
                    Cj, zj, a, p = C[j], z[j], shift[k, s, j], precision[k, s, j]
                    for i in range(some):
                        x = zj[at[i]] - a
                        q[i] += x * x * p
                        Cj[i] = size * size * p * x
                if m > 0:
                    np.dot(C.T, gain[k], answers[:some])
                for i in range(some):
                    stretch = (nu - 2.0 + q[i]) / (nu - 2.0 + m) if nu < np.inf else 1.0
                    wi, cell = w[i], mine[at[i]]
                    for j in range(g):
                        x = answers[i, j] + size * means[k, j]
                        mean[cell, j] += wi * x
                        x -= centre[j]
                        square[cell, j] += wi * (x * x + stretch * variance[k, s, j])
        else:
            c, C = total[: m * count].reshape(m, count), coefficients[: m * count].reshape(m, count)
            c[:] = 0.0
            level[:count] = 0.0
            for s in range(S):
                if log_weights[k, s] == -np.inf:
                    continue
                size, rs = sizes[s], r[k, s]
                for i in range(count):
                    w[i] = share * rs[mine[i]] * size
                    level[i] += w[i]
                    w[i] *= size
                for j in range(m):
                    cj, zj, a, p = c[j], z[j], shift[k, s, j], precision[k, s, j]
                    for i in range(count):
                        cj[i] += w[i] * (p * (zj[i] - a))
            for j in range(m):
                for i in range(count):
                    C[j, i] = c[j, i]
            if m > 0:
                np.dot(C.T, gain[k], answers[:count])
            for i in range(count):
                li, cell = level[i], mine[i]
                for j in range(g):
                    mean[cell, j] += answers[i, j] + li * means[k, j]
