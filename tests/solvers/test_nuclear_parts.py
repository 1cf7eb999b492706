"""Parts of the nuclear-norm solver against slow truths: Newton's direction, compression, small programs, projections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.optimize import nnls as scipy_nnls

from unpool.solvers._nnqp import nnqp
from unpool.solvers._nuclear_admm import ball_multiplier, project_spectral
from unpool.solvers._nuclear_core import Full, Point, proximal_step, reduce
from unpool.solvers._nuclear_newton import Pairs, Spectrum, newton_step
from unpool.solvers._nuclear_problem import normal_form
from unpool.solvers._nuclear_span import solve_in_span

SIGMA, RADIUS, DAMPING = 0.7, 0.5, 1e-3


class Setting:
    """A random point of the augmented Lagrangian, its gradient, and the Hessian by finite differences."""

    def __init__(self, n, e, m, count):
        rng = np.random.default_rng(0)
        self.n, self.m, self.shape = n, m, (n, e)
        self.Q = np.linalg.qr(rng.normal(size=(e, m)))[0]
        self.p = rng.uniform(0.5, 2, m)
        self.pairs = Pairs(rng.integers(0, n, count), np.eye(e)[rng.choice(e, count)])
        self.X = rng.normal(size=(n, 3)) @ rng.normal(size=(3, e))
        self.T = rng.normal(size=(n, m))
        self.z = rng.uniform(0.1, 0.2, count)
        self.at = np.concatenate([0.1 * rng.normal(size=n * m), self.z])
        self.g = self.gradient(self.at)
        size = len(self.at)
        step = 1e-5 * np.eye(size)
        self.H = np.array([(self.gradient(self.at + h) - self.gradient(self.at - h)) / 2e-5 for h in step])
        self.H += DAMPING * np.eye(size)

    def spectrum(self, v):
        Y, z = v[: self.n * self.m].reshape(self.n, self.m), v[self.n * self.m :]
        return Spectrum.of(self.X + SIGMA * (Y @ self.Q.T + self.pairs.spread(z, self.shape)), SIGMA)

    def gradient(self, v):
        Y = v[: self.n * self.m].reshape(self.n, self.m)
        S = self.spectrum(v).shrunk
        pull = RADIUS / np.linalg.norm(Y / self.p)
        return np.concatenate([(S @ self.Q - self.T + pull * Y / self.p**2).ravel(), self.pairs.read(S)])

    def direction(self, z, wrong=1.0):
        cut = self.n * self.m
        Y = self.at[:cut].reshape(self.n, self.m)
        length = np.linalg.norm(Y / self.p)
        pull = RADIUS / length
        away = wrong * np.sqrt(pull) / length * Y / self.p**2
        gY, gz = self.g[:cut].reshape(self.n, self.m), self.g[cut:]
        dY, dz = newton_step(
            self.spectrum(self.at), self.Q, self.pairs, pull / self.p**2 + DAMPING, DAMPING, gY, gz, z, away
        )
        return np.concatenate([dY.ravel(), dz])


SHAPES = [(6, 9, 4, 5), (9, 6, 4, 5), (7, 7, 3, 0), (5, 8, 5, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_direction(shape):
    setting = Setting(*shape)
    free = np.full(shape[3], 1e6)  # z so large that z >= 0 does not matter
    truth = np.linalg.solve(setting.H, -setting.g)
    error = np.abs(setting.direction(free) - truth).max() / np.abs(truth).max()
    assert error <= 1e-6
    assert np.abs(setting.direction(free, wrong=0.5) - truth).max() / np.abs(truth).max() > 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_step_is_optimal_over_nonnegative_multipliers(shape):
    setting = Setting(*shape)

    def violation(d):
        slope = setting.H @ d + setting.g
        cut = len(d) - shape[3]
        new = setting.z + d[cut:]
        return max(np.abs(slope[:cut]).max(), *np.abs(np.minimum(new, slope[cut:])), 0.0, 0.0)

    assert violation(setting.direction(setting.z)) <= 1e-6
    clipped = setting.direction(np.full(shape[3], 1e6))
    clipped[len(clipped) - shape[3] :] = np.maximum(clipped[len(clipped) - shape[3] :], -setting.z)
    if shape[3]:
        assert violation(clipped) > 1e-6  # clipping after a free step is not the answer


def full_problem(radius=0.5, rank=4):
    rng = np.random.default_rng(3)
    M = rng.gamma(0.5, size=(60, rank)) @ rng.gamma(0.5, size=(rank, 30))
    P = (rng.random((30, 8)) < 0.25) * 1.0
    problem = normal_form([M @ P], [P], radius, 1e-10)
    return Full.of(problem.T[0], problem.Q[0], problem.p[0], problem.radius)


def test_compression_is_exact():
    full = full_problem()
    rng = np.random.default_rng(1)
    cell, gene = np.array([3, 3, 17, 40]), np.array([2, 9, 9, 21])
    reduced = reduce(full, cell, gene)
    assert len(reduced.T) == 3 + 4  # three cells with pairs, rank 4 for all others
    Xr = rng.normal(size=(len(reduced.T), reduced.columns.shape[1]))
    Yr = rng.normal(size=reduced.T.shape)

    def defects(reduced):
        X = reduced.lift_rows(Xr) @ reduced.columns.T
        Y = reduced.lift_rows(Yr)
        small = np.linalg.norm((Xr @ reduced.Q - reduced.T) * full.p)
        return [
            abs(np.linalg.norm(X, "nuc") - np.linalg.norm(Xr, "nuc")),
            abs(np.linalg.norm((X @ full.Q - full.T) * full.p) - small),
            abs(np.vdot(Y, full.T) - np.vdot(Yr, reduced.T)),
            abs(np.linalg.norm(Y @ full.Q.T, 2) - np.linalg.norm(Yr @ reduced.Q.T, 2)),
            np.abs(reduced.pairs.read(Xr) - X[cell, gene]).max(),
            np.abs(reduced.drop_rows(X) @ reduced.columns - Xr).max(),
        ]

    assert max(defects(reduced)) <= 1e-10
    assert max(defects(replace(reduced, basis=1.1 * reduced.basis))) > 1e-3
    assert max(defects(replace(reduced, columns=np.roll(reduced.columns, 1, axis=0)))) > 1e-3


def test_more_pairs_keep_the_point():
    full = full_problem()
    none = np.zeros(0, dtype=np.intp)
    start = Point(full.T @ full.Q.T, full.L @ (full.L.T @ full.T), none, none, np.zeros(0))
    at = proximal_step(full, reduce(full, none, none), start, 10 * full.base, 3)
    wider = reduce(full, np.array([5, 9]), np.array([1, 4]))
    back = wider.lift_rows(wider.drop_rows(at.X) @ wider.columns) @ wider.columns.T
    assert np.abs(back - at.X).max() <= 1e-12 * np.abs(at.X).max()
    outside = at.X + np.random.default_rng(0).normal(size=at.X.shape)
    back = wider.lift_rows(wider.drop_rows(outside) @ wider.columns) @ wider.columns.T
    assert np.abs(back - outside).max() > 1e-3


def test_the_fit_in_the_span_is_optimal_there():
    full = full_problem(radius=0.0, rank=6)
    at = solve_in_span(full)
    assert np.linalg.norm(at.X @ full.Q - full.T) <= 1e-8 * np.linalg.norm(full.T)
    assert at.X.min() >= -1e-8 * at.X.max()
    # stationarity within the span: L'(Y Q' + Z) is the polar factor of L'X

    def defect(Z):
        U, _, Vt = np.linalg.svd(full.L.T @ at.X, full_matrices=False)
        return np.linalg.norm(full.L.T @ (at.Y @ full.Q.T + Z) - U @ Vt)

    assert defect(at.Z()) <= 1e-6
    assert at.z.size > 0
    assert defect(0 * at.Z()) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_nonnegative_quadratic_program(seed):
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(40, 25)), rng.normal(size=40)
    K, q = A.T @ A, -A.T @ b
    truth = scipy_nnls(A, b)[0]
    for guess in (None, np.ones(25, dtype=bool), rng.random(25) < 0.5):
        assert np.allclose(nnqp(K, q, guess), truth, atol=1e-10)
    clipped = np.maximum(np.linalg.solve(K, -q), 0)
    assert not np.allclose(clipped, truth, atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_projection_on_the_spectral_ball(shape):
    M = 2 * np.random.default_rng(0).normal(size=shape)
    W, cut = project_spectral(M)
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    assert np.allclose(W, (U * np.minimum(s, 1)) @ Vt, atol=1e-10)
    assert cut == pytest.approx(np.sum(np.maximum(s - 1, 0)))
    assert not np.allclose(M / s[0], W, atol=1e-3)  # division is feasible, but not the nearest


def test_multiplier_of_the_ball():
    rng = np.random.default_rng(0)
    squares, p = rng.exponential(size=6), rng.uniform(0.01, 3, 6)
    top = np.sqrt(np.sum(squares * p**2))
    for bound in (1e-6 * top, 0.3 * top, 0.999 * top):

        def excess(mu, bound=bound):
            return mu * np.sqrt(np.sum(squares * p**2 / (p**2 + mu) ** 2)) - bound

        assert ball_multiplier(squares, p, bound) == pytest.approx(brentq(excess, 0, 1e9, xtol=1e-15), rel=1e-6)
        assert abs(excess(1.01 * ball_multiplier(squares, p, bound))) > 1e-9 * bound
    assert ball_multiplier(squares, p, 0.0) == 0.0
    assert ball_multiplier(squares, p, 1.001 * top) == float("inf")
