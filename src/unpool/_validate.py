"""Checks at the boundary: what comes in is understood here, or refused by name with a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from unpool.errors import InputError

__all__ = [
    "BLOCK_ROWS",
    "Table",
    "align",
    "annotation",
    "blocks",
    "choice",
    "columns_of",
    "dense",
    "expression",
    "generator",
    "instance",
    "integer",
    "intensities",
    "names",
    "number",
    "table",
]

BLOCK_ROWS = 4096  # rows are worked in blocks that are always cut at these places, so threads cannot change a result
_LOG_BASES = {"natural": 1.0, "base-2": np.log(2.0), "base-10": np.log(10.0)}


class Table(NamedTuple):
    """A checked cells x genes (or cells x pools) matrix, dense or CSR, float32 or float64, with its names."""

    X: Any
    rows: list[str]
    columns: list[str]


def blocks(n: int) -> Iterator[slice]:
    """Slices of `BLOCK_ROWS` rows, always cut at the same places."""
    return (slice(start, min(start + BLOCK_ROWS, n)) for start in range(0, n, BLOCK_ROWS))


def dense(X: Any, rows: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float64]:
    """Some rows of a dense or sparse matrix, as a dense float64 array."""
    block = X[rows]
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def columns_of(X: Any, columns: NDArray[np.intp], rows: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float64]:
    """Some columns of some rows of a dense or sparse matrix: dense float64, rows x columns, and never more than that."""
    index = np.arange(X.shape[0])[rows]
    some = np.empty((len(index), len(columns)), order="F")
    for b in blocks(len(index)):
        some[b] = dense(X[index[b]][:, columns])
    return some


def generator(rng: Any) -> np.random.Generator:
    """Return the Generator of an int, SeedSequence, Generator or None (SPEC 7: no RandomState)."""
    if isinstance(rng, np.random.RandomState):
        raise InputError("rng is a legacy RandomState; pass an int or numpy.random.default_rng(seed) instead")
    if isinstance(rng, bool) or (isinstance(rng, (int, np.integer)) and rng < 0):
        raise InputError(f"rng={rng!r} is not a seed; pass an integer >= 0, a numpy Generator or None")
    try:
        return np.random.default_rng(rng)
    except TypeError as error:
        raise InputError(f"rng={rng!r} is not a seed; pass an integer >= 0, a numpy Generator or None") from error


def choice(value: Any, allowed: Sequence[str], what: str) -> str:
    """Return the value if it is one of the allowed words, else name those that exist."""
    if isinstance(value, str) and value in allowed:
        return value
    hint = get_close_matches(str(value), allowed, n=1)
    raise InputError(
        f"{what}={value!r} does not exist; choose one of {', '.join(map(repr, allowed))}"
        + (f" (did you mean {hint[0]!r}?)" if hint else "")
    )


def number(value: Any, what: str, *, minimum: float = 0.0, strict: bool = False, maximum: float = np.inf) -> float:
    """Return a finite real number within bounds; `strict` excludes the minimum itself."""
    expected = f"a number {'>' if strict else '>='} {minimum:g}" + (f" and <= {maximum:g}" if maximum < np.inf else "")
    try:
        x = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}={value!r}: expected {expected}") from error
    if not np.isfinite(x) or x < minimum or x > maximum or (strict and x == minimum):
        raise InputError(f"{what}={value!r}: expected {expected}")
    return x


def instance(value: Any, kind: type, what: str, remedy: str) -> None:
    """Refuse a value of another type, and say what to pass instead."""
    if not isinstance(value, kind):
        raise InputError(f"{what} is of type {type(value).__name__}; {remedy}")


def integer(value: Any, what: str, *, minimum: int = 1) -> int:
    """Return a whole number that is at least the minimum."""
    x = number(value, what, minimum=minimum)
    if x != int(x):
        raise InputError(f"{what}={value!r}: expected a whole number >= {minimum}")
    return int(x)


def names(values: Any, what: str) -> list[str]:
    """Return names as unique, nonempty strings; `what` is the singular noun used in messages."""
    listed = [str(v) for v in values]
    if any(not v for v in listed):
        raise InputError(f"{what} {listed.index('')} has an empty name; give every {what} a name")
    index = pd.Index(listed)
    if index.has_duplicates:
        twice = list(dict.fromkeys(index[index.duplicated()]))
        raise InputError(
            f"{what} name {twice[0]!r} occurs {listed.count(twice[0])} times"
            + (f" ({len(twice)} names are repeated)" if len(twice) > 1 else "")
            + f"; make the {what} names unique"
        )
    return listed


def align(wanted: Sequence[str], held: Sequence[str], *, wanted_by: str, held_by: str, what: str = "gene") -> Any:
    """Positions in `held` of every name in `wanted`; a missing one is named, with the closest spelling there is."""
    position = pd.Index(held).get_indexer(pd.Index(wanted))
    missing = [wanted[int(i)] for i in np.flatnonzero(position < 0)]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        by_lower = {h.lower(): h for h in held}
        close = by_lower.get(missing[0].lower()) or next(iter(get_close_matches(missing[0], list(held), n=1)), None)
        raise InputError(
            f"{len(missing)} of {len(wanted)} {what}s of {wanted_by} are not in {held_by}: {shown}"
            + (f"; the closest name there is {close!r}" if close else "")
            + f". {what.capitalize()}s are matched by name: rename them, or take the {what}s out of {wanted_by}"
        )
    return position


def annotation(data: Any, column: Any, *, what: str) -> pd.Series[Any]:
    """One value a cell: a column of obs by its name, or the values themselves; `what` names it in messages."""
    n = data.shape[0]
    if isinstance(column, str):
        obs = data.obs if isinstance(data, AnnData) else pd.DataFrame(index=range(n))
        if column not in obs:
            held = list(map(str, obs.columns))
            raise InputError(
                f"{what}={column!r} is no column of the reference's obs, which has {held or 'none'}; name one of them, or "
                "pass one value per cell"
            )
        return obs[column]
    values = pd.Series(list(column), dtype=object)
    if len(values) != n:
        raise InputError(f"{what} has {len(values)} values for {n} cells; give one per cell of the reference, in order")
    return values


def table(data: Any, *, what: str, layer: str | None = None, column: str = "gene") -> Table:
    """Matrix and names of an AnnData, DataFrame, array or sparse matrix; no look at the values yet."""
    if isinstance(data, AnnData):
        if layer is not None and layer not in data.layers:
            held = [k for k in data.layers if k is not None]
            raise InputError(f"{what} has no layer {layer!r}; it has {held or 'none'}: leave layer out to use X")
        X = data.layers[layer] if layer is not None else data.X
        if X is None:
            raise InputError(f"{what} has no X; put the linear intensities into .X, or name their layer")
        rows, columns = list(map(str, data.obs_names)), list(map(str, data.var_names))
    else:
        if layer is not None:
            raise InputError(f"layer={layer!r} needs an AnnData, but {what} is a {type(data).__name__}")
        if isinstance(data, pd.DataFrame):
            text = [c for c in data.columns if not pd.api.types.is_numeric_dtype(data[c])]
            if text:
                raise InputError(
                    f"{what}: {column} {str(text[0])!r} holds {data[text[0]].dtype}, not numbers; convert or drop it"
                )
            X, rows, columns = data.to_numpy(), list(map(str, data.index)), list(map(str, data.columns))
        else:
            if not (sparse.issparse(data) or hasattr(data, "__array__") or isinstance(data, (list, tuple))):
                raise InputError(
                    f"{what} is a {type(data).__name__}; expected an AnnData, DataFrame, array or sparse matrix"
                )
            X = data if sparse.issparse(data) else np.asarray(data)
            if X.ndim != 2:
                raise InputError(f"{what} has shape {X.shape}; expected two dimensions, cells x {column}s")
            rows = [f"cell_{i}" for i in range(X.shape[0])]
            columns = [f"{column}_{j}" for j in range(X.shape[1])]
    X = _in_memory(X, what)
    if X.shape[0] == 0:
        raise InputError(f"no cells in {what} (shape {X.shape}); check the filter that made it")
    if X.shape[1] == 0:
        raise InputError(f"no {column}s in {what} (shape {X.shape}); check the filter that made it")
    return Table(X, rows, names(columns, column))


def _in_memory(X: Any, what: str) -> Any:
    """Dense or CSR float32/float64 in memory; backed arrays are read here."""
    if not (sparse.issparse(X) or isinstance(X, np.ndarray)):
        X = X.to_memory() if hasattr(X, "to_memory") else np.asarray(X[:] if hasattr(X, "id") else X)
    if X.dtype.kind not in "biuf":
        raise InputError(f"{what} holds values of type {X.dtype}; expected real numbers")
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32 if X.dtype.itemsize <= 2 else np.float64)
    return sparse.csr_matrix(X) if sparse.issparse(X) else np.asarray(X)


def _refuse(t: Table, bad: Any, start: int, what: str, column: str, complaint: str) -> None:
    """Raise for the first bad entry of a block, by the names of its row and column."""
    i, j = (int(k[0]) for k in np.nonzero(bad))
    more = int(np.count_nonzero(bad)) - 1
    raise InputError(
        f"{what}: {column} {t.columns[j]!r} is {dense(t.X, slice(start + i, start + i + 1))[0, j]:g} "
        f"in cell {t.rows[start + i]!r}"
        + (f" (and {more} more in the same {BLOCK_ROWS} cells)" if more else "")
        + f"; {complaint}"
    )


def _check_finite(t: Table, what: str, column: str, remedy: str) -> None:
    for rows in blocks(t.X.shape[0]):
        block = dense(t.X, rows)
        bad = ~np.isfinite(block)
        if bad.any():
            _refuse(t, bad, rows.start, what, column, remedy)


def expression(data: Any, *, what: str, layer: str | None = None, log_check: bool = True) -> Table:
    """Cells x genes on the linear scale: finite, nonnegative, unique gene names; log-transformed input is refused.

    Parameters
    ----------
    data
        AnnData, DataFrame, array or sparse matrix, cells x genes.
    what
        What the data are called in messages, e.g. "the reference".
    layer
        Layer of an AnnData to use instead of X.
    log_check
        Whether to look for signs of a log transformation.
    """
    t = table(data, what=what, layer=layer)
    _check_finite(t, what, "gene", "expected finite values: remove the cell or the gene, or impute the value")
    for rows in blocks(t.X.shape[0]):
        block = dense(t.X, rows)
        if block.min(initial=0.0) < 0:
            remedy = "expected linear intensities >= 0: pass counts or intensities, not scaled or centred values"
            _refuse(t, block < 0, rows.start, what, "gene", remedy)
    if log_check:
        evidence = log_evidence(data, t.X, layer)
        if evidence:
            raise InputError(
                f"{what} looks log-transformed ({evidence}), but pools are sums on the linear scale; "
                "pass counts or intensities before log1p (numpy.expm1 undoes numpy.log1p; adata.raw or a layer may hold "
                "them). If the values are linear all the same, multiply them and the pools by 1000: decoding scales along"
            )
    return t


def intensities(data: Any, *, what: str, layer: str | None = None, column: str = "pool") -> Table:
    """Cells x pools on the linear scale: finite; negative values are noise and allowed."""
    t = table(data, what=what, layer=layer, column=column)
    _check_finite(t, what, column, "expected finite values: remove the cell, or the pool if it failed everywhere")
    evidence = log_evidence(data, t.X, layer)
    if evidence:
        raise InputError(
            f"{what} look log-transformed ({evidence}), but pools are sums on the linear scale; pass intensities "
            "before the log. If they are linear all the same, multiply them and the reference by 1000: decoding "
            "scales along"
        )
    return t


def log_evidence(data: Any, X: Any, layer: str | None = None) -> str | None:
    """Say why values look log-transformed, or None.

    Three signs, each of which linear intensities practically never show: scanpy's own mark in uns; cells whose values turn
    into whole multiples of one number once exponentiated (log of normalised counts); positive values that all lie between
    1/10 of the maximum and the maximum, with a maximum from 3 to 16 (log of positive intensities).
    """
    if isinstance(data, AnnData) and layer is None and "log1p" in data.uns:
        return "uns['log1p'] says that X was logged; delete that key if it is stale"
    n = X.shape[0]
    sample = dense(X, np.arange(0, n, max(1, n // 300)))
    top = float(sample.max())
    if not 0 < top <= 25 or np.array_equal(sample, np.rint(sample)):
        return None
    for name, factor in _LOG_BASES.items():
        if _on_lattice(np.expm1(sample * factor)) and not _on_lattice(sample):
            return f"undoing a {name} log(1 + x) turns each cell's values into whole multiples of one number"
    low = float(sample.min())
    if sample.size >= 50 and 3 <= top <= 16 and low > top / 10:
        return f"all values lie between {low:.3g} and {top:.3g}"
    return None


def _on_lattice(Y: NDArray[np.float64]) -> bool:
    """Whether nearly every row's values are small whole multiples of a common number: counts, normalised or not."""
    hits = tried = 0
    for row in Y:
        values = np.unique(row[row > 0])
        if values.size < 2 or values[-1] < 1.5 * values[0]:
            continue
        ratio = values / values[0]
        ratio = ratio[(ratio < 12) & (ratio > 1.01)]  # larger ones say less where values were stored with few digits
        if ratio.size == 0:
            continue
        tried += 1
        hits += any(np.all(np.abs(k * ratio - np.rint(k * ratio)) < 2e-3 * k * ratio) for k in (1, 2, 3))
    return tried >= 3 and hits >= 0.8 * tried
