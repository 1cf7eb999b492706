"""duality_gap: how far a nuclear-norm answer can be from the optimum, recomputed from its dual point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from unpool.solvers._input import as_batches

__all__ = ["duality_gap", "lower_bound"]


def duality_gap(
    X: ArrayLike,
    D: ArrayLike | Sequence[ArrayLike],
    P: ArrayLike | Sequence[ArrayLike],
    radius: float,
    Y: ArrayLike | Sequence[ArrayLike],
    Z: ArrayLike,
) -> float:
    """Relative bound on ‖X‖_* minus the least nuclear norm that fits D within `radius`.

    The least value of ‖X‖_* over ‖A(X) - D‖_F <= radius, X >= 0 (A(X) = the blocks X_b P_b) is at least
    (<Y, D> - radius ‖Y‖_F) / ‖A*(Y) + Z‖_2 for every Y and every Z >= 0, where A*(Y) stacks the blocks Y_b P_bᵀ:
    for X in that set, <Y, D> - radius ‖Y‖_F <= <Y, A(X)> <= <A*(Y) + Z, X> <= ‖A*(Y) + Z‖_2 ‖X‖_*.
    The bound holds for the stated radius, whatever the residual of X; judge X by its own residual beside it.

    Parameters
    ----------
    X
        Cells x genes, linear scale; several designs stacked in order.
    D, P
        Cells x pools and genes x pools, or equally long sequences of them, one entry a design.
    radius
        Bound on the Frobenius norm of all residuals together, in the units of D.
    Y
        Cells x pools, or a sequence with one entry a design, as in `Solution.dual`.
    Z
        Cells x genes, nonnegative; all zero when the bound shall hold without X >= 0.

    Returns
    -------
    float
        (‖X‖_* - bound) / ‖X‖_*: 0 when X is optimal, 1 when the dual point proves nothing, infinite when Z has a
        negative entry. It is negative by as much as X beats the bound with a residual larger than the radius.

    Notes
    -----
    Cost: the singular values of two cells x genes matrices.

    Examples
    --------
    >>> import numpy as np
    >>> abs(duality_gap([[1.0, 1.0]], [[2.0]], [[1.0], [1.0]], 0.0, [[1.0]], np.zeros((1, 2)))) < 1e-12
    True
    """
    value = float(np.linalg.norm(np.asarray(X), "nuc"))
    return (value - lower_bound(D, P, radius, Y, Z)) / value if value > 0 else 0.0


def lower_bound(
    D: ArrayLike | Sequence[ArrayLike],
    P: ArrayLike | Sequence[ArrayLike],
    radius: float,
    Y: ArrayLike | Sequence[ArrayLike],
    Z: ArrayLike,
) -> float:
    """What the dual point proves: no X >= 0 within `radius` of D has a smaller nuclear norm. See `duality_gap`."""
    Ds, Ps = as_batches(D, P)
    Ys, _ = as_batches(Y if np.ndim(Y[0]) == 2 else [Y], Ps)  # type: ignore[index]
    if np.any(np.asarray(Z) < 0):
        return -float("inf")
    scale = np.linalg.norm(np.vstack([y @ p.T for y, p in zip(Ys, Ps, strict=True)]) + np.asarray(Z), 2)
    inner = sum(np.vdot(y, d) for y, d in zip(Ys, Ds, strict=True))
    lower = inner - radius * np.sqrt(sum(np.vdot(y, y) for y in Ys))
    return float(max(lower / scale, 0.0)) if scale > 0 else 0.0
