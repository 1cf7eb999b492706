"""The nuclear norm: an independent solver, the certificate at the notebook's size, degenerate and infeasible problems."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls as scipy_nnls

from unpool.errors import InputError
from unpool.solvers import duality_gap, nuclear_norm
from unpool.solvers.nuclear_norm import noise_radius

module = sys.modules["unpool.solvers.nuclear_norm"]


def bernoulli(genes, pools, rng):
    return (rng.random((genes, pools)) < 0.25) * 1.0


def gamma(cells, genes, rank, rng):
    return rng.gamma(0.5, size=(cells, rank)) @ rng.gamma(0.5, size=(rank, genes))


def problem(cells=500, genes=100, pools=25, rank=10, seed=0):
    rng = np.random.default_rng(seed)
    M = gamma(cells, genes, rank, rng)
    P = bernoulli(genes, pools, rng)
    return M @ P, P


def designs(seed, n_designs=None, rank=None):
    """Several designs of unequal sizes with the same factors of the genes."""
    rng = np.random.default_rng(seed)
    n_designs = n_designs or rng.integers(2, 7)
    rank = rank or rng.integers(2, 21)
    genes = rng.integers(20, 45)
    cells = rng.integers(8, 30, size=n_designs)
    V = rng.gamma(0.5, size=(genes, rank))
    P = [bernoulli(genes, rng.integers(3, genes // 3 + 1), rng) for _ in cells]
    return [rng.gamma(0.5, size=(n, rank)) @ V.T @ p for n, p in zip(cells, P, strict=True)], P


def stack(D, P):
    return (D, P) if isinstance(D, list) else ([D], [P])


def size(D, P):
    return np.sqrt(sum(np.linalg.norm(d) ** 2 for d in stack(D, P)[0]))


def failures(solution, D, P, radius, *, nonneg=True, tol=1e-6):
    """What is wrong with a solution that says it is certified: an empty list for a good one. Plain numpy."""
    Ds, Ps = stack(D, P)
    X, (Y, Z) = solution.X, solution.dual
    parts = np.split(X, np.cumsum([len(d) for d in Ds])[:-1])
    residual = np.sqrt(sum(np.linalg.norm(x @ p - d) ** 2 for x, p, d in zip(parts, Ps, Ds, strict=True)))
    wrong = []
    if not solution.converged:
        wrong.append(solution.status)
    if nonneg and not X.min() >= 0:
        wrong.append("X < 0")
    if residual > radius + (1e-8 if radius > 0 else 1e-6) * size(D, P):
        wrong.append("residual")
    if abs(solution.residual - residual) > 1e-12 * size(D, P):
        wrong.append("reported residual")
    W = np.vstack([y @ p.T for y, p in zip(Y, Ps, strict=True)]) + Z
    norm = np.linalg.svd(W, compute_uv=False)[0]
    lower = sum(np.vdot(y, d) for y, d in zip(Y, Ds, strict=True)) - radius * np.sqrt(sum(np.vdot(y, y) for y in Y))
    value = np.linalg.svd(X, compute_uv=False).sum()
    if not abs(value - lower / norm) <= tol * value:
        wrong.append("gap")
    if Z.min() < 0 or (not nonneg and Z.any()):
        wrong.append("Z")
    if abs(solution.objective - value) > 1e-12 * value:
        wrong.append("objective")
    return wrong


# ---- against an independent solver


def clarabel(D, P, radius, nonneg=True):
    cvxpy = pytest.importorskip("cvxpy")
    Ds, Ps = stack(D, P)
    X = cvxpy.Variable((sum(map(len, Ds)), Ps[0].shape[0]), nonneg=nonneg)
    scale = size(D, P)
    first, misfit = 0, []
    for d, p in zip(Ds, Ps, strict=True):
        misfit.append(cvxpy.vec((X[first : first + len(d)] @ p - d) / scale, order="C"))
        first += len(d)
    misfit = cvxpy.hstack(misfit)
    constraint = [misfit == 0] if radius == 0 else [cvxpy.norm(misfit) <= radius / scale]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its "may be inaccurate": the comparison itself tells whether it is
        return cvxpy.Problem(cvxpy.Minimize(cvxpy.normNuc(X)), constraint).solve(solver="CLARABEL")


@pytest.mark.parametrize("relative", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_objective_is_that_of_clarabel(relative, seed):
    D, P = problem(12, 9, 4, 3, seed)
    radius = relative * np.linalg.norm(D)
    solution = nuclear_norm(D, P, radius=radius)
    truth = clarabel(D, P, radius)
    assert abs(solution.objective - truth) <= 2e-6 * truth
    assert failures(solution, D, P, radius) == []


@pytest.mark.parametrize("relative", [0.0, 0.05])
@pytest.mark.parametrize("nonneg", [True, False])
def test_several_designs_against_clarabel(relative, nonneg):
    rng = np.random.default_rng(3)
    V = rng.gamma(0.5, size=(9, 2))
    P = [bernoulli(9, 3, rng), bernoulli(9, 2, rng)]
    D = [rng.gamma(0.5, size=(n, 2)) @ V.T @ p for n, p in zip((7, 4), P, strict=True)]
    radius = relative * size(D, P)
    solution = nuclear_norm(D, P, radius=radius, nonneg=nonneg)
    truth = clarabel(D, P, radius, nonneg)
    assert abs(solution.objective - truth) <= 2e-6 * truth
    assert failures(solution, D, P, radius, nonneg=nonneg) == []


def test_the_comparison_bites():
    D, P = problem(12, 9, 4, 3, 0)
    truth = clarabel(D, P, 0.0)
    one_sided = nuclear_norm(D, P, radius=0.0, nonneg=False).objective
    assert abs(one_sided - truth) > 2e-6 * truth  # X >= 0 is active: leaving it out shows


# ---- the certificate at the notebook's size


@pytest.mark.parametrize("relative", [0.0, 0.01, 0.1])
def test_certified_at_full_size(relative):
    D, P = problem()
    radius = relative * np.linalg.norm(D)
    solution = nuclear_norm(D, P, radius=radius)
    assert failures(solution, D, P, radius) == []
    recomputed = duality_gap(solution.X, D, P, radius, *solution.dual)
    assert solution.gap == pytest.approx(recomputed, abs=1e-12)  # the number of BLAS threads may differ
    assert solution.n_iter < 60  # Newton's method, not alternating directions


def test_notebook_has_a_closed_form():
    rng = np.random.default_rng(0)
    M = rng.normal(10, 2, (500, 10)) @ rng.normal(15, 3, (100, 10)).T
    P = bernoulli(100, 25, rng)
    solution = nuclear_norm(M @ P, P)
    assert "closed form" in solution.status
    assert failures(solution, M @ P, P, 0.0, tol=1e-9) == []
    assert np.allclose(solution.X, M @ P @ np.linalg.pinv(P))


@pytest.mark.parametrize("relative", [0.0, 1e-12, 1e-9, 1e-7, 1e-5])
def test_a_radius_that_hardly_matters_costs_nothing(relative):
    """The notebook asks for a residual of 1e-7 D.size, 3e-10 of ‖D‖: neither Newton nor alternating directions like that."""
    rng = np.random.default_rng(1)
    M = rng.normal(10, 2, (100, 5)) @ rng.normal(15, 3, (40, 5)).T
    P = bernoulli(40, 12, rng)
    D = M @ P
    solution = nuclear_norm(D, P, radius=relative * np.linalg.norm(D))
    assert failures(solution, D, P, relative * np.linalg.norm(D)) == []
    assert solution.n_iter < 100
    assert ("closed form" in solution.status) == (relative < 1e-5)


def test_the_checks_bite():
    D, P = problem(60, 30, 8, 4)
    radius = 0.01 * np.linalg.norm(D)
    good = nuclear_norm(D, P, radius=radius)
    Y, Z = good.dual
    assert failures(good, D, P, radius) == []
    assert "residual" in failures(replace(good, dense=0.999 * good.X), D, P, radius)
    assert "X < 0" in failures(replace(good, dense=good.X - 1e-15), D, P, radius)
    assert "gap" in failures(replace(good, dense=good.X * 1.001), D, P, radius)
    assert "gap" in failures(replace(good, dual=(Y, 0 * Z)), D, P, radius)
    assert "gap" in failures(replace(good, dual=([1.001 * y for y in Y], Z)), D, P, radius)
    assert "Z" in failures(replace(good, dual=(Y, Z - 1.0)), D, P, radius)
    assert "objective" in failures(replace(good, objective=1.001 * good.objective), D, P, radius)


@pytest.mark.parametrize("seed", range(20))
def test_several_designs_are_certified(seed):
    D, P = designs(seed)
    kind = seed % 4
    if kind < 3:
        radius = (0.0, 0.01, 0.1)[kind] * size(D, P)
        solution = nuclear_norm(D, P, radius=radius)
    else:
        rng = np.random.default_rng(seed)
        variance = (0.05 * np.concatenate([d.ravel() for d in D]).std()) ** 2
        D = [d + np.sqrt(variance) * rng.normal(size=d.shape) for d in D]
        radius = noise_radius(variance, [d.shape for d in D])
        solution = nuclear_norm(D, P, noise_var=variance)
        assert "noise_var" in solution.status
    assert failures(solution, D, P, radius) == []


def test_equal_designs_are_one_design():
    D, P = problem(60, 30, 8, 4)
    radius = 0.01 * np.linalg.norm(D)
    one = nuclear_norm(D, P, radius=radius)
    two = nuclear_norm([D[:20], D[20:]], [P, P], radius=radius)
    assert two.objective == pytest.approx(one.objective, rel=2e-6)
    assert failures(two, [D[:20], D[20:]], [P, P], radius) == []
    swapped = nuclear_norm([D[20:], D[:20]], [P, P], radius=radius)
    assert np.allclose(np.vstack([swapped.X[40:], swapped.X[:40]]), two.X, atol=1e-2 * two.X.max())
    assert not np.allclose(swapped.X, two.X, atol=1e-2 * two.X.max())


# ---- invariances


def test_rescaling_and_permutations():
    D, P = problem(60, 30, 8, 4)
    radius = 0.01 * np.linalg.norm(D)
    rng = np.random.default_rng(0)
    cells, genes, pools = rng.permutation(60), rng.permutation(30), rng.permutation(8)
    objective = nuclear_norm(D, P, radius=radius).objective
    for scale in (1e-9, 1e6):
        scaled = nuclear_norm(scale * D, P, radius=scale * radius)
        assert failures(scaled, scale * D, P, scale * radius) == []
        assert scaled.objective == pytest.approx(scale * objective, rel=2e-6)
    shuffled = nuclear_norm(D[cells][:, pools], P[genes][:, pools], radius=radius)
    assert shuffled.objective == pytest.approx(objective, rel=2e-6)
    assert nuclear_norm(D[cells], P, radius=2 * radius).objective < objective * (1 - 1e-3)


def test_same_bytes_twice():
    D, P = problem(60, 30, 8, 4)
    assert nuclear_norm(D, P).X.tobytes() == nuclear_norm(D, P).X.tobytes()


# ---- degenerate problems


def degenerate(name):
    rng = np.random.default_rng(5)
    cells, genes, pools, rank = 80, 40, 10, 5
    M, P = gamma(cells, genes, rank, rng), bernoulli(genes, pools, rng)
    match name:
        case "dependent pools":
            P[:, 4] = P[:, 1] + P[:, 2]
        case "duplicate pools":
            P[:, 5:] = P[:, :5]
        case "zero genes":
            P[::5] = 0
        case "zero pool":
            P[:, 3] = 0
        case "zero cells":
            M[::4] = 0
        case "one cell":
            M = M[:1]
        case "one pool":
            P = P[:, :1]
        case "identity":
            P = np.eye(genes)
        case "more pools than genes":
            P = bernoulli(genes, 60, rng)
        case "constant":
            M = np.ones_like(M)
        case "condition 1e9":
            left, s, right = np.linalg.svd(P, full_matrices=False)
            P = np.abs((left * np.geomspace(1, 1e-9, len(s))) @ right)
        case "float32":
            M, P = M.astype(np.float32), P.astype(np.float32)
        case "rank 1":
            M = gamma(cells, genes, 1, rng)
        case "rank 2":
            M = gamma(cells, genes, 2, rng)
        case "rank 3":
            M = gamma(cells, genes, 3, rng)
        case "clusters":
            M = rng.gamma(1.0, size=(4, genes))[rng.integers(0, 4, cells)]
    return M @ P, P


DEGENERATE = ["dependent pools", "duplicate pools", "zero genes", "zero pool", "zero cells", "one cell", "one pool",
              "identity", "more pools than genes", "constant", "condition 1e9", "float32", "rank 1", "rank 2", "rank 3",
              "clusters"]  # fmt: skip


@pytest.mark.parametrize("relative", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate(name, relative):
    D, P = degenerate(name)
    radius = relative * float(np.linalg.norm(D))
    assert failures(nuclear_norm(D, P, radius=radius), D.astype(float), P.astype(float), radius) == []


def test_zero_measurement_and_large_radius():
    D, P = problem(10, 8, 3, 2)
    for solution in (nuclear_norm(0 * D, P), nuclear_norm(D, P, radius=2 * np.linalg.norm(D))):
        assert solution.converged
        assert not solution.X.any()
        assert solution.gap == 0.0
    assert nuclear_norm(D, P, radius=0.9 * np.linalg.norm(D)).X.any()


@pytest.mark.parametrize("relative", [0.0, 0.01, 0.1])
def test_without_nonnegativity(relative):
    D, P = problem(60, 30, 8, 4)
    radius = relative * np.linalg.norm(D)
    solution = nuclear_norm(D, P, radius=radius, nonneg=False)
    assert failures(solution, D, P, radius, nonneg=False) == []
    assert solution.X.min() < 0
    assert solution.objective < nuclear_norm(D, P, radius=radius).objective * (1 - 1e-3) or relative == 0.1
    if relative == 0:
        assert np.allclose(solution.X, D @ np.linalg.pinv(P))


# ---- the slow method alone


@pytest.mark.parametrize("rank", [3, 6])
def test_alternating_directions_take_over(monkeypatch, rank):
    D, P = problem(40, 20, 6, rank)
    radius = 0.01 * np.linalg.norm(D)
    fast = nuclear_norm(D, P, radius=radius)
    monkeypatch.setattr(module, "solve_one_design", lambda *a: None)
    slow = nuclear_norm(D, P, radius=radius)
    assert failures(slow, D, P, radius) == []
    assert slow.n_iter > fast.n_iter
    assert slow.objective == pytest.approx(fast.objective, rel=2e-6)


def test_the_cap_is_reported():
    D, P = designs(0, 3, 6)
    radius = 0.01 * size(D, P)
    solution = nuclear_norm(D, P, radius=radius, max_iter=25)
    assert not solution.converged
    assert solution.n_iter == 25
    assert "max_iter" in solution.status
    assert failures(solution, D, P, radius) != []
    assert solution.X.min() >= 0


# ---- what cannot be reached


def smallest_residual(D, P):
    return np.sqrt(sum(scipy_nnls(P.T, row)[1] ** 2 for row in D))


def noisy():
    D, P = problem(60, 30, 8, 4)
    return D + 0.4 * D.std() * np.random.default_rng(1).normal(size=D.shape), P


def test_infeasible_is_said():
    D, P = noisy()
    smallest = smallest_residual(D, P)
    for radius in (0.0, 0.5 * smallest):
        solution = nuclear_norm(D, P, radius=radius)
        assert not solution.converged
        assert solution.gap is None
        assert "infeasible" in solution.status
        assert f"{smallest:.6g}" in solution.status
        assert solution.residual == pytest.approx(smallest, rel=1e-9)
        assert solution.X.min() >= 0
    assert failures(nuclear_norm(D, P, radius=1.2 * smallest), D, P, 1.2 * smallest) == []


def test_infeasible_without_nonnegativity():
    D, P = problem(20, 12, 5, 3)
    D, P = np.hstack([D, D[:, :1] + 1.0]), np.hstack([P, P[:, :1]])  # one pool measured twice, differently
    solution = nuclear_norm(D, P, radius=0.0, nonneg=False)
    assert "infeasible" in solution.status
    assert solution.residual == pytest.approx(np.sqrt(20 / 2))


def test_no_radius_takes_the_smallest_reachable():
    D, P = noisy()
    smallest = smallest_residual(D, P)
    solution = nuclear_norm(D, P)
    assert "1.01 times" in solution.status
    assert failures(solution, D, P, 1.01 * smallest) == []
    assert failures(solution, D, P, 1.001 * smallest) != []


# ---- the radius from the noise


@pytest.mark.parametrize("kind", ["number", "vector", "matrix", "list"])
def test_noise_radius_is_a_quantile(kind):
    rng = np.random.default_rng(0)
    shapes = [(30, 4), (20, 4)] if kind != "list" else [(30, 4), (20, 3)]
    R = {"number": 2.0, "vector": np.array([1.0, 2.0, 0.5, 4.0])}
    R["matrix"] = np.cov(rng.normal(size=(4, 9)))
    R["list"] = [R["matrix"], 3.0]
    each = R[kind] if kind == "list" else [R[kind]] * 2
    norms = np.zeros(4000)
    for values, (n, m) in zip(each, shapes, strict=True):
        values = np.asarray(values)
        C = values * np.eye(m) if values.ndim == 0 else np.diag(values) if values.ndim == 1 else values
        noise = rng.multivariate_normal(np.zeros(m), C, size=(4000, n))
        norms += np.sum(noise**2, axis=(1, 2))

    def covered(radius):
        return np.mean(np.sqrt(norms) <= radius)

    radius = noise_radius(R[kind], shapes)
    assert abs(covered(radius) - 0.95) <= 0.015
    mean_only = np.sqrt(np.mean(norms))
    assert abs(covered(mean_only) - 0.95) > 0.015


def test_noise_var_gives_a_certified_answer():
    D, P = problem(120, 40, 10, 5)
    sd = 0.05 * D.std()
    D = D + sd * np.random.default_rng(2).normal(size=D.shape)
    for noise_var in (sd**2, np.full(10, sd**2), sd**2 * np.eye(10)):
        solution = nuclear_norm(D, P, noise_var=noise_var)
        assert failures(solution, D, P, noise_radius(sd**2, [D.shape])) == []


@pytest.mark.parametrize("nonneg", [True, False])
def test_noise_outside_the_span_of_the_pools(nonneg):
    """More pools than genes: a part of the noise that no X explains, which the dual point has to know of."""
    rng = np.random.default_rng(4)
    P = bernoulli(8, 20, rng)
    D = gamma(40, 8, 3, rng) @ P
    sd = 0.2 * D.std()
    D = D + sd * rng.normal(size=D.shape)
    radius = noise_radius(sd**2, [D.shape])
    solution = nuclear_norm(D, P, noise_var=sd**2, nonneg=nonneg)
    assert failures(solution, D, P, radius, nonneg=nonneg) == []
    Y, Z = solution.dual
    left = np.linalg.svd(P.T)[0][:, : np.linalg.matrix_rank(P)]
    within = ([Y[0] @ left @ left.T], Z)  # the same without its part outside the span
    assert "gap" in failures(replace(solution, dual=within), D, P, radius, nonneg=nonneg)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"radius": -1.0}, "radius"),
        ({"radius": float("nan")}, "radius"),
        ({"tol": 0.0}, "tol"),
        ({"max_iter": 0}, "max_iter"),
        ({"radius": 1.0, "noise_var": 1.0}, "both"),
        ({"noise_var": [1.0, 2.0]}, "3 pools"),
        ({"noise_var": -1.0}, "negative"),
    ],
)
def test_bad_input(arguments, words):
    D, P = problem(10, 8, 3, 2)
    with pytest.raises(InputError, match=words):
        nuclear_norm(D, P, **arguments)
