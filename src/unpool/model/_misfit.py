"""Misfit of pools: how far each is from what the others foretell, and which of them are to blame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unpool.kernels.mixture import sparse_responsibilities
from unpool.model._mixture import Array, Mixture
from unpool.model._posterior import see

__all__ = ["STRANGE_POOL", "foretold_misfit", "strange_pools", "typical_noise"]

STRANGE_POOL = 2.0  # mean squared standardised error from which a pool may be to blame
_STRANGE_CELL = 25.0  # a squared standardised error counts at most so much: a few strange cells do not condemn a pool
_UNLIKE_OTHERS = 2.0  # times the misfit that the other pools keep without it
_FEW_CELLS = 512  # tell whose removal helps most
_TYPICAL = 3.0  # times the noise that is usual among the pools is not taken for a fault


def foretold_misfit(members: Sequence[Mixture], nu: float, D: Array, P: Array, R: Array) -> Array:
    """Mean squared standardised error of each pool, foretold from the others under each cell's most likely component.

    With precision Q = C⁻¹ of the pools and residual r, pool k misses what the others foretell by (Q r)_k / Q_kk, with
    variance 1 / Q_kk.
    """
    seen = see(members, np.ones(1), nu, P, R, n_threads=1)
    [member] = seen.members
    Z = (D - seen.pool_centre) @ seen.T
    r, _ = sparse_responsibilities(Z, member, nu)
    best = np.asarray(r.argmax(axis=1)).ravel()
    square = np.zeros(P.shape[1])
    for k in np.unique(best):
        V = seen.T @ member.rotation[k].T
        away = (Z[best == k] @ member.rotation[k].T - member.shift[k, 0]) @ V.T
        precision = np.square(V).sum(axis=1)
        error = np.divide(np.square(away), precision, out=np.zeros_like(away), where=precision > 0)
        square += np.minimum(error, _STRANGE_CELL).sum(axis=0)
    return square / len(D)


def strange_pools(members: Sequence[Mixture], nu: float, D: Array, P: Array, R: Array) -> NDArray[np.intp]:
    """Pools to blame, the worst first: far from what the others foretell, while without them the others agree.

    A pool that is the same in all cells is to blame. Any other that failed spoils what is foretold of the others: the one
    whose removal helps them most is set aside before they are judged again, at most a third of the pools. Where the others
    go on disagreeing, it is the reference that does not fit, and no pool is named.
    """
    constant = (D.max(axis=0) == D.min(axis=0)) & P.any(axis=0) & (len(D) > 1)
    kept, found = np.flatnonzero(~constant), [*np.flatnonzero(constant)]
    few = D[:: -(-len(D) // _FEW_CELLS)]

    def misfit(cells: Array, pools: NDArray[np.intp]) -> Array:
        return foretold_misfit(members, nu, cells[:, pools], P[:, pools], R[np.ix_(pools, pools)])

    now = misfit(D, kept) if len(kept) else np.zeros(0)
    while len(found) < P.shape[1] // 3 and now.max(initial=0.0) > STRANGE_POOL:
        suspects = kept[now > STRANGE_POOL]
        left = [misfit(few, kept[kept != k]).mean() for k in suspects]
        worst = suspects[int(np.argmin(left))]
        rest = kept[kept != worst]
        after = misfit(D, rest)
        if now[kept == worst][0] < _UNLIKE_OTHERS * np.median(after):
            break
        found.append(worst)
        kept, now = rest, after
    return np.array(found, dtype=np.intp)


def typical_noise(v: Array, signal: Array) -> Array:
    """Noise variances, none above three times what is usual beside the signal: an estimate also explains a dead pool."""
    measured = signal > 0
    usual = np.median(v[measured] / signal[measured]) if measured.any() else 0.0
    return np.minimum(v, _TYPICAL * usual * signal)
