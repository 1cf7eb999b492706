"""Nonnegative least squares for many right-hand sides: block principal pivoting on lanes of rows.

For each row b of B: min ||A x - b||, x >= 0, with A of full column rank. In complementary form the unknowns are the
multipliers w >= 0 of the set Z where x = 0, because Z is smaller than its complement:

    x = x0 + Q w,   x0 = A⁺ b,   Q = (AᵀA)⁻¹,   w_F = 0,   Q_ZZ w_Z = -x0_Z.

A pivot moves every index with x < 0 into Z and every index with w < 0 out of it, until there is none (Kim & Park, SIAM
J. Sci. Comput. 2011; Portugal, Judice & Vicente, Math. Comp. 1994). Rows with a similar |Z| are solved side by side:
the row is the innermost axis of every loop ("lane"), which the compiler turns into vector instructions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg  # noqa: F401  numba's np.dot calls its BLAS: loaded here, so that thread limits set by callers reach it

from unpool.kernels._numba import Floats, Ints, Mask, Singles, njit, norm

__all__ = ["BLOCK", "System", "solve_rows"]

BLOCK = 1024  # rows worked on together; never depends on the number of threads, so neither do the bytes
LANES = 32
TILE = 128  # rows whose guess is worked out within the fastest cache
PATIENCE = 3  # full flips without fewer bad indices, before single ones (Murty's rule, which cannot cycle)
FEASIBLE = 1e-13  # what counts as nonnegative, for unit columns of A and ||b|| = 1


class System(NamedTuple):
    """A with unit columns, and what pivoting needs to know of it."""

    A: Floats  # m x r
    At: Floats  # r x m
    pinv: Floats  # A⁺ᵀ, m x r
    Q: Floats  # (AᵀA)⁻¹, r x r
    padded_Q: Floats  # Q with the identity beside it, 2r x 2r
    N: Singles  # two matrices of ADMM, r x r and m x r; empty when the signs of x0 are guess enough
    C: Singles
    units: Floats  # what each column of A was multiplied by


@njit(fastmath={"contract", "reassoc"})
def solve_rows(B: Floats, start: int, stop: int, system: System, X: Floats, violation: Floats) -> None:
    """Solve rows start..stop of B (n x m), block by block; writes X and each row's KKT violation.

    That is the norm of the projected gradient for unit columns of A and ||b|| = 1; inf if anything is not a number.
    """
    A, At, units = system.A, system.At, system.units
    m, r = A.shape
    n = min(BLOCK, stop - start)
    b, x0, x, fit, gradient = np.empty((n, m)), np.empty((n, r)), np.empty((n, r)), np.empty((n, m)), np.empty((n, r))
    scale, zero = np.empty(n), np.empty((n, r), np.bool_)
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        for i in range(n):
            size = 0.0
            for k in range(m):
                size += B[first + i, k] * B[first + i, k]
            size = np.sqrt(size) if 1e-280 < size < 1e280 else norm(B[first + i])
            scale[i] = size if size > 0 else 1.0
            inverse = 1.0 / scale[i]
            for k in range(m):
                b[i, k] = B[first + i, k] * inverse
        np.dot(b[:n], system.pinv, x0[:n])
        guess_zeros(b[:n], x0[:n], system.N, system.C, zero[:n])
        pivot(x0[:n], system.Q, system.padded_Q, zero[:n], x[:n])
        np.dot(x[:n], At, fit[:n])
        for i in range(n):
            for k in range(m):
                fit[i, k] -= b[i, k]
        np.dot(fit[:n], A, gradient[:n])
        for i in range(n):
            wrong = 0.0  # a sum, not a maximum: it is NaN if any entry is
            for j in range(r):
                slope = 0.0 if x[i, j] == 0 and gradient[i, j] >= 0 else gradient[i, j]
                wrong += slope * slope
                X[first + i, j] = x[i, j] * (scale[i] * units[j])
            violation[first + i] = np.sqrt(wrong) if wrong < np.inf else np.inf


@njit(fastmath={"contract"})
def guess_zeros(b: Floats, x0: Floats, N: Singles, C: Singles, zero: Mask) -> None:
    """Guess Z: where x0 < 0, or better where s < 0 after twelve steps of ADMM, s ← s/2 + |s| N + b C, in float32."""
    n, r = x0.shape
    if N.size == 0:
        for i in range(n):
            for j in range(r):
                zero[i, j] = x0[i, j] < 0
        return
    m = b.shape[1]
    single, c, s = np.empty((TILE, m), np.float32), np.empty((TILE, r), np.float32), np.empty((TILE, r), np.float32)
    absolute, turned, half = np.empty((TILE, r), np.float32), np.empty((TILE, r), np.float32), np.float32(0.5)
    for first in range(0, n, TILE):
        rows = min(TILE, n - first)
        for i in range(rows):
            for k in range(m):
                single[i, k] = b[first + i, k]
        np.dot(single[:rows], C, c[:rows])
        np.dot(single[:rows], C, s[:rows])
        for _ in range(12):
            for i in range(rows):
                for j in range(r):
                    absolute[i, j] = abs(s[i, j])
            np.dot(absolute[:rows], N, turned[:rows])
            for i in range(rows):
                for j in range(r):
                    s[i, j] = half * s[i, j] + turned[i, j] + c[i, j]
        for i in range(rows):
            for j in range(r):
                zero[first + i, j] = s[i, j] < 0


@njit(fastmath={"contract"})
def pivot(x0: Floats, Q: Floats, padded_Q: Floats, zero: Mask, x: Floats) -> None:
    """Block principal pivoting from the guess `zero`; the KKT check catches a row that the cap stops."""
    n, r = x0.shape
    w, shift = np.empty((n, r)), np.empty((n, r))
    size = np.empty(n, np.int64)  # |Z|
    fewest, patience = np.empty(n, np.int64), np.empty(n, np.int64)
    todo, rows, n_todo = np.empty(n, np.int64), np.empty(n, np.int64), n
    K, y, member = np.empty((r, r, LANES)), np.empty((r + 1, LANES)), np.empty((r + 1, LANES), np.int64)

    for i in range(n):
        todo[i], size[i], fewest[i], patience[i] = i, 0, r + 1, PATIENCE
        for j in range(r):
            size[i] += zero[i, j]
    for _ in range(100 + r):
        sort_by_size(todo[:n_todo], size, r, rows)
        for first in range(0, n_todo, LANES):
            lanes = min(LANES, n_todo - first)
            solve_lanes(rows[first : first + lanes], x0, padded_Q, zero, size, K, y, member, w[first : first + lanes])
        np.dot(w[:n_todo], Q, shift[:n_todo])

        n_left = 0
        for t in range(n_todo):
            i = rows[t]
            bad = 0
            for j in range(r):  # without branches: their outcomes are noise, and a wrong guess costs 20 operations
                value = w[t, j] if zero[i, j] else x0[i, j] + shift[t, j]
                w[t, j] = value
                x[i, j] = 0.0 if zero[i, j] else max(value, 0.0)
                bad += not value >= -FEASIBLE
            if bad == 0:
                continue
            if bad < fewest[i]:
                fewest[i], patience[i] = bad, PATIENCE
            else:
                patience[i] -= 1
            todo[n_left] = i
            n_left += 1
            start = 0
            if patience[i] < 0:
                start = r - 1
                while w[t, start] >= -FEASIBLE:
                    start -= 1
            size[i] = 0
            for j in range(r):
                zero[i, j] ^= (j >= start) & (not w[t, j] >= -FEASIBLE)
                size[i] += zero[i, j]
        n_todo = n_left
        if n_todo == 0:
            return


@njit()
def sort_by_size(todo: Ints, size: Ints, r: int, rows: Ints) -> None:
    """Counting sort of the rows `todo` by |Z|: lanes side by side then have equally large systems."""
    place = np.zeros(r + 2, np.int64)
    for i in todo:
        place[size[i] + 1] += 1
    for k in range(r + 1):
        place[k + 1] += place[k]
    for i in todo:
        rows[place[size[i]]] = i
        place[size[i]] += 1


@njit(fastmath={"contract"})
def solve_lanes(
    rows: Ints, x0: Floats, Q: Floats, zero: Mask, size: Ints, K: Floats, y: Floats, member: Ints, w: Floats
) -> None:
    """Solve Q_ZZ w_Z = -x0_Z for some rows at once, each system padded with the identity to the largest of them."""
    lanes, r = w.shape
    order = size[rows[lanes - 1]]
    for l in range(lanes):
        i, k = rows[l], 0
        for j in range(r):
            w[l, j] = 0.0
            member[k, l], y[k, l] = j, -x0[i, j]  # overwritten by the next j unless j is in Z
            k += zero[i, j]
        for p in range(k, order):
            member[p, l] = r + p
            y[p, l] = 0.0
    for p in range(order):
        for q in range(p + 1):
            for l in range(lanes):
                K[p, q, l] = Q[member[p, l], member[q, l]]

    for p in range(order):  # K = L Lᵀ row by row, and L y ← y alongside; the diagonal holds 1 / L_pp
        for q in range(p):
            for k in range(q):
                for l in range(lanes):
                    K[p, q, l] -= K[p, k, l] * K[q, k, l]
            for l in range(lanes):
                K[p, q, l] *= K[q, q, l]
                K[p, p, l] -= K[p, q, l] * K[p, q, l]
                y[p, l] -= K[p, q, l] * y[q, l]
        for l in range(lanes):
            K[p, p, l] = 1.0 / np.sqrt(K[p, p, l])
            y[p, l] *= K[p, p, l]
    for p in range(order - 1, -1, -1):  # Lᵀ y ← y
        for l in range(lanes):
            y[p, l] *= K[p, p, l]
        for q in range(p):
            for l in range(lanes):
                y[q, l] -= K[p, q, l] * y[p, l]

    for l in range(lanes):
        for p in range(size[rows[l]]):
            w[l, member[p, l]] = y[p, l]
