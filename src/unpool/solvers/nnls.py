"""Nonnegative least squares: every row of B against the same A, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from unpool.errors import InputError, UnpoolError
from unpool.kernels import lawson_hanson
from unpool.kernels import nnls as pivoting
from unpool.kernels.blocks import one_blas_thread
from unpool.solvers._input import as_matrix
from unpool.solvers._solution import Array

__all__ = ["nnls", "nnls_rows"]

KKT = 1e-9  # the largest violation that is returned
RETRY = 1e-10  # the largest that is not worked on again
CONDITION = 1e5  # up to here (AᵀA)⁻¹ is accurate enough
SIGNS = 12  # up to this many unknowns the signs of the unconstrained solution are guess enough of the active set
TASK = 8 * pivoting.BLOCK  # rows that a thread takes at a time


def nnls(A: Any, B: Any) -> Array:
    """Nonnegative least squares, min ‖A x - b‖ subject to x >= 0, for every row b of B.

    Parameters
    ----------
    A
        m x r, any real matrix: ill-conditioned, rank-deficient, with m < r or with zero columns (their x is 0) too.
    B
        n x m, one right-hand side a row; n may be 0.

    Returns
    -------
    numpy.ndarray
        n x r, float64, one solution a row, in units of B over units of A. Where several minimise (rank-deficient A,
        m < r) it is one of them.

    Raises
    ------
    InputError
        A or B is not a finite matrix, or their shapes do not match.
    UnpoolError
        The optimality of some row could not be reached in double precision.

    Notes
    -----
    Every row's optimality (KKT) is checked. With columns of A and b scaled to length 1, the gradient g = Aᵀ(A x - b),
    taken only where x > 0 or g < 0, has a norm of at most 1e-9.

    Block pivoting in complementary form (Kim & Park, 2011) does nearly all rows: 4 r m operations each, 24 r² for a
    guess of the zeros when r > 12, and about two Cholesky factorisations of the order of their number. Where A, its
    columns scaled, has a condition number above 1e5, and for rows that fail the check, Lawson & Hanson's method (1974)
    on orthogonal factorisations takes over, 30 to 60 times slower. There the gradient is relative to 1 + Σ x instead of
    1: when the columns of A cancel, so that a solution is huge, its own rounding is seen in the gradient.

    Blocks of 1,024 rows go to as many threads as NUMBA_NUM_THREADS allows (all cores, if that is not set); the bytes of
    the result are the same for any number.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> nnls(A, [[1.0, 3.0, 2.0], [2.0, 1.0, -1.0]])
    array([[1. , 2. ],
           [1.5, 0. ]])
    """
    A = as_matrix(A, "A")
    B = as_matrix(B, "B", empty=True)
    if B.shape[1] != A.shape[0]:
        raise InputError(
            f"B has {B.shape[1]} columns but A has {A.shape[0]} rows: each row of B is a right-hand side, with an "
            f"entry for each row of A; got A {A.shape} and B {B.shape}"
        )
    with one_blas_thread():
        X, violation = nnls_rows(A, B, numba.config.NUMBA_NUM_THREADS)
    if violation.size and violation.max() > KKT:
        i = int(violation.argmax())
        raise UnpoolError(
            f"row {i} of B: optimality is violated by {violation[i]:.1e} (relative), allowed are {KKT:.0e}; A is too "
            "close to singular for double precision: drop columns of A that others nearly reproduce"
        )
    return X


def nnls_rows(A: Array, B: Array, threads: int = 1) -> tuple[Array, Array]:
    """X and each row's KKT violation, for input already checked; the caller limits BLAS to one thread."""
    X, violation = np.zeros((len(B), A.shape[1])), np.zeros(len(B))
    size = np.abs(A).max(axis=0)
    kept = size > 0
    if len(B) == 0 or not kept.any():
        return X, violation
    if not kept.all():  # a column of zeros leaves its x at 0
        X[:, kept], violation = nnls_rows(np.ascontiguousarray(A[:, kept]), B, threads)
        return X, violation
    lengths = np.linalg.norm(A / size, axis=0)
    unit = A / size / lengths
    units = 1 / (size * lengths)

    left = np.arange(len(B))
    U, s, Vt = np.linalg.svd(unit, full_matrices=False)
    if unit.shape[0] >= unit.shape[1] and s[0] <= CONDITION * s[-1]:
        system = _system(unit, U, s, Vt, units)

        def pivot(start: int) -> None:
            pivoting.solve_rows(B, start, min(start + TASK, len(B)), system, X, violation)

        _share(pivot, range(0, len(B), TASK), threads)
        left = np.flatnonzero(violation > RETRY)

    unit_rows = np.ascontiguousarray(unit.T)

    def carefully(rows: Any) -> None:
        lawson_hanson.solve_rows(B, rows, unit_rows, units, X, violation)

    _share(carefully, np.array_split(left, -(-len(left) // pivoting.BLOCK)) if len(left) else (), threads)
    return X, violation


def _system(A: Array, U: Array, s: Array, Vt: Array, units: Array) -> pivoting.System:
    """What block pivoting needs of A = U diag(s) Vᵀ."""
    r = len(s)
    padded_Q = np.eye(2 * r)
    padded_Q[:r, :r] = Q = (Vt.T / s**2) @ Vt
    N, C = np.empty((0, 0)), np.empty((0, 0))
    if r > SIGNS:
        rho = np.exp(np.quantile(np.log(s**2), 0.3))  # a penalty among the smaller eigenvalues converges fastest
        N = (Vt.T * (rho / (s**2 + rho))) @ Vt - np.eye(r) / 2
        C = (U * (s / (s**2 + rho))) @ Vt
    pinv, At = (np.ascontiguousarray(matrix) for matrix in ((U / s) @ Vt, A.T))
    return pivoting.System(A, At, pinv, Q, padded_Q, N.astype(np.float32), C.astype(np.float32), units)


def _share(work: Callable[[Any], None], tasks: Iterable[Any], threads: int) -> None:
    """Do the tasks, in threads when there is more than one of each; each writes its own rows, so the order is free."""
    tasks = list(tasks)
    if threads == 1 or len(tasks) <= 1:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        list(pool.map(work, tasks))  # raises what a task raised
