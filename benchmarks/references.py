"""Does more reference help? The same cells decoded with nested references of 20 to 6,000 cells, beside baselines.

imc16 (16 proteins, the published design of 8 pools, pool noise at SNR 5, covariance given): of a random order of the 6,775
cells the last 775 are decoded; the references are the first 20, 50, ... cells of the same order. Genes are at unit norm over
the largest reference, so that pools and noise are the same for all sizes. Writes results/references.json.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
from _cells import Experiment, experiment, imc16
from _harness import machine, show, verdict, write

import unpool as up
from unpool.benchmark import METHODS
from unpool.evaluate import pearson

SIZES = (20, 50, 100, 200, 500, 1000, 2000, 4000, 6000)
TEST = 775
BASELINES = ("neighbours", "linear", "total")
FALL, BELOW = 0.005, 0.01
TITLE = "Accuracy and the size of the reference"
NOTES = [
    "imc16, published design of 8 pools, pool noise at SNR 5, noise covariance given; 775 test cells, the same pools and the "
    "same noise for every size; references are nested. Mean and worst per-gene Pearson, averaged over the repeats "
    "(repeat k uses seed k).",
]


def decode(e: Experiment, reference: Any, threads: int | None = None) -> Any:
    """`unpool.decode` with its defaults; without sd and cross-fitting, which do not change the answer."""
    given = {"noise_var": e.R, "sd": False, "crossfit": False, "n_threads": threads}
    return up.decode(e.pools, reference, **given).X


def scores(e: Experiment, design: up.Design, sizes: list[int], seed: int, threads: int | None) -> np.ndarray[Any, Any]:
    """Mean and worst per-gene Pearson of one repeat: sizes x methods x 2."""
    D, P = np.asarray(e.pools.X, dtype=np.float64), design.matrices[0]
    found = []
    for size in sizes:
        reference = e.reference[:size].copy()
        rng = np.random.default_rng([seed, 1])
        answers = [decode(e, reference, threads), *(METHODS[name](D, P, reference, e.R, rng) for name in BASELINES)]  # type: ignore[misc]
        r = [pearson(e.truth, np.asarray(answer, dtype=np.float64)) for answer in answers]
        found.append([(float(x.mean()), float(x.min())) for x in r])
        print(f"  {size:>5,} cells: " + ", ".join(f"{x.mean():.3f}" for x in r), flush=True)
    return np.array(found)


def table(sizes: list[int], found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Scores (repeats x sizes x methods x 2) as the page shows them."""
    mean = found.mean(axis=0)
    rows = [[size, *(f"{r:.3f} / {worst:.3f}" for r, worst in of)] for size, of in zip(sizes, mean, strict=True)]
    return {
        "title": f"Mean / worst gene, {len(found)} repeats",
        "columns": ["reference cells", "unpool", *BASELINES],
        "rows": rows,
    }


def bars(sizes: list[int], found: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Never lower with more cells, never below the best baseline: on the means over the repeats, and repeat by repeat."""
    rows = []
    for what, r in (("mean over the repeats", found.mean(axis=0, keepdims=True)), ("worst single repeat", found)):
        ours, best = r[:, :, 0, 0], r[:, :, 1:, 0].max(axis=2)
        fall, below = ours[:, :-1] - ours[:, 1:], best - ours
        for name, gap, bar, where in (
            ("fall of the mean r when cells are added", fall, FALL, [f"{a:,} to {b:,}" for a, b in pairwise(sizes)]),
            ("mean r below the best baseline", below, BELOW, [f"{size:,}" for size in sizes]),
        ):
            largest = float(gap.max())
            at = where[int(gap.max(axis=0).argmax())]
            verdicts = verdict(largest, most=bar) if what.startswith("mean") else ""
            rows.append([name, what, f"{largest:+.4f}", at, f"at most {bar:g}", verdicts])
    columns = ["", "", "largest", "at", "bar (on the mean)", ""]
    return {"title": "Bars", "columns": columns, "rows": rows}


def main() -> None:
    """Decode, print, write results/references.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", help="folder of the imc16 files (default: UNPOOL_DATA)")
    a = parser.parse_args()
    about, source = machine(), imc16(a.data)
    if isinstance(source, str):
        print(f"skipped: {source}")
        return
    warnings.simplefilter("ignore")  # of libraries
    cells, design = source
    found = []
    for k in range(a.repeats):
        print(f"repeat {k + 1} of {a.repeats}; mean r of unpool, {', '.join(BASELINES)}", flush=True)
        rng = np.random.default_rng(k)
        order = rng.permutation(cells.n_obs)
        e = experiment(cells, design, order[: cells.n_obs - TEST][: SIZES[-1]], order[cells.n_obs - TEST :], rng)
        found.append(scores(e, design, sorted(a.sizes), k, a.threads))
    r = np.array(found)
    tables = [table(sorted(a.sizes), r), bars(sorted(a.sizes), r)]
    for shown in tables:
        show(shown)
    write("references", {"title": TITLE, "machine": about, "tables": tables, "notes": NOTES, "repeats": r})


if __name__ == "__main__":
    main()
