"""Alternating least squares: each step against an independent truth, a trace that never rises, an honest status."""

from __future__ import annotations

import sys

import numba
import numpy as np
import pytest
from scipy.optimize import nnls as scipy_nnls

from unpool.errors import InputError
from unpool.kernels.factor import descend, pivot
from unpool.solvers import als, nnls

module = sys.modules["unpool.solvers.als"]


def problem(cells=(40, 30), genes=20, pools=(6, 8), rank=3, noise=0.0, seed=0):
    """Measurements with several designs: D, P, and the factors behind them."""
    rng = np.random.default_rng(seed)
    V = rng.gamma(0.5, size=(genes, rank))
    U = [rng.gamma(0.5, size=(n, rank)) for n in cells]
    P = [(rng.random((genes, m)) < 0.4).astype(float) for m in pools]
    D = [u @ V.T @ p for u, p in zip(U, P, strict=True)]
    return [d + noise * d.std() * rng.standard_normal(d.shape) for d in D], P, np.vstack(U), V


def notebook(seed=0):
    rng = np.random.default_rng(seed)
    M = rng.normal(10, 2, (500, 10)) @ rng.normal(15, 3, (100, 10)).T
    P = (rng.random((100, 25)) < 0.25).astype(float)
    return M @ P, P, (rng.normal(10, 1, (500, 10)), rng.normal(10, 1, (100, 10)))


def objective(D, P, U, V, ridge=0.0):
    stacked, row = 0.0, 0
    for d, p in zip(D, P, strict=True):
        stacked += np.sum((U[row : row + len(d)] @ V.T @ p - d) ** 2)
        row += len(d)
    return stacked + ridge * (np.sum(U**2) + np.sum(V**2))


def best_V(D, P, U, ridge, nonneg=True):
    """The V-step as one large least-squares problem: vec(U Vᵀ P) = (U ⊗ Pᵀ) vec(Vᵀ)."""
    genes, rank = len(P[0]), U.shape[1]
    rows = np.split(U, np.cumsum([len(d) for d in D])[:-1])
    A = np.vstack([np.kron(u, p.T) for u, p in zip(rows, P, strict=True)] + [np.sqrt(ridge) * np.eye(genes * rank)])
    b = np.concatenate([d.ravel() for d in D] + [np.zeros(genes * rank)])
    x = scipy_nnls(A, b, maxiter=10_000)[0] if nonneg else np.linalg.lstsq(A, b, rcond=None)[0]
    return x.reshape(rank, genes).T


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("designs", [1, 2])
def test_one_iteration_is_one_exact_step_each(designs, ridge):
    D, P, _, _ = problem(noise=0.2)
    D, P = D[:designs], P[:designs]
    rng = np.random.default_rng(1)
    V0 = rng.gamma(1.0, size=(20, 3))
    start = rng.random((sum(map(len, D)), 3)), V0
    found = als(D, P, 3, init=start, max_iter=1, ridge=ridge)
    extra = np.sqrt(ridge) * np.eye(3)
    for d, p, u in zip(D, P, np.split(found.U, [len(D[0])]), strict=False):
        exact = nnls(np.vstack([p.T @ V0, extra]), np.hstack([d, np.zeros((len(d), 3))]))
        np.testing.assert_allclose(u, exact, atol=1e-10)
    reached = objective(D, P, found.U, found.V, ridge)
    truth = objective(D, P, found.U, best_V(D, P, found.U, ridge), ridge)
    assert reached == pytest.approx(found.objective, rel=1e-10)
    assert reached == pytest.approx(truth, rel=1e-8)
    assert found.n_iter == 1
    assert not found.converged
    assert "max_iter" in found.status


