"""Intervals of decoded values: conformal, from reference cells that were held out and measured in simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from unpool._validate import align, blocks, dense, number
from unpool.errors import InputError

__all__ = ["Calibration", "Intervals", "intervals"]

Array = NDArray[np.float64]

N_BINS = 5  # of the decoded value, per gene
MIN_IN_BIN = 30  # cells; below, the bin takes what holds over the whole gene
FLOOR = 1e-3  # share of a gene's decoded variance that counts as error at least, so that no error is divided by nothing
# cumulative probabilities at which quantiles are kept; between them intervals are interpolated
_LOWER = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
PROBABILITIES = np.array([*_LOWER, 0.5, *(1 - p for p in reversed(_LOWER))])
MAX_LEVEL = 0.995


class Intervals(NamedTuple):
    """Ends of intervals: two DataFrames, cells x genes, linear scale."""

    lower: pd.DataFrame
    upper: pd.DataFrame


def intervals(decoded: AnnData, level: float = 0.9) -> Intervals:
    """Intervals that hold the true expression of a cell's gene with the given probability.

    Parameters
    ----------
    decoded
        What `decode` returned, or a part of it (cells, genes), also after writing and reading.
    level
        Share of the true values to be held, above 0 and at most 0.995.

    Returns
    -------
    Intervals
        ``lower, upper``: DataFrames, cells x genes, float32, linear scale, 0 <= lower <= upper. Larger levels give wider
        intervals around the same centre, the conditional median.

    Notes
    -----
    The interval is x̂ + z sd, clipped at zero, with x̂ and sd from X and layers["sd"] and z the two quantiles of
    (x - x̂) / sd over reference cells that were held out from the fit and decoded from simulated pools: per gene, in five
    bins of x̂ (conformal prediction, Vovk et al. 2005). It holds for cells like those of the reference, on average over
    the cells of a bin, not for every kind of cell on its own; `decode(reference_group=...)` makes it hold for cells of a
    new group. Where decode could not hold cells out (a Model as reference), z is normal: see
    uns["unpool"]["intervals"]["source"]. Intervals are equal-tailed, so at small levels a skewed gene's may leave out x̂.

    Examples
    --------
    >>> import unpool as up
    >>> from unpool.intervals import intervals
    >>> cells = up.simulate.cell_types(600, 24, 4, rng=0)
    >>> pools = up.measure(cells[300:].copy(), up.design.balanced(24, 8, rng=0), snr=10, rng=0)
    >>> decoded = up.decode(pools, cells[:300].copy(), noise_var="recorded")
    >>> lower, upper = intervals(decoded, level=0.8)
    >>> bool(((lower.to_numpy() <= cells.X[300:]) & (cells.X[300:] <= upper.to_numpy())).mean() > 0.7)
    True
    """
    level = number(level, "level", strict=True, maximum=MAX_LEVEL)
    if "sd" not in decoded.layers:
        raise InputError("the decoded data have no layers['sd']; decode with sd=True, by a method that has one")
    calibration = Calibration.of(decoded)
    ends = np.empty((2, *decoded.shape), dtype=np.float32)
    for rows in blocks(decoded.n_obs):
        ends[:, rows] = calibration.ends(dense(decoded.X, rows), dense(decoded.layers["sd"], rows), level)
    return Intervals(*(pd.DataFrame(end, index=decoded.obs_names, columns=decoded.var_names) for end in ends))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Quantiles of the standardised error (x - x̂) / sd per gene, in bins of x̂.

    Attributes
    ----------
    source
        Where the quantiles come from, in words.
    floor
        Genes: the least sd that counts.
    edges
        Genes x (bins - 1): where the bins of x̂ meet.
    quantiles
        Probabilities x genes x bins, at `PROBABILITIES`; None: those of the normal distribution.
    """

    source: str
    floor: NDArray[np.float32]
    edges: NDArray[np.float32]
    quantiles: NDArray[np.float32] | None

    @classmethod
    def normal(cls, n_genes: int, source: str) -> Calibration:
        """Standard normal errors, whatever the gene and the value."""
        return cls(source, np.zeros(n_genes, np.float32), np.zeros((n_genes, 0), np.float32), None)

    @classmethod
    def fit(cls, truth: Array, mean: Array, sd: Array, source: str) -> Calibration:
        """Learn from held-out cells: truth, answer and sd, each cells x genes.

        Quantiles are taken at p (n + 1), so that a new cell falls below with probability p.
        """
        floor = np.sqrt(FLOOR * mean.var(axis=0)).astype(np.float32)
        floor[floor == 0] = 1.0  # a gene whose answer never varies: errors in its own units
        z = (truth - mean) / np.maximum(sd, floor)
        edges = np.quantile(mean, np.arange(1, N_BINS) / N_BINS, axis=0).T.astype(np.float32)
        overall = np.quantile(z, PROBABILITIES, axis=0, method="weibull")
        table = np.repeat(overall[:, :, None], N_BINS, axis=2)
        for j in range(truth.shape[1]):
            bin_of = np.searchsorted(edges[j], mean[:, j])
            for k in np.flatnonzero(np.bincount(bin_of, minlength=N_BINS) >= MIN_IN_BIN):
                table[:, j, k] = np.quantile(z[bin_of == k, j], PROBABILITIES, method="weibull")
        return cls(source, floor, edges, table.astype(np.float32))

    def ends(self, mean: Array, sd: Array, level: float) -> Array:
        """Lower and upper ends: 2 x cells x genes, from cells x genes."""
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        if self.quantiles is None:
            z = np.array([NormalDist().inv_cdf(p) for p in tails])[:, None, None]
        else:
            bin_of = sum((mean > edge for edge in self.edges.T), np.zeros(mean.shape, dtype=np.intp))
            z = np.stack([_between(self.quantiles, p)[np.arange(mean.shape[1]), bin_of] for p in tails])
        return np.asarray(np.maximum(mean + z * np.maximum(sd, self.floor), 0.0))

    def record(self, genes: Any) -> dict[str, Any]:
        """Plain arrays for uns, which h5ad can hold."""
        record: dict[str, Any] = {"source": self.source}
        if self.quantiles is not None:
            record |= {"genes": np.array(list(genes), dtype=object), "probabilities": PROBABILITIES}
            record |= {"floor": self.floor, "edges": self.edges, "quantiles": self.quantiles}
        return record

    @classmethod
    def of(cls, decoded: AnnData) -> Calibration:
        """Read what `decode` wrote, for the genes that the decoded data (still) hold."""
        unpool = decoded.uns.get("unpool", {})
        record = unpool.get("intervals", {}) if isinstance(unpool, Mapping) else {}
        if "quantiles" not in record:
            return cls.normal(decoded.n_vars, str(record.get("source", "normal")))
        genes = align(
            list(map(str, decoded.var_names)), list(map(str, record["genes"])),
            wanted_by="the decoded data", held_by="its table of intervals",
        )  # fmt: skip
        table = np.asarray(record["quantiles"])[:, genes]
        return cls(str(record["source"]), np.asarray(record["floor"])[genes], np.asarray(record["edges"])[genes], table)


def _between(quantiles: NDArray[np.float32], p: float) -> Array:
    """Quantile p of every gene and bin, linear between the kept probabilities."""
    k = int(np.clip(np.searchsorted(PROBABILITIES, p, side="right") - 1, 0, len(PROBABILITIES) - 2))
    share = (p - PROBABILITIES[k]) / (PROBABILITIES[k + 1] - PROBABILITIES[k])
    return np.asarray((1 - share) * quantiles[k].astype(np.float64) + share * quantiles[k + 1])
