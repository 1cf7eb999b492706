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

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from unpool.kernels._mixture_loops import (
    add_means,
    add_moments,
    limit_below,
    nearest_possible,
    responsibilities_of_tile,
    squared_distances,
)
from unpool.kernels.conditioned import JITTER, Conditioned, condition

__all__ = [
    "DROPPED",
    "JITTER",
    "TILE",
    "WEAK",
    "Conditioned",
    "condition",
    "posterior_moments",
    "sparse_responsibilities",
]

Array = NDArray[np.float64]

# All components dropped from a cell's answer carry together at most this share of its weight.
DROPPED = 5e-8
# Components that carry together at most this share of a cell's weight are worked in float32.
WEAK = 1e-2
# Cells worked at once: what is kept of them, and one component, then stay in the cache.
TILE = 512
_MANY = 50  # components from which a bound pays
_WORTH = 0.7  # share of the components that a bound may leave, to be worth its cost


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
    2 * dropped * d, and the variance by at most 4 * dropped * d². Weak components in float32 move the sd by about 1e-6 of its
    largest value, the mean by 1e-9.
    """
    n, g = len(D), members[0].gain.shape[2]
    centre = np.zeros(g) if centre is None else centre
    mean = np.zeros((n, g))
    square = np.zeros((n, g) if second else (0, g))
    distance = np.zeros(n)
    for b, (member, share) in enumerate(zip(members, member_weights, strict=True)):
        bounded = True  # a bound that skips little is given up
        for tile, D_tile, r in _tiles(D, member):
            looked, weight, _, far = _survivors(D_tile, member, nu, dropped, r, bounded)
            bounded = bounded and looked < _WORTH * weight.size
            distance[tile] += share * far
            if responsibilities is not None:
                dense = _by_cell(r, member).reshape(len(far), *member.log_weights.shape)
                out = responsibilities[b]
                out[tile] = dense if out.ndim == 3 else dense.sum(axis=2)
            weak = limit_below(r if second else weight, WEAK) if dropped > 0 else np.zeros(len(far))
            what = (D_tile, r, weight, weak, share, member.looks, member.first, member.sizes, member.rotation, member.shift,
                    member.precision, member.gain, member.gain32)  # fmt: skip
            if second:
                add_moments(*what, member.variance, centre, nu, mean[tile], square[tile])
            else:
                add_means(*what, mean[tile])
    return mean, np.maximum(square - np.square(mean - centre), 0.0) if second else None, distance


def sparse_responsibilities(
    D: Array, member: Conditioned, nu: float, *, dropped: float = DROPPED
) -> tuple[sparse.csr_matrix, Array]:
    """Responsibilities, cells x (components * sizes), and log density of each cell up to a constant that members share."""
    parts, evidence = [], np.empty(len(D))
    for tile, D_tile, r in _tiles(D, member):
        _, _, evidence[tile], _ = _survivors(D_tile, member, nu, dropped, r)
        parts.append(sparse.csr_matrix(_by_cell(r, member)))
    return sparse.vstack(parts, format="csr"), evidence


def _tiles(D: Array, member: Conditioned) -> Iterator[tuple[slice, Array, Array]]:
    """Rows of each tile of cells, its pools (pools x cells), and room for its responsibilities."""
    table = np.empty(len(member.looks) * min(len(D), TILE))
    for start in range(0, len(D), TILE):
        D_tile = np.ascontiguousarray(D[start : start + TILE].T)
        n = D_tile.shape[1]
        yield slice(start, start + n), D_tile, table[: len(member.looks) * n].reshape(-1, n)


def _by_cell(r: Array, member: Conditioned) -> Array:
    """Responsibilities (looks x cells) as cells x (components * sizes)."""
    dense = np.zeros((r.shape[1], member.log_weights.size))
    dense[:, np.ravel_multi_index(tuple(member.looks.T), member.log_weights.shape)] = r.T
    return dense


def _survivors(
    D_tile: Array, member: Conditioned, nu: float, dropped: float, r: Array, bounded: bool = True
) -> tuple[int, Array, Array, Array]:
    """Responsibilities of one tile (pools x cells), written into r; see `responsibilities_of_tile`."""
    K, m = len(member.log_weights), len(D_tile)
    p = member.bound.shape[1] - 1
    nearest = np.empty((0, D_tile.shape[1]))
    if bounded and dropped > 0 and K >= _MANY and 0 < p < m:
        augmented = np.concatenate([np.ones((1, D_tile.shape[1])), D_tile[:p]])
        q = squared_distances(member.bound, augmented, len(member.looks))
        nearest = nearest_possible(q, member.looks, member.log_weights, nu, m)
    answer: tuple[int, Array, Array, Array] = responsibilities_of_tile(
        D_tile,
        nearest,
        member.log_weights,
        member.looks,
        member.first,
        member.rotation,
        member.shift,
        member.precision,
        nu,
        dropped,
        r,
    )
    return answer
