"""Accuracy of decoding with a reference: unpool beside the published method, SPAMS, and baselines that need no decoder.

Prints mean / worst per-gene Pearson (`unpool.benchmark`'s protocol, SNR 5) in five settings:

    imc16     6,775 cells x 16 proteins (imaging mass cytometry), the published design of 8 pools: without noise, with
              noise in the pools, and the same with one tissue held out at a time
    pbmc68k   700 blood cells x the 100 genes whose log counts vary most, random designs of 10 and of 25 pools, noise
              before pooling

The imc16 files (imc16_cells.h5ad, imc16_published_design.csv) are not part of the package: --data, the environment variable
UNPOOL_DATA or ../shared/data says where they are. What is missing is skipped and said.

Settings and methods can be measured one after the other: what a run does not measure stays in results/decoder.json, where it
was measured with the same options (`python benchmarks/decoder.py --methods spams` adds the slow peer to what is there).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from _cells import imc16
from _harness import RESULTS, machine, show, verdict, write

import unpool as up
from unpool.demo import blood_cells
from unpool.evaluate import pearson

METHODS = {
    "unpool": "unpool",
    "unpool, noise unknown": "unpool, noise_var=None",
    "unpool, fast": "unpool, fast=True",
    "modules": "published method (solvers.modules)",
    "spams": "published method (SPAMS)",
    "neighbours": "nearest neighbours",
    "linear": "one Gaussian (linear)",
    "total": "cell's total",
}
PUBLISHED = ("modules", "spams")
OURS: dict[str, dict[str, Any]] = {
    "unpool": {},
    "unpool, noise unknown": {"noise_var": None},
    "unpool, fast": {"fast": True},
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
# setting -> least mean r, least r of the worst gene, most error (1 - mean r) relative to the published method's
BARS: dict[str, tuple[float, float | None, float]] = {
    "none": (0.976, 0.957, 0.40),
    "pool": (0.957, 0.925, 0.55),
    "tissue": (0.845, None, 0.67),
    "10": (0.730, None, 0.69),
    "25": (0.837, None, 0.58),
}
LOST = 0.01  # most that the mean r may lose where the noise is unknown
TITLE = "Accuracy of decoding with a reference"
NOTES = [
    "`unpool.benchmark`'s protocol: genes at unit norm over the reference; 60 % of the cells as reference and the last 20 % "
    'decoded, or one tissue held out at a time (all nine; its pools\' noise at SNR 5 of its own cells); all but "noise_var=None" '
    "are told the noise covariance. Mean over the repeats of the mean and of the worst gene's Pearson correlation.",
    "Standard deviations over the repeats, every repeat and seconds are in results/decoder.json. Our own are decoded without "
    "cross-fitting and sd, which do not change the answer.",
]


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
    """Return `unpool.decode` with these options as a method of the benchmark; told the noise unless they say otherwise."""

    def method(D: Any, P: Any, reference: Any, R: Any, rng: np.random.Generator) -> Any:
        pools = up.pooled(D, up.Design(P, genes=list(reference.var_names)))
        given: dict[str, Any] = {"noise_var": R, "sd": False, "crossfit": False, "rng": rng} | options
        return up.decode(pools, reference, **given).X

    return method


def read(name: str, data: str | None) -> tuple[Any, dict[str, Any]] | str:
    """Cells and the options that come with them, or why they are missing."""
    if name == "imc16":
        found = imc16(data)
        return found if isinstance(found, str) else (found[0], {"design": found[1]})
    try:
        return blood_cells(), {}
    except up.errors.MissingExtraError as error:
        return str(error)


def measured(name: str, methods: list[str], repeats: int, data: str | None) -> dict[str, Any]:
    """One setting: title, parameters, one record a method and one a repeat; or why it was skipped."""
    title, source, options = SETTINGS[name]
    found = read(source, data)
    if isinstance(found, str):
        print(f"{title}: skipped, {found}", flush=True)
        return {"title": title, "skipped": found}
    cells, given = found
    print(title, flush=True)
    mine = {m: decoder(reference_group=options.get("reference_group"), **o) for m, o in OURS.items()}
    extra = {m: None for m in METHODS if m not in methods} | {
        m: f for m, f in (mine | {"spams": spams_peer}).items() if m in methods
    }
    result = up.benchmark(
        cells, repeats=repeats, methods=extra, say=lambda line: print("  " + line, file=sys.stderr), **given, **options
    )
    return {"title": title, **result.to_dict()}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What was measured before with the same options stays where it was not measured again."""
    if "skipped" in new:
        return new | old
    if old.get("parameters") != new["parameters"]:
        if "parameters" in old:
            print("  what was measured before with other options is dropped", flush=True)
        return new
    again = {row["method"] for row in new["table"]}
    kept = {part: [row for row in old[part] if row["method"] not in again] for part in ("table", "repeats")}
    return new | {part: new[part] + rows for part, rows in kept.items()}


