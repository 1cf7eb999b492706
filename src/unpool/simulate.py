"""True expression matrices to practise on: low rank (Gaussian factors) and cell types (negative-binomial counts)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from unpool._validate import blocks, generator, integer, number

__all__ = ["cell_types", "low_rank"]


def low_rank(n_cells: int = 500, n_genes: int = 100, rank: int = 10, *, clip: bool = True, rng: Any = None) -> AnnData:
    """Simulate an exactly low-rank matrix M = U Vᵀ with U ~ N(10, 2²), V ~ N(15, 3²).

    Cell totals dominate this matrix, so that even a decoder that knows nothing scores a per-gene Pearson of about 0.98:
    look at the baselines beside any score.

    Parameters
    ----------
    n_cells, n_genes, rank
        Sizes.
    clip
        Whether to set negative entries to zero (at the default sizes there are none).
    rng
        Seed, numpy Generator or None.

    Returns
    -------
    AnnData
        X: cells x genes, float64, linear scale; the factors in obsm["U"] and varm["V"].

    Examples
    --------
    >>> import unpool as up
    >>> up.simulate.low_rank(rng=0).shape
    (500, 100)
    """
    n, g, r = integer(n_cells, "n_cells"), integer(n_genes, "n_genes"), integer(rank, "rank")
    rng = generator(rng)
    U, V = rng.normal(10.0, 2.0, (n, r)), rng.normal(15.0, 3.0, (g, r))
    M = U @ V.T
    if clip:
        np.maximum(M, 0.0, out=M)
    return _truth(M, "low_rank", {"rank": r, "clip": bool(clip)}, obsm={"U": U}, varm={"V": V})


def cell_types(
    n_cells: int,
    n_genes: int,
    n_types: int,
    *,
    markers: float = 0.15,
    fold: float = 8.0,
    mean_counts: float = 2.0,
    size_sd: float = 0.35,
    dispersion: float = 0.5,
    rng: Any = None,
) -> AnnData:
    """Simulate negative-binomial counts of cell types with unequal frequencies.

    count_ij ~ NB(mean = size_i * level_(type(i), j), dispersion = phi_j), variance = mean + phi_j mean².

    Parameters
    ----------
    n_cells, n_genes, n_types
        Sizes. Type frequencies are Dirichlet(2).
    markers
        Share of the genes that mark each type, 0 to 1.
    fold
        Median factor by which a type's markers are raised (log-normal, sd 0.5 in ln).
    mean_counts
        Median over genes of the unmarked level (log-normal, sd 1 in ln), counts.
    size_sd
        Standard deviation of the log library size.
    dispersion
        Median gene-wise dispersion phi (log-normal, sd 0.4 in ln).
    rng
        Seed, numpy Generator or None.

    Returns
    -------
    AnnData
        X: cells x genes counts, float32, linear scale; obs["cell_type"] and obs["size"]; var["dispersion"];
        varm["levels"]: genes x types.

    Examples
    --------
    >>> import unpool as up
    >>> truth = up.simulate.cell_types(300, 40, 5, rng=0)
    >>> truth.obs["cell_type"].nunique()
    5
    """
    n, g, k = integer(n_cells, "n_cells"), integer(n_genes, "n_genes"), integer(n_types, "n_types")
    number(markers, "markers", maximum=1.0)
    number(fold, "fold", strict=True)
    number(mean_counts, "mean_counts", strict=True)
    number(size_sd, "size_sd")
    number(dispersion, "dispersion", strict=True)
    rng = generator(rng)
    levels = np.repeat(mean_counts * rng.lognormal(0.0, 1.0, (g, 1)), k, axis=1)
    marked = rng.random((g, k)) < markers
    levels[marked] *= fold * rng.lognormal(0.0, 0.5, int(marked.sum()))
    phi = dispersion * rng.lognormal(0.0, 0.4, g)
    frequency = rng.dirichlet(np.full(k, 2.0))
    of = rng.choice(k, size=n, p=frequency)
    of[: min(n, k)] = np.arange(min(n, k))  # every type is there
    rng.shuffle(of)
    size = rng.lognormal(-0.5 * size_sd**2, size_sd, n)
    counts = np.empty((n, g), dtype=np.float32)
    for rows, block_rng in zip(list(blocks(n)), rng.spawn(-(-n // 4096)), strict=True):
        mean = size[rows, None] * levels.T[of[rows]]
        counts[rows] = block_rng.poisson(block_rng.gamma(1.0 / phi, phi * mean))
    truth = _truth(counts, "cell_types", {"n_types": k}, varm={"levels": levels})
    truth.obs["cell_type"] = pd.Categorical.from_codes(
        of.tolist(), categories=pd.Index([f"type_{t}" for t in range(k)])
    )
    truth.obs["size"] = size
    truth.var["dispersion"] = phi
    return truth


def _truth(X: Any, simulation: str, parameters: dict[str, Any], **aligned: Any) -> AnnData:
    """AnnData of a simulated truth, with what made it in uns."""
    truth = AnnData(
        X,
        obs=pd.DataFrame(index=[f"cell_{i}" for i in range(X.shape[0])]),
        var=pd.DataFrame(index=[f"gene_{j}" for j in range(X.shape[1])]),
        **aligned,
    )
    truth.uns["unpool"] = {"kind": "truth", "simulation": simulation, "parameters": parameters}
    return truth
