"""Cholesky factor and solve for the many small systems of the nuclear-norm solver, without scipy's checks of each call."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dpotrf, dpotrs

from unpool.solvers._solution import Array

__all__ = ["factor", "solve"]


def factor(S: Array) -> Array:
    """Lower triangle L of S = L Lᵀ, from the upper triangle of S, which is overwritten; above it L holds rubbish."""
    if S.size == 0:
        return S
    L, info = dpotrf(S.T, lower=1, clean=0, overwrite_a=1)
    if info != 0:
        raise LinAlgError("the matrix is not positive definite")
    return np.asarray(L)


def solve(L: Array, b: Array) -> Array:
    """S⁻¹ b from the factor of S."""
    if b.size == 0:
        return b
    return np.asarray(dpotrs(L, b, lower=1)[0])
