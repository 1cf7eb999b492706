"""Inner loops of the posterior of a mixture: densities of a tile of cells, and the sums of its answers.

One file, since numba's cache sees changes in a kernel's own file only. Arrays are rows x cells, so that the innermost loops
run over cells, or over genes, and become vector instructions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unpool.kernels._numba import njit

__all__ = [
    "add_means",
    "add_moments",
    "limit_below",
    "nearest_possible",
    "responsibilities_of_tile",
    "squared_distances",
]

Array = NDArray[np.float64]

_FAR = 1e200  # remoteness of what was not looked at; times any nu it stays finite
_STRIP = 128  # cells whose coordinates under one component stay in the fastest cache
_CHUNK = 200  # rows of one product of whitening matrices with a tile


@njit(fastmath={"contract"})
def squared_distances(whitening: Array, augmented: Array, K: int) -> Array:
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
def nearest_possible(q: Array, of: NDArray[np.intp], log_weights: Array, nu: float, m: int) -> Array:
    """Lower bound on a component's remoteness u from each cell (see `responsibilities_of_tile`), over its sizes."""
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
def _rotated(rotation: Array, D: Array, product: Array) -> Array:
    """Vᵀ d: pools x cells, written into the beginning of `product`."""
    m, n = D.shape
    z = product[: m * n].reshape(m, n)
    if m > 0:
        np.dot(rotation, D, z)
    return z


@njit(fastmath={"contract"})
def _gathered(D: Array, cells: NDArray[np.int32], room: Array) -> Array:
    """Pools of some cells: pools x cells, written into the beginning of `room`."""
    m, count = len(D), len(cells)
    G = room[: m * count].reshape(m, count)
    for j in range(m):
        row, source = G[j], D[j]
        for i in range(count):
            row[i] = source[cells[i]]
    return G


@njit(fastmath={"contract"})
def _remoteness(z: Array, shift: Array, precision: Array, below: float, nu: float, power: float, u: Array) -> None:
    """Write u of some cells (rotated pools z: pools x cells) under one component at one size."""
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
def responsibilities_of_tile(
    D: Array,
    nearest: Array,
    log_weights: Array,
    looks: NDArray[np.intp],
    first: NDArray[np.intp],
    rotation: Array,
    shift: Array,
    precision: Array,
    nu: float,
    dropped: float,
    u: Array,
) -> tuple[int, Array, Array, Array]:
    """Responsibilities of the components that are not negligible.

    A density is a falling function of the remoteness u: for Student components its power -(nu + m)/2, with
    u = (1 + q / (nu - 2)) / c; for Gaussian ones exp(-u), with u = q / 2 - log c; c the weight with its determinant. So
    finding the largest density, and those close to it, needs no logarithm.

    Responsibilities are written into u, looks x cells. D is pools x cells; `nearest`, components x cells, bounds u from
    below, or has no rows. Returned: how often a component was looked at for a cell; the weights, components x cells, that
    are the sums over the sizes; log density of each cell up to a constant, and its mean q.
    """
    K, (E, n), m = len(log_weights), u.shape, len(D)
    student = nu < np.inf
    power = _power(nu, m)
    highest = np.max(log_weights)
    below = np.empty(E)
    for e in range(E):
        below[e] = highest - log_weights[looks[e, 0], looks[e, 1]]
    smallest, looked = _remotenesses(D, nearest, below, looks, first, rotation, shift, precision, nu, dropped, u)

    total, distance = np.zeros(n), np.zeros(n)
    q, base = np.empty(n), np.empty(n)
    for e in range(E):
        r = u[e]
        if student:
            back = (nu - 2.0) / np.exp(below[e] / power)
            for i in range(n):
                q[i] = r[i] * back - (nu - 2.0)
                r[i] = smallest[i] / r[i]
            _raised(r, power, base)
        else:
            for i in range(n):
                q[i] = 2 * (r[i] - below[e])
                r[i] = np.exp(smallest[i] - r[i])
        for i in range(n):
            total[i] += r[i]
            distance[i] += q[i] * r[i]
    log_density = np.empty(n)
    for i in range(n):
        log_density[i] = np.log(total[i]) + highest - (power * np.log(smallest[i]) if student else smallest[i])
        distance[i] /= total[i]
        total[i] = 1.0 / total[i]
    for e in range(E):
        for i in range(n):
            u[e, i] *= total[i]
    weight = np.zeros((K, n))
    limit = limit_below(u, dropped / 2) if dropped > 0 else np.zeros(n)
    kept = np.zeros(n)
    for e in range(E):
        for i in range(n):
            u[e, i] = u[e, i] if u[e, i] >= limit[i] else 0.0
            kept[i] += u[e, i]
    for i in range(n):
        kept[i] = 1.0 / kept[i]
    for e in range(E):
        of_component = weight[looks[e, 0]]
        for i in range(n):
            u[e, i] *= kept[i]
            of_component[i] += u[e, i]
    return looked, weight, log_density, distance


