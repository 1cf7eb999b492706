"""The public protocol: split any expression data, pool, decode by every method and baseline, score; several repeats."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from unpool import baselines
from unpool._validate import Table, align, choice, dense, expression, integer, number
from unpool.decode import decode
from unpool.design import Design
from unpool.design._random import uncorrelated
from unpool.errors import InputError, UnpoolWarning
from unpool.evaluate import pearson
from unpool.measure import design_noise, measure, pooled, recorded_noise

__all__ = ["METHODS", "Benchmark", "Method", "benchmark"]

Floats = NDArray[np.float64]
Method = Callable[[Floats, Floats, AnnData, Floats, np.random.Generator], Any]

REFERENCE_SHARE, TEST_SHARE = 0.6, 0.2
NOISE = ("pool", "expression", "none")
MIN_CELLS = 10


@dataclass(frozen=True, repr=False)
class Benchmark:
    """Scores of decoding methods and baselines on one data set; readable when printed.

    Attributes
    ----------
    table
        One row a setting and method: ``pools``, ``method``; ``mean`` and ``worst``: per-gene Pearson, averaged over the
        genes, and of the worst gene, then averaged over the repeats; ``sd`` and ``worst_sd``: their standard deviations
        over the repeats; ``repeats``: how many succeeded; ``failures``; ``error``: the first failure's message; ``seconds``
        to learn and decode, the median repeat's.
    repeats
        One row a repeat: ``pools``, ``method``, ``repeat``, ``mean``, ``worst``, ``worst_gene``, ``seconds``, ``error``;
        NaN where the method failed.
    parameters
        What was asked for, and the sizes of the data.
    """

    table: pd.DataFrame
    repeats: pd.DataFrame
    parameters: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and text that `json` can write; NaN becomes None."""
        return {
            "parameters": self.parameters,
            "table": _records(self.table),
            "repeats": _records(self.repeats),
        }

    def __str__(self) -> str:
        p = self.parameters
        split = "60 % reference, 20 % test" if p["split"] == "random" else f"one {p['split'][6:]} held out at a time"
        noise = "no noise" if p["noise"] == "none" else f"noise at the {p['noise']} stage, SNR {p['snr']:g}"
        width = max(map(len, self.table["method"]))
        lines = [
            f"{p['n_cells']:,} cells x {p['n_genes']:,} genes; {split}; {p['design']} design; {noise}; {p['repeats']} repeat{'s' * (p['repeats'] > 1)}",
            f"  {'pools':>5}  {'method':<{width}}  per-gene Pearson: mean ± sd   worst gene ± sd   seconds",
        ]
        for m in dict.fromkeys(self.table["pools"]):
            rows = self.table[self.table["pools"] == m]
            for row in rows.sort_values("mean", ascending=False, kind="stable").itertuples():
                off, worst_off = (f"± {sd:5.3f}" if np.isfinite(sd) else " " * 7 for sd in (row.sd, row.worst_sd))
                scores = f"{row.mean:24.3f} {off}   {row.worst:9.3f} {worst_off}  {row.seconds:7.2f}"
                failed = f"  failed {row.failures} times: {row.error}" if row.failures else ""
                lines.append(f"  {m:>5}  {row.method:<{width}}  {scores}{failed}")
        return "\n".join(lines)

    __repr__ = __str__


