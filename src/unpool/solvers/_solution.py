"""Solution: what every solver returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Solution"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Solution:
    """The answer of a solver, with everything needed to judge it.

    Attributes
    ----------
    X
        Cells x genes, linear scale; several designs stacked in order. A low-rank solver forms it from U and V when
        first asked.
    U, V
        Cells x rank and genes x rank with X = U Vᵀ, or None.
    sd
        Posterior standard deviation, cells x genes, or None.
    objective
        The value that the solver minimised.
    residual
        ‖A(X) - D‖_F, in the units of D.
    gap, dual
        Rigorous relative bound on the distance to the optimum, and the dual point (Y, Z) that proves it; or None.
    converged, status
        Whether the tolerance was reached; the cause and the remedy in words.
    n_iter, trace
        Iterations done, and the objective after each.
    """

    dense: Array | None = field(default=None, repr=False)
    U: Array | None = field(default=None, repr=False)
    V: Array | None = field(default=None, repr=False)
    sd: Array | None = field(default=None, repr=False)
    objective: float = float("nan")
    residual: float = float("nan")
    gap: float | None = None
    dual: tuple[Sequence[Array], Array] | None = field(default=None, repr=False)
    converged: bool = True
    status: str = "solved"
    n_iter: int = 0
    trace: Array = field(default_factory=lambda: np.empty(0), repr=False)

    @cached_property
    def X(self) -> Array:
        """Cells x genes, linear scale."""
        if self.dense is not None:
            return self.dense
        if self.U is None or self.V is None:
            raise ValueError("this solution holds neither X nor its factors")
        return np.asarray(self.U @ self.V.T)
