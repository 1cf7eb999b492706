"""One design: find the few entries on which X >= 0 has to be enforced, and solve for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError

from unpool.solvers._nuclear_core import Full, Indices, Point, proximal_step, reduce
from unpool.solvers._nuclear_span import solve_in_span

__all__ = ["solve_one_design"]

MAX_PAIRS = 1200  # beyond this many enforced entries the Newton systems cost more than alternating directions


NEWTON = 4  # Newton steps in one outer step, at most
BUDGET = 150  # and in all


@dataclass(frozen=True)
class Schedule:
    """Penalty of the outer steps, in units of the scale of X.

    It begins at `start`, is at most `top`, and is multiplied by `growth` after an outer step that Newton's method
    solved to its tolerance, divided by it after one that it did not.
    """

    start: float
    growth: float
    top: float


BALL = Schedule(30.0, 3.0, 1e3)
EXACT = Schedule(1.0, 2.0, 100.0)


def solve_one_design(full: Full, nonneg: bool, accept: Callable[[Point], bool]) -> Point | None:
    """Solve a relaxed program, then enforce X >= 0 on the worst entries until `accept` takes the point.

    With a positive radius the relaxed program leaves X >= 0 out; at radius 0 that has a closed form, and X is kept in
    the span of the measurement instead. None: the budget of Newton steps or of enforced entries is spent, or a system
    is singular.
    """
    try:
        if full.radius > 0 or not nonneg:
            at = _unconstrained(full)
            if accept(at) or not nonneg:
                return at
            return _enforce(full, at, BALL, accept)
        start = solve_in_span(full)
        if start is None or accept(start):
            return start
        return _enforce(full, replace(start, change=1.0), EXACT, accept)
    except LinAlgError:
        return None


def _unconstrained(full: Full) -> Point:
    """X >= 0 left out: a program of rank(T) rows and k columns."""
    none = np.zeros(0, dtype=np.intp)
    Y, T = full.L @ full.R, full.T
    for _ in range(2):  # XQ - T = -radius Y/p² / ‖Y/p‖ with Y the polar factor of X, as a fixed point
        near = full.T - full.radius / float(np.linalg.norm(Y / full.p)) * Y / full.p**2
        turn, _, back = np.linalg.svd(full.L.T @ near, full_matrices=False)
        polar = full.L @ (turn @ back)
        if np.linalg.norm(polar - Y) > 0.3:
            break
        Y, T = polar, near
    at = Point(T @ full.Q.T, Y, none, none, np.zeros(0))
    reduced = reduce(full, none, none)
    # with a smaller sigma the first subproblem is solved by Y = 0, where the norm of Y has a kink
    above = full.base
    while above < full.s[0]:
        if np.linalg.norm((np.minimum(full.s, above)[:, None] * full.R) * full.p) >= 2 * full.radius:
            break
        above *= 2
    sigma = max(10.0, 2 * above / full.base) * full.base
    for outer in range(6):
        at = proximal_step(full, reduced, at, sigma if outer == 0 else 10 * sigma, 20)
        if at.error <= 1e-10 or at.change <= 1e-9:
            break
    return at


def _enforce(full: Full, at: Point, schedule: Schedule, accept: Callable[[Point], bool]) -> Point | None:
    """Alternate between outer steps and new enforced entries; once none is missing, drop those without multiplier."""
    sigma, top = schedule.start * full.base, schedule.top * full.base
    end = at.steps + BUDGET
    pruned = False
    reduced = None
    for _ in range(BUDGET):
        cell, gene = _worst(at)
        before = at.cell
        if cell.size:
            at = _add(at, cell, gene)
        elif at.change < 1e-2 and not pruned:
            keep = at.z > 0
            at = replace(at, cell=at.cell[keep], gene=at.gene[keep], z=at.z[keep])
            pruned = True
        if at.z.size > MAX_PAIRS or at.steps >= end:
            return None
        if reduced is None or at.cell is not before:
            reduced = reduce(full, at.cell, at.gene)
        at = proximal_step(full, reduced, at, sigma, NEWTON)
        if accept(at):
            return at
        sigma = min(schedule.growth * sigma, top) if at.settled else sigma / schedule.growth
    return None


def _worst(at: Point) -> tuple[Indices, Indices]:
    """Negative entries not enforced yet, in the 25 worst cells, or fewer: those within a tenth of the worst entry."""
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


def _add(at: Point, cell: Indices, gene: Indices) -> Point:
    """Add pairs with multiplier 0."""
    return replace(
        at,
        cell=np.concatenate([at.cell, cell]),
        gene=np.concatenate([at.gene, gene]),
        z=np.concatenate([at.z, np.zeros(len(cell))]),
    )
