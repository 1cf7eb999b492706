"""The loop of every iterative solver: counts iterations, refuses non-finite iterates, says how the run ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from unpool.errors import InputError
from unpool.solvers._solution import Array

__all__ = ["Run", "iterate"]

State = TypeVar("State")


@dataclass(frozen=True)
class Run(Generic[State]):
    """How a run ended: the last finite state, and the fields of the same names in `Solution`."""

    state: State
    n_iter: int
    converged: bool
    status: str
    trace: Array


def iterate(
    step: Callable[[State], State],
    state: State,
    *,
    tol: float,
    max_iter: int,
    measure: Callable[[State], tuple[float, float]],
) -> Run[State]:
    """Repeat `state = step(state)` until the error that `measure` sees is at most `tol`, or `max_iter` times.

    Parameters
    ----------
    step
        The method: takes a state, returns the next one and leaves the old one as it was.
    state
        Where to start. It is not measured: at least one step is done.
    tol, max_iter
        Tolerance on the error, >= 0 (0: run all iterations), and the cap on the number of steps, >= 1.
    measure
        Objective and error of a state. A non-finite objective or error (but for an error of +inf, "not known yet") ends
        the run; the state before it is returned, with a status that says so.

    Examples
    --------
    >>> run = iterate(lambda x: x / 2, 1.0, tol=0.1, max_iter=50, measure=lambda x: (x * x, x))
    >>> run.state, run.n_iter, run.converged, run.status
    (0.0625, 4, True, 'solved')
    """
    if not (np.isfinite(tol) and tol >= 0):
        raise InputError(f"tol={tol!r}: expected a finite number >= 0")
    if max_iter != int(max_iter) or max_iter < 1:
        raise InputError(f"max_iter={max_iter!r}: expected a whole number >= 1")

    trace: list[float] = []
    error = np.inf
    for _ in range(int(max_iter)):
        following = step(state)
        objective, following_error = measure(following)
        if not np.isfinite(objective) or np.isnan(following_error):
            status = (
                f"stopped: iteration {len(trace) + 1} gave a non-finite value, the iterate before it is returned; "
                "rescale D and P towards 1"
            )
            return Run(state, len(trace), False, status, np.array(trace))
        state, error = following, following_error
        trace.append(objective)
        if error <= tol:
            return Run(state, len(trace), True, "solved", np.array(trace))
    status = (
        f"not converged: error {error:.2e} after {len(trace)} iterations, tol={tol:.0e}; "
        "raise max_iter or accept a larger tol"
    )
    return Run(state, len(trace), False, status, np.array(trace))
