"""The nuclear-norm program: its data, its coordinates with orthonormal designs, and the test of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unpool.solvers._solution import Array
from unpool.solvers.certificate import lower_bound
from unpool.solvers.nnls import nnls

__all__ = ["Answer", "NormalForm", "Program", "frobenius", "normal_form"]


def frobenius(blocks: Sequence[Array]) -> float:
    """Frobenius norm of all blocks together."""
    return float(np.sqrt(sum(np.vdot(b, b) for b in blocks)))


@dataclass(frozen=True)
class NormalForm:
    """min ‖X‖_* s.t. Σ_b ‖(X_b Q_b - T_b) diag(p_b)‖² <= radius², X >= 0, where P_b = Q_b diag(p_b) R_bᵀ.

    Attributes
    ----------
    T
        Per design, cells x k_b: D_b R_b / p_b, what X_b Q_b should be.
    Q, p, R
        Per design, the singular value decomposition of P_b: genes x k_b, k_b, pools x k_b.
    radius
        What is left of the radius after the part of D outside the span of the pools.
    outside
        Per design, that part of D: no X reaches it.
    """

    T: list[Array]
    Q: list[Array]
    p: list[Array]
    R: list[Array]
    radius: float
    outside: list[Array]

    @property
    def sizes(self) -> list[int]:
        """Cells of each design."""
        return [len(t) for t in self.T]

    def adjoint(self, Y: Sequence[Array]) -> Array:
        """Stack the blocks Y_b Q_bᵀ: cells x genes."""
        return np.vstack([y @ q.T for y, q in zip(Y, self.Q, strict=True)])

    def split(self, X: Array) -> list[Array]:
        """Cut a stacked array into its designs."""
        return np.split(X, np.cumsum(self.sizes)[:-1])

    def misfit(self, X: Array) -> list[Array]:
        """(X_b Q_b - T_b) diag(p_b) for every design."""
        return [(x @ q - t) * p for x, q, t, p in zip(self.split(X), self.Q, self.T, self.p, strict=True)]

    def pool_dual(self, Y: Sequence[Array]) -> list[Array]:
        """Dual of the residuals in the pools themselves: Y_b diag(1/p_b) R_bᵀ, plus the best multiple of `outside`.

        A*(Y) does not see a multiple t of `outside`; the bound <Y, D> - radius ‖Y‖ is largest for t = ‖Y/p‖ / (what is
        left of the radius).
        """
        inside = [y / p for y, p in zip(Y, self.p, strict=True)]
        away = frobenius(self.outside)
        rounding = 1e-12 * frobenius([t * p for t, p in zip(self.T, self.p, strict=True)])
        t = frobenius(inside) / max(self.radius, 1e-12 * away) if away > rounding and self.radius > 0 else 0.0
        return [y @ r.T + t * o for y, r, o in zip(inside, self.R, self.outside, strict=True)]


def normal_form(D: Sequence[Array], P: Sequence[Array], radius: float, drop: float) -> NormalForm:
    """Rotate the pools of every design to its singular vectors; singular values <= drop x the largest are dropped."""
    T, Q, p, R, outside = [], [], [], [], []
    for d, weights in zip(D, P, strict=True):
        left, s, right = np.linalg.svd(weights, full_matrices=False)
        k = int(np.sum(s > drop * s[0])) if s.size else 0
        rotated = d @ right[:k].T
        outside.append(d - rotated @ right[:k])
        T.append(rotated / s[:k])
        Q.append(left[:, :k])
        p.append(s[:k])
        R.append(right[:k].T)
    return NormalForm(T, Q, p, R, float(np.sqrt(max(radius**2 - frobenius(outside) ** 2, 0.0))), outside)


@dataclass(frozen=True)
class Answer:
    """A point X >= 0 and the dual point that judges it, in the units of the pools; gap inf: outside the radius."""

    X: Array
    Y: list[Array]
    Z: Array
    residual: float
    objective: float
    gap: float

    @property
    def error(self) -> float:
        """|gap|: certified when at most the tolerance."""
        return abs(self.gap)


@dataclass(frozen=True)
class Program:
    """min ‖X‖_* subject to ‖A(X) - D‖_F <= radius, X >= 0 if `nonneg`; certified when the gap is at most `tol`.

    The residual may exceed the radius by `slack`: 1e-8 ‖D‖, or 1e-6 ‖D‖ when the radius is 0.
    """

    D: list[Array]
    P: list[Array]
    radius: float
    nonneg: bool
    tol: float

    @cached_property
    def size(self) -> float:
        """‖D‖_F."""
        return frobenius(self.D)

    @property
    def slack(self) -> float:
        """What rounding may add to the radius."""
        return (1e-8 if self.radius > 0 else 1e-6) * self.size

    def residual(self, X: Array) -> float:
        """‖A(X) - D‖_F."""
        parts = np.split(X, np.cumsum([len(d) for d in self.D])[:-1])
        return frobenius([x @ p - d for x, p, d in zip(parts, self.P, self.D, strict=True)])

    @cached_property
    def nearest(self) -> Array:
        """An X (>= 0 if `nonneg`) of smallest residual: least squares, row by row."""
        if self.nonneg:
            return np.vstack([nnls(p.T, d) for d, p in zip(self.D, self.P, strict=True)])
        return np.vstack([d @ np.linalg.pinv(p) for d, p in zip(self.D, self.P, strict=True)])

    def judge(self, X: Array, Y: list[Array], Z: Array, *, repair: bool = False) -> Answer:
        """Clip X and measure it against the dual point (Y in the pools, Z); the gap is computed if the residual passes.

        `repair` moves an X whose residual is slightly too large towards the nearest point of all.
        """
        if self.nonneg:
            X, Z = np.maximum(X, 0.0), np.maximum(Z, 0.0)
        residual = self.residual(X)
        if repair and self.slack < residual - self.radius < 1e-4 * self.size:
            X = self._towards_nearest(X)
            residual = self.residual(X)
        objective, gap = float("nan"), float("inf")
        if residual <= self.radius + self.slack:
            objective = float(np.linalg.norm(X, "nuc"))
            bound = lower_bound(self.D, self.P, self.radius, Y, Z)
            gap = (objective - bound) / objective if objective > 0 else 0.0
        return Answer(X, Y, Z, residual, objective, gap)

    def _towards_nearest(self, X: Array) -> Array:
        """First point on the segment from X to the nearest one whose residual is within the radius, by bisection."""
        low, high = 0.0, 1.0
        limit = self.radius + 0.5 * self.slack
        if self.residual(self.nearest) > limit:
            return X
        for _ in range(40):
            middle = 0.5 * (low + high)
            if self.residual(X + middle * (self.nearest - X)) <= limit:
                high = middle
            else:
                low = middle
        return np.asarray(X + high * (self.nearest - X))
