"""Speed of fitting and decoding: 25 pools to 100 genes, no sd, beside SPAMS, nearest neighbours and pure matrix products.

What is compared takes turns: the default model and its matrix products in chunks of the cells, fast=True and its peers one
after the other, so that a slow spell of the machine falls on both sides. Medians of several turns; processor time counts all
threads, and is what to read where the machine is busy. Writes results/speed.json.

"Matrix products" are those of the posterior mean by NumPy's BLAS: same threads and precision, outputs allocated
before, nothing around them. Every component turns the pools of every cell once into its own coordinates (pools x pools; its
density needs them), and every component that carries weight in a cell's answer multiplies them by its gain (pools x genes);
how many do is counted on 4,096 of the cells. "Of weighty components": the first kind, too, only where a component carries
weight in the cell, as if it were known beforehand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from _harness import machine, show, verdict, write
from threadpoolctl import threadpool_limits

import unpool as up
from unpool.kernels._mixture_loops import limit_below
from unpool.kernels.blocks import map_blocks
from unpool.kernels.mixture import WEAK
from unpool.measure import noise_covariance

GENES, POOLS, REFERENCE, LARGE = 100, 25, 4_000, 100_000
TILE = 1024  # cells of one pure product: large enough for BLAS, whatever the decoder takes at once
CHUNKS, TURNS = 5, 5
FIT, LARGE_FIT, PRODUCTS, SPAMS = 60.0, 300.0, 2.5, 10.0  # bars: seconds, seconds, times the products, times SPAMS
NAMES = {
    "default": "default model: posterior mean",
    "products": "its matrix products alone",
    "weighty": "matrix products of weighty components alone",
    "fast": "fast=True: posterior mean",
    "spams": "SPAMS: l1 decoding, 68 modules, lambda 0.02",
    "neighbours": "15 nearest neighbours",
    "few": "16 genes in 8 pools, default model: posterior mean",
    "few sd": "the same with sd",
    "decode": "decode, all of it (fit, choices, adaptation)",
    "decode fast": "decode(fast=True), all of it",
}
NOTES = [
    "Simulated cell types; reference of 4,000 cells; design of 25 balanced pools; noise covariance given.",
    "Medians over the runs; ratios are taken run by run, both sides one after the other, before their median.",
]


class Taken(NamedTuple):
    """Wall and processor seconds (of all threads)."""

    wall: float
    used: float


class Data(NamedTuple):
    """What is decoded: a reference, a design, pools of many cells (cells x pools), and their noise covariance."""

    reference: Any
    design: Any
    D: Any
    R: Any


def data(n_cells: int) -> Data:
    """Simulated cell types: 4,000 cells as reference, and 20,000 others, repeated with noise of their own up to `n_cells`."""
    cells = up.simulate.cell_types(REFERENCE + 20_000, GENES, 12, rng=0)
    reference, truth = cells[:REFERENCE].copy(), np.asarray(cells.X[REFERENCE:], dtype=np.float64)
    design = up.design.balanced(GENES, POOLS, rng=0).equalised(reference)
    clean = truth @ design.matrices[0]
    variance = clean.var(axis=0) / 25
    D = np.resize(clean, (n_cells, POOLS))
    D += np.sqrt(variance) * np.random.default_rng(0).standard_normal(D.shape)
    return Data(reference, design, D, noise_covariance(variance, design.matrices[0], "pool"))


def seconds(run: Callable[[], Any]) -> Taken:
    """Wall and processor time of one call."""
    start, used = time.perf_counter(), time.process_time()
    run()
    return Taken(time.perf_counter() - start, time.process_time() - used)


def in_turns(runs: dict[str, Callable[..., Any]], turns: int) -> dict[str, list[Taken] | str]:
    """Times of every run, turn by turn, or its first error: it is not run again."""
    found: dict[str, Any] = {name: [] for name in runs}
    for turn in range(turns):
        for name, run in runs.items():
            if isinstance(found[name], str):
                continue
            try:
                found[name].append(seconds(lambda run=run, turn=turn: run(turn)))
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found


def model_of(given: Data, n_threads: int) -> tuple[up.Model, str]:
    """The model with which `decode` would decode these pools by default, and what it is."""
    pools, known = up.pooled(given.D, given.design), {"noise_var": given.R, "n_threads": n_threads}
    told = up.decode(pools, given.reference, sd=False, crossfit=False, **known).uns["unpool"]
    model = up.Model.from_cells(given.reference, n_threads=n_threads)
    if not told["extras"]:
        model = model.plain()
    model = model.with_tails(told["nu"])
    if told["adapted"]:
        model = model.adapt(pools, **known)
    words = ["with" if told["extras"] else "without", "" if told["adapted"] else "not "]
    return model, f"{words[0]} extras, nu {told['nu']:g}, {words[1]}adapted"


def carrying(shares: Any) -> tuple[Any, Any]:
    """Cells of a tile for which a component (cells x components) is worked in float64, and in float32."""
    weak = limit_below(shares.T.astype(np.float64), WEAK)[:, None]
    strong = (shares >= weak) & (shares > 0)
    return tuple(np.rint(TILE * part.mean(axis=0)).astype(int) for part in (strong, (shares > 0) & ~strong))


def products(counts: list[tuple[Any, Any]], n_cells: int, n_threads: int, *, weighty: bool = False) -> None:
    """Do the matrix products of the posterior mean of so many cells, in blocks on threads, as the decoder does."""
    rng = np.random.default_rng(0)
    most = max(len(strong) for strong, _ in counts)
    rotation, gain = rng.standard_normal((most, POOLS, POOLS)), rng.standard_normal((most, POOLS, GENES))
    z = rng.standard_normal((TILE, POOLS))
    gain32, z32 = gain.astype(np.float32), z.astype(np.float32)

    def block(rows: slice) -> None:
        turned, answer = np.empty((TILE, POOLS)), np.empty((TILE, GENES))
        answer32 = np.empty((TILE, GENES), np.float32)
        for _ in range(rows.start, rows.stop, TILE):
            for strong, faint in counts:
                for k, n in enumerate(np.minimum(strong + faint, TILE) if weighty else np.full(len(strong), TILE)):
                    np.dot(z[:n], rotation[k], out=turned[:n])
                for k, n in enumerate(strong):
                    np.dot(z[:n], gain[k], out=answer[:n])
                for k, n in enumerate(faint):
                    np.dot(z32[:n], gain32[k], out=answer32[:n])

    map_blocks(block, n_cells, n_threads)


def spams_decoder(P: Any, X: Any, n_threads: int) -> Callable[..., None]:
    """l1 decoding by SPAMS: 68 modules, 0.02 of the pools' energy left, 20 blocks of cells of similar size."""
    import spams

    size = np.sqrt(np.mean(np.square(X), axis=0))
    U = spams.nmf(np.asfortranarray((X / size).T), return_lasso=True, K=68, iter=30, numThreads=n_threads)[0]
    A = np.asfortranarray((P * size[:, None]).T @ U)

    def decode(D: Any, turn: int = 0) -> None:
        Y = np.asfortranarray(D.T)
        for block in np.array_split(np.argsort(np.linalg.norm(Y, axis=0)), 20):
            energy = np.square(Y[:, block]).sum() / len(block)
            W = spams.lasso(
                np.asfortranarray(Y[:, block]), A, lambda1=0.02 * energy, mode=1, pos=True, numThreads=n_threads
            )
            np.asarray((U @ W).T)

    return decode


