"""Alternating least squares: factors U, V with X = U Vᵀ, each fitted exactly while the other rests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numba
import numpy as np

from unpool.errors import InputError, UnpoolError
from unpool.kernels.blocks import one_blas_thread
from unpool.kernels.factor import sweep_genes
from unpool.solvers._driver import iterate
from unpool.solvers._input import as_batches, as_matrix
from unpool.solvers._solution import Array, Solution
from unpool.solvers.nnls import nnls_rows

__all__ = ["als"]

V_TOL = 1e-8  # a V-step ends when its largest projected gradient is this small beside the largest entry of N ...
SWEEPS = 10  # ... or after so many sweeps over the genes, since exact steps on the way gain nothing,
LAST_SWEEPS = 10_000  # or so many in the last step, which is exact


def als(
    D: Any,
    P: Any,
    rank: int,
    *,
    nonneg: bool = True,
    ridge: float = 0.0,
    n_starts: int = 1,
    init: tuple[Any, Any] | None = None,
    tol: float = 1e-7,
    max_iter: int = 1000,
    rng: int | np.random.Generator | None = 0,
) -> Solution:
    """Alternating least squares for D_b = U_b VᵀP_b, minimising Σ_b ‖U_b VᵀP_b - D_b‖² + ridge (‖U‖² + ‖V‖²).

    Parameters
    ----------
    D
        Cells x pools, linear intensity; or a sequence, one entry a design.
    P
        Genes x pools; or a sequence, as long as D.
    rank
        Number of factors, >= 1.
    nonneg
        Whether U >= 0 and V >= 0.
    ridge
        Weight of the penalty, >= 0, in units of D².
    n_starts
        Number of random starts; the one with the smallest objective is returned.
    init
        (U, V) to start from, cells x rank (designs stacked) and genes x rank. The first U-step replaces U, so that
        `max_iter=1` is one U-step for this V, and one V-step.
    tol
        Largest projected gradient in U and in V, relative to the gradient at U = 0 and at V = 0, at which to stop.
    max_iter
        Largest number of iterations; each is a U-step and a V-step.
    rng
        Seed or generator of the starts.

    Returns
    -------
    Solution
        `.U`, `.V`, the objective above and its values after each iteration (`.trace`, never rising). `.gap` is None and
        nothing is certified: this is a stationary point of a problem with many. The status names what the data do not
        determine; X is then one of many answers.

    Notes
    -----
    U-step: `nnls` with A = PᵀV. V-step: a quadratic program on Gram matrices, by exact solutions for one gene at a time
    in turn; it costs nothing per cell. At most ten such sweeps are made, as more gain nothing, but in the last step as
    many as it takes until the projected gradient is 1e-8 of the largest entry of Σ_b P_b D_bᵀU_b: the V returned is
    optimal for the U returned. An iteration takes about 6 cells x pools x rank operations, and genes x (2 pools x rank
    + rank³) for each sweep.

    Steps start from V extrapolated along its last change (Ang & Gillis, Neural Computation 2019); one that raises the
    objective is discarded, and the next starts from V itself.

    When it fails: if it does not converge, raise `max_iter` or add a small `ridge`; if restarts (`n_starts`) end at
    different objectives, the factors are not determined, whatever the residual. One design determines V at most on the
    span of its pools: measure with several designs, or decode with a reference.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> M = rng.gamma(2.0, size=(60, 2)) @ rng.gamma(2.0, size=(2, 8))
    >>> P = [(rng.random((8, 5)) < 0.5).astype(float) for _ in range(3)]
    >>> D = [M[b::3] @ P[b] for b in range(3)]
    >>> solution = als(D, P, rank=2)
    >>> solution.converged, solution.status
    (True, 'solved')
    >>> bool(np.abs(solution.X[:20] - M[::3]).max() < 1e-3 * M.max())
    True
    """
    Ds, Ps = as_batches(D, P)
    if rank != int(rank) or rank < 1:
        raise InputError(f"rank={rank!r}: expected a whole number >= 1")
    if not (np.isfinite(ridge) and ridge >= 0):
        raise InputError(f"ridge={ridge!r}: expected a finite number >= 0")
    if n_starts != int(n_starts) or n_starts < 1:
        raise InputError(f"n_starts={n_starts!r}: expected a whole number >= 1")
    if init is not None and n_starts > 1:
        raise InputError(f"init with n_starts={n_starts}: starts are either given or random; leave one of the two out")
    problem = _Problem(Ds, Ps, int(rank), nonneg, float(ridge))
    starts = problem.starts(int(n_starts), rng) if init is None else [problem.checked(init)]
    with one_blas_thread():
        runs = [
            iterate(
                problem.step,
                _State(V, (), np.inf, np.inf, V, 0.5),
                tol=tol,
                max_iter=max_iter,
                measure=lambda s: (s.objective, s.error),
            )
            for V in starts
        ]
        run = min(runs, key=lambda run: run.state.objective)
        if run.n_iter == 0:
            raise UnpoolError(f"als {run.status}")
        last = problem.finished(run.state)
        notes = problem.undetermined(np.vstack(last.U), last.V)
        residual = np.sqrt(sum(np.sum(R**2) for R in problem.residuals(last.U, last.V)))
    return Solution(
        U=np.vstack(last.U),
        V=last.V,
        objective=last.objective,
        residual=float(residual),
        converged=run.converged,
        status="; ".join([run.status, *notes]),
        n_iter=run.n_iter,
        trace=np.append(run.trace[:-1], last.objective),
    )


@dataclass(frozen=True)
class _State:
    """The best factors so far, and where the next step starts."""

    V: Array
    U: tuple[Array, ...]
    objective: float
    error: float
    start: Array  # V, or V extrapolated along its last change
    reach: float  # how far


class _Problem:
    """The two steps of alternating least squares on given data."""

    def __init__(self, Ds: list[Array], Ps: list[Array], rank: int, nonneg: bool, ridge: float) -> None:
        self.Ds, self.Ps, self.rank, self.nonneg, self.ridge = Ds, Ps, rank, nonneg, ridge
        self.P = np.hstack(Ps)
        self.edges = np.cumsum([0, *(p.shape[1] for p in Ps)])

    def starts(self, n: int, rng: Any) -> list[Array]:
        """Random mixtures of pools: a gene in no pool starts, and stays, at zero."""
        size = self.P.shape[1], self.rank
        rngs = np.random.default_rng(rng).spawn(n)
        if self.nonneg:
            return [np.abs(self.P) @ g.exponential(size=size) for g in rngs]
        return [self.P @ g.standard_normal(size) for g in rngs]

    def checked(self, init: tuple[Any, Any]) -> Array:
        U, V = as_matrix(init[0], "init[0] (U)", "cell", "factor"), as_matrix(init[1], "init[1] (V)", "gene", "factor")
        cells, genes = sum(map(len, self.Ds)), len(self.P)
        if U.shape != (cells, self.rank) or V.shape != (genes, self.rank):
            raise InputError(
                f"init has U {U.shape} and V {V.shape}: expected {(cells, self.rank)} (cells x rank, designs stacked) "
                f"and {(genes, self.rank)} (genes x rank)"
            )
        if self.nonneg and min(U.min(), V.min()) < 0:
            raise InputError("init has negative entries: clip them, or pass nonneg=False")
        return V

    def step(self, state: _State) -> _State:
        U = self.u_step(state.start)
        V = self.v_step(U, state.start)
        objective, error = self.evaluate(U, V)
        if not objective <= state.objective:
            return replace(state, start=self.scaled(state.V, state.U, state.V), reach=max(state.reach / 2, 0.1))
        ahead = V + state.reach * (V - state.V)
        ahead = np.maximum(ahead, 0.0) if self.nonneg else ahead
        return _State(V, U, objective, error, self.scaled(ahead, U, V), min(1.1 * state.reach, 2.0))

    def finished(self, state: _State) -> _State:
        """The last V-step, continued until it is exact."""
        V = self.v_step(state.U, state.V, LAST_SWEEPS)
        objective, error = self.evaluate(state.U, V)
        return replace(state, V=V, objective=objective, error=error) if objective <= state.objective else state

    def scaled(self, ahead: Array, U: Sequence[Array], V: Array) -> Array:
        """Only directions are extrapolated (lengths would grow without end); a ridge wants U and V equally long."""
        length, wanted = np.linalg.norm(ahead, axis=0), np.linalg.norm(V, axis=0)
        if self.ridge:
            wanted = np.sqrt(wanted * np.linalg.norm(np.vstack(U), axis=0))
        return np.asarray(ahead * (wanted / np.where(length > 0, length, 1.0)))

    def u_step(self, V: Array) -> tuple[Array, ...]:
        """Minimise over U ‖U VᵀP - D‖² + ridge ‖U‖², the ridge as further rows of the least-squares problem."""
        rows = np.sqrt(self.ridge) * np.eye(self.rank if self.ridge else 0, self.rank)
        U = []
        for D, P in zip(self.Ds, self.Ps, strict=True):
            A = np.vstack([P.T @ V, rows])
            B = np.hstack([D, np.zeros((len(D), len(rows)))]) if len(rows) else D
            if self.nonneg:
                U.append(nnls_rows(A, B, numba.config.NUMBA_NUM_THREADS)[0])
            else:
                U.append(B @ np.linalg.pinv(A).T)
        return tuple(U)

    def v_step(self, U: Sequence[Array], V: Array, sweeps: int = SWEEPS) -> Array:
        """Minimise over V, starting from the given one."""
        G = np.array([u.T @ u for u in U])
        N = _total(P @ (D.T @ u) for D, P, u in zip(self.Ds, self.Ps, U, strict=True))
        tol = V_TOL * np.abs(N).max()
        if self.nonneg:
            V = V.copy()
            sweep_genes(self.P, self.edges, G, N, self.ridge, tol, sweeps, V, self.P.T @ V)
            return V
        return self.conjugate_gradients(G, N, tol, 10 * sweeps, V)

    def conjugate_gradients(self, G: Array, N: Array, tol: float, steps: int, V: Array) -> Array:
        """Solve Σ_b P_b P_bᵀ V G_b + ridge V = N, preconditioned by the Gram matrix of all cells."""

        def apply(V: Array) -> Array:
            return self.ridge * V + _total(P @ (P.T @ V @ g) for P, g in zip(self.Ps, G, strict=True))

        inverse = np.linalg.pinv(G.sum(axis=0), hermitian=True)
        R = N - apply(V)
        Z = R @ inverse
        S, old = Z, np.sum(R * Z)
        for _ in range(steps):
            if np.abs(R).max() <= tol:
                break
            image = apply(S)
            length = old / np.sum(S * image)
            V, R = V + length * S, R - length * image
            Z = R @ inverse
            new = np.sum(R * Z)
            S, old = Z + new / old * S, new
        return V

    def residuals(self, U: Sequence[Array], V: Array) -> list[Array]:
        return [u @ (V.T @ P) - D for D, P, u in zip(self.Ds, self.Ps, U, strict=True)]

    def evaluate(self, U: Sequence[Array], V: Array) -> tuple[float, float]:
        """The objective, and the projected gradients relative to those at U = 0 and V = 0: the larger of the two."""
        R = self.residuals(U, V)
        size = sum(np.sum(u**2) for u in U) + np.sum(V**2)
        objective = sum(np.sum(r**2) for r in R) + self.ridge * size
        A = [P.T @ V for P in self.Ps]
        slope_U = np.vstack([r @ a + self.ridge * u for r, a, u in zip(R, A, U, strict=True)])
        slope_V = self.ridge * V + _total(P @ (r.T @ u) for P, r, u in zip(self.Ps, R, U, strict=True))
        if self.nonneg:
            slope_U[(np.vstack(U) == 0) & (slope_U > 0)] = 0
            slope_V[(V == 0) & (slope_V > 0)] = 0
        zero_U = np.sqrt(sum(np.sum((D @ a) ** 2) for D, a in zip(self.Ds, A, strict=True)))
        zero_V = np.linalg.norm(_total(P @ (D.T @ u) for P, D, u in zip(self.Ps, self.Ds, U, strict=True)))
        errors = [np.linalg.norm(slope) / (at or 1.0) for slope, at in ((slope_U, zero_U), (slope_V, zero_V))]
        return float(objective), float(max(errors))

    def undetermined(self, U: Array, V: Array) -> list[str]:
        """What the data leave open, in words."""
        notes = []
        genes = len(self.P)
        unseen = np.flatnonzero(~self.P.any(axis=1))
        span = int(np.linalg.matrix_rank(self.P))
        used = int(np.linalg.matrix_rank(U))
        if unseen.size:
            names = ", ".join(map(str, unseen[:5])) + (", ..." if unseen.size > 5 else "")
            notes.append(f"{unseen.size} genes are in no pool (rows {names} of P): their loadings are not determined")
        if span < genes:
            notes.append(
                f"V is not determined beyond the span of the pools ({span} of {genes} dimensions): "
                "measure with further designs, or decode with a reference"
            )
        if used < self.rank:
            notes.append(f"V is not determined for all factors: U has rank {used} of {self.rank}; lower rank")
        for b, P in enumerate(self.Ps):
            seen = int(np.linalg.matrix_rank(P.T @ V))
            if seen < self.rank:
                where = f" in design {b}" if len(self.Ps) > 1 else ""
                notes.append(
                    f"U is not determined{where}: its {P.shape[1]} pools tell {seen} of {self.rank} factors apart; "
                    "lower rank or add pools"
                )
        return notes


def _total(parts: Iterable[Array]) -> Array:
    return reduce(np.add, parts)
