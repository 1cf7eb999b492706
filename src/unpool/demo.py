"""The main job on real cells: 100 genes of blood cells measured in 25 pools, decoded, and judged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from unpool import io
from unpool.crossvalidate import crossvalidate
from unpool.decode import decode
from unpool.design import balanced
from unpool.errors import MissingExtraError
from unpool.evaluate import Scores, evaluate
from unpool.measure import measure
from unpool.report import report

__all__ = ["blood_cells", "run", "split"]


def blood_cells(n_genes: int = 100) -> AnnData:
    """Counts of 700 blood cells (scanpy's pbmc68k_reduced): the genes whose log counts vary most.

    The package ships log-normalised values; the counts are recovered as rint(expm1(value) * n_counts / 10,000).
    """
    try:
        import scanpy
    except ImportError as error:
        raise MissingExtraError(
            "the demo's cells come with scanpy; install it with: pip install 'unpool[demo]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = scanpy.datasets.pbmc68k_reduced()
    counts = np.rint(np.expm1(data.raw.X.toarray()) * data.obs["n_counts"].to_numpy()[:, None] / 1e4)
    chosen = np.sort(np.argsort(-np.log1p(counts).var(axis=0), kind="stable")[:n_genes])
    obs = pd.DataFrame({"cell_type": data.obs["bulk_labels"].astype(str).to_numpy()}, index=data.obs_names.to_numpy())
    var = pd.DataFrame(index=data.raw.var_names.to_numpy()[chosen])
    cells = AnnData(counts[:, chosen].astype(np.float32), obs=obs, var=var)
    cells.obsm["X_umap"] = np.asarray(data.obsm["X_umap"])
    return cells


def split(cells: AnnData, seed: int) -> tuple[AnnData, AnnData]:
    """Half of the cells as the reference, half as the truth that the pools are made from."""
    order = np.random.default_rng(seed).permutation(cells.n_obs)
    half = cells.n_obs // 2
    return cells[np.sort(order[:half])].copy(), cells[np.sort(order[half:])].copy()


def run(out: str | os.PathLike[str], *, seed: int = 0, say: Callable[[str], None] = print) -> Scores:
    """Run the main job and write design.csv, reference.h5ad, truth.h5ad, pooled.h5ad, decoded.h5ad, scores.csv, report.html.

    Parameters
    ----------
    out
        Folder to write into.
    seed
        Seed of the split, the design, the noise and the decoder.
    say
        Called with a line of text before each step.

    Returns
    -------
    Scores
        Of the decoded cells, beside the baselines.
    """
    out = Path(out)
    say("reading 700 real blood cells (scanpy's pbmc68k_reduced): half as reference, half to be measured")
    reference, truth = split(blood_cells(), seed)
    design = balanced(list(truth.var_names), 25, pools_per_gene=3, rng=seed).equalised(reference)
    say("measuring 100 genes in 25 pools, each gene in 3 of them, signal to noise 5")
    pools = measure(truth, design, snr=5, rng=seed)
    say("learning from the reference and decoding every gene of every cell")
    decoded = decode(pools, reference, noise_var="recorded", reference_label="cell_type", rng=seed)
    say("hiding each pool in turn, and scoring beside the baselines")
    hidden = crossvalidate(pools, reference, noise_var="recorded", rng=seed)
    scores = evaluate(decoded, truth, pooled=pools, reference=reference)
    design.to_csv(out / "design.csv")
    for name, adata in (("reference", reference), ("truth", truth), ("pooled", pools), ("decoded", decoded)):
        io.write_h5ad(adata, out / f"{name}.h5ad")
    scores.to_csv(out / "scores.csv")
    report(
        out / "report.html",
        decoded,
        truth=truth,
        pooled=pools,
        reference=reference,
        scores=scores,
        crossvalidation=hidden,
    )
    return scores