def neighbours(P: Any, X: Any, n_threads: int) -> Callable[..., None]:
    """Mean of the 15 nearest reference cells in pool space."""
    from sklearn.neighbors import NearestNeighbors

    scale = (X @ P).std(axis=0)
    search = NearestNeighbors(n_neighbors=15, algorithm="brute", n_jobs=n_threads).fit(X @ P / scale)

    def decode(D: Any, turn: int = 0) -> None:
        for i in range(0, len(D), 4096):
            X[search.kneighbors(D[i : i + 4096] / scale)[1]].mean(axis=1)

    return decode


def fits(reference: Any, n_threads: int) -> list[list[Any]]:
    """Fits of a small and a large reference: what is measured, bar and verdict."""
    rows = []
    for cells, bar in ((reference, FIT), (up.simulate.cell_types(LARGE, GENES, 12, rng=0), LARGE_FIT)):
        taken = seconds(lambda cells=cells: up.Model.from_cells(cells, n_threads=n_threads))
        what = f"fit of {cells.n_obs:,} x {GENES}"
        print(f"{what}: {taken.wall:.1f} s, {taken.used:.1f} s of processor time", flush=True)
        times = [f"{t:.1f} s" for t in taken]
        rows.append([what, *times, f"at most {bar:g} s", verdict(taken.wall, most=bar)])
    return rows


