"""Design: which gene goes into which pool, with what weight."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from unpool._validate import align, dense, expression, names
from unpool.errors import InputError
from unpool.io import read_csv, write_csv

__all__ = ["Design"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Design:
    """One or several pooling designs that share their genes and channels.

    Parameters
    ----------
    weights
        Genes x pools, nonnegative: ``weights[j, k]`` is the weight of gene j in pool k (0/1 or real). Or a sequence of
        such matrices, one per design; a matrix with fewer columns leaves the last channels unused.
    genes, pools, names
        Names of genes, pools (channels) and designs; default "gene_0".., "pool_0".., "design_0"... The index and columns
        of a DataFrame are taken as names of genes and pools.

    Raises
    ------
    InputError
        For a negative, infinite or missing weight, a pool that no gene uses, shapes that differ, or repeated names.

    Examples
    --------
    >>> import unpool as up
    >>> design = up.Design([[1, 0], [1, 1], [0, 1]], genes=["CD3", "CD4", "CD8"])
    >>> design
    Design: 3 genes in 2 pools (pack ratio 0.667)
      genes per pool 2; pools per gene 1 to 2; weights 0/1
    >>> design.matrices[0].shape
    (3, 2)
    """

    matrices: tuple[NDArray[np.float64], ...]
    genes: tuple[str, ...]
    pools: tuple[str, ...]
    names: tuple[str, ...]

    def __init__(
        self,
        weights: ArrayLike | pd.DataFrame | Sequence[ArrayLike | pd.DataFrame],
        genes: Sequence[str] | None = None,
        pools: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        frames = _as_list(weights)
        first = frames[0]
        if isinstance(first, pd.DataFrame):
            genes = list(map(str, first.index)) if genes is None else genes
            pools = list(map(str, first.columns)) if pools is None else pools
        matrices = [_weights(w, b, len(frames)) for b, w in enumerate(frames)]
        n_genes, n_pools = matrices[0].shape[0], max(w.shape[1] for w in matrices)
        for b, w in enumerate(matrices):
            if w.shape[0] != n_genes:
                raise InputError(f"design {b} has {w.shape[0]} genes, design 0 has {n_genes}; give all the same genes")
        padded = [np.pad(w, ((0, 0), (0, n_pools - w.shape[1]))) for w in matrices]
        object.__setattr__(self, "genes", _named(genes, n_genes, "gene"))
        object.__setattr__(self, "pools", _named(pools, n_pools, "pool"))
        object.__setattr__(self, "names", _named(names, len(padded), "design"))
        for w in padded:
            w.flags.writeable = False
        object.__setattr__(self, "matrices", tuple(padded))
        unused = np.flatnonzero(~np.any([w.any(axis=0) for w in padded], axis=0))
        if unused.size:
            raise InputError(
                f"no gene uses pool {self.pools[unused[0]]!r}"
                + (f" (and {unused.size - 1} more)" if unused.size > 1 else "")
                + "; drop the pool or give it a gene"
            )

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @property
    def n_pools(self) -> int:
        """Number of pools (channels)."""
        return len(self.pools)

    @property
    def n_designs(self) -> int:
        """Number of designs."""
        return len(self.names)

    @property
    def pack_ratio(self) -> float:
        """Pools divided by genes."""
        return self.n_pools / self.n_genes

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Genes that no pool of any design contains."""
        used = np.any([w.any(axis=1) for w in self.matrices], axis=0)
        return tuple(g for g, u in zip(self.genes, used, strict=True) if not u)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and weights: equal designs, equal digest, on every machine."""
        h = hashlib.sha256()
        for part in (self.genes, self.pools, self.names):
            h.update(b"".join(len(s.encode()).to_bytes(8, "little") + s.encode() for s in part) + b"|")
        for w in self.matrices:
            h.update((w + 0.0).astype("<f8").tobytes())  # + 0.0 turns -0.0 into 0.0
        return h.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Design) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        W = np.stack(self.matrices)
        fill = (W != 0).sum(axis=1)
        per_gene = (W != 0).sum(axis=2)
        values = "0/1" if np.isin(W, (0, 1)).all() else f"{W[W > 0].min():.3g} to {W.max():.3g}"
        several = f"{self.n_designs} designs, each " if self.n_designs > 1 else ""
        unmeasured = f"; in no pool: {', '.join(self.unmeasured[:3])}" if self.unmeasured else ""
        return (
            f"Design: {several}{self.n_genes} genes in {self.n_pools} pools (pack ratio {self.pack_ratio:.3g})\n"
            f"  genes per pool {_range(fill[fill > 0])}; pools per gene {_range(per_gene)}; weights {values}{unmeasured}"
        )

    def equalised(self, reference: Any, *, layer: str | None = None) -> Design:
        """Divide each gene's weights by its root mean square in a reference: all genes speak equally loud in the pools.

        Parameters
        ----------
        reference
            Cells x genes on the linear scale (AnnData, DataFrame); genes are matched by name. A gene that is zero
            everywhere keeps its weights.
        layer
            Layer of the AnnData to use instead of X.

        Examples
        --------
        >>> import unpool as up
        >>> truth = up.simulate.low_rank(n_cells=50, n_genes=8, rng=0)
        >>> design = up.design.balanced(8, 4, pools_per_gene=2, rng=0).equalised(truth)
        """
        t = expression(reference, what="the reference", layer=layer)
        columns = align(self.genes, t.columns, wanted_by="the design", held_by="the reference")
        total = np.zeros(len(t.columns))
        for start in range(0, t.X.shape[0], 4096):
            total += np.square(dense(t.X, slice(start, start + 4096))).sum(axis=0)
        rms = np.sqrt(total / t.X.shape[0])[columns]
        rms[rms == 0] = 1.0
        return self._with([w / rms[:, None] for w in self.matrices])

    def _with(self, matrices: Sequence[NDArray[np.float64]]) -> Design:
        return Design(matrices, genes=self.genes, pools=self.pools, names=self.names)

    def select_genes(self, genes: Sequence[str]) -> Design:
        """Return the design of these genes, in this order."""
        rows = align(genes, self.genes, wanted_by="the selection", held_by="the design")
        return Design([w[rows] for w in self.matrices], genes=list(genes), pools=self.pools, names=self.names)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write genes as rows and pools as columns; several designs stand below each other, named in a first column."""
        frames = [pd.DataFrame(w, index=self.genes, columns=self.pools) for w in self.matrices]
        if self.n_designs == 1 and self.names == ("design_0",):
            write_csv(frames[0].rename_axis("gene"), path)
        else:
            write_csv(pd.concat(frames, keys=self.names, names=["design", "gene"]), path)

    @classmethod
    def read_csv(cls, path: str | os.PathLike[str]) -> Design:
        """Read a design with one header row and one name column.

        A corner cell "gene" or "pool" says what the rows are; otherwise the longer side holds the genes (pools are fewer
        than genes; a square table has genes as rows). A first column "design" and a second "gene" hold several designs.
        """
        frame = read_csv(path, dtype=str, keep_default_na=False, header=None)
        header, corner = frame.iloc[0].tolist(), str(frame.iat[0, 0]).strip().lower()
        if len(frame) < 2 or len(header) < 2:
            raise InputError(
                f"{path} holds no design (it has {len(frame)} x {len(header)} cells); expected genes x pools"
            )
        several = corner in {"design", "designs"}
        n_keys = 2 if several else 1
        columns = names(header[n_keys:], "column of the design")
        keys, body = frame.iloc[1:, :n_keys], frame.iloc[1:, n_keys:]
        values = _numbers(body, keys.iloc[:, -1].tolist(), columns, Path(path))
        if several:
            return cls._from_stack(values, keys, columns, path)
        rows = names(keys.iloc[:, 0], "row of the design")
        rows_are_pools = corner in {"pool", "pools", "channel", "channels"} or (
            corner not in {"gene", "genes"} and len(rows) < len(columns)
        )
        return cls(values.T, genes=columns, pools=rows) if rows_are_pools else cls(values, genes=rows, pools=columns)

    @classmethod
    def _from_stack(cls, values: NDArray[np.float64], keys: pd.DataFrame, pools: list[str], path: Any) -> Design:
        designs = list(dict.fromkeys(keys.iloc[:, 0]))
        of = {d: np.flatnonzero(keys.iloc[:, 0] == d) for d in designs}
        genes = keys.iloc[of[designs[0]], 1].tolist()
        matrices = []
        for d in designs:
            held = names(keys.iloc[of[d], 1], f"gene of design {d!r} in {path}")
            order = align(genes, held, wanted_by=f"design {designs[0]!r}", held_by=f"design {d!r}")
            if len(held) != len(genes):
                raise InputError(
                    f"{path}: design {d!r} has {len(held)} genes, {designs[0]!r} has {len(genes)}; make them equal"
                )
            matrices.append(values[of[d]][order])
        return cls(matrices, genes=genes, pools=pools, names=designs)