def benchmark(
    data: Any,
    *,
    pools: int | Sequence[int] | Design = (8, 12),
    design: str | Design = "random",
    noise: str = "pool",
    split: str = "random",
    snr: float = 5.0,
    repeats: int = 9,
    methods: Mapping[str, Method | None] | None = None,
    reference_group: str | None = None,
    layer: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Benchmark:
    """Score every decoding method and baseline on your own data: pool a part that the methods never see, decode, compare.

    Parameters
    ----------
    data
        Cells x genes, linear scale, nonnegative (AnnData, DataFrame). At least 10 cells.
    pools
        Numbers of pools to try with random designs.
    design
        "random", or a Design (one; its genes are taken from the data by name, and `pools` is ignored).
    noise
        "pool" (detector), "expression" (before pooling) or "none"; see `measure`.
    split
        "random": of a random order of the cells, the first 60 % are the reference, the last 20 % the test cells.
        "group:COLUMN": repeat k holds out the k-th group (sorted) of obs[COLUMN] as test cells, all others are the
        reference; at most as many repeats as groups.
    snr
        Signal to noise; see `measure`.
    repeats
        Repetitions. Number k uses ``numpy.random.default_rng(k)``: the order of the cells, then the design, then the noise.
    methods
        Further methods, name -> ``f(D, P, reference, R, rng)``: pools of the test cells (cells x pools), design (genes x
        pools), reference (AnnData: cells x genes at unit norm per gene, with the obs of the data), covariance of the noise
        in the pools, generator; it returns the decoded cells x genes. A name of the standard methods replaces that method,
        and None leaves it out.
    reference_group
        Column of obs that `decode` may use to learn how groups differ.
    layer
        Layer of the AnnData to use instead of X.
    say
        Called with a line of text after each repeat.

    Returns
    -------
    Benchmark
        ``table``, ``repeats``, ``parameters``, ``to_dict()``. A method that fails is a row with its error.

    Notes
    -----
    Genes are scaled to unit norm over the reference, so that loud genes do not drown the others in the pools; a design's
    weights apply to the scaled genes. Random designs (weights 1): each gene in 1 to 3 pools, no two genes' rows correlated
    above 0.8, the fullest pool at most 4 times the emptiest. The score is the Pearson correlation over the test cells, gene
    by gene; a gene that does not vary in the test cells or in the answer counts as 0. Standard methods: "unpool" (`decode`
    with its defaults), "modules" (`solvers.modules`, the published method), and the baselines "neighbours", "linear" and
    "total" of `evaluate`. All are told the covariance of the noise.

    Examples
    --------
    >>> import unpool as up
    >>> cells = up.simulate.cell_types(300, 20, 4, rng=0)
    >>> result = up.benchmark(cells, pools=8, repeats=1)
    >>> result.table["method"].tolist()
    ['unpool', 'modules', 'neighbours', 'linear', 'total']
    """
    t = expression(data, what="the data", layer=layer)
    obs = data.obs if isinstance(data, AnnData) else pd.DataFrame(index=t.rows)
    noise, snr = choice(noise, NOISE, "noise"), number(snr, "snr", strict=True)
    given = pools if isinstance(pools, Design) else design if isinstance(design, Design) else None
    if given is None:
        choice(design, ("random",), "design")
    elif given.n_designs > 1:
        raise InputError(
            f"the design holds {given.n_designs} designs; the benchmark measures with one: give one of them"
        )
    if reference_group is not None:
        _column(obs, reference_group, "reference_group")
    groups = _groups(obs, split)
    n_repeats = min(integer(repeats, "repeats"), len(groups) or integer(repeats, "repeats"))
    if len(t.rows) < MIN_CELLS:
        raise InputError(f"the data have {len(t.rows)} cells; the benchmark needs at least {MIN_CELLS} to split")
    chosen = {name: f for name, f in (METHODS | dict(methods or {})).items() if f is not None}
    if not chosen:
        raise InputError("methods leaves out every method; keep at least one")
    if "unpool" in chosen and reference_group is not None and "unpool" not in (methods or {}):
        chosen["unpool"] = _decoder(reference_group=reference_group)

    rows = []
    numbers = given.n_pools if given is not None else pools
    sizes = [integer(m, "pools") for m in (numbers if isinstance(numbers, Sequence) else [numbers])]
    for m in sizes:
        for k in range(n_repeats):
            experiment = _experiment(t, obs, m if given is None else given, noise, groups, snr, k)
            for name, method in chosen.items():
                rows.append({"pools": m, "method": name, "repeat": k} | _scored(method, experiment, k))
            if say is not None:
                said = ", ".join(f"{row['method']} {row['mean']:.3f}" for row in rows[-len(chosen) :])
                say(f"{m} pools, repeat {k + 1} of {n_repeats}: {said}")
    scores = pd.DataFrame(rows)
    parameters = {
        "design": "random" if given is None else "given",
        "pools": sizes,
        "noise": noise,
        "split": split,
        "snr": snr,
        "repeats": n_repeats,
        "reference_group": reference_group,
        "n_cells": len(t.rows),
        "n_genes": len(t.columns) if given is None else given.n_genes,
    }
    return Benchmark(_summarised(scores), scores, parameters)


# Methods: D, P, reference, R, rng -> decoded cells x genes


def _decoder(**options: Any) -> Method:
    """`decode` with its defaults and these options."""

    def method(D: Floats, P: Floats, reference: AnnData, R: Floats, rng: np.random.Generator) -> Any:
        design = Design(P, genes=list(reference.var_names))
        settings: dict[str, Any] = {"noise_var": R, "sd": False, "rng": rng} | options
        return decode(pooled(D, design), reference, **settings).X

    return method


def _modules(D: Floats, P: Floats, reference: AnnData, R: Floats, rng: np.random.Generator) -> Any:
    from unpool.solvers.modules import modules

    return modules(D, P, reference.X, noise_covariance=R, rng=rng).X


def _neighbours(D: Floats, P: Floats, reference: AnnData, R: Floats, rng: np.random.Generator) -> Any:
    X = np.asarray(reference.X)
    return baselines.neighbours(X, Design(P), [R], np.arange(X.shape[1]))[0](D)


def _linear(D: Floats, P: Floats, reference: AnnData, R: Floats, rng: np.random.Generator) -> Any:
    X = np.asarray(reference.X)
    return baselines.linear(X, Design(P), [R], np.arange(X.shape[1]))[0](D)


def _total(D: Floats, P: Floats, reference: AnnData, R: Floats, rng: np.random.Generator) -> Any:
    return baselines.total(D, np.asarray(reference.X).mean(axis=0))(D)


METHODS: dict[str, Method | None] = {
    "unpool": _decoder(),
    "modules": _modules,
    "neighbours": _neighbours,
    "linear": _linear,
    "total": _total,
}


# The experiment


@dataclass(frozen=True)
class _Experiment:
    """What one repeat gives to the methods, and the truth that it keeps from them."""

    D: Floats
    P: Floats
    reference: AnnData
    R: Floats
    truth: Floats
    genes: tuple[str, ...]


def _experiment(
    t: Table,
    obs: pd.DataFrame,
    design: Design | int,
    noise: str,
    groups: Sequence[NDArray[np.bool_]],
    snr: float,
    k: int,
) -> _Experiment:
    """Repeat k: the order of the cells, then the design, then the noise, all from default_rng(k)."""
    rng = np.random.default_rng(k)
    reference, test = _split(rng.permutation(len(t.rows)), groups, k)
    if not isinstance(design, Design):
        design = uncorrelated(t.columns, design, rng=rng)
    columns = align(design.genes, t.columns, wanted_by="the design", held_by="the data")
    X, truth = dense(t.X, reference)[:, columns], dense(t.X, test)[:, columns]
    norm = np.linalg.norm(X, axis=0)
    norm[norm == 0] = 1.0
    X, truth = X / norm, truth / norm
    cells = AnnData(X, obs=obs.iloc[reference].copy(), var=pd.DataFrame(index=pd.Index(design.genes)))
    stage = "pool" if noise == "none" else noise
    pools = measure(truth, design, snr=None if noise == "none" else snr, noise_stage=stage, rng=rng)
    R = design_noise(recorded_noise(pools)[0], stage, design, 0)
    return _Experiment(np.asarray(pools.X, dtype=np.float64), design.matrices[0], cells, R, truth, design.genes)


def _split(
    order: NDArray[np.intp], groups: Sequence[NDArray[np.bool_]], k: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Reference and test cells: shares of the order, or all other groups and the k-th."""
    if groups:
        return np.flatnonzero(~groups[k]), np.flatnonzero(groups[k])
    n = len(order)
    return order[: int(REFERENCE_SHARE * n)], order[n - int(TEST_SHARE * n) :]


def _groups(obs: pd.DataFrame, split: str) -> list[NDArray[np.bool_]]:
    """Members of every group of a group split, sorted by name; empty for a random split."""
    kind, _, column = str(split).partition(":")
    if kind != "group":
        choice(split, ("random", "group:COLUMN"), "split")
    if split == "random":
        return []
    labels = _column(obs, column, "split").astype(str).to_numpy()
    names = sorted(set(labels))
    if len(names) < 2:
        raise InputError(f"obs[{column!r}] has one group, {names[0]!r}; holding one out needs at least two")
    return [labels == name for name in names]


def _column(obs: pd.DataFrame, column: str, what: str) -> pd.Series[Any]:
    if column not in obs:
        held = ", ".join(map(repr, obs.columns[:10])) or "no columns"
        raise InputError(f"{what}: obs has no column {column!r}; it has {held}")
    if obs[column].isna().any():
        raise InputError(f"{what}: obs[{column!r}] is missing for some cells; name their group or leave the cells out")
    return obs[column]


# Scores


def _scored(method: Method, e: _Experiment, k: int) -> dict[str, Any]:
    """Scores of one method in one repeat; a failure is a row with its message."""
    rng = np.random.default_rng([k, 1])  # the same for every method, whatever others run; not the stream of the split
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnpoolWarning)  # what they doubt is scored
            answer = np.asarray(method(e.D.copy(), e.P.copy(), e.reference.copy(), e.R.copy(), rng), dtype=np.float64)
        if answer.shape != e.truth.shape:
            raise InputError(f"the method returned shape {answer.shape}; expected cells x genes, {e.truth.shape}")
        if not np.isfinite(answer).all():
            raise InputError("the method returned NaN or infinite values")
    except Exception as error:  # noqa: BLE001 - whatever a method raises is a result of the benchmark
        return {
            "mean": np.nan,
            "worst": np.nan,
            "worst_gene": "",
            "seconds": time.perf_counter() - start,
            "error": f"{type(error).__name__}: {error}",
        }
    seconds = time.perf_counter() - start
    r = pearson(e.truth, answer)
    worst = int(r.argmin())
    return {
        "mean": float(r.mean()),
        "worst": float(r[worst]),
        "worst_gene": e.genes[worst],
        "seconds": seconds,
        "error": "",
    }


def _summarised(repeats: pd.DataFrame) -> pd.DataFrame:
    """One row a setting and method, in the order in which they ran."""
    rows = []
    for (pools, method), runs in repeats.groupby(["pools", "method"], sort=False):
        failed = runs["error"] != ""
        rows.append(
            {
                "pools": pools,
                "method": method,
                "mean": runs["mean"].mean(),
                "sd": runs["mean"].std(),
                "worst": runs["worst"].mean(),
                "worst_sd": runs["worst"].std(),
                "repeats": int((~failed).sum()),
                "failures": int(failed.sum()),
                "error": runs["error"][failed].iloc[0] if failed.any() else "",
                "seconds": runs["seconds"].median(),  # the first repeat may compile,
            }
        )
    return pd.DataFrame(rows)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(k): v for k, v in row.items()} for row in plain.to_dict(orient="records")]
