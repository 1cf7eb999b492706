"""The peers, as their own users would call them: the founding notebook's programs, conic solvers and scipy.

Every function takes and returns plain arrays and imports its package itself, so that each can run in a process of its own.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

Array = Any


def notebook_nuclear_norm(D: Array, P: Array, solver: str | None = None) -> Array:
    """The notebook's program as it stands: min ‖X‖_*, ‖X P - D‖_F <= 1e-7 D.size, min(X) >= 0."""
    import cvxpy as cp

    X = cp.Variable((D.shape[0], P.shape[0]))
    delta = 1e-7 * D.shape[0] * D.shape[1]
    problem = cp.Problem(cp.Minimize(cp.norm(X, "nuc")), [cp.norm(X @ P - D, "fro") <= delta, cp.min(X) >= 0])
    problem.solve(solver=solver)
    return X.value


def conic_nuclear_norm(D: Array, P: Array, radius: float, solver: str) -> tuple[float, Array, str]:
    """Minimise ‖X‖_* s.t. ‖X P - D‖_F <= radius, X >= 0, to Clarabel's own 1e-8 or SCS's 1e-6; D is scaled to norm 1 first."""
    import cvxpy as cp

    scale = np.linalg.norm(D)
    X = cp.Variable((D.shape[0], P.shape[0]), nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.normNuc(X)), [cp.norm(X @ P - D / scale, "fro") <= radius / scale])
    settings = {"CLARABEL": {}, "SCS": {"eps_abs": 1e-6, "eps_rel": 1e-6, "max_iters": 100_000}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the status says it, and the table shows how accurate
        problem.solve(solver=solver, **settings[solver])
    if X.value is None:
        raise RuntimeError(f"{solver} ended with status {problem.status}")
    return float(np.linalg.norm(X.value, "nuc") * scale), X.value * scale, str(problem.status)


def notebook_u_step(D: Array, P: Array, V: Array) -> Array:
    """The notebook's U-step: scipy's nnls, row by row."""
    from scipy.optimize import nnls

    A = P.T @ V
    return np.apply_along_axis(lambda row: nnls(A, row)[0], axis=1, arr=D)


def notebook_v_step(D: Array, P: Array, U: Array) -> Array:
    """The notebook's V-step: one cvxpy program."""
    import cvxpy as cp

    V = cp.Variable((P.shape[0], U.shape[1]))
    problem = cp.Problem(cp.Minimize(cp.norm(U @ V.T @ P - D, "fro")), [cp.min(V) >= 0])
    problem.solve()
    return V.value


def notebook_v_step_by_marker(D: Array, P: Array, U: Array) -> Array:
    """The notebook's first V-step: a cvxpy program for each marker (pool), and the mean of their answers.

    Its text compares all pools with the one marker and divides by the number of cells; this is what it meant.
    """
    import cvxpy as cp

    V = cp.Variable((P.shape[0], U.shape[1]))
    d, p = cp.Parameter(D.shape[0], nonneg=True), cp.Parameter(P.shape[0], nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(U @ (V.T @ p) - d)), [cp.min(V) >= 0])
    total = np.zeros(V.shape)
    for k in range(D.shape[1]):
        d.value, p.value = D[:, k], P[:, k].astype(float)
        problem.solve()
        total += V.value
    return total / D.shape[1]


def notebook_v_step_scipy(D: Array, P: Array, U: Array, V: Array) -> Array:
    """The notebook's V-step with scipy.optimize.minimize and a linear constraint, default settings."""
    from scipy.optimize import LinearConstraint, minimize

    def objective(v: Array) -> float:
        return float(((U @ v.reshape(V.shape).T @ P - D) ** 2).sum())

    answer = minimize(objective, V.reshape(-1), constraints=[LinearConstraint(np.eye(V.size), 0, np.inf)])
    if not answer.success:
        raise RuntimeError(f"minimize: {answer.message}")
    return answer.x.reshape(V.shape)
