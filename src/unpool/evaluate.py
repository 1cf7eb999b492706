"""Scores of a decoded matrix against the truth, always beside trivial baselines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from unpool._validate import Table, align, blocks, dense, expression, intensities, table
from unpool.baselines import Baseline, affine, linear, neighbours, total
from unpool.design import Design
from unpool.errors import InputError
from unpool.intervals import Calibration
from unpool.io import write_csv
from unpool.measure import design_noise, recorded_design, recorded_noise

__all__ = ["BASELINES", "Scores", "evaluate", "matched_cells", "pearson"]

# name in columns and summaries -> what a reader sees
BASELINES = {
    "mean": "the gene's mean",
    "total": "the cell's total",
    "minimum_norm": "D P⁺ (minimum norm)",
    "linear": "one Gaussian (linear)",
    "neighbours": "nearest neighbours",
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Scores:
    """How close a decoded matrix is to the truth, beside baselines that need no decoder.

    Attributes
    ----------
    genes
        One row a gene: ``pearson``, ``spearman``, ``relative_error`` (‖x - x̂‖ / ‖x‖), ``coverage_90`` (share of cells
        inside the 90 % interval of `intervals`, where there is an sd), ``expected_pearson`` (what `decode` promised before
        any truth), and ``pearson_<baseline>``, ``relative_error_<baseline>``.
    cells
        One row a cell: ``pearson`` over the genes, and ``pearson_<baseline>``.
    summary
        Mean, median and worst gene of each score, baselines, the share of the best baseline's error that the decoder
        removed, and the verdict in words; plain numbers and text that `json` can write.
    """

    genes: pd.DataFrame
    cells: pd.DataFrame
    summary: dict[str, Any]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of genes: one row a gene, its name in the first column."""
        write_csv(self.genes, path)

    def __str__(self) -> str:
        s = self.summary
        rows = [(s["method"], s), *sorted(s["baselines"].items(), key=lambda row: -row[1]["pearson_mean"])]
        names = [BASELINES.get(name, name) for name, _ in rows]
        width = max(map(len, names))
        lines = [
            f"Scores of {s['n_cells']:,} cells x {s['n_genes']:,} genes",
            f"  {'per-gene Pearson':<{width}}    mean  median   worst",
            *(
                f"  {name:<{width}}  {of['pearson_mean']:6.3f}  {of['pearson_median']:6.3f}  {of['pearson_worst']:6.3f}"
                f"  {of['worst_gene'] if of['pearson_worst'] < of['pearson_median'] else ''}".rstrip()
                for name, (_, of) in zip(names, rows, strict=True)
            ),
            s["verdict"],
        ]
        if missing := [BASELINES[name] for name in BASELINES if name not in s["baselines"]]:
            takes = "pooled= and reference=" if "total" in s["baselines"] else "pooled= (the last two reference=, too)"
            lines.append(f"Not compared, because it takes {takes}: {', '.join(missing)}.")
        if "coverage_90_mean" in s:
            lines.append(
                f"The 90 % intervals hold {s['coverage_90_mean']:.1%} of the true values "
                f"(furthest off: {s['coverage_90_worst_gene']}, {s['coverage_90_worst']:.1%})."
            )
        if "expected_pearson_mean" in s:
            lines.append(
                f"Expected before any truth: a mean of {s['expected_pearson_mean']:.3f} "
                f"(off by {s['expected_pearson_off']:.3f} per gene)."
            )
        if s["constant_genes"]:
            shown = ", ".join(s["constant_genes"][:5]) + (", ..." if len(s["constant_genes"]) > 5 else "")
            lines.append(f"Constant genes, counted as 0: {len(s['constant_genes'])} ({shown}).")
        return "\n".join(lines)

    __repr__ = __str__


