"""Cross-validation over pools: each pool hidden in turn and predicted from the others, the check that needs no truth."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from unpool._learn import adapt_to, learn
from unpool._validate import choice, dense, generator, integer, intensities
from unpool.design import Design
from unpool.errors import InputError
from unpool.evaluate import pearson
from unpool.io import write_csv
from unpool.kernels.blocks import one_thread
from unpool.measure import NOISE_STAGES, design_noise, noise_covariance, recorded_design, recorded_noise

if TYPE_CHECKING:
    from unpool.model import Model

__all__ = ["POOL_BASELINES", "CrossValidation", "crossvalidate"]

# name in columns and summaries -> what a reader sees
POOL_BASELINES = {
    "mean": "the pool's mean in the reference",
    "total": "the total of the other pools",
    "linear": "one Gaussian (linear)",
}
Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class CrossValidation:
    """How well hidden pools are predicted from the others, beside baselines.

    Attributes
    ----------
    pools
        One row a hidden pool: ``pearson`` of prediction and measurement over the cells, ``relative_error``
        (‖d - d̂‖ / ‖d - mean d‖), ``ceiling`` (the pearson of a perfect prediction, given the noise), both scores for each
        baseline, ``n_genes`` of the pool and ``gene``, the name where it is one alone.
    genes
        The rows of the pools that hold one gene alone, by gene: the only direct look at genes that an experiment has.
    summary
        Means, worst pool, baselines and the verdict in words; plain numbers and text that `json` can write.
    """

    pools: pd.DataFrame
    genes: pd.DataFrame
    summary: dict[str, Any]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of pools: one row a pool, its name in the first column."""
        write_csv(self.pools, path)

    def __str__(self) -> str:
        s = self.summary
        rows = [(s["method"], s), *((POOL_BASELINES[name], of) for name, of in s["baselines"].items())]
        width = max(len(name) for name, _ in rows)
        lines = [
            f"Hidden pools predicted from the others: {s['n_pools']} pools, {s['n_cells']:,} cells",
            f"  {'Pearson over cells':<{width}}    mean   worst",
            *(f"  {name:<{width}}  {of['pearson_mean']:6.3f}  {of['pearson_worst']:6.3f}" for name, of in rows),
            s["verdict"],
        ]
        if s["n_genes"]:
            lines.append(
                f"Genes measured directly, hidden likewise: {s['n_genes']}, mean {s['genes_pearson_mean']:.3f}."
            )
        return "\n".join(lines)

    __repr__ = __str__


