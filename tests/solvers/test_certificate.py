"""The certificate: weak duality for any dual point, the adjoint it rests on, and a value known by hand."""

from __future__ import annotations

import numpy as np

from unpool.solvers import duality_gap
from unpool.solvers._nuclear_problem import normal_form

SIZES = [(7, 4), (5, 3)]  # (cells, pools) of two designs
GENES = 9


def random_problem(rng):
    P = [(rng.random((GENES, m)) < 0.4) * rng.uniform(0.5, 2, (GENES, m)) for _, m in SIZES]
    M = rng.gamma(0.5, size=(sum(n for n, _ in SIZES), 3)) @ rng.gamma(0.5, size=(3, GENES))
    D = [m @ p for m, p in zip(np.split(M, [SIZES[0][0]]), P, strict=True)]
    return M, D, P


def residual(X, D, P):
    parts = np.split(X, [SIZES[0][0]])
    return np.sqrt(sum(np.linalg.norm(x @ p - d) ** 2 for x, d, p in zip(parts, D, P, strict=True)))


def forgets_the_radius(X, D, P, radius, Y, Z):
    return duality_gap(X, D, P, 0.0, Y, Z)


def forgets_the_scale(X, D, P, radius, Y, Z):
    value = np.linalg.norm(X, "nuc")
    lower = sum(np.vdot(y, d) for y, d in zip(Y, D, strict=True))
    lower -= radius * np.sqrt(sum(np.vdot(y, y) for y in Y))
    return (value - lower) / value


def count_violations(gap):
    """How many of 100 random dual points claim a bound above the nuclear norm of a feasible X."""
    violations = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        M, D, P = random_problem(rng)
        X = np.maximum(M + 0.05 * rng.normal(size=M.shape), 0)
        radius = residual(X, D, P) * rng.uniform(1, 3)  # X is feasible
        pull = [(x @ p - d) for x, p, d in zip(np.split(X, [SIZES[0][0]]), P, D, strict=True)]
        # dual points near the good ones, where the bound is tight enough to be wrong if a term is missing
        Y = [d @ np.linalg.pinv(p) @ np.linalg.pinv(p).T - 0.3 * q for d, p, q in zip(D, P, pull, strict=True)]
        Y = [y + 0.1 * rng.normal(size=y.shape) for y in Y]
        Z = 0.1 * rng.exponential(size=X.shape) * (rng.random(X.shape) < 0.2)
        violations += gap(X, D, P, radius, Y, Z) < -1e-12
    return violations


def test_weak_duality_for_random_dual_points():
    assert count_violations(duality_gap) == 0


def test_weak_duality_bites():
    assert count_violations(forgets_the_scale) > 0


def test_the_radius_term_is_needed():
    # one entry, P = 1, D = 2: the optimum within radius 1 is X = 1, and Y = 1 proves it
    X, D, P, Y, Z = [[1.0]], [[2.0]], [[1.0]], [[1.0]], [[0.0]]
    assert duality_gap(X, D, P, 1.0, Y, Z) == 0.0
    assert forgets_the_radius(X, D, P, 1.0, Y, Z) < 0


def test_negative_multipliers_prove_nothing():
    assert duality_gap([[1.0]], [[1.0]], [[1.0]], 0.0, [[1.0]], [[-1.0]]) == float("inf")


def test_no_dual_point_and_no_matrix():
    zero = np.zeros((2, 3))
    D, P = np.ones((2, 1)), np.ones((3, 1))
    assert duality_gap(np.ones((2, 3)), D, P, 0.0, np.zeros((2, 1)), zero) == 1.0
    assert duality_gap(zero, D, P, 9.0, np.zeros((2, 1)), zero) == 0.0


def test_one_design_may_be_a_list_or_an_array():
    rng = np.random.default_rng(1)
    X, P, Z = rng.random((4, 5)), rng.random((5, 2)), np.zeros((4, 5))
    Y = rng.random((4, 2))
    expected = duality_gap(X, X @ P, P, 0.1, Y, Z)
    assert duality_gap(X, [X @ P], [P], 0.1, [Y], Z) == expected
    assert duality_gap(X.tolist(), (X @ P).tolist(), P.tolist(), 0.1, Y.tolist(), Z.tolist()) == expected


def test_adjoint():
    def defect(adjoint, apply):
        return abs(sum(np.vdot(a, y) for a, y in zip(apply(X), Y, strict=True)) - np.vdot(X, adjoint(Y)))

    rng = np.random.default_rng(2)
    M, D, P = random_problem(rng)
    problem = normal_form(D, P, 0.0, 1e-10)
    X = rng.normal(size=M.shape)
    Y = [rng.normal(size=t.shape) for t in problem.T]

    def forward(X):  # X_b Q_b, read off the misfit
        return [r / p + t for r, p, t in zip(problem.misfit(X), problem.p, problem.T, strict=True)]

    assert defect(problem.adjoint, forward) <= 1e-12
    assert defect(lambda Y: np.roll(problem.adjoint(Y), 5, axis=0), forward) > 1e-3  # blocks in the wrong order
    # the same in the pools: A(X) = {X_b P_b}, and the dual point mapped back to them
    pools = problem.pool_dual(Y)
    lifted = np.vstack([y @ p.T for y, p in zip(pools, P, strict=True)])
    assert np.allclose(lifted, problem.adjoint(Y), atol=1e-12)
    wrong = np.vstack([(y * s) @ r.T @ p.T for y, s, r, p in zip(Y, problem.p, problem.R, P, strict=True)])
    assert not np.allclose(wrong, problem.adjoint(Y), atol=1e-3)
