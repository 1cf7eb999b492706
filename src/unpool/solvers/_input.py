"""What a solver accepts: real, finite, two-dimensional arrays of matching shapes; anything else is one clear error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unpool.errors import InputError
from unpool.solvers._solution import Array

__all__ = ["as_batches", "as_matrix"]


def as_matrix(values: Any, name: str, row: str = "row", column: str = "column", *, empty: bool = False) -> Array:
    """`values` as a C-ordered float64 matrix; InputError names the first row and column that is NaN or infinite.

    `row` and `column` say what the axes mean ("cell", "pool"); `empty` allows a matrix without rows.
    """
    try:
        raw = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name}: expected one matrix ({row}s x {column}s), got rows of unequal length") from error
    if raw.dtype.kind not in "biuf":
        raise InputError(
            f"{name}: expected real numbers, got {type(values).__name__} of dtype {raw.dtype}; "
            "convert it to a dense array of floats"
        )
    if raw.ndim != 2:
        raise InputError(f"{name}: expected a matrix ({row}s x {column}s), got an array of shape {raw.shape}")
    if raw.shape[1] == 0 or (raw.shape[0] == 0 and not empty):
        raise InputError(f"{name}: expected at least one {row} and one {column}, got shape {raw.shape}")
    matrix = np.ascontiguousarray(raw, dtype=np.float64)
    # one sum finds almost every bad value without an array of booleans; it may overflow, so it only raises suspicion
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(matrix.sum())
    if suspicious:
        bad = np.argwhere(~np.isfinite(matrix))
        if len(bad):
            i, j = bad[0]
            raise InputError(
                f"{name} holds {matrix[i, j]} at {row} {i}, {column} {j} ({len(bad)} such values in all); "
                "every value must be finite: remove or impute them first"
            )
    return matrix


def as_batches(D: Any, P: Any) -> tuple[list[Array], list[Array]]:
    """One measurement with one design, or several, as two equally long lists of float64 matrices.

    Parameters
    ----------
    D
        Cells x pools, linear scale, or a sequence of such matrices, one a design.
    P
        Genes x pools, or a sequence of such matrices; all share their genes, cells and pools may differ.

    Examples
    --------
    >>> import numpy as np
    >>> D, P = as_batches([np.ones((3, 2)), np.ones((5, 1))], [np.ones((4, 2)), np.ones((4, 1))])
    >>> [d.shape for d in D], [p.shape for p in P]
    ([(3, 2), (5, 1)], [(4, 2), (4, 1)])
    """
    several_D, several_P = _is_several(D), _is_several(P)
    if several_D != several_P:
        one, many = ("P", "D") if several_D else ("D", "P")
        raise InputError(
            f"{many} holds several matrices but {one} is a single one: "
            "pass two matrices, or two sequences with one entry for each design"
        )
    if not several_D:
        D, P = [D], [P]
    if len(D) != len(P) or len(D) == 0:
        raise InputError(f"expected one D and one P for each design, got {len(D)} in D and {len(P)} in P")

    Ds: list[Array] = []
    Ps: list[Array] = []
    for b, (d, p) in enumerate(zip(D, P, strict=True)):
        at = f"[{b}]" if several_D else ""
        d = as_matrix(d, f"D{at}", "cell", "pool")
        p = as_matrix(p, f"P{at}", "gene", "pool")
        if d.shape[1] != p.shape[1]:
            raise InputError(
                f"D{at} has {d.shape[1]} pools (columns) but P{at} has {p.shape[1]}: D is cells x pools, "
                f"P is genes x pools, got {d.shape} and {p.shape}"
            )
        if Ps and p.shape[0] != Ps[0].shape[0]:
            raise InputError(
                f"P[{b}] has {p.shape[0]} genes (rows) but P[0] has {Ps[0].shape[0]}: every design covers the same "
                "genes in the same order; give a gene that a design does not pool a row of zeros"
            )
        Ds.append(d)
        Ps.append(p)
    return Ds, Ps


def _is_several(values: Any) -> bool:
    """Whether `values` holds matrices rather than being one: a 3-d array, or a sequence whose entries are 2-d."""
    if isinstance(values, np.ndarray):
        return values.ndim == 3 or (values.dtype == object and values.ndim == 1)
    return isinstance(values, Sequence) and (len(values) == 0 or np.ndim(values[0]) == 2)
