"""Accuracy of decoding with a reference: unpool beside the published method, SPAMS, and baselines that need no decoder.

Prints mean / worst per-gene Pearson (`unpool.benchmark`'s protocol, SNR 5) in five settings:

    imc16     6,775 cells x 16 proteins (imaging mass cytometry), the published design of 8 pools: without noise, with
              noise in the pools, and the same with one tissue held out at a time
    pbmc68k   700 blood cells x the 100 genes whose log counts vary most, random designs of 10 and of 25 pools, noise
              before pooling

The imc16 files (imc16_cells.h5ad, imc16_published_design.csv) are not part of the package: --data, the environment variable
UNPOOL_DATA or ../shared/data says where they are. What is missing is skipped and said.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import unpool as up
from unpool.demo import blood_cells
from unpool.evaluate import pearson

HERE = Path(__file__).resolve().parent
METHODS = {
    "unpool": "unpool",
    "unpool, noise unknown": "unpool, noise_var=None",
    "modules": "published method (solvers.modules)",
    "spams": "published method (SPAMS)",
    "neighbours": "nearest neighbours",
    "linear": "one Gaussian (linear)",
    "total": "cell's total",
}

# name -> title, data, options of unpool.benchmark
SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "none": ("imc16, published design, no noise", "imc16", {"noise": "none"}),
    "pool": ("imc16, published design, pool noise", "imc16", {"noise": "pool"}),
    "tissue": (
        "imc16, pool noise, one tissue held out",
        "imc16",
        {"noise": "pool", "split": "group:tissue", "reference_group": "tissue"},
    ),
    "10": ("pbmc68k, 10 random pools, noise before pooling", "pbmc68k", {"noise": "expression", "pools": 10}),
    "25": ("pbmc68k, 25 random pools, noise before pooling", "pbmc68k", {"noise": "expression", "pools": 25}),
}


def spams_peer(
    D: Any, P: Any, reference: Any, R: Any, rng: np.random.Generator, *, modules: int = 80, n_iter: int = 10
) -> Any:
    """The published procedure on SPAMS: NMF start, then l1 at a given error for genes and cells in turn; l1 decoding.

    As `solvers.modules`, it takes the error of the activities (0.2 or 0.5) and of decoding from held-out reference cells.
    """
    import spams

    threads = {"numThreads": 2}

    def sparse(Y: Any, A: Any, error: float) -> Any:
        """Least sum of nonnegative weights at this error, in 20 blocks of columns of similar norm."""
        W = np.zeros((A.shape[1], Y.shape[1]))
        for block in np.array_split(np.argsort(np.linalg.norm(Y, axis=0)), min(20, Y.shape[1])):
            energy = np.square(Y[:, block]).sum() / len(block)
            solved = spams.lasso(
                np.asfortranarray(Y[:, block]),
                np.asfortranarray(A),
                lambda1=error * energy,
                mode=1,
                pos=True,
                **threads,
            )
            W[:, block] = solved.toarray()
        return W

    def learn(X: Any, error: float) -> Any:
        Y = np.asfortranarray(X.T * np.sqrt(len(X)))  # genes at unit mean square: SPAMS' NMF loses tiny values
        # a number of iterations, for its default is a time
        W = spams.nmf(Y, return_lasso=True, K=modules, iter=30, **threads)[1].toarray()
        for _ in range(n_iter):
            weights = np.asfortranarray(W.T)
            U = spams.lasso(Y.T.copy("F"), weights, lambda1=0.05 * len(X), mode=1, pos=True, **threads).toarray().T
            U = U[:, U.any(axis=0)]
            U = U / np.linalg.norm(U, axis=0)
            W = sparse(Y, U, error)
        return U

    X = np.asarray(reference.X)
    order = rng.permutation(len(X))
    n_held = min(len(X) // 4, 2000)
    held, rest = X[order[:n_held]], X[order[n_held:]]
    simulated = held @ P + rng.multivariate_normal(np.zeros(len(R)), R, n_held, method="eigh")
    best, chosen = -np.inf, (0.2, 0.02)
    for a in (0.2, 0.5):
        U = learn(rest, a)
        for e in (0.1, 0.05, 0.02, 0.01, 0.005, 0.001):
            r = pearson(held, (U @ sparse(simulated.T, P.T @ U, e)).T).mean()
            if r > best:
                best, chosen = r, (a, e)
    U = learn(X, chosen[0])
    return (U @ sparse(D.T, P.T @ U, chosen[1])).T


def decoder(**options: Any) -> Callable[..., Any]:
    """Return `unpool.decode` with these options as a method of the benchmark."""

    def method(D: Any, P: Any, reference: Any, R: Any, rng: np.random.Generator) -> Any:
        pools = up.pooled(D, up.Design(P, genes=list(reference.var_names)))
        return up.decode(pools, reference, sd=False, rng=rng, **options).X

    return method


def folder(given: str | None) -> Path:
    """Folder of the imc16 files."""
    return Path(given or os.environ.get("UNPOOL_DATA") or HERE.parent.parent / "shared" / "data")


def read(name: str, data: Path) -> tuple[Any, dict[str, Any]] | str:
    """Cells and the options that come with them, or why they are missing."""
    if name == "imc16":
        files = [data / "imc16_cells.h5ad", data / "imc16_published_design.csv"]
        missing = [f for f in files if not f.exists()]
        if missing:
            return f"{missing[0]} does not exist; pass --data or set UNPOOL_DATA"
        return ad.read_h5ad(files[0]), {"design": up.Design.read_csv(files[1])}
    try:
        return blood_cells(), {}
    except up.errors.MissingExtraError as error:
        return str(error)


def cpu() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from threadpoolctl import threadpool_info

    packages = ("unpool", "numpy", "scipy", "scikit-learn", "numba", "anndata", "scanpy", "spams-bin")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "blas_threads": {f"{p['internal_api']} {p.get('version')}": p["num_threads"] for p in threadpool_info()},
        "python": platform.python_version(),
        "versions": {p: installed(p) for p in packages},
    }


def installed(package: str) -> str | None:
    """Version of a package, None where it is missing."""
    try:
        return version(package)
    except ImportError:
        return None


def cell(table: Any, method: str) -> str:
    """Mean / worst of one method, as the printed table shows it."""
    row = table[table["method"] == method]
    if row.empty:
        return "-"
    failed = int(row["failures"].iloc[0])
    scores = f"{row['mean'].iloc[0]:.3f} / {row['worst'].iloc[0]:.3f}" if row["repeats"].iloc[0] else ""
    return f"{scores} (failed {failed})".strip() if failed else scores


def main() -> None:
    """Run the settings, print the table, write results/decoder.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="leave others out")
    parser.add_argument("--data", help="folder of the imc16 files")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "decoder.json")
    a = parser.parse_args()
    warnings.simplefilter("ignore")  # of libraries; what fails is in the table

    print(f"| mean / worst per-gene Pearson, {a.repeats} repeats | " + " | ".join(METHODS[m] for m in a.methods) + " |")
    print("|" + " --- |" * (1 + len(a.methods)), flush=True)
    results: dict[str, Any] = {}
    for name in a.settings:
        title, source, options = SETTINGS[name]
        found = read(source, folder(a.data))
        if isinstance(found, str):
            print(f"| {title} | skipped: {found} |", flush=True)
            results[name] = {"title": title, "skipped": found}
            continue
        cells, given = found
        if "reference_group" in options and "reference_group" not in signature(up.decode).parameters:
            options = {k: v for k, v in options.items() if k != "reference_group"}
        extra = {"spams": spams_peer, "unpool, noise unknown": decoder(noise_var=None)}
        methods = {m: None for m in METHODS if m not in a.methods} | {m: extra[m] for m in a.methods if m in extra}
        start = time.perf_counter()
        result = up.benchmark(
            cells, repeats=a.repeats, methods=methods, say=lambda line: print(line, file=sys.stderr), **given, **options
        )
        print(f"| {title} | " + " | ".join(cell(result.table, m) for m in a.methods) + " |", flush=True)
        results[name] = {"title": title, "seconds": time.perf_counter() - start, **result.to_dict()}
    a.output.parent.mkdir(parents=True, exist_ok=True)
    a.output.write_text(json.dumps({"machine": machine(), "settings": results}, indent=1, allow_nan=False) + "\n")
    print(f"wrote {a.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