def evaluate(
    decoded: AnnData, truth: Any, *, pooled: AnnData | None = None, reference: Any = None, layer: str | None = None
) -> Scores:
    """Score decoded expression against the truth, beside every trivial baseline that the given data allow.

    Parameters
    ----------
    decoded
        What `decode` returned: cells x genes, linear scale, ``layers["sd"]`` where the method has one.
    truth
        Cells x genes, linear scale, nonnegative (AnnData, DataFrame). Genes and cells are matched by name; further genes
        and cells of the truth are ignored.
    pooled
        The pools that were decoded: adds the baselines "total" (the cell's total over its pools, scaled to the gene's mean)
        and "minimum_norm" (D P⁺).
    reference
        Cells with every gene of the design, linear scale: with `pooled`, adds "linear" (the posterior mean of one Gaussian
        with shrunk covariance) and "neighbours" (the mean of the 15 reference cells whose simulated pools are nearest).
    layer
        Layer of truth and reference to use instead of X.

    Returns
    -------
    Scores
        ``genes``, ``cells``, ``summary``; readable when printed. A gene (or cell) that is constant in the truth or in the
        answer has no correlation: it counts as 0 and is listed, never dropped.

    Notes
    -----
    The share of error removed is 1 - (1 - r) / (1 - b), with r the decoder's mean per-gene Pearson and b the best
    baseline's. The noise that "linear" and "neighbours" assume is the covariance that the decoder used, or the one that
    `measure` recorded, or none. Cost: one pass over the cells in blocks, and one sort a gene for Spearman;
    "neighbours" costs cells x reference cells x pools.

    Examples
    --------
    >>> import unpool as up
    >>> from unpool.evaluate import evaluate
    >>> truth = up.simulate.cell_types(100, 12, 3, rng=0)
    >>> noisy = truth.copy()
    >>> noisy.X = noisy.X + 1.0
    >>> evaluate(noisy, truth).genes["pearson"].round(6).unique().tolist()
    [1.0]
    """
    if isinstance(truth, AnnData) and "unpool_misfit" in truth.obs:
        raise InputError(
            "the truth is a decoded matrix (obs['unpool_misfit']); pass the decoded cells first, then the truth"
        )
    answer = table(decoded, what="the decoded data")
    true = expression(truth, what="the truth", layer=layer)
    columns = align(answer.columns, true.columns, wanted_by="the decoded data", held_by="the truth")
    rows = matched_cells(answer.rows, true.rows, "the truth")
    sd = _standard_deviation(decoded)
    calibration = None if sd is None else Calibration.of(decoded)

    D, index, baselines = _baselines(decoded, answer, pooled, reference, (true, columns, rows), layer)
    n_cells, n_genes = answer.X.shape
    moments = {name: _Moments(n_genes) for name in ("", *baselines)}
    by_cell = {name: np.empty(n_cells) for name in moments}
    inside = np.zeros(n_genes)
    for block in blocks(n_cells):
        X, Y = dense(true.X, rows[block])[:, columns], dense(answer.X, block)
        if not np.isfinite(Y).all():
            i, j = (int(k[0]) for k in np.nonzero(~np.isfinite(Y)))
            raise InputError(
                f"the decoded data: gene {answer.columns[j]!r} is {Y[i, j]:g} in cell {answer.rows[block.start + i]!r}; "
                "expected finite values: decode again, or leave the cell out"
            )
        predictions = {"": Y} | {
            name: _by_design(baseline, D[block], index[block], n_genes) for name, baseline in baselines.items()
        }
        for name, Z in predictions.items():
            moments[name].add(X, Z)
            by_cell[name][block] = _of_rows(X, Z)
        if calibration is not None:
            lower, upper = calibration.ends(Y, dense(sd, block), 0.9)
            inside += ((lower <= X) & (X <= upper)).sum(axis=0)

    genes = pd.DataFrame(index=pd.Index(answer.columns, name="gene"))
    genes["pearson"] = moments[""].pearson()
    genes["spearman"] = _spearman(answer.X, true.X, rows, columns)
    genes["relative_error"] = moments[""].relative_error()
    if sd is not None:
        genes["coverage_90"] = inside / n_cells
    if isinstance(decoded, AnnData) and "expected_pearson" in decoded.var:
        genes["expected_pearson"] = decoded.var["expected_pearson"].to_numpy(dtype=np.float64)
    for name in baselines:
        genes[f"pearson_{name}"] = moments[name].pearson()
        genes[f"relative_error_{name}"] = moments[name].relative_error()
    cells = pd.DataFrame(
        {f"pearson_{name}" if name else "pearson": r for name, r in by_cell.items()},
        index=pd.Index(answer.rows, name="cell"),
    )
    record = decoded.uns.get("unpool", {}) if isinstance(decoded, AnnData) else {}
    constant = genes.index[moments[""].constant()]
    return Scores(genes, cells, _summary(genes, cells, list(baselines), list(constant), record))


