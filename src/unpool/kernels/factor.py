"""The V-step of alternating least squares: a nonnegative quadratic program over genes, from Gram matrices alone.

Minimise Σ_b tr(G_b VᵀP_bP_bᵀV) - 2 tr(Nᵀ V) + ridge ||V||² over V >= 0 (genes x rank), with G_b = U_bᵀU_b (rank x
rank) and N = Σ_b P_b D_bᵀU_b (genes x rank), by cyclic blocks: the loadings of one gene are found exactly while the
other genes rest.
"""

from __future__ import annotations

import numpy as np

from unpool.kernels._numba import Floats, Ints, Mask, njit

__all__ = ["sweep_genes"]


@njit(fastmath={"contract", "reassoc"})
def sweep_genes(
    P: Floats, edges: Ints, G: Floats, N: Floats, ridge: float, tol: float, sweeps: int, V: Floats, T: Floats
) -> float:
    """Improve V until no projected gradient exceeds tol, or for so many sweeps; returns the largest of the last sweep.

    The designs stand side by side in P (genes x pools), design b in columns edges[b]..edges[b + 1]; G is designs x rank
    x rank. V and T = PᵀV (pools x rank) are changed in place. A factor that no cell uses (G_ii = 0) keeps its loadings.
    """
    genes, r = V.shape
    designs = len(edges) - 1
    H, L = np.empty((r, r)), np.empty((r, r))
    c, slope, v, t = np.empty(r), np.empty(r), np.empty(r), np.empty(r)
    passive, index = np.empty(r, np.bool_), np.empty(r, np.int64)
    worst = 0.0
    for _ in range(sweeps):
        worst = 0.0
        for j in range(genes):
            weight = 0.0
            for i in range(r):
                slope[i] = ridge * V[j, i] - N[j, i]
                for k in range(r):
                    H[i, k] = 0.0
                H[i, i] = ridge
            for b in range(designs):
                square = 0.0
                for i in range(r):
                    t[i] = 0.0
                for q in range(edges[b], edges[b + 1]):
                    p = P[j, q]
                    if p != 0:
                        square += p * p
                        for i in range(r):
                            t[i] += p * T[q, i]
                if square > 0:
                    for i in range(r):
                        total = 0.0
                        for k in range(r):
                            H[i, k] += square * G[b, i, k]
                            total += G[b, i, k] * t[k]
                        slope[i] += total
                weight += square
            steepest = 0.0
            for i in range(r):
                if V[j, i] > 0 or slope[i] < 0:
                    steepest = max(steepest, abs(slope[i]))
            worst = max(worst, steepest)
            if steepest <= tol or weight + ridge == 0:
                continue

            for i in range(r):
                c[i] = -slope[i]
                for k in range(r):
                    c[i] += H[i, k] * V[j, k]
                v[i], passive[i] = V[j, i], V[j, i] > 0
            if not pivot(H, c, L, v, passive, index, slope):
                for i in range(r):
                    v[i] = V[j, i]
                descend(H, c, v)
            for i in range(r):
                t[i] = v[i] - V[j, i]
                V[j, i] = v[i]
            for q in range(edges[0], edges[designs]):
                if P[j, q] != 0:
                    for i in range(r):
                        T[q, i] += P[j, q] * t[i]
        if worst <= tol:
            break
    return worst


@njit(fastmath={"contract"})
def pivot(H: Floats, c: Floats, L: Floats, v: Floats, passive: Mask, index: Ints, value: Floats) -> bool:
    """Minimise vᵀHv/2 - cᵀv over v >= 0 by block principal pivoting; False if H is singular or it takes too long."""
    r = len(c)
    fewest, patience, rounding = r + 1, 3, 0.0
    for i in range(r):
        rounding = max(rounding, 1e-13 * abs(c[i]))
    for _ in range(20 + 2 * r):
        size = 0
        for i in range(r):
            if H[i, i] > 0:
                v[i] = 0.0
                if passive[i]:
                    index[size] = i
                    size += 1
        for p in range(size):  # H_FF = L Lᵀ and L v = c_F
            i = index[p]
            v[i] = c[i]
            for q in range(p + 1):
                total = H[i, index[q]]
                for k in range(q):
                    total -= L[p, k] * L[q, k]
                if q < p:
                    L[p, q] = total / L[q, q]
                    v[i] -= L[p, q] * v[index[q]]
                elif total > 1e-13 * H[i, i]:
                    L[p, p] = np.sqrt(total)
                    v[i] /= L[p, p]
                else:
                    return False
        for p in range(size - 1, -1, -1):  # Lᵀ v_F = v
            v[index[p]] /= L[p, p]
            for q in range(p):
                v[index[q]] -= L[p, q] * v[index[p]]

        bad, last = 0, -1
        for i in range(r):
            value[i] = v[i]
            if not passive[i] and H[i, i] > 0:
                value[i] = rounding - c[i]
                for k in range(r):
                    value[i] += H[i, k] * v[k]
            if value[i] < 0:
                bad, last = bad + 1, i
        if bad == 0:
            return True
        if bad < fewest:
            fewest, patience = bad, 3
        else:
            patience -= 1
        for i in range(r):
            if value[i] < 0 and (patience >= 0 or i == last):
                passive[i] = not passive[i]
    return False


@njit()
def descend(H: Floats, c: Floats, v: Floats) -> None:
    """A few sweeps of coordinate descent on vᵀHv/2 - cᵀv, v >= 0: slow, but nothing can stop it from descending."""
    for _ in range(10):
        for i in range(len(c)):
            if H[i, i] > 0:
                slope = -c[i]
                for k in range(len(c)):
                    slope += H[i, k] * v[k]
                v[i] = max(v[i] - slope / H[i, i], 0.0)