@njit(fastmath={"contract"})
def _remotenesses(
    D: Array,
    nearest: Array,
    below: Array,
    looks: NDArray[np.intp],
    first: NDArray[np.intp],
    rotation: Array,
    shift: Array,
    precision: Array,
    nu: float,
    dropped: float,
    u: Array,
) -> tuple[Array, int]:
    """Write u, looks x cells, as far as the bound does not excuse from it; its minimum; how often it was worked out."""
    K, (E, n), m = len(rotation), u.shape, len(D)
    student = nu < np.inf
    power = _power(nu, m)
    # components that cannot reach this share of the best one's density are not even looked at
    cut = np.log(2 * E / dropped) if dropped > 0 else np.inf
    reach = np.exp(cut / power) if student else cut
    gathered, product, q = np.empty(m * n), np.empty(m * n), np.empty(n)
    smallest, looked = np.full(n, _FAR), 0
    some = np.empty(n, np.int32)
    if len(nearest) == 0:
        strips = np.empty(m * n)
        for start in range(0, n, _STRIP):
            stop = min(start + _STRIP, n)
            for j in range(m):
                for i in range(start, stop):
                    strips[m * start + j * (stop - start) + i - start] = D[j, i]
        for k in range(K):
            for start in range(0, n, _STRIP):
                stop = min(start + _STRIP, n)
                z = _rotated(rotation[k], strips[m * start : m * stop].reshape(m, stop - start), product)
                for e in range(first[k], first[k + 1]):
                    s, ue = looks[e, 1], u[e, start:stop]
                    _remoteness(z, shift[k, s], precision[k, s], below[e], nu, power, ue)
                    for i in range(start, stop):
                        smallest[i] = min(smallest[i], ue[i - start])
        return smallest, K * n

    # the component that the bound puts first gives each cell a density to compare with
    best = np.zeros(n, np.intp)
    for k in range(1, K):
        for i in range(n):
            if nearest[k, i] < nearest[best[i], i]:
                best[i] = k
    for foremost in (True, False):
        for k in range(K):
            count = 0
            for i in range(n):
                some[count] = i
                if foremost:
                    count += best[i] == k
                else:
                    count += nearest[k, i] <= (smallest[i] * reach if student else smallest[i] + reach)
            looked += 0 if foremost else count
            for e in range(first[k], first[k + 1]):
                for i in range(n):
                    u[e, i] = _FAR
            if count == 0:
                continue
            z = _rotated(rotation[k], _gathered(D, some[:count], gathered), product)
            for e in range(first[k], first[k + 1]):
                s, ue = looks[e, 1], u[e]
                _remoteness(z, shift[k, s], precision[k, s], below[e], nu, power, q[:count])
                for a in range(count):
                    ue[some[a]] = q[a]
                    smallest[some[a]] = min(smallest[some[a]], q[a])
    return smallest, looked