def crossvalidate(
    pooled: AnnData,
    reference: Any,
    *,
    method: str = "mixture",
    noise_var: Any = None,
    noise_stage: str = "pool",
    n_cells: int = 5000,
    layer: str | None = None,
    rng: Any = 0,
    n_threads: int | None = None,
) -> CrossValidation:
    """Hide each pool in turn, decode the cells from the others, and compare the hidden pool with its prediction.

    A real experiment has no true expression, but every pool is a measurement that the other pools should foretell. A pool
    whose prediction is no better than the baselines' is one that the reference does not explain (another unit, a dead
    channel, an antibody that failed), or whose genes no other pool tells about.

    Parameters
    ----------
    pooled, reference, noise_var, noise_stage, layer, rng, n_threads
        As in `decode`. Where the noise is to be estimated, it is so from the other pools alone.
    method
        "mixture" or "gaussian".
    n_cells
        At most this many cells are looked at, evenly spaced.

    Returns
    -------
    CrossValidation
        ``pools``, ``genes``, ``summary``; readable when printed. Constant pools count as 0.

    Notes
    -----
    The prediction is x̂ P_k, x̂ decoded by a model that was adapted to the other pools and saw nothing of pool k (and without pools that measure the same genes in the same
    proportions). Baselines know no more: the pool's mean is the reference's, "total" is proportional to the sum of the
    other pools, "linear" is the posterior mean of one Gaussian with the model's mean and covariance. Genes that only the
    hidden pool measures are inferred, so that the score is a lower bound of what all pools together can do. With several
    designs each design's pools are rows of their own. Cost: one fit, and a decoding without sd for each pool.

    Examples
    --------
    >>> import unpool as up
    >>> from unpool.crossvalidate import crossvalidate
    >>> cells = up.simulate.cell_types(400, 12, 3, rng=0)
    >>> pools = up.measure(cells[200:].copy(), up.design.balanced(12, 6, pools_per_gene=2, rng=0), snr=5, rng=0)
    >>> crossvalidate(pools, cells[:200].copy(), noise_var="recorded").pools.shape
    (6, 11)
    """
    choice(method, ("mixture", "gaussian"), "method")
    choice(noise_stage, NOISE_STAGES, "noise_stage")
    if isinstance(noise_var, str):
        choice(noise_var, ["recorded"], "noise_var")
        noise_var, noise_stage = recorded_noise(pooled)
    step = -(-pooled.n_obs // integer(n_cells, "n_cells"))
    pooled = pooled[::step]
    design, index = recorded_design(pooled)
    intensities(pooled, what="the pools")
    model = learn(reference, design, method, layer, None, None, generator(rng), n_threads).model
    with one_thread():
        rows = _hidden_in_turn(dense(pooled.X), design, index, model, noise_var, noise_stage, n_threads)
    pools = pd.DataFrame(rows).set_index("pool")
    genes = pools[pools["gene"] != ""].reset_index().set_index("gene").drop(columns="n_genes")
    return CrossValidation(pools, genes, _summary(pools, genes, method, pooled.n_obs))


def _hidden_in_turn(
    D: Array, design: Design, index: NDArray[np.intp], model: Model, noise_var: Any, stage: str, n_threads: int | None
) -> list[dict[str, Any]]:
    """Scores of every pool of every design."""
    rows = []
    for b, P in enumerate(design.matrices):
        cells = D[index == b]
        if not len(cells):
            continue
        noise = None if noise_var is None else design_noise(noise_var, stage, design, b)
        estimate = (
            noise_covariance(model.estimate_noise(cells, P, noise_stage=stage), P, stage) if noise is None else noise
        )
        for k in np.flatnonzero(P.any(axis=0)):
            kept = _others(design, b, int(k))
            given = None if noise is None else noise[np.ix_(kept, kept)]
            predicted = _predict(model, cells[:, kept], P[:, kept], given, stage, n_threads)
            foretold = {name: x @ P[:, k] for name, x in predicted.items()}
            rows.append(_scores(design, b, int(k), cells[:, k], foretold, estimate[k, k]))
    return rows


def _others(design: Design, b: int, k: int) -> NDArray[np.bool_]:
    """Pools of design b that stay when pool k is hidden: those that are no multiple of it."""
    P = design.matrices[b]
    size = np.linalg.norm(P, axis=0)
    kept: NDArray[np.bool_] = P.T @ P[:, k] < (1 - 1e-9) * size * size[k]
    if not kept.any():
        raise InputError(
            f"no pool is left when pool {design.pools[k]!r} and its replicates are hidden; crossvalidate needs pools that "
            "measure different genes"
        )
    return kept


def _predict(model: Model, D: Array, P: Array, R: Array | None, stage: str, n_threads: int | None) -> dict[str, Array]:
    """Expression of the cells as the model ("") and each baseline tell it from the pools that stay: cells x genes."""
    if R is None:
        R = noise_covariance(model.estimate_noise(D, P, noise_stage=stage), P, stage)
    adapted = adapt_to(model, [(D, P, R)], n_threads) if model.has_extras else model
    found = {
        name: np.asarray(of.posterior(D, P, noise_var=R, sd=False, n_threads=n_threads).mean, dtype=np.float64)
        for name, of in (("", adapted), ("linear", model.linear()))
    }
    total, expected = D.sum(axis=1), float((model.mean @ P).sum())
    share = total / expected if expected > 0 else np.ones(len(D))
    return found | {"mean": np.tile(model.mean, (len(D), 1)), "total": np.outer(share, model.mean)}


def _scores(design: Design, b: int, k: int, d: Array, predicted: dict[str, Array], noise_var: float) -> dict[str, Any]:
    """One row of the table: pool k of design b, measured as d."""
    genes = np.flatnonzero(design.matrices[b][:, k])
    several = design.n_designs > 1
    row: dict[str, Any] = {"pool": f"{design.names[b]}: {design.pools[k]}" if several else design.pools[k]}
    row |= {"n_genes": len(genes), "gene": design.genes[genes[0]] if len(genes) == 1 else ""}
    spread = float(np.linalg.norm(d - d.mean()))
    for name, x in predicted.items():
        suffix = f"_{name}" if name else ""
        row[f"pearson{suffix}"] = float(pearson(d[:, None], x[:, None])[0])
        row[f"relative_error{suffix}"] = float(np.linalg.norm(d - x)) / spread if spread > 0 else np.inf
    share = len(d) * noise_var / spread**2 if spread > 0 else 1.0
    row["ceiling"] = float(np.sqrt(max(0.0, 1.0 - share)))
    return row


def _summary(pools: pd.DataFrame, genes: pd.DataFrame, method: str, n_cells: int) -> dict[str, Any]:
    s: dict[str, Any] = {"method": method, "n_cells": n_cells, "n_pools": len(pools), "n_genes": len(genes)}
    s |= _of_column(pools["pearson"])
    s["ceiling_mean"] = float(pools["ceiling"].mean())
    s["genes_pearson_mean"] = float(genes["pearson"].mean()) if len(genes) else None
    s["baselines"] = {name: _of_column(pools[f"pearson_{name}"]) for name in POOL_BASELINES}
    best = max(s["baselines"], key=lambda name: float(s["baselines"][name]["pearson_mean"]))
    r, b = s["pearson_mean"], s["baselines"][best]["pearson_mean"]
    s["best_baseline"] = best
    s["verdict"] = (
        f"Hidden pools are foretold with a mean correlation of {r:.3f} (noise allows {s['ceiling_mean']:.3f}); the best "
        f"baseline, {POOL_BASELINES[best]}, reaches {b:.3f}. Least foretold: {s['worst_pool']}, {s['pearson_worst']:.3f}."
    )
    return s


def _of_column(r: pd.Series[float]) -> dict[str, Any]:
    return {"pearson_mean": float(r.mean()), "pearson_worst": float(r.min()), "worst_pool": str(r.idxmin())}