def test_the_step_check_catches_an_inexact_step(monkeypatch):
    D, P, _, _ = problem(noise=0.2)
    monkeypatch.setattr(module, "LAST_SWEEPS", 2)
    start = np.ones((70, 3)), np.random.default_rng(1).gamma(1.0, size=(20, 3))
    found = als(D, P, 3, init=start, max_iter=1)
    truth = objective(D, P, found.U, best_V(D, P, found.U, 0.0))
    assert objective(D, P, found.U, found.V) > truth * (1 + 1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_free_steps(ridge):
    D, P, _, _ = problem(noise=0.2)
    start = np.ones((70, 3)), np.random.default_rng(1).standard_normal((20, 3))
    found = als(D, P, 3, nonneg=False, init=start, max_iter=1, ridge=ridge)
    truth = objective(D, P, found.U, best_V(D, P, found.U, ridge, nonneg=False), ridge)
    assert objective(D, P, found.U, found.V, ridge) == pytest.approx(truth, rel=1e-10)
    assert found.U.min() < 0


def test_free_factors_reach_the_best_low_rank_fit():
    D, P, _, _ = problem(cells=(60,), pools=(12,), noise=0.5)
    found = als(D, P, 4, nonneg=False, tol=1e-9)
    best = np.sum(np.linalg.svd(D[0], compute_uv=False)[4:] ** 2)
    assert found.objective == pytest.approx(best, rel=1e-9)
    assert als(D, P, 4, tol=1e-9).objective > best * (1 + 1e-6)  # U, V >= 0 costs something
    assert als(D, P, 3, nonneg=False).objective > best * (1 + 1e-6)


def stationarity(D, P, U, V):
    """Largest projected gradient over both factors, relative to the largest entry at zero; from the definition."""
    R = [u @ V.T @ p - d for d, p, u in zip(D, P, U, strict=True)]
    slopes = [
        *(r @ p.T @ V for r, p in zip(R, P, strict=True)),
        sum(p @ r.T @ u for r, p, u in zip(R, P, U, strict=True)),
    ]
    zeros = [
        *(d @ p.T @ V for d, p in zip(D, P, strict=True)),
        sum(p @ d.T @ u for d, p, u in zip(D, P, U, strict=True)),
    ]
    wrong = [np.where(f > 0, np.abs(g), np.maximum(-g, 0)) for f, g in zip([*U, V], slopes, strict=True)]
    return max(w.max() / np.abs(z).max() for w, z in zip(wrong, zeros, strict=True))


def test_converged_means_stationary():
    D, P, _, _ = problem(noise=0.1)
    found = als(D, P, 3, tol=1e-7)
    assert found.converged
    U = np.split(found.U, [40])
    assert stationarity(D, P, U, found.V) < 1e-6
    assert stationarity(D, P, U, found.V * 1.001) > 1e-4
    early = als(D, P, 3, tol=1e-7, max_iter=2)
    assert not early.converged
    assert stationarity(D, P, np.split(early.U, [40]), early.V) > 1e-5


@pytest.mark.parametrize("options", [{}, {"ridge": 0.5}, {"nonneg": False}, {"n_starts": 3}])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_trace_never_rises(options, noise):
    D, P, _, _ = problem(noise=noise)
    found = als(D, P, 3, tol=0, max_iter=80, **options)
    assert len(found.trace) == found.n_iter <= 80
    assert np.all(np.diff(found.trace) <= 0)
    assert found.trace[-1] == found.objective
    assert found.residual == pytest.approx(np.sqrt(objective(D, P, found.U, found.V)), rel=1e-9)


def test_unguarded_extrapolation_does_rise():
    D, P, (_, V) = notebook()
    solver = module._Problem([D], [P], 10, True, 0.0)
    trace, old = [], V
    for _ in range(50):
        ahead = np.maximum(V + 2 * (V - old), 0)
        U = solver.u_step(ahead)
        old, V = V, solver.v_step(U, ahead)
        trace.append(solver.evaluate(U, V)[0])
    assert np.any(np.diff(trace) > 0)


@pytest.mark.parametrize("nonneg", [True, False])
def test_enough_designs_recover_everything(nonneg):
    D, P, U, V = problem(cells=(60,) * 5, pools=(8,) * 5)
    M = U @ V.T
    found = als(D, P, 3, nonneg=nonneg, tol=1e-8, max_iter=3000)
    assert found.status.startswith("solved")
    assert np.linalg.norm(found.X - M) < 1e-3 * np.linalg.norm(M)
    one = als(D[0], P[0], 3, nonneg=nonneg)
    assert np.linalg.norm(one.X - M[:60]) > 0.03 * np.linalg.norm(M[:60])
    assert "span of the pools (8 of 20 dimensions)" in one.status
    assert one.gap is None


def test_the_notebooks_size():
    D, P, start = notebook()
    for options in ({"init": start}, {}):
        found = als(D, P, 10, tol=0, max_iter=100, **options)
        assert found.n_iter == 100
        assert found.residual <= 3e-4 * np.linalg.norm(D)
        assert min(found.U.min(), found.V.min()) >= 0
        assert np.all(np.diff(found.trace) <= 0)
    assert als(D, P, 10, init=start, max_iter=1).residual > 3e-4 * np.linalg.norm(D)  # where it starts


def degenerate():
    D, P, _, _ = problem(cells=(40,), pools=(6,))
    d, p = D[0], P[0]
    unseen = p.copy()
    unseen[[2, 5]] = 0
    return {
        "genes in no pool": (d, unseen, 3, "genes are in no pool (rows 2, 5"),
        "more factors than pools": (d, p, 8, "its 6 pools tell 6 of 8 factors apart"),
        "more factors than cells": (d[:2], p, 3, "U has rank 2 of 3"),
        "one cell": (d[:1], p, 1, "span"),
        "constant D": (np.full_like(d, 4.0), p, 3, "span"),
        "nothing measured": (0 * d, p, 3, "U has rank 0 of 3"),
        "duplicate pools": (np.hstack([d, d]), np.hstack([p, p]), 3, "span of the pools (6 of 20 dimensions)"),
        "pools without genes": (np.hstack([d, 0 * d]), np.hstack([p, 0 * p]), 3, "(6 of 20 dimensions)"),
        "float32": (d.astype(np.float32), p.astype(np.float32), 3, "span"),
        "small": (d * 1e-12, p, 3, "span"),
        "large": (d * 1e12, p * 1e3, 3, "span"),
        "negative entries": (-d, p, 3, "span"),
    }


@pytest.mark.parametrize("name", degenerate())
@pytest.mark.parametrize("nonneg", [True, False])
def test_degenerate_problems(name, nonneg):
    D, P, rank, words = degenerate()[name]
    found = als(D, P, rank, nonneg=nonneg)
    assert np.isfinite(found.U).all()
    assert np.isfinite(found.V).all()
    assert np.all(np.diff(found.trace) <= 0)
    if nonneg:
        assert min(found.U.min(), found.V.min()) >= 0
        if name != "negative entries":
            assert found.residual <= 2e-3 * np.linalg.norm(D)
    if nonneg or name != "nothing measured":
        assert words in found.status
    if name == "genes in no pool":
        assert not found.V[[2, 5]].any()


def test_a_determined_problem_says_nothing_more():
    D, P, _, _ = problem(cells=(60,) * 3, pools=(8,) * 3)
    assert als(D, P, 3).status == "solved"


def test_ridge_decides_what_data_do_not():
    D, P, _, _ = problem(cells=(40,), pools=(6,))
    P[0][3] = 0
    start = np.ones((40, 3)), np.ones((20, 3))
    assert als(D, P, 3, init=start, ridge=0.1).V[3].max() == 0
    assert als(D, P, 3, init=start, max_iter=1).V[3].min() == 1


def test_a_factor_without_cells_keeps_its_loadings():
    D, P, _, _ = problem(cells=(40,), pools=(6,))
    V = np.random.default_rng(0).random((20, 3))
    V[:, 1] = 0
    found = als(D, P, 3, init=(np.ones((40, 3)), V), max_iter=5)
    assert not found.V[:, 1].any()
    assert "U has rank 2 of 3" in found.status


def test_the_best_start_wins_and_seeds_matter():
    D, P, _, _ = problem(noise=0.3, rank=4)
    one, again, other = (als(D, P, 5, max_iter=20, rng=seed) for seed in (0, 0, 1))
    assert one.U.tobytes() == again.U.tobytes()
    assert one.U.tobytes() != other.U.tobytes()
    solver = module._Problem(D, P, 5, True, 0.0)
    starts = solver.starts(4, 0)
    alone = [als(D, P, 5, max_iter=20, init=(np.ones((70, 5)), V)).objective for V in starts]
    assert als(D, P, 5, max_iter=20, n_starts=4).objective == min(alone) < max(alone)


def test_same_bytes_for_any_number_of_threads(monkeypatch):
    D, P, _, _ = problem(cells=(9000, 8500), noise=0.1)
    answers = []
    for threads in (1, 3):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)
        found = als(D, P, 3, max_iter=3)
        answers.append(found.U.tobytes() + found.V.tobytes())
    assert answers[0] == answers[1]
    assert als(D, P, 3, max_iter=4).U.tobytes() != found.U.tobytes()


