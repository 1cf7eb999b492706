"""Cross-validation over pools: each pool hidden in turn and predicted from the others, the check that needs no truth."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from unpool._learn import (
    Learned,
    adapt_to,
    are_modules,
    chosen,
    estimated_noise,
    from_modules,
    in_reference_units,
    learn,
)
from unpool._validate import choice, dense, generator, integer, intensities
from unpool.design import Design
from unpool.errors import InputError
from unpool.evaluate import pearson
from unpool.io import read_csv, write_csv
from unpool.kernels.blocks import one_thread
from unpool.measure import NOISE_STAGES, design_noise, recorded_design, recorded_noise

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
Batch = tuple[Array, Array, Array]  # pools of one design: cells x pools, genes x pools, and their noise, pools x pools


@dataclass(frozen=True, repr=False)
class CrossValidation:
    """How well hidden pools are predicted from the others, beside baselines.

    Attributes
    ----------
    pools
        One row a hidden pool: ``pearson`` of prediction and measurement over the cells, ``relative_error``
        (‖d - d̂‖ / ‖d - mean d‖; with calibrate="gain" after a gain and an offset were fitted), ``ceiling`` (the pearson of a perfect prediction, given the noise), both scores for each
        baseline, ``n_genes`` of the pool and ``gene``, the name where it is one alone.
    genes
        The rows of the pools that hold one gene alone, by gene: the only direct look at genes that an experiment has.
    summary
        Means, worst pool, baselines, the verdict in words, and what was chosen as in `decode` (``extras``, ``nu``,
        ``adapted``, ``adapted_because``); plain numbers and text that `json` can write.
    """

    pools: pd.DataFrame
    genes: pd.DataFrame
    summary: dict[str, Any]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of pools: one row a pool, its name in the first column."""
        write_csv(self.pools, path)

    @classmethod
    def read_csv(cls, path: str | os.PathLike[str]) -> CrossValidation:
        """Read the table that `to_csv` wrote; the summary then lacks what the table does not hold (cells, method)."""
        pools = read_csv(path, dtype={"pool": str, "gene": str}, keep_default_na=False)
        missing = [c for c in _columns() if c not in pools]
        if missing:
            raise InputError(
                f"{os.fspath(path)} has no column {missing[0]!r}; give the table that `unpool crossvalidate` wrote"
            )
        return _of_rows(pools, {"method": "unpool"})

    def __str__(self) -> str:
        s = self.summary
        rows = [(s["method"], s), *((POOL_BASELINES[name], of) for name, of in s["baselines"].items())]
        width = max(len(name) for name, _ in rows)
        lines = [
            f"Hidden pools predicted from the others: {s['n_pools']} pools"
            + (f", {s['n_cells']:,} cells" if "n_cells" in s else ""),
            f"  {'Pearson over cells':<{width}}    mean   worst",
            *(f"  {name:<{width}}  {of['pearson_mean']:6.3f}  {of['pearson_worst']:6.3f}" for name, of in rows),
            s["verdict"],
        ]
        if s["n_genes"]:
            lines.append(
                f"Genes measured directly, hidden likewise: {s['n_genes']}, mean {s['genes_pearson_mean']:.3f}."
            )
        if "adapted" in s:
            adapted = "adapted" if s["adapted"] else "not adapted"
            lines.append(f"Model {adapted} to the pools that are not hidden: {s['adapted_because']}.")
        return "\n".join(lines)

    __repr__ = __str__