@njit(fastmath={"contract"})
def limit_below(weight: Array, share: float) -> Array:
    """For each cell a limit such that all weights (of anything x cells) below it are together at most `share`."""
    E, n = weight.shape
    levels = int(np.ceil(np.log(2 * E) / np.log(4.0)))
    below = np.zeros((levels, n))
    for e in range(E):
        threshold = share
        for t in range(levels):
            for i in range(n):
                below[t, i] += weight[e, i] if weight[e, i] < threshold else 0.0
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


@njit(fastmath={"contract"})
def _ordered(weight: Array, weak: Array, cells: NDArray[np.int32]) -> tuple[int, int]:
    """List the cells in which something carries weight, first those where it is not weak: how many these are, and all.

    `cells` has room for one more than there are: what is written last may not count.
    """
    strong = 0
    for i in range(len(weight)):
        cells[strong] = i
        strong += weight[i] > 0 and weight[i] >= weak[i]
    count = strong
    for i in range(len(weight)):
        cells[count] = i
        count += 0 < weight[i] < weak[i]
    return strong, count


@njit(fastmath={"contract"})
def add_means(
    D: Array,
    r: Array,
    weight: Array,
    weak: Array,
    share: float,
    looks: NDArray[np.intp],
    first: NDArray[np.intp],
    sizes: Array,
    rotation: Array,
    shift: Array,
    precision: Array,
    gain: Array,
    gain32: NDArray[np.float32],
    mean: Array,
) -> None:
    """Add share * r * answer of all components to the means. The sizes of a component share one product with its gain."""
    m, n = D.shape
    K, _, g = gain.shape
    cells = np.empty(n + 1, np.int32)
    gathered, product, room = np.empty(m * n), np.empty(m * n), np.empty((m + 1) * n)
    w = np.empty(n)
    scratch, scratch32 = np.empty((m + 1 + g) * n), np.empty((m + 1 + g) * n, np.float32)
    mean32 = np.zeros((n, g), np.float32)
    for k in range(K):
        strong, count = _ordered(weight[k], weak, cells)
        if count == 0:
            continue
        z = _rotated(rotation[k], _gathered(D, cells[:count], gathered), product)
        c = room[: (m + 1) * count].reshape(m + 1, count)
        for e in range(first[k], first[k + 1]):
            s, re, fresh = looks[e, 1], r[e], e == first[k]
            size = sizes[s]
            for i in range(count):
                w[i] = share * size * re[cells[i]]
                c[0, i] = w[i] if fresh else c[0, i] + w[i]
                w[i] *= size
            for j in range(m):
                cj, zj, a, p = c[j + 1], z[j], shift[k, s, j], precision[k, s, j]
                if fresh:
                    for i in range(count):
                        cj[i] = w[i] * (p * (zj[i] - a))
                else:
                    for i in range(count):
                        cj[i] += w[i] * (p * (zj[i] - a))
        if strong > 0:
            _add_products(c[:, :strong], gain[k], cells[:strong], scratch, mean)
        if strong < count:
            _add_products(c[:, strong:], gain32[k], cells[strong:count], scratch32, mean32)
    for i in range(n):
        for j in range(g):
            mean[i, j] += mean32[i, j]


@njit(fastmath={"contract"})
def _add_products(
    c: Array,
    gain: NDArray[np.floating],
    cells: NDArray[np.int32],
    scratch: NDArray[np.floating],
    mean: NDArray[np.floating],
) -> None:
    """Add cᵀ gain to the means of some cells, in the precision of the gain."""
    (rows, count), g = c.shape, gain.shape[1]
    C = scratch[: rows * count].reshape(rows, count)
    answers = scratch[rows * count : (rows + g) * count].reshape(count, g)
    for j in range(rows):
        for i in range(count):
            C[j, i] = c[j, i]
    np.dot(C.T, gain, answers)
    for i in range(count):
        of_cell, answer = mean[cells[i]], answers[i]
        for j in range(g):
            of_cell[j] += answer[j]


