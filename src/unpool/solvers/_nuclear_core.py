"""Augmented Lagrangian on the dual of the one-design nuclear-norm program, on an exactly compressed copy of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from unpool.solvers._nuclear_newton import Indices, Pairs, Spectrum, newton_step
from unpool.solvers._solution import Array

__all__ = ["Full", "Indices", "Point", "Reduced", "proximal_step", "reduce"]


@dataclass(frozen=True)
class Full:
    """One design in normal form: (X Q - T) diag(p) is to be at most `radius`; T = L diag(s) R, its thin decomposition.

    `base` is the scale of X: the median of the singular values of T that are more than rounding (1e-4 of the largest).
    """

    T: Array
    Q: Array
    p: Array
    radius: float
    L: Array
    s: Array
    R: Array
    base: float

    @classmethod
    def of(cls, T: Array, Q: Array, p: Array, radius: float) -> Full:
        left, s, right = np.linalg.svd(T, full_matrices=False)
        rank = int(np.sum(s > max(T.shape) * np.finfo(float).eps * s[0]))
        return cls(T, Q, p, radius, left[:, :rank], s[:rank], right[:rank], float(np.median(s[s > 1e-4 * s[0]])))


@dataclass(frozen=True)
class Point:
    """X cells x genes, Y cells x k, and z >= 0 on the pairs (cell, gene) whose X >= 0 is enforced so far.

    `steps` counts Newton steps, `change` is the last relative change of X; `error` estimates the relative duality gap,
    `settled` says whether the last outer step was solved to its tolerance.
    """

    X: Array
    Y: Array
    cell: Indices
    gene: Indices
    z: Array
    steps: int = 0
    change: float = 1.0
    error: float = 1.0
    settled: bool = False

    def Z(self) -> Array:
        """Multipliers as a cells x genes matrix."""
        out = np.zeros_like(self.X)
        out[self.cell, self.gene] = self.z
        return out


@dataclass(frozen=True)
class Reduced:
    """The program on fewer rows and columns: X = rows(Xr) columnsᵀ.

    Cells without pairs enter only through an orthonormal basis `basis` of their part of col(T): at an optimum X and Y
    have no other component there, and singular values do not see it. Genes enter through an orthonormal basis `columns`
    of span(Q, e_gene of the pairs). Every point of the reduced program is one of the full program with the same
    objective, misfit and dual value; only X >= 0 outside the pairs has to be looked at afterwards.
    """

    T: Array
    Q: Array
    p: Array
    radius: float
    pairs: Pairs
    kept: Indices
    others: Indices
    basis: Array
    columns: Array

    def drop_rows(self, A: Array) -> Array:
        """Full rows to reduced ones."""
        return np.vstack([A[self.kept], self.basis.T @ A[self.others]])

    def lift_rows(self, A: Array) -> Array:
        """Reduced rows to full ones."""
        out = np.empty((len(self.kept) + len(self.others), A.shape[1]))
        out[self.kept] = A[: len(self.kept)]
        out[self.others] = self.basis @ A[len(self.kept) :]
        return out


def reduce(full: Full, cell: Indices, gene: Indices) -> Reduced:
    """Compress `full` around the pairs (cell, gene). Cost: cells x rank(T)² + genes x columns²."""
    n, g = len(full.T), len(full.Q)
    has_pair = np.zeros(n, dtype=np.bool_)
    has_pair[cell] = True
    kept, others = np.flatnonzero(has_pair), np.flatnonzero(~has_pair)
    row = np.cumsum(has_pair)[cell] - 1
    basis = full.L if kept.size == 0 else np.linalg.qr(full.L[others])[0]
    genes = np.flatnonzero(np.bincount(gene, minlength=g))
    if full.Q.shape[1] + genes.size >= g:
        columns = np.eye(g)
    elif genes.size == 0:
        columns = full.Q
    else:
        columns = np.linalg.qr(np.hstack([full.Q, np.eye(g)[:, genes]]))[0]
    T = np.vstack([full.T[kept], basis.T @ full.T[others]])
    return Reduced(T, columns.T @ full.Q, full.p, full.radius, Pairs(row, columns[gene]), kept, others, basis, columns)


def _length(x: Array) -> float:
    """Frobenius norm, without the checks of np.linalg.norm, which cost more than the sum for small arrays."""
    return math.sqrt(float(np.vdot(x, x)))


def proximal_step(full: Full, reduced: Reduced, at: Point, sigma: float, max_newton: int) -> Point:
    """One outer step from `at`: minimise the augmented Lagrangian over (Y, z >= 0) by Newton, then X = SVT_sigma(M).

    phi = -<Y, T> + radius ‖Y/p‖ + ‖SVT_sigma(X + sigma (Y Qᵀ + Z))‖² / (2 sigma).
    """
    T, Q, p, pairs = reduced.T, reduced.Q, reduced.p, reduced.pairs
    X = reduced.drop_rows(at.X) @ reduced.columns
    Y, z = reduced.drop_rows(at.Y), at.z
    size = _length(T)

    def look(Y: Array, z: Array) -> tuple[Spectrum, float]:
        M = X + sigma * (Y @ Q.T + pairs.spread(z, X.shape))
        spectrum = Spectrum.of(M, sigma)
        shrunk = spectrum.s[: spectrum.r] - sigma
        value = float(shrunk @ shrunk) / (2 * sigma) - float(np.vdot(Y, T))
        return spectrum, value + reduced.radius * _length(Y / p)

    spectrum, phi = look(Y, z)
    steps, settled = 0, False
    for steps in range(max_newton + 1):
        image = spectrum.shrunk
        gY, gz = image @ Q - T, pairs.read(image)
        length = _length(Y / p)
        away = None
        diagonal = np.zeros_like(p)
        if reduced.radius > 0 and length > 0:
            pull = reduced.radius / length
            gY = gY + pull * Y / p**2
            diagonal = pull / p**2
            away = np.sqrt(pull) / length * Y / p**2
        miss = float(np.hypot(_length(gY), _length(np.where(z > 0, gz, np.minimum(gz, 0.0))))) / size
        settled = miss <= max(0.1 * min(at.change, 0.1), 1e-13)
        if settled or steps == max_newton:
            break
        lm = full.base * max(0.1 * miss, 1e-6)
        dY, dz = newton_step(spectrum, Q, pairs, diagonal + lm, lm, gY, gz, z, away)
        slope = float(np.vdot(gY, dY) + gz @ dz)
        t = 1.0
        while True:
            new_Y, new_z = Y + t * dY, np.maximum(z + t * dz, 0.0)
            spectrum, new_phi = look(new_Y, new_z)
            if new_phi <= phi + 1e-4 * t * slope + 1e-13 * abs(phi) or t < 1e-6:
                break
            t *= 0.5
        Y, z, phi = new_Y, new_z, new_phi
    image = spectrum.shrunk
    value = float(np.sum(spectrum.s[: spectrum.r] - sigma))
    scale = float(np.linalg.norm(Y @ Q.T + pairs.spread(z, X.shape), 2))
    bound = (float(np.vdot(Y, T)) - reduced.radius * _length(Y / p)) / scale if scale > 0 else 0.0
    tiny = float(np.finfo(float).tiny)
    return replace(
        at,
        X=reduced.lift_rows(image) @ reduced.columns.T,
        Y=reduced.lift_rows(Y),
        z=z,
        steps=at.steps + steps,
        change=_length(image - X) / max(_length(image), tiny),
        settled=settled,
        error=abs(value - bound) / max(value, tiny),
    )