def test_pivoting_of_one_gene():
    rng = np.random.default_rng(0)
    workspace = np.empty((6, 6)), np.empty(6), np.empty(6, np.int64), np.empty(6)
    for trial in range(200):
        A, b = rng.standard_normal((8, 6)), rng.standard_normal(8)
        H, c = A.T @ A, A.T @ b
        L, v, index, value = workspace
        passive = rng.random(6) < 0.5
        assert pivot(H, c, L, v, passive, index, value)
        np.testing.assert_allclose(v, scipy_nnls(A, b)[0], atol=1e-9)
        slow = np.maximum(v + rng.standard_normal(6), 0)
        before = slow @ H @ slow / 2 - c @ slow
        descend(H, c, slow)
        assert slow.min() >= 0
        assert v @ H @ v / 2 - c @ v - 1e-12 <= slow @ H @ slow / 2 - c @ slow <= before, trial
    flat = np.ones((6, 6))
    assert not pivot(flat, np.ones(6), L, v, np.ones(6, np.bool_), index, value)  # singular: told, not guessed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"ridge": np.inf}, "ridge=inf"),
        ({"n_starts": 0}, "n_starts=0"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"init": (np.ones((70, 3)), np.ones((20, 2)))}, "V (20, 2)"),
        ({"init": (np.ones((70, 3)), -np.ones((20, 3)))}, "negative"),
        ({"init": (np.ones((70, 3)), np.full((20, 3), np.nan))}, "init[1] (V) holds nan at gene 0, factor 0"),
        ({"init": (np.ones((70, 3)), np.ones((20, 3))), "n_starts": 2}, "n_starts=2"),
    ],
)
def test_bad_input(options, words):
    D, P, _, _ = problem()
    with pytest.raises(InputError) as caught:
        als(D, P, **({"rank": 3} | options))
    assert words in str(caught.value)
