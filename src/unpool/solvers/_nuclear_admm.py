"""Alternating directions on the dual of the nuclear-norm program: several designs, slow and dependable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unpool.solvers._nuclear_problem import NormalForm, frobenius
from unpool.solvers._solution import Array

__all__ = ["Iterate", "admm_step", "ball_multiplier", "project_spectral", "start_at"]

STEP = 1.618  # the golden ratio: the longest step of the multiplier that keeps convergence
FIRST = 100  # steps before the penalty is balanced for the first time
# the penalty as a multiple of ‖X‖_F / ‖(Y, Z)‖_F, one after the other: no single one suits all problems
BALANCE = (0.05, 0.1, 0.2, 0.05, 0.2)


def project_spectral(M: Array) -> tuple[Array, float]:
    """Nearest matrix of spectral norm <= 1, and how much nuclear norm was cut off.

    Only the singular vectors above 1 are needed; they come from the smaller Gram matrix.
    """
    if M.shape[0] < M.shape[1]:
        W, cut = project_spectral(M.T)
        return W.T, cut
    values, vectors = np.linalg.eigh(M.T @ M)
    above = values > 1.0
    s, V = np.sqrt(values[above]), vectors[:, above]
    return M - ((M @ V) * (1.0 - 1.0 / s)) @ V.T, float(np.sum(s - 1.0))


def ball_multiplier(squares: Array, p: Array, bound: float) -> float:
    """Solve mu sqrt(Σ_k squares_k p_k² / (p_k² + mu)²) = bound for mu >= 0; infinite when the left side stays below.

    `squares` are squared column norms of C; then C / (1 + mu/p²) minimises bound ‖Y/p‖ + ‖Y - C‖²/2.
    """
    if bound <= 0:
        return 0.0
    top = np.sqrt(np.sum(squares * p**2))
    if bound >= top:
        return float("inf")
    # with a = 1/mu, 1/h(a) = 1/sqrt(Σ squares p² / (a p² + 1)²) is concave and nearly linear: Newton rises to the root
    a = 0.0
    for _ in range(100):
        q = 1.0 / (a * p**2 + 1.0)
        h = np.sqrt(np.sum(squares * (p * q) ** 2))
        slope = -np.sum(squares * p**4 * q**3) / h
        move = (h - bound) / -slope * h / bound
        a += move
        if move <= 1e-15 * a:
            break
    return float(1.0 / a) if a > 0 else float("inf")


@dataclass(frozen=True)
class Iterate:
    """X cells x genes, the multiplier; the dual point Y (per design, cells x k_b), Z >= 0, W = A*(Y) + Z in the ball.

    `sigma` is the penalty, `objective` ‖X‖_* of the low-rank point behind X, `step` counts.
    """

    X: Array
    Y: list[Array]
    Z: Array
    W: Array
    sigma: float
    objective: float
    step: int = 0


def start_at(problem: NormalForm, X: Array) -> Iterate:
    """Begin at X with the dual point zero; the penalty is 0.3 times the scale of X, its median singular value."""
    s = np.linalg.svd(X, compute_uv=False)
    sigma = 0.3 * float(np.median(s[s > 1e-4 * s[0]]))
    W, cut = project_spectral(X / sigma)
    return Iterate(X, [np.zeros_like(t) for t in problem.T], np.zeros_like(X), W, sigma, sigma * cut)


def admm_step(problem: NormalForm, at: Iterate, nonneg: bool) -> Iterate:
    """One step of alternating directions on the dual.

    The dual minimises -<Y, T> + radius ‖Y/p‖_F subject to ‖A*(Y) + Z‖_2 <= 1, Z >= 0, with multiplier X. Symmetric
    Gauss-Seidel order (Z, Y, Z), then W = A*(Y) + Z in the spectral ball, then X. The penalty balances X against (Y, Z)
    after 100, 200, 400, ... steps and is constant between, so that the method converges: near an infeasible radius,
    Y and Z are large and cancel, and any fixed multiple of the scale of X is far off.

    Cost: cells x genes x (genes + pools).
    """
    sigma = at.sigma
    if at.step and at.step % FIRST == 0 and (at.step // FIRST).bit_count() == 1:
        dual = frobenius([*at.Y, at.Z])
        multiple = BALANCE[((at.step // FIRST).bit_length() - 1) % len(BALANCE)]
        sigma = multiple * frobenius([at.X]) / dual if dual > 0 else sigma
    target = at.W - at.X / sigma
    Z = np.maximum(target - problem.adjoint(at.Y), 0.0) if nonneg else at.Z
    C = [(c @ q) + t / sigma for c, q, t in zip(problem.split(target - Z), problem.Q, problem.T, strict=True)]
    squares = np.concatenate([np.sum(c * c, axis=0) for c in C])
    mu = ball_multiplier(squares, np.concatenate(problem.p), problem.radius / sigma)
    Y = [c / (1.0 + mu / p**2) for c, p in zip(C, problem.p, strict=True)]
    lifted = problem.adjoint(Y)
    if nonneg:
        Z = np.maximum(target - lifted, 0.0)
    W, cut = project_spectral(lifted + Z + at.X / sigma)
    X = at.X + (STEP * sigma) * (lifted + Z - W)
    return Iterate(X, Y, Z, W, sigma, sigma * cut, at.step + 1)
