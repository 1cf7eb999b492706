"""The exact fit (radius 0) within the span of the measurement, X = L F with L a basis of col(T): ‖X‖_* is smooth."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError

from unpool.solvers._cholesky import factor, solve
from unpool.solvers._nnqp import nnqp
from unpool.solvers._nuclear_core import Full, Indices, Point
from unpool.solvers._solution import Array

__all__ = ["solve_in_span"]

ADDED = 100  # entries enforced at a time, the most negative first


class _Model:
    """Quadratic model of ‖F‖_* around F = diag(s) Vᵀ, on F Q = T1, as a program in the multipliers of X >= 0 alone.

    The Hessian is diag(1/s) minus Σ_{p<=q} w_pq l_pq², l_pq = s_q a_pq + s_p a_qp, a = dF V, with w_pq equal to
    1/(s_p s_q (s_p + s_q)), for p = q a quarter of 1/s_p³; without the sum it majorises. The minimiser for multipliers
    Z is F = T1 Qᵀ + diag(s) LᵀZ (1 - QQᵀ) + diag(s) t diag(s) Vᵀ(1 - QQᵀ), where the symmetric t solves one system of
    k (k + 1)/2 unknowns.
    """

    def __init__(self, full: Full, L: Array, s: Array, V: Array, *, newton: bool) -> None:
        self.L, self.s, self.Q, self.newton = L, s, full.Q, newton
        self.base = (L.T @ full.T) @ full.Q.T
        self.outside = V - full.Q @ (full.Q.T @ V)
        if newton:
            self.i, self.j = np.triu_indices(len(s))
            i, j = self.i, self.j
            self.product = s[i] * s[j]
            same = np.eye(len(s))
            omega = V.T @ self.outside
            I, J = i[:, None], j[:, None]
            B = -self.product[:, None] * (
                s[j] * (same[I, i] * omega[J, j] + same[J, i] * omega[I, j])
                + s[i] * (same[I, j] * omega[J, i] + same[J, j] * omega[I, i])
            )
            size = len(i)
            B[range(size), range(size)] += self.product * (s[i] + s[j]) * np.where(i == j, 2.0, 1.0)
            self.factor = factor(0.5 * (B + B.T))
            self.pull = 2 * self.product * omega[i, j]

    def _couple(self, cell: Indices, gene: Indices) -> Array:
        i, j = self.i, self.j
        rows, columns = self.L[cell], self.outside[gene]
        return np.asarray(self.product * (rows[:, i] * columns[:, j] + rows[:, j] * columns[:, i]))

    def program(self, cell: Indices, gene: Indices) -> tuple[Array, Array]:
        """K, q of min zᵀK z/2 + qᵀz over z >= 0 on the entries (cell, gene); Kz + q is X there."""
        rows, q = self.L[cell], self.Q[gene]
        K = ((rows * self.s) @ rows.T) * ((gene[:, None] == gene) - q @ q.T)
        x = np.einsum("ck,ck->c", rows, self.base[:, gene].T)
        if self.newton:
            R = self._couple(cell, gene)
            solved = solve(self.factor, np.column_stack([R.T, self.pull]))
            K, x = K + R @ solved[:, :-1], x - R @ solved[:, -1]
        K[range(len(x)), range(len(x))] += 1e-10 * (np.trace(K) / max(len(x), 1))
        return K, x

    def factors(self, cell: Indices, gene: Indices, z: Array) -> Array:
        """F for multipliers z."""
        LZ = np.zeros((len(self.base[0]), len(self.s)))
        np.add.at(LZ, gene, z[:, None] * self.L[cell])
        LZ -= self.Q @ (self.Q.T @ LZ)
        F = self.base + self.s[:, None] * LZ.T
        if self.newton:
            t = solve(self.factor, self._couple(cell, gene).T @ z - self.pull)
            both = np.zeros((len(self.s), len(self.s)))
            both[self.i, self.j] += t * self.product
            both[self.j, self.i] += t * self.product
            F = F + both @ self.outside.T
        return np.asarray(F)


def solve_in_span(full: Full, max_pairs: int = 500, max_steps: int = 12) -> Point | None:
    """Minimise ‖L F‖_* subject to F Q = LᵀT and L F >= 0, and complete its dual point to the whole space.

    When the completed dual is in the spectral ball the point is optimal outside the span too; otherwise it is a good
    start. None: more than `max_pairs` entries have to be enforced, which happens when no X >= 0 fits.
    Cost of a step: cells x genes x k.
    """
    L = full.L
    F = (L.T @ full.T) @ full.Q.T
    cell, gene, z = np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp), np.zeros(0)
    steps, change = 0, 1.0
    V = s = None
    for steps in range(1, max_steps + 1):
        turn, s, Vt = np.linalg.svd(F, full_matrices=False)
        L, F, V = L @ turn, s[:, None] * Vt, Vt.T
        try:
            model = _Model(full, L, s, V, newton=steps > 1)
        except LinAlgError:
            model = _Model(full, L, s, V, newton=False)
        new = F
        for _ in range(2 if steps == 1 else 8):
            X = L @ new
            limit = -1e-10 * float(X.max())
            X[cell, gene] = 0.0
            low = np.flatnonzero(X < limit)
            if len(low) > ADDED:
                low = low[np.argpartition(X.ravel()[low], ADDED)[:ADDED]]
            if len(low) == 0 and new is not F:
                break
            more = np.unravel_index(np.sort(low), X.shape)
            cell, gene = np.concatenate([cell, more[0]]), np.concatenate([gene, more[1]])
            passive = np.concatenate([z > 0, np.ones(len(low), dtype=bool)])
            z = nnqp(*model.program(cell, gene), passive)
            keep = z > 0
            cell, gene, z = cell[keep], gene[keep], z[keep]
            if len(z) > max_pairs:
                return None
            new = model.factors(cell, gene, z)
        change = float(np.linalg.norm(new - F) / np.linalg.norm(new))
        F = new
        if change <= 1e-8:
            break
    turn, s, Vt = np.linalg.svd(F, full_matrices=False)
    L, V = L @ turn, Vt.T
    Z = np.zeros((len(L), len(full.Q)))
    Z[cell, gene] = z
    Z1 = L.T @ Z
    Z2 = Z - L @ Z1
    G = full.Q.T @ V
    inverse = np.linalg.pinv(G)
    Z2Q = Z2 @ full.Q
    Y = L @ ((Vt - Z1) @ full.Q) - (Z2 @ V) @ inverse - (Z2Q - (Z2Q @ G) @ inverse)
    return Point((L * s) @ Vt, Y, cell, gene, z, steps, change, error=0.0)
