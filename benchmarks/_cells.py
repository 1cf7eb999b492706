"""The measured cells that benchmarks decode, and one experiment with them: scale, pool, add noise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
from numpy.typing import NDArray

import unpool as up
from unpool.measure import recorded_noise

__all__ = ["SNR", "Experiment", "experiment", "imc16", "split"]

SNR = 5.0


class Experiment(NamedTuple):
    """What a decoder is given, and the truth (cells x genes, the design's order)."""

    pools: ad.AnnData
    reference: ad.AnnData
    truth: NDArray[np.float64]
    R: NDArray[np.float64]


def imc16(folder: str | Path | None = None) -> tuple[ad.AnnData, up.Design] | str:
    """6,775 cells x 16 proteins, dense, in the order of the published design of 8 pools; or why they are missing."""
    data = Path(folder or os.environ.get("UNPOOL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    files = [data / "imc16_cells.h5ad", data / "imc16_published_design.csv"]
    if missing := [file for file in files if not file.exists()]:
        return f"{missing[0]} does not exist; pass --data or set UNPOOL_DATA"
    design = up.Design.read_csv(files[1])
    cells = ad.read_h5ad(files[0])[:, list(design.genes)].copy()
    cells.X = np.asarray(cells.X.toarray() if hasattr(cells.X, "toarray") else cells.X, dtype=np.float64)
    return cells, design


def split(n_cells: int, seed: int) -> tuple[Any, Any, np.random.Generator]:
    """Reference (first 60 %) and test cells (last 20 %) of a random order, and the generator: `unpool.benchmark`'s."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_cells)
    return order[: int(0.6 * n_cells)], order[n_cells - int(0.2 * n_cells) :], rng


def experiment(cells: ad.AnnData, design: up.Design, reference: Any, test: Any, rng: np.random.Generator) -> Experiment:
    """Genes at unit norm over the reference cells; the test cells measured with pool noise at SNR 5."""
    known, truth = cells[reference].copy(), np.asarray(cells.X[test])
    norm = np.linalg.norm(known.X, axis=0)
    norm[norm == 0] = 1.0
    known.X, truth = known.X / norm, truth / norm
    pools = up.measure(truth, design, snr=SNR, rng=rng)
    return Experiment(pools, known, truth, np.diag(np.asarray(recorded_noise(pools)[0], dtype=np.float64)))
