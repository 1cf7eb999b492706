"""One self-contained HTML page: what was measured and decoded, and how good it is beside trivial baselines."""

from __future__ import annotations

import os
from typing import Any

from anndata import AnnData

from unpool._validate import instance
from unpool.crossvalidate import CrossValidation
from unpool.evaluate import Scores, evaluate
from unpool.io import write_text

__all__ = ["report"]


def report(
    path: str | os.PathLike[str],
    decoded: AnnData,
    *,
    truth: Any = None,
    pooled: AnnData | None = None,
    reference: Any = None,
    scores: Scores | None = None,
    crossvalidation: CrossValidation | None = None,
    layer: str | None = None,
) -> None:
    """Write one HTML page about a decoded matrix; it needs no other file and no network.

    Parameters
    ----------
    path
        Where to write the page. A failure leaves an old file untouched.
    decoded
        What `decode` returned.
    truth
        Cells x genes, linear scale: adds accuracy beside baselines, gene by gene. Without it the page makes no claim
        about accuracy.
    pooled, reference, layer
        As in `evaluate`: more data allow more baselines.
    scores
        What `evaluate` returned for the same data, so that they are not computed again.

    crossvalidation
        What `crossvalidate` returned: adds a table of hidden pools and how well the others foretell them.

    Notes
    -----
    The same input gives the same bytes. Scatter plots show at most 5,000 evenly spaced cells, the table 300 genes.

    Examples
    --------
    >>> import os, tempfile, unpool as up
    >>> from unpool.report import report
    >>> truth = up.simulate.cell_types(100, 12, 3, rng=0)
    >>> page = os.path.join(tempfile.mkdtemp(), "report.html")
    >>> report(page, truth, truth=truth)
    """
    from unpool.report._content import gather
    from unpool.report._figures import figures
    from unpool.report._page import render

    instance(decoded, AnnData, "decoded", "report takes a path, then what `decode` returned")
    if scores is None and truth is not None:
        scores = evaluate(decoded, truth, pooled=pooled, reference=reference, layer=layer)
    content = gather(decoded, pooled, scores, crossvalidation)
    drawings = figures(decoded, truth, scores, design=content.design, genes=content.shown_genes, layer=layer)
    write_text(render(content, drawings), path)