@njit(fastmath={"contract"})
def add_moments(
    D: Array,
    r: Array,
    weight: Array,
    weak: Array,
    share: float,
    looks: NDArray[np.intp],
    first: NDArray[np.intp],
    sizes: Array,
    rotation: Array,
    shift: Array,
    precision: Array,
    gain: Array,
    gain32: NDArray[np.float32],
    variance: Array,
    centre: Array,
    nu: float,
    mean: Array,
    square: Array,
) -> None:
    """As `add_means`; also add share * r * ((answer - centre)² + variance) to the squares."""
    m, n = D.shape
    K, _, g = gain.shape
    cells, at, place = np.empty(n + 1, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    gathered, product, room = np.empty(m * n), np.empty(m * n), np.empty((m + 3) * n)
    q, none = np.empty(n), np.zeros(n)
    scratch, scratch32 = np.empty((m + 3 + g) * n), np.empty((m + 3 + g) * n, np.float32)
    mean32, square32 = np.zeros((n, g), np.float32), np.zeros((n, g), np.float32)
    centre32, variance32 = centre.astype(np.float32), np.empty(g, np.float32)
    for k in range(K):
        _, count = _ordered(weight[k], none, cells)
        if count == 0:
            continue
        z = _rotated(rotation[k], _gathered(D, cells[:count], gathered), product)
        for a in range(count):
            place[cells[a]] = a
        for e in range(first[k], first[k + 1]):
            s, re = looks[e, 1], r[e]
            size = sizes[s]
            strong, some = _ordered(re, weak, cells)
            if some == 0:
                continue
            for i in range(some):
                at[i] = place[cells[i]]
            c = room[: (m + 3) * some].reshape(m + 3, some)
            q[:some] = 0.0
            for j in range(m):
                cj, zj, a, p = c[j + 1], z[j], shift[k, s, j], precision[k, s, j]
                for i in range(some):
                    x = zj[at[i]] - a
                    q[i] += x * x * p
                    cj[i] = size * size * p * x
            for i in range(some):
                stretch = (nu - 2.0 + q[i]) / (nu - 2.0 + m) if nu < np.inf else 1.0
                wi = share * re[cells[i]]
                c[0, i], c[m + 1, i], c[m + 2, i] = size, wi, wi * stretch
            if strong > 0:
                _add_squares(c[:, :strong], gain[k], variance[k, s], centre, cells[:strong], scratch, mean, square)
            if strong < some:
                for j in range(g):
                    variance32[j] = variance[k, s, j]
                _add_squares(
                    c[:, strong:], gain32[k], variance32, centre32, cells[strong:some], scratch32, mean32, square32
                )
    for i in range(n):
        for j in range(g):
            mean[i, j] += mean32[i, j]
            square[i, j] += square32[i, j]


@njit(fastmath={"contract"})
def _add_squares(
    c: Array,
    gain: NDArray[np.floating],
    variance: NDArray[np.floating],
    centre: NDArray[np.floating],
    cells: NDArray[np.int32],
    scratch: NDArray[np.floating],
    mean: NDArray[np.floating],
    square: NDArray[np.floating],
) -> None:
    """As `_add_products`; the last rows of c are the weights of the answers and of the variance."""
    (rows, count), g = c.shape, gain.shape[1]
    C = scratch[: rows * count].reshape(rows, count)
    answers = scratch[rows * count : (rows + g) * count].reshape(count, g)
    for j in range(rows):
        for i in range(count):
            C[j, i] = c[j, i]
    np.dot(C[: rows - 2].T, gain, answers)
    for i in range(count):
        of_cell, squares, answer, w, v = mean[cells[i]], square[cells[i]], answers[i], C[rows - 2, i], C[rows - 1, i]
        for j in range(g):
            of_cell[j] += w * answer[j]
            x = answer[j] - centre[j]
            squares[j] += w * (x * x) + v * variance[j]