def tables(settings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings x methods, and the bars."""
    by = {s: {row["method"]: row for row in found.get("table", [])} for s, found in settings.items()}
    shown = [m for m in METHODS if any(m in rows for rows in by.values())]
    rows = [[found["title"], *(cell(by[s].get(m)) for m in shown)] for s, found in settings.items()]
    repeats = sorted({found["parameters"]["repeats"] for found in settings.values() if "parameters" in found})
    skipped = [f"{found['title']}: skipped, {found['skipped']}" for found in settings.values() if "skipped" in found]
    of = " or ".join(map(str, repeats))
    return [
        {
            "title": f"Mean / worst per-gene Pearson, {of} repeats",
            "columns": ["", *(METHODS[m] for m in shown)],
            "rows": rows,
            "notes": skipped,
        },
        {
            "title": "Bars",
            "columns": ["", "", "measured", "bar", ""],
            "rows": [[settings[s]["title"], *row] for s, found in by.items() for row in bars(s, found)],
        },
    ]


def cell(row: dict[str, Any] | None) -> str:
    """Mean / worst of one method, as the table shows it."""
    if row is None:
        return ""
    scores = f"{row['mean']:.3f} / {row['worst']:.3f}" if row["repeats"] else ""
    return f"{scores} (failed {row['failures']}: {row['error']})".strip() if row["failures"] else scores


def bars(setting: str, of: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """What is asked of a setting: text, value, bar, verdict; what was not measured is left out."""
    mean = {m: row["mean"] for m, row in of.items() if row["mean"] is not None}
    ours, unknown, fast = (mean.get(m) for m in OURS)
    least, worst, error = BARS[setting]
    asked: list[tuple[str, float, dict[str, float]]] = []
    if ours is not None:
        asked.append(("mean r", ours, {"least": least}))
        if worst is not None:
            asked.append(("worst gene's r", of["unpool"]["worst"], {"least": worst}))
        asked += [
            (f"error, of {METHODS[m]}'s", (1 - ours) / (1 - mean[m]), {"most": error}) for m in PUBLISHED if m in mean
        ]
        if unknown is not None:
            asked.append(("mean r lost where the noise is unknown", ours - unknown, {"most": LOST}))
    if fast is not None:
        asked += [
            (f"fast=True: mean r above {METHODS[m]}", fast - mean[m], {"least": 0.0}) for m in PUBLISHED if m in mean
        ]
    return [
        [what, f"{value:.4f}", " ".join(f"at {side} {bar:g}" for side, bar in limit.items()), verdict(value, **limit)]
        for what, value, limit in asked
    ]


def main() -> None:
    """Run the settings, print the tables, write results/decoder.json after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="leave others as they are"
    )
    parser.add_argument("--data", help="folder of the imc16 files (default: UNPOOL_DATA)")
    a = parser.parse_args()
    warnings.simplefilter("ignore")  # of libraries; what fails is in the table
    about, file = machine(), RESULTS / "decoder.json"
    known = json.loads(file.read_text(encoding="utf-8"))["settings"] if file.exists() else {}
    for name in a.settings:
        start = time.perf_counter()
        known[name] = merged(known.get(name, {}), measured(name, a.methods, a.repeats, a.data))
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        settings = {s: known[s] for s in SETTINGS if s in known}
        write(
            "decoder",
            {"title": TITLE, "machine": about, "tables": tables(settings), "notes": NOTES, "settings": settings},
        )
    for table in tables(settings):
        show(table)


if __name__ == "__main__":
    main()