def matched_cells(wanted: Sequence[str], held: Sequence[str], held_by: str) -> NDArray[np.intp]:
    """Rows of `held` that are the decoded cells: by name, or in order where equal names repeat."""
    if list(wanted) == list(held):
        return np.arange(len(wanted))
    for names, where in ((wanted, "the decoded data"), (held, held_by)):
        repeated = pd.Index(names)[pd.Index(names).duplicated()]
        if len(repeated):
            raise InputError(
                f"cell name {repeated[0]!r} occurs more than once in {where}, so cells cannot be matched by name; make "
                "the names unique (obs_names_make_unique), or give the same cells in the same order"
            )
    return np.asarray(align(wanted, held, wanted_by="the decoded data", held_by=held_by, what="cell"), dtype=np.intp)


class _Moments:
    """Means, centred squares and products of truth and answer, per gene, merged block by block (Chan, Golub, LeVeque)."""

    def __init__(self, n_genes: int) -> None:
        self.n = 0
        self.mx, self.my, self.xx, self.yy, self.xy, self.error, self.square = np.zeros((7, n_genes))

    def add(self, X: Floats, Y: Floats) -> None:
        n, mx, my = len(X), X.mean(axis=0), Y.mean(axis=0)
        dx, dy, w = mx - self.mx, my - self.my, self.n * n / (self.n + n)
        Xc, Yc = X - mx, Y - my
        self.xx += np.einsum("ij,ij->j", Xc, Xc) + w * dx * dx
        self.yy += np.einsum("ij,ij->j", Yc, Yc) + w * dy * dy
        self.xy += np.einsum("ij,ij->j", Xc, Yc) + w * dx * dy
        self.error += np.square(X - Y).sum(axis=0)
        self.square += np.square(X).sum(axis=0)
        self.n += n
        self.mx += dx * n / self.n
        self.my += dy * n / self.n

    def constant(self) -> NDArray[np.bool_]:
        return _flat(self.n, self.mx, self.xx) | _flat(self.n, self.my, self.yy)

    def pearson(self) -> Floats:
        return _correlation(self.constant(), self.xx, self.yy, self.xy)

    def relative_error(self) -> Floats:
        """‖x - x̂‖ / ‖x‖ per gene; where x is zero: 0 if x̂ is as well, else infinite."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.error == 0, 0.0, np.sqrt(self.error / self.square))


def _flat(n: int, mean: Floats, centred_square: Floats) -> NDArray[np.bool_]:
    """Whether values do not vary: their standard deviation is rounding error of their mean."""
    return np.asarray(centred_square <= n * np.square(1e-12 * mean))


def _correlation(flat: NDArray[np.bool_], xx: Floats, yy: Floats, xy: Floats) -> Floats:
    """Pearson correlation from centred sums; 0 where one side does not vary."""
    scale = np.where(flat, 1.0, np.sqrt(xx) * np.sqrt(yy))
    return np.where(flat, 0.0, np.clip(xy / scale, -1.0, 1.0))


def pearson(truth: Floats, answer: Floats) -> Floats:
    """Pearson correlation of every gene (column); 0 where truth or answer does not vary.

    Examples
    --------
    >>> import numpy as np
    >>> from unpool.evaluate import pearson
    >>> truth = np.array([[1.0, 4.0], [2.0, 4.0], [4.0, 4.0]])
    >>> pearson(truth, 3 * truth + 1).round(12).tolist()
    [1.0, 0.0]
    """
    moments = _Moments(truth.shape[1])
    moments.add(truth, answer)
    return moments.pearson()


def _of_rows(X: Floats, Y: Floats) -> Floats:
    """Pearson correlation of each row of X with the same row of Y."""
    return pearson(X.T, Y.T)


def _spearman(answer: Any, true: Any, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
    """Pearson correlation of the ranks (ties share their mean rank), one gene at a time."""
    from scipy.stats import rankdata

    answer, true = (A.tocsc() if hasattr(A, "tocsc") else A for A in (answer, true))
    r = np.empty(len(columns))
    for j, column in enumerate(columns):
        ranks = _Moments(1)
        ranks.add(rankdata(dense(true[:, [column]])[rows], axis=0), rankdata(dense(answer[:, [j]]), axis=0))
        r[j] = ranks.pearson()[0]
    return r


def _standard_deviation(decoded: Any) -> Any:
    sd = decoded.layers["sd"] if isinstance(decoded, AnnData) and "sd" in decoded.layers else None
    if sd is not None:
        bad = next((b for b in blocks(sd.shape[0]) if not (dense(sd, b) >= 0).all()), None)
        if bad is not None:
            raise InputError("layers['sd'] of the decoded data holds NaN or negative values; drop that layer")
    return sd


# Baselines


def _baselines(
    decoded: Any,
    answer: Table,
    pooled: AnnData | None,
    reference: Any,
    truth: tuple[Table, NDArray[np.intp], NDArray[np.intp]],
    layer: str | None,
) -> tuple[Floats, NDArray[np.intp], dict[str, Baseline]]:
    """Pools and design of every decoded cell, and the baselines that can be computed."""
    ref = None
    if reference is not None:
        ref = expression(reference, what="the reference", layer=layer if isinstance(reference, AnnData) else None)
        wanted = align(answer.columns, ref.columns, wanted_by="the decoded data", held_by="the reference")
        mean = _column_means(ref, np.arange(ref.X.shape[0]))[wanted]
    else:
        true, columns, rows = truth
        mean = _column_means(true, rows)[columns]
    n = answer.X.shape[0]
    if pooled is None:
        return np.empty((n, 0)), np.zeros(n, dtype=np.intp), {"mean": [lambda D: mean]}

    design, index = recorded_design(pooled)
    pools = intensities(pooled, what="the pools")
    order = matched_cells(answer.rows, pools.rows, "the pools")
    D, index = dense(pools.X, order), index[order]
    genes = align(answer.columns, design.genes, wanted_by="the decoded data", held_by="the design")
    found: dict[str, Baseline] = {
        "mean": [lambda D: mean] * design.n_designs,
        "total": [total(D[index == b], mean) for b in range(design.n_designs)],
        "minimum_norm": [affine(np.asarray(np.linalg.pinv(P))[:, genes]) for P in design.matrices],
    }
    if ref is not None:
        R = [_noise_covariance(decoded, pooled, design, b) for b in range(design.n_designs)]
        X = dense(ref.X)[:, align(design.genes, ref.columns, wanted_by="the design", held_by="the reference")]
        found["linear"] = linear(X, design, R, genes)
        found["neighbours"] = neighbours(X, design, R, genes)
    return D, index, found


def _by_design(baseline: Baseline, D: Floats, index: NDArray[np.intp], n_genes: int) -> Floats:
    """Apply each design's function to its own cells."""
    out = np.empty((len(D), n_genes))
    for b in np.unique(index):
        out[index == b] = baseline[b](D[index == b])
    return out


