"""Newton steps for the augmented Lagrangian of the nuclear-norm dual, solved directly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from unpool.solvers._nnqp import nnqp
from unpool.solvers._solution import Array

__all__ = ["Pairs", "Spectrum", "newton_step"]


@dataclass(frozen=True)
class Pairs:
    """Entries of X that are held >= 0: `row` of each, and its gene as a vector in the columns of X (pairs x columns)."""

    row: Array
    gene: Array

    def read(self, X: Array) -> Array:
        """X at the pairs."""
        return np.einsum("ce,ce->c", X[self.row], self.gene)

    def spread(self, z: Array, shape: tuple[int, int]) -> Array:
        """Σ_c z_c e_row(c) gene(c)ᵀ: the adjoint of `read`."""
        out = np.zeros(shape)
        np.add.at(out, self.row, z[:, None] * self.gene)
        return out


@dataclass(frozen=True)
class Spectrum:
    """M = U diag(s) Vᵀ with square orthogonal U, V; r of the s exceed sigma."""

    U: Array
    s: Array
    V: Array
    sigma: float
    r: int

    @classmethod
    def of(cls, M: Array, sigma: float) -> Spectrum:
        U, s, Vt = np.linalg.svd(M)
        return cls(U, s, Vt.T, sigma, int(np.sum(s > sigma)))

    @property
    def shrunk(self) -> Array:
        """SVT_sigma(M): every singular value lowered by sigma, at least to 0."""
        r = self.r
        return np.asarray((self.U[:, :r] * (self.s[:r] - self.sigma)) @ self.V[:, :r].T)


class _Hessian:
    """σ DSVT(M) + diag, on (dY, dz) with dM = σ (dY Qᵀ + dZ); all but r rows of UᵀdY eliminated.

    In the singular bases, a = UᵀdW V, the quadratic form is
        i, j <= r:  σ for the symmetric part of (a_ij, a_ji), σ (f_i + f_j)/(s_i + s_j) for the skew part, f = s - σ;
        i <= r < j: σ f_i/(s_i - s_j) and σ f_i/(s_i + s_j); the rest: 0.
    With dY = U1 Y1 + U2 Y2, row j of Y2 enters only c_j = (a_ji)_i = Gᵀ Y2_j + h_j, G = QᵀV1, h_j from dz, and meets
    b_j = (a_ij)_i, which does not depend on it. With alpha, beta = half sum and half difference of the two weights and
    E = Gᵀ diag⁻¹ G, its minimum is c_j = N_j (h_j - E beta b_j), N_j = (1 + E alpha)⁻¹.
    """

    def __init__(self, spectrum: Spectrum, Q: Array, pairs: Pairs, diagonal: Array, lm: float) -> None:
        U, s, V, sigma, r = spectrum.U, spectrum.s, spectrum.V, spectrum.sigma, spectrum.r
        n, e, m = len(U), len(V), Q.shape[1]
        size = max(n, e)
        self.U, self.r, self.n, self.diagonal = U, r, n, diagonal
        self.q = np.zeros((size, m))  # rows Qᵀ v_j
        self.q[:e] = V.T @ Q
        self.G = self.q[:r].T
        up, vp = np.zeros((len(pairs.row), size)), np.zeros((len(pairs.row), size))
        up[:, :n] = U[pairs.row]
        vp[:, :e] = pairs.gene @ V

        top = s[:r]
        f = top - sigma
        low = np.zeros(size - r)
        low[: len(s) - r] = s[r:]
        symmetric = sigma * f / (top - low[:, None])
        skew = sigma * f / (top + low[:, None])
        alpha, beta = 0.5 * (symmetric + skew), 0.5 * (symmetric - skew)
        E = (self.G.T / diagonal) @ self.G
        N = np.linalg.inv(np.eye(r) + E * alpha[:, None, :])
        self.alpha, self.beta, self.E, self.N = alpha, beta, E, N
        bb = -(beta[:, :, None] * (N @ E)) * beta[:, None, :]
        bb[:, range(r), range(r)] += alpha
        bh, hh = beta[:, :, None] * N, alpha[:, :, None] * N
        self.bh = bh

        ratio = sigma * (f[:, None] + f) / (top[:, None] + top)
        same, cross = 0.5 * (sigma + ratio), 0.5 * (sigma - ratio)
        full = np.zeros((size, r, r))
        full[r:] = bb
        full[np.arange(r)[:, None], np.arange(r), np.arange(r)] = same

        # Hessian of Y1 (r x m), row by row
        outer = (self.q[:, :, None] * self.q[:, None, :]).reshape(size, m * m)
        yy = (full.reshape(size, r * r).T @ outer).reshape(r, r, m, m).transpose(0, 2, 1, 3)
        yy = yy + cross[:, None, :, None] * self.G[None, :, :, None] * self.G.T[:, None, None, :]
        # pairs: b and h of each, j first
        self.b = vp.T[:, :, None] * up[None, :, :r]
        self.h = up.T[r:, :, None] * vp[None, :, :r]
        mb = self.b @ full
        mb[:r] += cross.T[:, None, :] * vp[None, :, :r] * up.T[:r, :, None]
        mb[r:] += self.h @ bh.transpose(0, 2, 1)
        self.mh = self.b[r:] @ bh + self.h @ hh
        pairs_count = len(pairs.row)
        yz = np.tensordot(mb, self.q, axes=(0, 0)).transpose(1, 2, 0)
        zz = np.tensordot(self.b, mb, axes=((0, 2), (0, 2))) + np.tensordot(self.h, self.mh, axes=((0, 2), (0, 2)))

        order = r * m
        S = np.empty((order + pairs_count, order + pairs_count))
        S[:order, :order] = yy.reshape(order, order)
        S[range(order), range(order)] += np.tile(diagonal, r)
        S[order:, :order] = yz.reshape(order, pairs_count).T
        S[order:, order:] = 0.5 * (zz + zz.T)
        S[range(order, order + pairs_count), range(order, order + pairs_count)] += lm
        self.order = order
        self.factor = cholesky(S, lower=True, overwrite_a=True, check_finite=False)

    @property
    def pair_block(self) -> Array:
        """Schur complement of the pairs."""
        L = self.factor[self.order :, self.order :]
        return np.asarray(L @ L.T)

    def solve(self, gY: Array, gz: Array) -> tuple[Array, Array]:
        """Minimiser (dY, dz) of the quadratic form plus <gY, dY> + <gz, dz>."""
        r, n = self.r, self.n
        turned = self.U.T @ gY
        g2 = np.zeros((len(self.alpha), gY.shape[1]))
        g2[: n - r] = turned[r:]
        k = -(g2 / self.diagonal) @ self.G
        back = np.einsum("jab,jb->ja", self.bh, k)
        top = turned[:r] + back.T @ self.q[r:]
        rhs = -np.concatenate([top.ravel(), gz + np.einsum("jca,ja->c", self.mh, k)])
        half = solve_triangular(self.factor, rhs, lower=True, check_finite=False)
        x = solve_triangular(self.factor, half, lower=True, trans=1, check_finite=False)
        Y1, dz = x[: self.order].reshape(r, -1), x[self.order :]
        b = self.q[r:] @ Y1.T + np.einsum("jca,c->ja", self.b[r:], dz)
        h = np.einsum("jca,c->ja", self.h, dz) + k
        c = np.einsum("jab,jb->ja", self.N, h - (self.beta * b) @ self.E)
        Y2 = -(g2 + (self.alpha * c + self.beta * b) @ self.G.T) / self.diagonal
        return self.U[:, :r] @ Y1 + self.U[:, r:] @ Y2[: n - r], dz


def newton_step(
    spectrum: Spectrum,
    Q: Array,
    pairs: Pairs,
    diagonal: Array,
    lm: float,
    gY: Array,
    gz: Array,
    z: Array,
    away: Array | None,
) -> tuple[Array, Array]:
    """Newton direction (dY, dz) that keeps z + dz >= 0, for the Hessian σ DSVT + diag(diagonal) - away awayᵀ + lm on z.

    `diagonal` (one value a pool) and `away` (cells x pools, or None) are the second derivative of radius ‖Y/p‖. Where the
    plain step would make an entry of z negative, the quadratic model is minimised over z >= 0 exactly.
    """
    hessian = _Hessian(spectrum, Q, pairs, diagonal, lm)
    none = np.zeros_like(gz)
    tilt = tilt_z = None
    weight = 0.0
    if away is not None:
        tilt, tilt_z = hessian.solve(-away, none)
        weight = 1.0 / (1.0 - float(np.vdot(away, tilt)))

    def solve(gY: Array, gz: Array) -> tuple[Array, Array]:
        dY, dz = hessian.solve(gY, gz)
        if away is not None and tilt is not None:
            by = weight * float(np.vdot(away, dY))
            dY, dz = dY + by * tilt, dz + by * tilt_z
        return dY, dz

    dY, dz = solve(gY, gz)
    if np.any(z + dz < 0):
        K = hessian.pair_block
        if tilt_z is not None:
            Kt = K @ tilt_z
            K = K - np.outer(Kt, Kt) * (weight / (1.0 + weight * float(tilt_z @ Kt)))
        goal = z + dz
        push = -K @ goal
        best = nnqp(K, push, goal > 0)
        more_Y, more_z = solve(np.zeros_like(gY), -np.maximum(K @ best + push, 0.0))
        dY, dz = dY + more_Y, np.maximum(dz + more_z, -z)
        dz = np.where(best > 0, dz, -z)
    return dY, dz