def paces(found: dict[str, Any], cells: dict[str, int]) -> list[list[Any]]:
    """Cells a second of every method; of those in chunks all chunks together."""
    rows = []
    for name, taken in found.items():
        if isinstance(taken, str):
            rows.append([NAMES[name], cells[name], "", "", "", f"failed: {taken}"])
            continue
        wall, used = (float(np.median([t[i] for t in taken])) for i in (0, 1))
        pace = round(cells[name] / wall), round(cells[name] / used)
        rows.append([NAMES[name], cells[name], *pace, len(taken), ""])
        print(f"{NAMES[name]:<46} {pace[0]:10,} cells a second {pace[1]:10,} a processor second", flush=True)
    return rows


def ratio(found: dict[str, Any], mine: str, other: str, *, most: float = np.inf, least: float = -np.inf) -> list[Any]:
    """Median over the turns of `mine` / `other`, by wall and processor time, with its bar."""
    what = f"{NAMES[mine]} / {NAMES[other]}"
    bar = f"at most {most:g}" if np.isfinite(most) else f"at least {least:g}" if np.isfinite(least) else ""
    if failed := [found[name] for name in (mine, other) if isinstance(found[name], str)]:
        return [what, "", "", bar, f"failed: {failed[0]}"]
    pairs = list(zip(found[mine], found[other], strict=True))
    wall, used = (float(np.median([a[i] / b[i] for a, b in pairs])) for i in (0, 1))
    return [what, f"{wall:.2f}", f"{used:.2f}", bar, verdict(wall, most=most, least=least) if bar else ""]


def of_default(given: Data, chunk: int, n_threads: int) -> tuple[dict[str, Any], str]:
    """Default model and its matrix products, in turns over the chunks; and the model in words."""
    D, P, R = given.D, given.design.matrices[0], given.R
    model, kind = model_of(given, n_threads)
    seen = model.posterior(D[:4096], P, noise_var=R, sd=False, responsibilities=True, n_threads=n_threads)
    counts = [carrying(shares) for shares in seen.responsibilities or ()]
    sizes = [len(strong) for strong, _ in counts]
    weighty = [round(float((strong + faint).sum()) / TILE) for strong, faint in counts]
    about = f"Default model: {kind}; components of its members {sizes}, carrying weight in a cell {weighty}."
    print(about, flush=True)

    def posterior(turn: int) -> None:
        rows = D[turn * chunk : (turn + 1) * chunk]
        model.posterior(rows, P, noise_var=R, sd=False, n_threads=n_threads)

    runs = {
        "default": posterior,
        "products": lambda turn: products(counts, chunk, n_threads),
        "weighty": lambda turn: products(counts, chunk, n_threads, weighty=True),
    }
    return in_turns(runs, CHUNKS), about


