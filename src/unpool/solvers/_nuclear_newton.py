"""Newton steps for the augmented Lagrangian of the nuclear-norm dual, solved directly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unpool.solvers import _cholesky
from unpool.solvers._nnqp import nnqp
from unpool.solvers._solution import Array

__all__ = ["Indices", "Pairs", "Spectrum", "newton_step"]

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Pairs:
    """Entries of X held >= 0: the row of each, and its gene as a vector in the columns of X (pairs x columns)."""

    row: Indices
    gene: Array

    def read(self, X: Array) -> Array:
        """X at the pairs."""
        return np.asarray(np.einsum("ce,ce->c", X[self.row], self.gene))

    def spread(self, z: Array, shape: tuple[int, int]) -> Array:
        """Σ_c z_c e_row(c) gene(c)ᵀ: the adjoint of `read`."""
        out = np.zeros(shape)
        np.add.at(out, self.row, z[:, None] * self.gene)
        return out


@dataclass(frozen=True)
class Spectrum:
    """M = U diag(s) Vᵀ, thin; r of the s exceed sigma."""

    U: Array
    s: Array
    V: Array
    sigma: float
    r: int

    @classmethod
    def of(cls, M: Array, sigma: float) -> Spectrum:
        U, s, Vt = np.linalg.svd(M, full_matrices=False)
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
    Directions j beyond the thin decomposition have s_j = 0: beta = 0 and alpha = `rest`, the same for all of them, so
    they enter through the projections off U and V, never one by one. Memory: pairs x columns x r.
    """

    def __init__(self, spectrum: Spectrum, Q: Array, pairs: Pairs, diagonal: Array, lm: float) -> None:
        U, s, V, sigma, r = spectrum.U, spectrum.s, spectrum.V, spectrum.sigma, spectrum.r
        k, m, count = len(s), Q.shape[1], len(pairs.row)
        self.U, self.r, self.diagonal, self.pairs = U, r, diagonal, pairs
        self.q = V.T @ Q  # rows Qᵀ v_j
        self.G = self.q[:r].T
        up, vp = U[pairs.row], pairs.gene @ V
        self.v1 = vp[:, :r]

        top, low = s[:r], s[r:]
        f = top - sigma
        symmetric = sigma * f / (top - low[:, None])
        skew = sigma * f / (top + low[:, None])
        alpha, beta, rest = 0.5 * (symmetric + skew), 0.5 * (symmetric - skew), sigma * f / top
        E = (self.G.T / diagonal) @ self.G
        N = np.linalg.inv(np.eye(r) + E * np.vstack([alpha, rest])[:, None, :])
        self.N, self.N_rest = N[:-1], N[-1]
        self.alpha, self.beta, self.rest, self.E = alpha, beta, rest, E
        bb = -(beta[:, :, None] * (self.N @ E)) * beta[:, None, :]
        bb[:, range(r), range(r)] += alpha
        self.bh, hh = beta[:, :, None] * self.N, alpha[:, :, None] * self.N
        self.hh_rest = rest[:, None] * self.N_rest

        ratio = sigma * (f[:, None] + f) / (top[:, None] + top)
        same, cross = 0.5 * (sigma + ratio), 0.5 * (sigma - ratio)
        full = np.zeros((k, r, r))  # weight of b_j
        full[r:] = bb
        full[np.arange(r)[:, None], np.arange(r), np.arange(r)] = same

        # Y1 (r x m) with itself, with the pairs, and the pairs with themselves; b and h of each pair, j first
        outer = (self.q[:, :, None] * self.q[:, None, :]).reshape(k, m * m)
        yy = (full.reshape(k, r * r).T @ outer).reshape(r, r, m, m).transpose(0, 2, 1, 3)
        yy = yy + cross[:, None, :, None] * self.G[None, :, :, None] * self.G.T[:, None, None, :]
        self.b = vp.T[:, :, None] * up[None, :, :r]
        self.h = up.T[r:, :, None] * self.v1
        mb = self.b @ full
        mb[:r] += cross.T[:, None, :] * self.v1 * up.T[:r, :, None]
        mb[r:] += self.h @ self.bh.transpose(0, 2, 1)
        self.mh = self.b[r:] @ self.bh + self.h @ hh
        # a row a pair, for products with vectors
        self.b_pairs, self.h_pairs, self.mh_pairs = (
            x.transpose(1, 0, 2).reshape(count, (k - r) * r) for x in (self.b[r:], self.h, self.mh)
        )
        yz = np.tensordot(mb, self.q, axes=(0, 0)).transpose(1, 2, 0)
        zz = np.tensordot(self.b, mb, axes=((0, 2), (0, 2))) + np.tensordot(self.h, self.mh, axes=((0, 2), (0, 2)))
        zz += (self.v1 @ self.hh_rest @ self.v1.T) * ((pairs.row[:, None] == pairs.row) - up @ up.T)
        if len(V) > k:
            pulled = up[:, :r] * rest
            yy[range(r), :, range(r)] += rest[:, None, None] * (np.eye(m) - self.q.T @ self.q)
            yz += pulled.T[:, None, :] * (pairs.gene @ Q - vp @ self.q).T
            zz += (pulled @ up[:, :r].T) * (pairs.gene @ pairs.gene.T - vp @ vp.T)

        order = r * m
        S = np.empty((order + count, order + count))
        S[:order, :order] = yy.reshape(order, order)
        S[range(order), range(order)] += np.tile(diagonal, r)
        S[:order, order:] = yz.reshape(order, count)
        S[order:, order:] = 0.5 * (zz + zz.T)
        S[range(order, order + count), range(order, order + count)] += lm
        self.order = order
        self.factor = _cholesky.factor(S)

    @property
    def pair_block(self) -> Array:
        """Schur complement of the pairs."""
        L = np.tril(self.factor[self.order :, self.order :])
        return np.asarray(L @ L.T)

    def solve(self, gY: Array, gz: Array) -> tuple[Array, Array]:
        """Minimiser (dY, dz) of the quadratic form plus <gY, dY> + <gz, dz>."""
        r, m = self.r, gY.shape[1]
        turned = self.U.T @ gY
        g2, g_rest = turned[r:], gY - self.U @ turned
        k, k_rest = -(g2 / self.diagonal) @ self.G, -(g_rest / self.diagonal) @ self.G
        top = turned[:r] + (self.bh @ k[:, :, None])[:, :, 0].T @ self.q[r:]
        pull = self.mh_pairs @ k.ravel()
        pull += np.einsum("ca,ca->c", self.v1, (k_rest @ self.hh_rest)[self.pairs.row])
        rhs = -np.concatenate([top.ravel(), gz + pull])
        x = _cholesky.solve(self.factor, rhs)
        Y1, dz = x[: self.order].reshape(r, m), x[self.order :]
        b = self.q[r:] @ Y1.T + (dz @ self.b_pairs).reshape(k.shape)
        h = (dz @ self.h_pairs).reshape(k.shape) + k
        c = (self.N @ (h - (self.beta * b) @ self.E)[:, :, None])[:, :, 0]
        Y2 = -(g2 + (self.alpha * c + self.beta * b) @ self.G.T) / self.diagonal
        h_rest = np.zeros_like(k_rest)
        np.add.at(h_rest, self.pairs.row, dz[:, None] * self.v1)
        h_rest += k_rest - self.U @ (self.U.T @ h_rest)
        Y_rest = -(g_rest + (h_rest @ self.N_rest.T * self.rest) @ self.G.T) / self.diagonal
        return self.U @ np.vstack([Y1, Y2]) + Y_rest, dz


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

    `diagonal` (one value a pool) and `away` (cells x pools, or None) are the second derivative of radius ‖Y/p‖. Where
    the plain step would make an entry of z negative, the quadratic model is minimised over z >= 0 exactly.
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
        if away is not None and tilt is not None and tilt_z is not None:
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
