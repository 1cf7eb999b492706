"""The page's pictures as inline SVG, the same bytes every time."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from anndata import AnnData
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from unpool import pl
from unpool._validate import align, dense, table
from unpool.design import Design
from unpool.evaluate import Scores, matched_cells
from unpool.report._content import number

__all__ = ["figures"]

CELLS_SHOWN = 5000
WIDTH = 9.6  # inches


def figures(
    decoded: AnnData,
    truth: Any,
    scores: Scores | None,
    *,
    design: Design | None,
    genes: Sequence[tuple[str, str]],
    layer: str | None,
) -> dict[str, Markup]:
    """Draw what the data allow, by name: design, accuracy, genes, misfit."""
    drawn = {}
    if design is not None:
        drawn["design"] = _svg(
            "Design: which gene is in which pool", _design_size(design), lambda f: pl.design(design, ax=f.subplots())
        )
    if scores is not None:
        drawn["accuracy"] = _svg(
            "Histogram of the genes' Pearson correlations above strips of the baselines",
            (WIDTH, 4.4),
            lambda f: pl.accuracy(scores, ax=f.subplots()),
        )
    if scores is not None and truth is not None:
        few_decoded, few_truth = _few(decoded, truth, [gene for _, gene in genes], layer)

        def scatter(figure: Figure) -> None:
            for ax, (what, gene) in zip(figure.subplots(1, len(genes)), genes, strict=True):
                pl.genes(few_decoded, few_truth, gene, ax=ax)
                title = f"{_short(gene)}\n{what}, r = {number(scores.genes['pearson'][gene])}"
                ax.set_title(title, fontsize=10, loc="left", parse_math=False)

        drawn["genes"] = _svg(
            "Decoded against true expression of the best, median and worst gene", (WIDTH, 3.6), scatter
        )
    if "unpool_misfit" in decoded.obs:
        drawn["misfit"] = _svg(
            "Histogram of the cells' misfit", (WIDTH, 2.4), lambda f: pl.misfit(decoded, ax=f.subplots())
        )
    return drawn


def _few(decoded: AnnData, truth: Any, genes: list[str], layer: str | None) -> tuple[AnnData, pd.DataFrame]:
    """Evenly spaced cells and the genes to be drawn, of the answer and of the truth, under matching names."""
    true = table(truth, what="the truth", layer=layer)
    rows = matched_cells(list(map(str, decoded.obs_names)), true.rows, "the truth")
    cells = np.linspace(0, decoded.n_obs - 1, min(decoded.n_obs, CELLS_SHOWN)).astype(np.intp)
    genes = list(dict.fromkeys(genes))
    mine = align(genes, list(map(str, decoded.var_names)), wanted_by="the plot", held_by="the decoded data")
    theirs = align(genes, true.columns, wanted_by="the plot", held_by="the truth")
    names, columns = pd.Index([str(i) for i in cells]), pd.Index(genes)
    few = AnnData(pd.DataFrame(dense(decoded.X, cells)[:, mine], index=names, columns=columns))
    if "sd" in decoded.layers:
        few.layers["sd"] = dense(decoded.layers["sd"], cells)[:, mine]
        few.uns["unpool"] = {"intervals": decoded.uns.get("unpool", {}).get("intervals", {})}
    return few, pd.DataFrame(dense(true.X, rows[cells])[:, theirs], index=names, columns=columns)


def _short(name: str, letters: int = 36) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _design_size(design: Design) -> tuple[float, float]:
    """Width and height at which a square of the design is 0.2 inches, or what the page allows; names need room."""
    rows, columns = design.n_designs * (design.n_pools + 1) - 1, design.n_genes
    square = min(0.2, (WIDTH - 1.5) / columns, 7.0 / rows)
    names = 0.08 * min(max(map(len, design.genes)), 24) if columns <= 40 else 0.0
    return max(columns * square + 1.5, 3.0), rows * square + names + 0.5


def _svg(label: str, size: tuple[float, float], draw: Callable[[Figure], Any]) -> Markup:
    """Draw on a new figure and return SVG to stand inside HTML: no date, no outside name, no identity but its own."""
    style = {"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 10, "axes.unicode_minus": True}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has more fonts
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = StringIO()
        figure.savefig(text, format="svg", dpi=200, transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # the parser of HTML knows both
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the names repeat from figure to figure
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    opening = f'<svg role="img" aria-label="{escape(label)}" style="width: {96 * size[0]:.0f}px"'
    return Markup(svg.replace("<svg", opening, 1))
