"""Memory and speed of a large decoding: 1,000,000 simulated cells, 25 pools to 100 genes, no sd, one process.

Prints the peak memory beyond input and output, and cells per second.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import pandas as pd
from _harness import machine, write
from anndata import AnnData

import unpool as up


def pools_of(n_cells: int, genes: int, n_pools: int) -> tuple[AnnData, AnnData]:
    """A reference of 2,000 cells, and pools of `n_cells` cells (20,000 different ones, with noise of their own)."""
    cells = up.simulate.cell_types(22_000, genes, 12, rng=0)
    reference, truth = cells[:2000].copy(), cells[2000:].copy()
    design = up.design.balanced(genes, n_pools, rng=0).equalised(reference)
    few = up.measure(truth, design, snr=5, rng=0)
    rng, X = np.random.default_rng(0), np.empty((n_cells, n_pools), dtype=np.float32)
    sd = few.X.std(axis=0) / 5
    for start in range(0, n_cells, few.n_obs):
        block = X[start : start + few.n_obs]
        block[:] = few.X[: len(block)] + sd * rng.standard_normal(block.shape, dtype=np.float32)
    return reference, up.pooled(X, design, obs=pd.DataFrame(index=pd.RangeIndex(n_cells).astype(str)))


def peak_gb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    """Decode, print, and write results/million.json when it was a million."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=None)
    n = parser.parse_args()
    about = machine()
    reference, pools = pools_of(n.cells, 100, 25)
    up.decode(pools[:5000].copy(), reference, sd=False, rng=0)  # compile
    before, start = peak_gb(), time.perf_counter()
    decoded = up.decode(pools, reference, sd=False, rng=0, n_threads=n.threads)
    seconds, output = time.perf_counter() - start, decoded.X.nbytes / 1024**3
    beyond = peak_gb() - before - output
    print(
        f"{n.cells:,} cells x 25 pools -> 100 genes in {seconds:.0f} s ({n.cells / seconds:,.0f} cells a second); "
        f"peak {peak_gb():.2f} GB = {before:.2f} GB before (input and libraries) + {output:.2f} GB output "
        f"+ {beyond:.2f} GB"
    )
    if n.cells < 1_000_000:
        return
    columns = [
        "cells",
        "pools",
        "genes",
        "memory beyond input and output",
        "that, in units of the output",
        "time",
        "cells a second",
    ]
    row = [n.cells, 25, 100, f"{beyond:.2f} GB", beyond / output, f"{seconds:.0f} s", round(n.cells / seconds)]
    notes = ["Mixture decoder, sd=False, one process, one run; input and libraries before it: " + f"{before:.2f} GB."]
    write("million", {"title": "A million cells", "machine": about, "columns": columns, "rows": [row], "notes": notes})


if __name__ == "__main__":
    main()