def _column_means(t: Table, rows: NDArray[np.intp]) -> Floats:
    total = np.zeros(len(t.columns))
    for block in blocks(len(rows)):
        total += dense(t.X, rows[block]).sum(axis=0)
    return total / len(rows)


def _noise_covariance(decoded: Any, pooled: AnnData, design: Design, b: int) -> Floats:
    """Covariance of the noise in the pools that the decoder used, else what `measure` recorded, else none."""
    record = decoded.uns.get("unpool", {}) if isinstance(decoded, AnnData) else {}
    for key in ("noise_covariance", f"noise_covariance_{b}"):
        if key in record:
            R = np.asarray(record[key], dtype=np.float64)
            if R.shape != (design.n_pools, design.n_pools):
                raise InputError(
                    f"the decoded data record a noise covariance of shape {R.shape}, but the pooled data have "
                    f"{design.n_pools} pools; pass the pools that were decoded"
                )
            return R
    if "simulated" not in pooled.uns["unpool"]:
        return np.zeros((design.n_pools, design.n_pools))
    noise_var, stage = recorded_noise(pooled)
    return design_noise(noise_var, stage, design, b)


# Summary


def _summary(
    genes: pd.DataFrame, cells: pd.DataFrame, baselines: list[str], constant: list[str], record: Any
) -> dict[str, Any]:
    method = str(record.get("method", "decoded"))
    s: dict[str, Any] = {"method": method, "n_cells": len(cells), "n_genes": len(genes), **_of_column(genes, "")}
    s["spearman_mean"], s["spearman_median"] = float(genes["spearman"].mean()), float(genes["spearman"].median())
    if "coverage_90" in genes:
        worst = str((genes["coverage_90"] - 0.9).abs().idxmax())
        s["coverage_90_mean"] = float(genes["coverage_90"].mean())
        s["coverage_90_worst"], s["coverage_90_worst_gene"] = float(genes["coverage_90"][worst]), worst
    if "expected_pearson" in genes:
        s["expected_pearson_mean"] = float(genes["expected_pearson"].mean())
        s["expected_pearson_off"] = float((genes["expected_pearson"] - genes["pearson"]).abs().mean())
    s["cell_pearson_mean"], s["cell_pearson_median"] = float(cells["pearson"].mean()), float(cells["pearson"].median())
    s["constant_genes"] = constant
    s["baselines"] = {name: _of_column(genes, f"_{name}") for name in baselines}
    best = max(baselines, key=lambda name: float(s["baselines"][name]["pearson_mean"]))
    s["best_baseline"] = best
    s["removed_share"], s["verdict"] = _verdict(s["pearson_mean"], s["baselines"][best]["pearson_mean"], best)
    return s


def _of_column(genes: pd.DataFrame, suffix: str) -> dict[str, Any]:
    """Mean, median and worst gene of one method's scores."""
    r = genes[f"pearson{suffix}"]
    error = float(genes[f"relative_error{suffix}"].median())
    return {
        "pearson_mean": float(r.mean()),
        "pearson_median": float(r.median()),
        "pearson_worst": float(r.min()),
        "worst_gene": str(r.idxmin()),
        "relative_error_median": error if np.isfinite(error) else None,
    }


def _verdict(r: float, b: float, best: str) -> tuple[float, str]:
    """Share of the best baseline's error (1 - mean Pearson) that the decoder removed, and the same in words."""
    share = 1 - (1 - r) / (1 - b) if b < 1 else 0.0
    removed = f"{share:.0%}" if share >= 0.005 else "none"
    errors = f"1 - mean Pearson: {1 - r:.3f} against {1 - b:.3f}, {BASELINES[best]}"
    return share, f"The decoder removed {removed} of the best baseline's error ({errors})."
