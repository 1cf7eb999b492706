"""Nonnegative lasso for many right-hand sides: the exact path of each, followed until a penalty or a residual is reached.

    min ½ ‖y - A w‖² + λ Σ w,  w >= 0

is piecewise linear in λ: on a fixed support S, w_S = a - λ b with a = G_SS⁻¹ c_S, b = G_SS⁻¹ 1, G = AᵀA and c = Aᵀy. As
λ falls from max c, atoms enter where their correlation reaches λ and leave where their weight reaches zero (Osborne,
Presnell and Turlach 2000; Efron et al. 2004). On each piece ‖y - A w‖² = ‖y‖² - c_S·a + λ² Σ b, so that the largest λ
whose residual is small enough is found in closed form.
"""

from __future__ import annotations

import numpy as np

from unpool.kernels._numba import Floats, Ints, njit

__all__ = ["nonnegative_lasso"]


def nonnegative_lasso(
    G: Floats, C: Floats, squares: Floats, *, penalty: float = 0.0, error: float | Floats = 0.0, max_active: int = 0
) -> tuple[Floats, Floats]:
    """Nonnegative lasso of each row, stopped at whichever comes first: the penalty, the error, or the support's size.

    Parameters
    ----------
    G
        AᵀA, atoms x atoms.
    C
        Rows x atoms: Aᵀy of each right-hand side.
    squares
        ‖y‖² of each row.
    penalty
        Smallest λ, >= 0, in units of C. At 0 the path ends at nonnegative least squares, to about 1e-8 of ‖y‖ in the residual.
    error
        ‖y - A w‖² at which a row stops, one number or one per row: the w of least Σ w with at most this error, if there
        is one above the penalty.
    max_active
        Largest number of atoms in use; 0: no limit.

    Returns
    -------
    weights, penalties
        Rows x atoms, >= 0; and the λ at which each row stopped. Cost per row: about (steps) x (atoms x support + support³ / 3)
        with as many steps as atoms in use, seldom more.

    Examples
    --------
    >>> import numpy as np
    >>> w, _ = nonnegative_lasso(np.eye(2), np.array([[3.0, 1.0]]), np.array([10.0]), penalty=2.0)
    >>> w.tolist()
    [[1.0, 0.0]]
    """
    G, C = np.ascontiguousarray(G, dtype=np.float64), np.ascontiguousarray(C, dtype=np.float64)
    errors = np.broadcast_to(np.asarray(error, dtype=np.float64), len(C)).copy()
    W, penalties = np.zeros_like(C), np.empty(len(C))
    limit = max_active if max_active > 0 else C.shape[1]
    _paths(G, C, np.ascontiguousarray(squares, dtype=np.float64), float(penalty), errors, limit, W, penalties)
    return W, penalties


@njit()
def _paths(
    G: Floats, C: Floats, squares: Floats, penalty: float, errors: Floats, limit: int, W: Floats, penalties: Floats
) -> None:
    k = len(G)
    L = np.empty((k, k))  # lower Cholesky factor of G on the support, in the order of entry
    a, b = np.empty(k), np.empty(k)
    support = np.empty(k, dtype=np.int64)
    state = np.empty(k, dtype=np.int64)  # 0 outside, 1 in the support, 2 in the span of the support, 3 has just left
    for row in range(len(C)):
        c, w = C[row], W[row]
        entering = int(np.argmax(c))
        lam = c[entering]
        lowest = max(penalty, 1e-10 * lam)
        state[:] = 0
        n = 0
        penalties[row] = max(lam, penalty)
        if lam <= lowest or squares[row] <= errors[row]:
            continue
        for step in range(8 * k + 8):  # a path that cycles between ties ends here, at a solution for its present λ
            if entering >= 0:
                if not _append(L, G, support, n, entering):
                    state[entering] = 2
                else:
                    support[n] = entering
                    state[entering] = 1
                    n += 1
            _solve(L, c, support, n, a, b)
            fitted, slope = 0.0, 0.0
            for s in range(n):
                fitted += c[support[s]] * a[s]
                slope += b[s]
            # the next event below lam, or the end of the path
            following, entering, leaving = lowest, -1, -1
            for s in range(n):
                if b[s] < 0 and a[s] > lam * b[s] * (1 + 1e-12) and a[s] / b[s] > following:
                    following, leaving = min(a[s] / b[s], lam), s
            for j in range(k):
                if state[j] == 0:
                    rest, rate = c[j], 1.0
                    for s in range(n):
                        g = G[j, support[s]]
                        rest -= g * a[s]
                        rate -= g * b[s]
                    if rate > 1e-12 and rest / rate > following:
                        following, entering, leaving = min(rest / rate, lam), j, -1
            stop = entering < 0 and leaving < 0
            missing = errors[row] - (squares[row] - fitted)
            if slope > 0 and missing > slope * following * following:
                following, stop = min(lam, np.sqrt(missing / slope)), True
            lam = following
            if stop or step == 8 * k + 7 or (entering >= 0 and n == limit):
                break
            for j in range(k):
                if state[j] >= 2 and (leaving >= 0 or state[j] == 3):
                    state[j] = 0
            if leaving >= 0:
                state[support[leaving]] = 3
                _remove(L, G, support, n, leaving)
                n -= 1
        for s in range(n):
            w[support[s]] = max(a[s] - lam * b[s], 0.0)
        penalties[row] = lam


@njit()
def _append(L: Floats, G: Floats, support: Ints, n: int, j: int) -> bool:
    """Extend the Cholesky factor by atom j; False where the atom lies in the span of the support."""
    pivot = G[j, j]
    for s in range(n):
        value = G[j, support[s]]
        for t in range(s):
            value -= L[n, t] * L[s, t]
        L[n, s] = value / L[s, s]
        pivot -= L[n, s] * L[n, s]
    if pivot <= 1e-10 * G[j, j]:
        return False
    L[n, n] = np.sqrt(pivot)
    return True


@njit()
def _remove(L: Floats, G: Floats, support: Ints, n: int, position: int) -> None:
    """Drop an atom from the support and factor the ones after it anew."""
    for s in range(position, n - 1):
        support[s] = support[s + 1]
    for s in range(position, n - 1):
        if not _append(L, G, support, s, support[s]):
            L[s, s] = np.sqrt(1e-10 * G[support[s], support[s]])


@njit()
def _solve(L: Floats, c: Floats, support: Ints, n: int, a: Floats, b: Floats) -> None:
    """Solve for a = G_SS⁻¹ c_S and b = G_SS⁻¹ 1."""
    for s in range(n):
        x, y = c[support[s]], 1.0
        for t in range(s):
            x -= L[s, t] * a[t]
            y -= L[s, t] * b[t]
        a[s], b[s] = x / L[s, s], y / L[s, s]
    for s in range(n - 1, -1, -1):
        x, y = a[s], b[s]
        for t in range(s + 1, n):
            x -= L[t, s] * a[t]
            y -= L[t, s] * b[t]
        a[s], b[s] = x / L[s, s], y / L[s, s]
