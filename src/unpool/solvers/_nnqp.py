"""Nonnegative quadratic programs, min x'Kx/2 + q'x over x >= 0, by block principal pivoting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError

from unpool.solvers._cholesky import factor, solve
from unpool.solvers._solution import Array

__all__ = ["nnqp"]

ROUNDS = 1000  # two or three are usual, a hundred where K is nearly singular


def nnqp(K: Array, q: Array, passive: NDArray[np.bool_] | None = None) -> Array:
    """Solve min x'Kx/2 + q'x, x >= 0, for positive definite K (size x size) from a guess of the positive entries.

    All wrong entries of the guess are exchanged at once; when their number does not fall for three rounds, only the
    last one (Murty's rule, which cannot cycle).

    Raises LinAlgError when the program is too ill-conditioned for that, for instance because it has no solution.

    Source: Júdice and Pires, Computers & Operations Research 21 (1994). Cost: a Cholesky factor of the positive part
    per round, usually two or three.
    """
    size = len(q)
    free = (q < 0) if passive is None else passive.copy()
    tol = 1e-12 * float(np.max(np.abs(q), initial=0.0))
    best, idle = size + 1, 0
    for _ in range(ROUNDS):
        index = np.flatnonzero(free)
        x = np.zeros(size)
        if index.size:
            x[index] = solve(factor(K[np.ix_(index, index)]), -q[index])
        slope = K[:, index] @ x[index] + q
        bad = np.flatnonzero(np.where(free, x < 0, slope < -tol))
        if bad.size == 0:
            return np.maximum(x, 0.0)
        if bad.size < best:
            best, idle = bad.size, 0
        else:
            idle += 1
        free[bad if idle < 3 else bad[-1:]] ^= True
    raise LinAlgError("the quadratic program was not solved")