def crossvalidate(
    pooled: AnnData,
    reference: Any,
    *,
    method: str = "mixture",
    noise_var: Any = None,
    noise_stage: str = "pool",
    adapt: bool | str = "auto",
    selection: bool = True,
    calibrate: str | None = None,
    fast: bool = False,
    reference_group: Any = None,
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
    pooled, reference, noise_var, noise_stage, adapt, selection, calibrate, fast, reference_group, layer, rng, n_threads
        As in `decode`: give what `decode` is given. Noise, gains and offsets that are to be estimated are so from the other
        pools alone.
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
    The prediction is x̂ P_k, x̂ decoded as `decode` does from the pools without pool k (and without pools that measure the
    same genes in the same proportions): by a model that was adapted to these pools only, with their noise and their gains.
    Baselines know no more: the pool's mean is the reference's, "total" is proportional to the sum of the other pools,
    "linear" is the posterior mean of one Gaussian with the model's mean and covariance. Genes that only the hidden pool
    measures are inferred, so that the score is a lower bound of what all pools together can do. With several designs each
    design's pools are rows of their own, and the cells of the other designs keep all their pools.

    What all predictions share is chosen once, as `decode` would: extra components and tails on reference cells in
    simulation, whether to adapt on these, or, with adapt="auto" and no groups, by comparing the pooled cells with them. That
    last yes or no, and the noise that is simulated in order to choose, come from all pools; the hidden one has no other
    part in its own prediction.

    With calibrate="gain" the prediction is in the units of the reference and the gain of a hidden pool is unknown. Pearson
    does not depend on gain and offset; ``relative_error`` is what is left after both were fitted by least squares (gain >=
    0), which is √(1 - max(pearson, 0)²).

    Cost: one fit and what `decode` needs to choose; then for each pool a decoding without sd, and an adaptation where that
    was chosen.

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
    if not isinstance(adapt, bool) and adapt != "auto":
        raise InputError(f"adapt={adapt!r}: choose True, False or 'auto'")
    if calibrate is not None:
        choice(calibrate, ["gain"], "calibrate")
    if isinstance(noise_var, str):
        choice(noise_var, ["recorded"], "noise_var")
        noise_var, noise_stage = recorded_noise(pooled)
    if reference is None:
        raise InputError(
            "crossvalidate needs a reference: cells with every gene measured, a Model or a table of modules"
        )
    pooled = pooled[:: -(-pooled.n_obs // integer(n_cells, "n_cells"))]
    design, index = recorded_design(pooled)
    D = dense(intensities(pooled, what="the pools").X)
    modules = reference if are_modules(reference, design) else None
    if modules is not None:
        reference = from_modules(modules, D, design, index)
    seed = generator(rng)
    learned = learn(reference, design, method, layer, None, reference_group, seed, n_threads, fast)
    noise = {
        b: None if noise_var is None else design_noise(noise_var, noise_stage, design, b)
        for b in map(int, np.unique(index))
    }
    experiment = _Experiment(D, design, index, noise, noise_stage, calibrate, learned.model, modules, fast, n_threads)
    with one_thread():
        batches = experiment.read_all(learned.model)
        choices, record = experiment.choices(learned, batches, adapt, selection and not fast, seed)
        rows = [row for b in batches for row in experiment.hidden_in_turn(b, batches, choices)]
    told = {k: record[k] for k in ("extras", "adapted", "adapted_because")}
    nu = float(record["nu"])
    about = {"method": method, "n_cells": pooled.n_obs, **told, "nu": nu if np.isfinite(nu) else None}
    return _of_rows(pd.DataFrame(rows), about | {"calibrate": calibrate})


@dataclass(frozen=True, eq=False)
class _Experiment:
    """Pools, cells x pools in the units of the measurement, what is known of them, and a model of the reference."""

    D: Array
    design: Design
    index: NDArray[np.intp]
    noise: dict[int, Array | None]
    noise_stage: str
    calibrate: str | None
    model: Model
    modules: pd.DataFrame | None
    fast: bool
    n_threads: int | None

    def read(self, model: Model, D: Array, design: Design, b: int, R: Array | None) -> Batch:
        """Cells x pools of design b in the units of the reference, as `decode` reads them."""
        index = np.full(len(D), b)
        noise = {} if R is None else {b: R}
        if self.calibrate is not None:
            D, noise, _ = in_reference_units(model, D, design, index, noise)
        R = noise[b] if noise else estimated_noise(model, D, design, index, b, self.noise_stage)
        return D, design.matrices[b], R

    def read_all(self, model: Model, but: int | None = None) -> dict[int, Batch]:
        """Every design's cells with all their pools, but for one design."""
        used = {b: R for b, R in self.noise.items() if b != but}
        return {b: self.read(model, self.D[self.index == b], self.design, b, R) for b, R in used.items()}

    def choices(
        self, learned: Learned, batches: dict[int, Batch], adapt: bool | str, selection: bool, rng: np.random.Generator
    ) -> tuple[Learned, dict[str, Any]]:
        """Extra components, tails and how to adapt, chosen once for all hidden pools."""
        D, noise = np.empty_like(self.D), {b: R for b, (_, _, R) in batches.items()}
        for b, (cells, _, _) in batches.items():
            D[self.index == b] = cells
        return chosen(learned, D, self.design, self.index, noise, adapt, selection, rng, self.n_threads)

    def hidden_in_turn(self, b: int, batches: dict[int, Batch], choices: Learned) -> list[dict[str, Any]]:
        """Scores of every pool of design b; batches hold every design with no pool hidden."""
        cells, P, R = batches[b]
        rows = []
        for k in map(int, np.flatnonzero(P.any(axis=0))):
            foretold = {name: x @ P[:, k] for name, x in self.decoded_without(b, k, batches, choices).items()}
            rows.append(_scores(self.design, b, k, cells[:, k], foretold, R[k, k], fitted=self.calibrate is not None))
        return rows

    def decoded_without(self, b: int, k: int, batches: dict[int, Batch], choices: Learned) -> dict[str, Array]:
        """Expression of design b's cells as the model ("") and each baseline tell it without pool k: cells x genes."""
        kept, cells, R = _others(self.design, b, k), self.D[self.index == b], self.noise[b]
        blind, cells, model = _only(self.design, b, kept), cells[:, kept], self.model
        if self.modules is not None:  # their activity is an estimate too
            model = from_modules(self.modules, cells, blind, np.zeros(len(cells), dtype=np.intp))
            batches = self.read_all(model, but=b)
        batch = self.read(model, cells, blind, 0, None if R is None else R[np.ix_(kept, kept)])
        decoder = choices.shaped(model)
        if choices.strengths is not None:
            decoder = adapt_to(decoder, list((batches | {b: batch}).values()), self.n_threads, choices.strengths)
        return self.told(decoder, model, batch)

    def told(self, decoder: Model, model: Model, batch: Batch) -> dict[str, Array]:
        """Expression as the decoder and the baselines tell it from a batch: cells x genes each."""
        D, P, R = batch
        found = {
            name: np.asarray(
                of.posterior(D, P, noise_var=R, sd=False, n_threads=self.n_threads, fast=self.fast).mean,
                dtype=np.float64,
            )
            for name, of in (("", decoder), ("linear", model.linear()))
        }
        total, expected = D.sum(axis=1), float((model.mean @ P).sum())
        share = total / expected if expected > 0 else np.ones(len(D))
        return found | {"mean": np.tile(model.mean, (len(D), 1)), "total": np.outer(share, model.mean)}


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


def _only(design: Design, b: int, kept: NDArray[np.bool_]) -> Design:
    """Design b alone, with some of its pools."""
    pools = [pool for pool, stays in zip(design.pools, kept, strict=True) if stays]
    return Design(design.matrices[b][:, kept], genes=design.genes, pools=pools)


def _scores(
    design: Design, b: int, k: int, d: Array, predicted: dict[str, Array], noise_var: float, *, fitted: bool
) -> dict[str, Any]:
    """One row of the table: pool k of design b, measured as d; errors after gain and offset were fitted, or as they are."""
    genes = np.flatnonzero(design.matrices[b][:, k])
    several = design.n_designs > 1
    row: dict[str, Any] = {"pool": f"{design.names[b]}: {design.pools[k]}" if several else design.pools[k]}
    row |= {"n_genes": len(genes), "gene": design.genes[genes[0]] if len(genes) == 1 else ""}
    spread = float(np.linalg.norm(d - d.mean()))
    for name, x in predicted.items():
        suffix = f"_{name}" if name else ""
        r = row[f"pearson{suffix}"] = float(pearson(d[:, None], x[:, None])[0])
        left = spread * np.sqrt(1 - np.clip(r, 0, 1) ** 2) if fitted else float(np.linalg.norm(d - x))
        row[f"relative_error{suffix}"] = float(left / spread) if spread > 0 else np.inf
    share = len(d) * noise_var / spread**2 if spread > 0 else 1.0
    row["ceiling"] = float(np.sqrt(max(0.0, 1.0 - share)))
    return row


def _columns() -> list[str]:
    """Columns of the table that others read."""
    scored = [
        f"{score}{name}" for score in ("pearson", "relative_error") for name in ("", *(f"_{n}" for n in POOL_BASELINES))
    ]
    return ["pool", "n_genes", "gene", "ceiling", *scored]


def _of_rows(rows: pd.DataFrame, about: dict[str, Any]) -> CrossValidation:
    """Tables and summary of the hidden pools."""
    pools = rows.set_index("pool")
    genes = pools[pools["gene"] != ""].reset_index().set_index("gene").drop(columns="n_genes")
    return CrossValidation(pools, genes, _summary(pools, genes, about))


def _summary(pools: pd.DataFrame, genes: pd.DataFrame, about: dict[str, Any]) -> dict[str, Any]:
    s: dict[str, Any] = about | {"n_pools": len(pools), "n_genes": len(genes)}
    s |= _of_column(pools["pearson"])
    s["ceiling_mean"] = float(pools["ceiling"].mean())
    s["genes_pearson_mean"] = float(genes["pearson"].mean()) if len(genes) else None
    s["baselines"] = {name: _of_column(pools[f"pearson_{name}"]) for name in POOL_BASELINES}
    best = max(s["baselines"], key=lambda name: float(s["baselines"][name]["pearson_mean"]))
    r, b = s["pearson_mean"], s["baselines"][best]["pearson_mean"]
    s["best_baseline"] = best
    # noise that was estimated may hold what the reference does not explain: then it is no ceiling
    allows = f" (noise allows {s['ceiling_mean']:.3f})" if s["ceiling_mean"] >= r else ""
    s["verdict"] = (
        f"Hidden pools are foretold with a mean correlation of {r:.3f}{allows}; the best "
        f"baseline, {POOL_BASELINES[best]}, reaches {b:.3f}. Least foretold: {s['worst_pool']}, {s['pearson_worst']:.3f}."
    )
    return s


def _of_column(r: pd.Series[float]) -> dict[str, Any]:
    return {"pearson_mean": float(r.mean()), "pearson_worst": float(r.min()), "worst_pool": str(r.idxmin())}
