"""D P⁺: least squares first, then least norm; rank-revealing."""

from __future__ import annotations

import numpy as np
import pytest

from unpool.errors import InputError
from unpool.solvers import minimum_norm


def problem(seed=0, cells=20, genes=12, pools=5):
    rng = np.random.default_rng(seed)
    P = (rng.random((genes, pools)) < 0.4) * 1.0
    return rng.gamma(0.5, size=(cells, genes)) @ P, P


def is_minimum_norm(X, D, P):
    """Normal equations of least squares hold, and X has nothing outside the span of the pools."""
    stationary = np.linalg.norm((X @ P - D) @ P.T) <= 1e-10 * np.linalg.norm(D) * np.linalg.norm(P)
    basis = np.linalg.svd(P)[0][:, np.linalg.matrix_rank(P) :]
    return stationary and np.linalg.norm(X @ basis) <= 1e-10 * np.linalg.norm(X)


def duplicated():
    D, P = problem()
    return np.hstack([D, D[:, :2]]), np.hstack([P, P[:, :2]])


def inconsistent():
    D, P = duplicated()
    return D + np.random.default_rng(1).normal(size=D.shape), P


def zero_gene_and_pool():
    D, P = problem()
    P[3], P[:, 1] = 0, 0
    D[:, 1] = 1.0
    return D, P


@pytest.mark.parametrize("make", [problem, duplicated, inconsistent, zero_gene_and_pool])
def test_least_squares_of_least_norm(make):
    D, P = make()
    solution = minimum_norm(D, P)
    assert is_minimum_norm(solution.X, D, P)
    assert np.allclose(solution.X, D @ np.linalg.pinv(P), atol=1e-10)
    assert solution.residual == pytest.approx(np.linalg.norm(solution.X @ P - D), abs=1e-12)
    assert f"{np.linalg.matrix_rank(P)} of {P.shape[1]}" in solution.status
    # twins: another exact fit, and a ridge
    rng = np.random.default_rng(2)
    outside = np.linalg.svd(P)[0][:, np.linalg.matrix_rank(P) :]
    assert not is_minimum_norm(solution.X + rng.normal(size=(len(D), outside.shape[1])) @ outside.T, D, P)
    assert not is_minimum_norm(D @ P.T @ np.linalg.inv(P @ P.T + 1e-3 * np.eye(len(P))), D, P)


def test_rounding_is_not_rank():
    D, P = problem()
    P = np.column_stack([P, P[:, 0] + P[:, 1]]) / 3.0  # the last pool is dependent only up to rounding
    D = np.column_stack([D, D[:, 0] + D[:, 1]]) / 3.0
    solution = minimum_norm(D, P)
    assert "5 of 6" in solution.status
    assert solution.residual <= 1e-13 * np.linalg.norm(D)
    keeps_rounding = D @ np.linalg.pinv(P, rcond=0)
    assert np.linalg.norm(keeps_rounding - solution.X) > 1e-6 * np.linalg.norm(solution.X)


def test_several_designs_are_stacked_in_order():
    parts = [problem(0, 6, 12, 5), problem(1, 9, 12, 3)]
    solution = minimum_norm([d for d, _ in parts], [p for _, p in parts])
    stacked = np.vstack([d @ np.linalg.pinv(p) for d, p in parts])
    assert np.allclose(solution.X, stacked, atol=1e-12)
    assert not np.allclose(solution.X, np.vstack([stacked[6:], stacked[:6]]), atol=1e-3)
    assert "5 of 5, 3 of 3" in solution.status


def test_float32_and_bad_input():
    D, P = problem()
    assert minimum_norm(D.astype(np.float32), P.astype(np.float32)).X.dtype == np.float64
    with pytest.raises(InputError, match="pools"):
        minimum_norm(D, P[:, :-1])
