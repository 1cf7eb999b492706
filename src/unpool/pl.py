"""Plots: each draws on the Axes that it is given (or on a new one) and returns it; nothing is fitted here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from unpool._validate import align, dense, instance, table
from unpool.design import Design
from unpool.errors import InputError
from unpool.evaluate import BASELINES, Scores, matched_cells
from unpool.intervals import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy", "design", "genes", "misfit"]

ACCENT, GREY, INK, RULE = "#0f6b8f", "#8b9199", "#24292f", "#d5d9de"
_NAMES_SHOWN = {"x": 40, "y": 16}  # more names than this on an axis cannot be read
_LETTERS_SHOWN = 24  # of a name on an axis
_VECTORS_SHOWN = 5000  # more marks than this become an image inside a vector file


def accuracy(scores: Scores, *, ax: Axes | None = None) -> Axes:
    """Histogram of the genes' Pearson correlations; below it one strip a baseline, a stroke a gene, a dot the mean.

    Parameters
    ----------
    scores
        What `evaluate` returned.
    ax
        Axes to draw on; default: those of a new figure.

    Examples
    --------
    >>> import unpool as up
    >>> from unpool.evaluate import evaluate
    >>> truth = up.simulate.cell_types(100, 12, 3, rng=0)
    >>> ax = up.pl.accuracy(evaluate(truth, truth))
    """
    instance(scores, Scores, "scores", "pass what `evaluate` returned")
    ax = _axes(ax)
    r, s = scores.genes["pearson"].to_numpy(), scores.summary
    baselines = sorted(s["baselines"], key=lambda name: -s["baselines"][name]["pearson_mean"])
    strips = {name: scores.genes[f"pearson_{name}"].to_numpy() for name in baselines}
    low = min(0.0, *(float(values.min()) for values in (r, *strips.values())))
    edges = np.arange(np.floor(low / 0.025), 41) * 0.025
    counts, _, _ = ax.hist(r, bins=edges.tolist(), color=ACCENT, edgecolor="white", linewidth=0.6, label=s["method"])
    top = float(np.max(counts))
    rows = {name: -top * 0.14 * (i + 1) for i, name in enumerate(baselines)}
    for name, y in rows.items():
        lines = ax.vlines(strips[name], y - 0.035 * top, y + 0.035 * top, color=GREY, alpha=0.45, linewidth=0.7)
        lines.set(label=BASELINES[name], rasterized=len(r) > _VECTORS_SHOWN // 10)
        mean = s["baselines"][name]["pearson_mean"]
        ax.plot([mean], [y], "o", color=INK, markersize=3.6, zorder=3)
        _beside(ax, y, f"{mean:.3f}", INK)
    mean = s["pearson_mean"]
    ax.vlines([mean], 0, top * 1.08, color=ACCENT, linewidth=1.2)
    ax.text(
        mean, top * 1.1, f"{s['method']}: mean {mean:.3f}", color=ACCENT, ha="center", va="bottom", parse_math=False
    )
    _beside(ax, 0, "mean", GREY)
    ax.axhline(0, color=RULE, linewidth=0.8, zorder=0)
    ax.set_xlim(edges[0], 1.0)
    ax.set_ylim(min(rows.values()) - 0.09 * top, top * 1.22)
    ticks = _round_ticks(top)
    labels = [*map(str, ticks[:-1]), f"{ticks[-1]} genes"]
    ax.set_yticks([*ticks, *rows.values()], [*labels, *(BASELINES[name] for name in rows)])
    ax.set_xlabel("Pearson correlation with the truth, per gene")
    _plain(ax)
    ax.tick_params(axis="y", length=0)
    return ax


def design(design: Design, *, ax: Axes | None = None) -> Axes:
    """Picture of a design: one column a gene, one row a pool, several designs below each other.

    A square's depth of colour is its weight, relative to the gene's largest.

    Parameters
    ----------
    design
        The pooling design.
    ax
        Axes to draw on; default: those of a new figure.

    Examples
    --------
    >>> import unpool as up
    >>> ax = up.pl.design(up.design.balanced(12, 6, pools_per_gene=2, rng=0))
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    instance(design, Design, "the design", "pass a Design")
    ax = _axes(ax)
    step, height = design.n_pools + 1, design.n_designs * (design.n_pools + 1) - 1
    W = np.stack([w / np.maximum(w.max(axis=1, keepdims=True), np.finfo(float).tiny) for w in design.matrices])
    b, j, k = np.nonzero(W)
    square = np.array([[0.08, 0.08], [0.92, 0.08], [0.92, 0.92], [0.08, 0.92]])
    corners = np.stack([j, b * step + k], axis=1)[:, None, :] + square
    colours = np.tile(to_rgba(ACCENT), (len(j), 1))
    colours[:, 3] = 0.2 + 0.8 * W[b, j, k]
    ax.add_collection(
        PolyCollection(corners, facecolors=colours, linewidths=0, rasterized=len(j) > _VECTORS_SHOWN), autolim=False
    )
    ax.set_xlim(0, design.n_genes)
    ax.set_ylim(height, 0)
    ax.set_aspect("equal")
    _named_ticks(ax, "x", np.arange(design.n_genes) + 0.5, list(design.genes), "genes")
    if design.n_designs == 1:
        _named_ticks(ax, "y", np.arange(design.n_pools) + 0.5, list(design.pools), "pools")
    else:
        for cut in range(1, design.n_designs):
            ax.axhline(cut * step - 0.5, color=RULE, linewidth=0.8)
        middle = np.arange(design.n_designs) * step + design.n_pools / 2
        _named_ticks(ax, "y", middle, list(design.names), f"designs of {design.n_pools} pools")
    _plain(ax, "left", "bottom")
    ax.tick_params(length=0)
    return ax


