"""minimum_norm: the cells x genes matrix of least norm that fits the pools, D P⁺."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from unpool.solvers._input import as_batches
from unpool.solvers._solution import Solution

__all__ = ["minimum_norm"]


def minimum_norm(D: ArrayLike | Sequence[ArrayLike], P: ArrayLike | Sequence[ArrayLike]) -> Solution:
    """Least-squares fit of D = X P with the least norm, X = D P⁺.

    Of all X that fit D best, D P⁺ has both the least Frobenius and the least nuclear norm. It lives in the span of
    the pools and may be negative. Singular values of P at most max(genes, pools) x 2.2e-16 of the largest, which
    rounding alone produces, count as zero.

    Parameters
    ----------
    D, P
        Cells x pools and genes x pools, linear scale; or equally long sequences of them, one entry a design.

    Returns
    -------
    Solution
        `.X` cells x genes, designs stacked in order; `.objective` is ‖X‖_F, `.residual` ‖X P - D‖_F in the units of
        D; the status gives the rank of each design.

    Notes
    -----
    Cost: genes x pools² for each design and cells x genes x pools.
    When it fails: two pools that are nearly the same amplify noise; use `nuclear_norm` with `noise_var`.

    Examples
    --------
    >>> minimum_norm([[2.0]], [[1.0], [1.0]]).X
    array([[1., 1.]])
    """
    Ds, Ps = as_batches(D, P)
    parts, ranks = [], []
    for d, weights in zip(Ds, Ps, strict=True):
        left, s, right = np.linalg.svd(weights, full_matrices=False)
        k = int(np.sum(s > max(weights.shape) * np.finfo(float).eps * s.max(initial=0.0)))
        parts.append(((d @ right[:k].T) / s[:k]) @ left[:, :k].T)
        ranks.append(k)
    residual = np.sqrt(sum(np.linalg.norm(x @ w - d) ** 2 for x, w, d in zip(parts, Ps, Ds, strict=True)))
    X = np.vstack(parts)
    shown = ", ".join(f"{k} of {w.shape[1]}" for k, w in zip(ranks, Ps, strict=True))
    return Solution(
        dense=X,
        objective=float(np.linalg.norm(X)),
        residual=float(residual),
        status=f"solved in closed form; independent pools: {shown}",
    )
