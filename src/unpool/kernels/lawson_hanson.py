"""Nonnegative least squares with care: a row at a time, an index at a time, by orthogonal factorisations of A itself.

For what block pivoting on (AᵀA)⁻¹ cannot do: A ill-conditioned, rank-deficient or with more columns than rows. The
active-set method of Lawson & Hanson (Solving Least Squares Problems, 1974, ch. 23): let the index with the steepest
gradient enter F, solve on F, and step back to the boundary whenever that solution is not positive.
"""

from __future__ import annotations

import numpy as np

from unpool.kernels._numba import Floats, Ints, njit, norm

__all__ = ["solve_rows"]

ENTER = 1e-12  # gradients below this, for unit columns and ||b|| = 1, are zero; also the least angle of a column to F


@njit()
def solve_rows(B: Floats, rows: Ints, At: Floats, units: Floats, X: Floats, violation: Floats) -> None:
    """Solve the given rows of B (n x m) for At = Aᵀ (r x m, unit rows); writes their KKT violations and X.

    X[:, j] is times `units[j]`, what row j of At was multiplied by.

    A violation is relative to ||b|| + Σ x_j, the size of what cancels in A x - b: rounding x alone changes the gradient
    by 1e-16 of that.
    """
    r, m = At.shape
    basis, R, c = np.empty((min(m, r), m)), np.empty((r, r)), np.empty(r)
    F, z, refused = np.empty(r, np.int64), np.empty(r), np.empty(r, np.bool_)
    b, residual, gradient, x = np.empty(m), np.empty(m), np.empty(r), np.empty(r)
    for i in rows:
        size = norm(B[i])
        size = size if size > 0 else 1.0
        for k in range(m):
            b[k] = B[i, k] / size
        for j in range(r):
            x[j], refused[j] = 0.0, False
        k = int(np.int64(0))  # |F|; a plain 0 makes numba compile `append` for this one value as well
        for _ in range(100 + 10 * r):
            descend(At, b, x, residual, gradient)
            entering = -1
            for j in range(r):
                free = x[j] == 0 and not refused[j] and gradient[j] > ENTER
                if free and (entering < 0 or gradient[j] > gradient[entering]):
                    entering = j
            if entering < 0:
                break
            if k == min(m, r) or not append(At[entering], b, basis, R, c, k):
                refused[entering] = True
                continue
            F[k] = entering
            k += 1
            least_squares(R, c, k, z)
            if z[k - 1] <= 0:  # its gradient was rounding: leave it out until x moves
                k -= 1
                refused[entering] = True
                continue
            for j in range(r):
                refused[j] = False
            k = walk(At, b, basis, R, c, F, k, x, z)
        descend(At, b, x, residual, gradient)
        worst, cancels = 0.0, 1.0
        for j in range(r):
            wrong = abs(gradient[j]) if x[j] > 0 else gradient[j]
            worst = max(worst, wrong)
            cancels += x[j]
            X[i, j] = x[j] * (size * units[j])
        violation[i] = worst / cancels


@njit(fastmath={"contract", "reassoc"})
def descend(At: Floats, b: Floats, x: Floats, residual: Floats, gradient: Floats) -> None:
    """The residual b - A x, and Aᵀ times it: the directions of descent."""
    r, m = At.shape
    for k in range(m):
        residual[k] = b[k]
    for j in range(r):
        if x[j] > 0:
            for k in range(m):
                residual[k] -= At[j, k] * x[j]
    for j in range(r):
        gradient[j] = 0.0
        for k in range(m):
            gradient[j] += At[j, k] * residual[k]


@njit(fastmath={"contract", "reassoc"})
def append(column: Floats, b: Floats, basis: Floats, R: Floats, c: Floats, k: int) -> bool:
    """Add a column to A_F = basisᵀ R (Gram-Schmidt done twice) and c = basis b; False if it is in the others' span."""
    m = len(column)
    for i in range(m):
        basis[k, i] = column[i]
    for p in range(k):
        R[p, k] = 0.0
    for _ in range(2):
        for p in range(k):
            overlap = 0.0
            for i in range(m):
                overlap += basis[p, i] * basis[k, i]
            for i in range(m):
                basis[k, i] -= overlap * basis[p, i]
            R[p, k] += overlap
    length = 0.0
    for i in range(m):
        length += basis[k, i] * basis[k, i]
    R[k, k] = np.sqrt(length)
    if R[k, k] < ENTER:
        return False
    c[k] = 0.0
    for i in range(m):
        basis[k, i] /= R[k, k]
        c[k] += basis[k, i] * b[i]
    return True


@njit()
def least_squares(R: Floats, c: Floats, k: int, z: Floats) -> None:
    """Back substitution z = R⁻¹ c: the minimiser of ||A_F z - b||."""
    for p in range(k - 1, -1, -1):
        z[p] = c[p]
        for q in range(p + 1, k):
            z[p] -= R[p, q] * z[q]
        z[p] /= R[p, p]


@njit()
def walk(At: Floats, b: Floats, basis: Floats, R: Floats, c: Floats, F: Ints, k: int, x: Floats, z: Floats) -> int:
    """Go from x towards z, dropping from F what reaches zero on the way, until z itself is positive; returns |F|."""
    while True:
        step = 1.0
        for p in range(k):
            if z[p] <= 0:
                step = min(step, x[F[p]] / (x[F[p]] - z[p]))
        if step == 1.0:
            for p in range(k):
                x[F[p]] = max(z[p], 0.0)
            return k
        kept, same = 0, k  # the first `same` columns stay where they are, and so does their factorisation
        for p in range(k):
            j = F[p]
            stops = z[p] <= 0 and x[j] / (x[j] - z[p]) <= step
            x[j] = 0.0 if stops else x[j] + step * (z[p] - x[j])
            if x[j] > 0:
                F[kept] = j
                kept += 1
            else:
                x[j] = 0.0
                same = min(same, p)
        k = same
        for p in range(same, kept):
            if append(At[F[p]], b, basis, R, c, k):
                F[k] = F[p]
                k += 1
            else:
                x[F[p]] = 0.0
        if k == 0:
            return 0
        least_squares(R, c, k, z)