def genes(decoded: AnnData, truth: Any, gene: str, *, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """One gene, decoded against true, a dot a cell; its 90 % interval where there is an sd; the line is equality.

    Parameters
    ----------
    decoded
        What `decode` returned.
    truth
        Cells x genes, linear scale; cells and genes are matched by name.
    gene
        Name of the gene.
    layer
        Layer of the truth to use instead of X.
    ax
        Axes to draw on; default: those of a new figure.

    Examples
    --------
    >>> import unpool as up
    >>> truth = up.simulate.cell_types(100, 12, 3, rng=0)
    >>> ax = up.pl.genes(truth, truth, "gene_3")
    """
    from matplotlib.ticker import MaxNLocator

    ax = _axes(ax)
    true = table(truth, what="the truth", layer=layer)
    j = align([gene], list(decoded.var_names), wanted_by="the plot", held_by="the decoded data")
    rows = matched_cells(list(decoded.obs_names), true.rows, "the truth")
    x = dense(true.X[:, align([gene], true.columns, wanted_by="the plot", held_by="the truth")], rows)[:, 0]
    y = dense(decoded.X[:, j])[:, 0]
    many = len(x) > _VECTORS_SHOWN // 20
    if "sd" in decoded.layers:
        lower, upper = intervals(decoded[:, j])
        ends = lower.to_numpy()[:, 0], upper.to_numpy()[:, 0]
        ax.vlines(x, *ends, color=ACCENT, alpha=0.13, linewidth=0.8, rasterized=many)
    ax.scatter(x, y, s=9, color=ACCENT, alpha=0.6, linewidths=0, rasterized=many, zorder=3)
    end = 1.04 * max(float(x.max()), float(y.max())) or 1.0
    ax.plot([0, end], [0, end], color=INK, linewidth=0.8, zorder=2)
    ax.set_xlim(-0.02 * end, end)
    ax.set_ylim(min(-0.02 * end, float(y.min())), end)
    for side in (ax.xaxis, ax.yaxis):
        side.set_major_locator(MaxNLocator(5))
    ax.set_title(gene, loc="left", parse_math=False)
    ax.set_xlabel("true")
    ax.set_ylabel("decoded")
    _plain(ax, "left", "bottom")
    return ax


def misfit(decoded: AnnData, *, ax: Axes | None = None) -> Axes:
    """Histogram of how badly each cell's pools disagree with the model; 0.25 % on either side share the outer bars.

    Parameters
    ----------
    decoded
        What `decode` returned, with ``obs["unpool_misfit"]``.
    ax
        Axes to draw on; default: those of a new figure.
    """
    if "unpool_misfit" not in decoded.obs:
        raise InputError("the decoded data have no obs['unpool_misfit']; decode with a reference (mixture or gaussian)")
    ax = _axes(ax)
    values = decoded.obs["unpool_misfit"].to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    ends = np.quantile(values, (0.0025, 0.9975), method="nearest") if len(values) else (0.0, 0.0)
    ax.hist(np.clip(values, *ends), bins=40, color=ACCENT, edgecolor="white", linewidth=0.6)
    ax.set_xlabel("misfit of the cell's pools (standardised)")
    ax.set_ylabel("cells")
    _plain(ax)
    ax.tick_params(axis="y", length=0)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    new: Axes = plt.subplots(layout="constrained")[1]
    return new


def _plain(ax: Axes, *kept: str) -> None:
    """Leave only the lines that carry something."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in (kept or ("bottom",)))
        spine.set_color(RULE)
    ax.tick_params(color=RULE, labelcolor=INK)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_color(INK)


def _beside(ax: Axes, y: float, text: str, colour: str) -> None:
    """Text right of the axes, at a height of the data."""
    ax.annotate(text, (1, y), (8, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points", va="center",
                color=colour, fontsize="small", annotation_clip=False)  # fmt: skip


def _round_ticks(top: float) -> list[int]:
    """About four round counts from zero to the top."""
    from matplotlib.ticker import MaxNLocator

    ticks = np.asarray(MaxNLocator(nbins=4, integer=True).tick_values(0, max(top, 1.0)))
    return [int(t) for t in ticks[(ticks >= 0) & (ticks <= top)]]


def _named_ticks(ax: Axes, axis: str, at: Any, names: list[str], what: str) -> None:
    """Names on the ticks of an axis while they can be read, else how many there are."""
    ticks, label = (ax.set_xticks, ax.set_xlabel) if axis == "x" else (ax.set_yticks, ax.set_ylabel)
    if len(names) > _NAMES_SHOWN[axis]:
        ticks([])
        label(f"{len(names):,} {what}")
        return
    shown = [name if len(name) <= _LETTERS_SHOWN else name[: _LETTERS_SHOWN - 1] + "…" for name in names]
    texts = ticks(at, shown, rotation=90 if axis == "x" else 0, fontsize="small")
    for text in texts:
        text.label1.set_parse_math(False)
    label(what)