def of_fast(given: Data, turns: int, some: int, n_threads: int) -> dict[str, Any]:
    """fast=True on all cells, SPAMS on all and neighbours on some, in turns."""
    D, X, P, R = given.D, np.asarray(given.reference.X, dtype=np.float64), given.design.matrices[0], given.R
    quick = up.Model.from_cells(given.reference, fast=True, n_threads=n_threads)
    quick.posterior(D[:5000], P, noise_var=R, sd=False, fast=True)  # compile
    runs: dict[str, Callable[..., Any]] = {
        "fast": lambda turn: quick.posterior(D, P, noise_var=R, sd=False, fast=True, n_threads=n_threads)
    }
    failed = {}
    for name, peer, size in (("spams", spams_decoder, len(D)), ("neighbours", neighbours, some)):
        try:
            runs[name] = partial(peer(P, X, n_threads), D[:size])
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return in_turns(runs, turns) | failed


def of_few(turns: int, n_cells: int, n_threads: int) -> dict[str, Any]:
    """16 genes in 8 pools by the default model, without and with sd, in turns: a small panel has a richer model."""
    cells = up.simulate.cell_types(REFERENCE + n_cells, 16, 8, rng=0)
    model = up.Model.from_cells(cells[:REFERENCE].copy(), n_threads=n_threads)
    P = up.design.balanced(16, 8, pools_per_gene=2, rng=0).matrices[0]
    clean = np.asarray(cells.X[REFERENCE:], dtype=np.float64) @ P
    R = noise_covariance(clean.var(axis=0) / 25, P, "pool")
    D = clean + np.sqrt(np.diag(R)) * np.random.default_rng(0).standard_normal(clean.shape)
    runs = {
        name: lambda turn, sd=sd: model.posterior(D, P, noise_var=R, sd=sd, n_threads=n_threads)
        for name, sd in (("few", False), ("few sd", True))
    }
    return in_turns(runs, turns)


def of_decode(given: Data, n_threads: int) -> dict[str, Any]:
    """`decode` from reference to answer, once."""
    pools = up.pooled(given.D, given.design)
    whole = {"noise_var": given.R, "sd": False, "crossfit": False, "n_threads": n_threads}
    runs = {
        "decode": lambda turn: up.decode(pools, given.reference, **whole),
        "decode fast": lambda turn: up.decode(pools, given.reference, fast=True, **whole),
    }
    return in_turns(runs, 1)


def main() -> None:
    """Measure, print, write results/speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=TURNS, help="of fast=True and its peers")
    a = parser.parse_args()
    about, given, n, threads = machine() | {"threads": a.threads}, data(a.cells), a.cells, a.threads
    chunk, some = n // CHUNKS, min(n, 20_000)
    print(f"{n:,} cells, {POOLS} pools -> {GENES} genes, sd off, {threads} threads; {REFERENCE:,} reference cells")
    first = up.pooled(given.D[:2000], given.design)
    up.decode(first, given.reference, noise_var=given.R, sd=False, n_threads=threads)  # compile
    bars = fits(given.reference, threads)
    with threadpool_limits(threads):
        slow, about_model = of_default(given, chunk, threads)
        rows = paces(slow, dict.fromkeys(slow, chunk))
        fast = of_fast(given, a.turns, some, threads)
        rows += paces(fast, {"fast": n, "spams": n, "neighbours": some})
        few = of_few(a.turns, some, threads)
        rows += paces(few, dict.fromkeys(few, some))
        whole = of_decode(given, threads)
        rows += paces(whole, dict.fromkeys(whole, n))
    bars += [
        ratio(slow, "default", "products", most=PRODUCTS),
        ratio(slow, "default", "weighty"),
        ratio(fast, "spams", "fast", least=SPAMS),
    ]
    columns = ["", "wall time", "processor time", "bar (wall time)", ""]
    of_pace = ["", "cells at once", "a second", "a processor second", "runs", ""]
    tables = [
        {"title": "Bars", "columns": columns, "rows": bars},
        {"title": "Cells a second", "columns": of_pace, "rows": rows},
    ]
    for table in tables:
        show(table)
    title, notes = (
        f"Speed, {POOLS} pools to {GENES} genes, no sd",
        [f"{threads} threads everywhere.", about_model, *NOTES],
    )
    write("speed", {"title": title, "machine": about, "tables": tables, "notes": notes})


if __name__ == "__main__":
    main()
