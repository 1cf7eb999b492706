"""The nonnegative lasso path against its optimality conditions, scikit-learn and scipy."""

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso

from unpool.kernels.lasso import nonnegative_lasso


def problem(m, k, seed=0, n=60, kind="gamma"):
    """Atoms (continuous, or 0/1 with ties and duplicates) and noisy sparse combinations of them."""
    rng = np.random.default_rng(seed)
    A = rng.gamma(1.0, 1.0, (m, k)) if kind == "gamma" else (rng.random((m, k)) < 0.4).astype(float)
    W = rng.gamma(1.0, 1.0, (n, k)) * (rng.random((n, k)) < 0.2)
    return A, W @ A.T + 0.1 * rng.standard_normal((n, m))


def solve(A, Y, **options):
    return nonnegative_lasso(A.T @ A, Y @ A, np.square(Y).sum(axis=1), **options)


def violation(A, Y, W, penalties):
    """Largest breach of the KKT conditions, relative to the largest correlation."""
    slack = penalties[:, None] - (Y - W @ A.T) @ A  # >= 0, and 0 where the weight is positive
    active = np.abs(np.where(W > 0, slack, 0.0)).max()
    return max(-slack.min(), active, -W.min()) / np.abs(Y @ A).max()


def objective(A, Y, W, penalty):
    return 0.5 * np.square(Y - W @ A.T).sum(axis=1) + penalty * W.sum(axis=1)


SIZES = [(8, 20), (25, 68), (10, 5), (12, 12)]


@pytest.mark.parametrize("kind", ["gamma", "binary"])
@pytest.mark.parametrize(("m", "k"), SIZES)
@pytest.mark.parametrize("penalty", [2.0, 0.1, 1e-3])
def test_optimal_at_the_penalty(m, k, kind, penalty):
    A, Y = problem(m, k, kind=kind)
    W, reached = solve(A, Y, penalty=penalty)
    assert np.all(reached >= penalty)
    at_penalty = (Y @ A).max(axis=1) > penalty
    np.testing.assert_allclose(reached[at_penalty], penalty)
    assert violation(A, Y, W, reached) < 1e-12
    # the twins: a path stopped elsewhere, weights without the penalty's pull, one atom dropped
    assert violation(A, Y, W, reached * 1.01) > 1e-9
    assert violation(A, Y, solve(A, Y, penalty=2 * penalty)[0], reached) > 1e-9
    dropped = W.copy()
    dropped[np.arange(len(W)), W.argmax(axis=1)] = 0.0
    assert violation(A, Y, dropped, reached) > 1e-4


@pytest.mark.parametrize(("m", "k"), SIZES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_same_objective_as_scikit_learn(m, k):
    A, Y = problem(m, k, seed=1, n=20)
    penalty = 0.5
    peer = Lasso(alpha=penalty / m, positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(A, Y.T).coef_
    ours, theirs = objective(A, Y, solve(A, Y, penalty=penalty)[0], penalty), objective(A, Y, peer, penalty)
    assert np.all(ours <= theirs + 1e-9)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    signed = Lasso(alpha=penalty / m, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(A, Y.T).coef_
    twin = 0.5 * np.square(Y - signed @ A.T).sum(axis=1) + penalty * np.abs(signed).sum(axis=1)
    assert not np.allclose(ours, twin, rtol=1e-5)  # without the sign constraint


@pytest.mark.parametrize("kind", ["gamma", "binary"])
@pytest.mark.parametrize(("m", "k"), SIZES)
def test_without_penalty_it_is_nonnegative_least_squares(m, k, kind):
    A, Y = problem(m, k, seed=2, n=30, kind=kind)
    best = np.array([nnls(A, y)[1] for y in Y])

    def is_best(W):
        return np.allclose(np.linalg.norm(Y - W @ A.T, axis=1), best, atol=1e-7 * np.linalg.norm(Y, axis=1).max())

    assert is_best(solve(A, Y)[0])
    assert not is_best(solve(A, Y, penalty=1.0)[0])


def test_least_sum_at_a_given_error():
    A, Y = problem(8, 20)
    error = 0.05 * np.square(Y).sum(axis=1)
    W, reached = solve(A, Y, error=error)
    got = np.square(Y - W @ A.T).sum(axis=1)
    assert np.all(got <= error * (1 + 1e-9))
    np.testing.assert_allclose(got, error, rtol=1e-9)  # the constraint is active
    assert violation(A, Y, W, reached) < 1e-12  # optimal for its own penalty, hence of least sum at its own error
    twin = solve(A, Y, error=0.5 * error)[0]
    assert np.all(twin.sum(axis=1) > W.sum(axis=1))
    assert not np.allclose(np.square(Y - twin @ A.T).sum(axis=1), error, rtol=1e-9)


def test_an_error_out_of_reach_gives_the_least_error():
    A, Y = problem(30, 4, seed=3, n=10)
    Y = Y + np.random.default_rng(0).normal(0, 3, Y.shape)
    W, _ = solve(A, Y, error=1e-3)
    np.testing.assert_allclose(np.linalg.norm(Y - W @ A.T, axis=1), [nnls(A, y)[1] for y in Y], atol=1e-6)


def test_support_is_limited():
    A, Y = problem(8, 20)
    assert (solve(A, Y, max_active=2)[0] > 0).sum(axis=1).max() == 2
    assert (solve(A, Y)[0] > 0).sum(axis=1).max() > 2


def test_degenerate_input():
    A, Y = problem(8, 6, n=5)
    A = np.column_stack([A, A, np.zeros(8)])  # every atom twice, and an empty one
    Y = np.vstack([Y, np.zeros(8), -np.ones(8)])
    W, reached = solve(A, Y, penalty=0.01)
    assert np.isfinite(W).all()
    assert not W[-2:].any()
    assert violation(A, Y, W, np.maximum(reached, 0.01)) < 1e-12
    scaled = solve(A, 1e-6 * Y, penalty=1e-8)[0]
    np.testing.assert_allclose(scaled @ A.T, 1e-6 * (W @ A.T), atol=1e-12)
