"""The one-design nuclear-norm program with a positive radius: X >= 0 enforced only where it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from unpool.solvers._nuclear_core import Full, Point, proximal_step, reduce
from unpool.solvers._solution import Array

__all__ = ["solve_ball"]

MAX_PAIRS = 1200  # beyond this many enforced entries the Newton systems cost more than alternating directions


def solve_ball(full: Full, nonneg: bool, accept: Callable[[Point], bool]) -> Point | None:
    """Solve without X >= 0, then enforce it on the worst cells until none is left; None when that does not end.

    `accept` judges a point of the full program.
    """
    at = _unconstrained(full)
    if accept(at) or not nonneg:
        return at
    return _constrained(full, at, accept)


def _unconstrained(full: Full) -> Point:
    """X >= 0 left out: a program of rank(T) rows and k columns."""
    none = np.zeros(0, dtype=np.intp)
    left, s, right = np.linalg.svd(full.T, full_matrices=False)
    rank = full.L.shape[1]
    at = Point(full.T @ full.Q.T, left[:, :rank] @ right[:rank], none, none, np.zeros(0))
    reduced = reduce(full, none, none)
    # with a smaller sigma the first subproblem is solved by Y = 0, where the norm of Y has a kink
    above = full.base
    while above < s[0] and np.linalg.norm((left * np.minimum(s, above)) @ right * full.p) < 2 * full.radius:
        above *= 2
    sigma = max(10.0, 2 * above / full.base) * full.base
    for outer in range(6):
        at = proximal_step(full, reduced, at, sigma if outer == 0 else 10 * sigma, 20)
        if at.change <= 1e-9:
            break
    return at


def _constrained(full: Full, at: Point, accept: Callable[[Point], bool]) -> Point | None:
    sigma = 30 * full.base
    pruned = False
    for _ in range(40):
        new = _worst(at)
        if len(new[0]):
            at = _enforce(at, *new)
        elif at.change < 1e-2 and not pruned:
            keep = at.z > 0
            at = replace(at, cell=at.cell[keep], gene=at.gene[keep], z=at.z[keep])
            pruned = True
        if len(at.z) > MAX_PAIRS:
            return None
        at = proximal_step(full, reduce(full, at.cell, at.gene), at, sigma, 2)
        if accept(at):
            return at
        sigma = min(3 * sigma, 1e3 * full.base)
    return None


def _worst(at: Point) -> tuple[Array, Array]:
    """Negative entries, not enforced yet, of the 25 cells with the most negative ones (none below a tenth of the worst)."""
    low = at.X.copy()
    low[at.cell, at.gene] = 0.0
    depth = low.min(axis=1)
    worst = float(depth.min())
    if worst >= -1e-9 * float(at.X.max()):
        none = np.zeros(0, dtype=np.intp)
        return none, none
    cells = np.argsort(depth, kind="stable")[:25]
    cells = cells[depth[cells] <= 0.1 * worst]
    row, gene = np.nonzero(low[cells] < 0)
    return cells[row], gene


def _enforce(at: Point, cell: Array, gene: Array) -> Point:
    """Add pairs with multiplier 0."""
    return replace(
        at,
        cell=np.concatenate([at.cell, cell]),
        gene=np.concatenate([at.gene, gene]),
        z=np.concatenate([at.z, np.zeros(len(cell))]),
    )