def _as_list(weights: Any) -> list[Any]:
    """Return the matrices of one or several designs."""
    if isinstance(weights, pd.DataFrame):
        return [weights]
    if isinstance(weights, (list, tuple)) and len(weights) and np.ndim(weights[0]) == 2:
        return list(weights)
    array = weights if hasattr(weights, "ndim") else _array(weights, "the design")
    if array.ndim == 3 and len(array):
        return list(array)
    if array.ndim != 2:
        raise InputError(
            f"a design of shape {array.shape} makes no sense; expected genes x pools, or a sequence of those"
        )
    return [array]


def _array(values: Any, what: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} holds something that is not a number ({error}); expected weights >= 0") from error


def _weights(w: Any, b: int, n_designs: int) -> NDArray[np.float64]:
    """Check one genes x pools matrix and return a copy of it."""
    what = f"design {b}" if n_designs > 1 else "the design"
    matrix = _array(w.toarray() if hasattr(w, "toarray") else w, what).copy()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"{what} has shape {matrix.shape}; expected genes x pools with at least one of each")
    for bad, complaint in ((~np.isfinite(matrix), "expected finite weights"), (matrix < 0, "expected weights >= 0")):
        if bad.any():
            j, k = (int(i[0]) for i in np.nonzero(bad))
            gene = w.index[j] if isinstance(w, pd.DataFrame) else f"gene {j}"
            pool = w.columns[k] if isinstance(w, pd.DataFrame) else f"pool {k}"
            raise InputError(
                f"{what}: the weight of {gene} in {pool} is {matrix[j, k]:g}; {complaint}: correct the entry"
            )
    return matrix


def _named(given: Sequence[str] | None, n: int, what: str) -> tuple[str, ...]:
    if given is None:
        return tuple(f"{what}_{i}" for i in range(n))
    listed = names([given] if isinstance(given, str) else given, what)
    if len(listed) != n:
        raise InputError(f"{len(listed)} {what} names for {n} {what}s; give one name for each")
    return tuple(listed)


def _numbers(body: pd.DataFrame, rows: list[str], columns: list[str], path: Path) -> NDArray[np.float64]:
    values = np.array([[_float(text) for text in row] for row in body.to_numpy()], dtype=np.float64)
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        i, k = (int(x[0]) for x in np.nonzero(bad))
        raise InputError(
            f"{path}: the weight in row {rows[i]!r}, column {columns[k]!r} is {body.iat[i, k]!r}; "
            "expected a finite number >= 0: correct the entry"
        )
    return values


def _float(text: str) -> float:
    """Return the number to the last digit (pandas' own parser rounds), NaN for text."""
    try:
        return float(text)
    except ValueError:
        return np.nan


def _range(values: NDArray[np.intp]) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
