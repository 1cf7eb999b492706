"""Speed of decoding: 25 pools to 100 genes, no sd, the default model and fast=True, beside SPAMS, neighbours and pure BLAS.

Prints seconds and cells per second. "Matrix products alone" are the products that the answer consists of, by NumPy's BLAS
on the same threads, in the same blocks and precision, with nothing around them: for every cell and every component its pools
turned once into the component's coordinates (pools x pools), and for every component that carries weight in the cell's
answer one product with its mean and gain (1 + pools x genes); how many carry weight is counted on 4,096 of the cells. Choosing components,
weights, densities and sums are what the ratio pays for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import unpool as up
from unpool.kernels._mixture_loops import limit_below
from unpool.kernels.blocks import map_blocks
from unpool.kernels.mixture import TILE, WEAK
from unpool.measure import noise_covariance

GENES, POOLS, REFERENCE = 100, 25, 4000


def data(n_cells: int) -> tuple[Any, Any, Any, Any]:
    """Reference, design, pools of `n_cells` cells (20,000 different ones, each with noise of its own), noise variances."""
    cells = up.simulate.cell_types(REFERENCE + 20_000, GENES, 12, rng=0)
    reference, truth = cells[:REFERENCE].copy(), np.asarray(cells.X[REFERENCE:], dtype=np.float64)
    design = up.design.balanced(GENES, POOLS, rng=0).equalised(reference)
    clean = truth @ design.matrices[0]
    variance = clean.var(axis=0) / 25
    D = np.resize(clean, (n_cells, POOLS))
    D += np.sqrt(variance) * np.random.default_rng(0).standard_normal(D.shape)
    return reference, design, D, variance


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor time (of all threads) of one call: on a machine that others use, the second is what counts."""
    start, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - used


def products(model: Any, D: Any, P: Any, R: Any, n_threads: int) -> tuple[float, float]:
    """Seconds of the matrix products of the posterior mean, for as many cells as D has."""
    from unpool.model._posterior import see

    seen = see(model.members, model.shares, model.nu, P, R)
    shares = model.posterior(D[:4096], P, noise_var=R, sd=False, responsibilities=True).responsibilities
    work = []
    for member, r in zip(seen.members, shares, strict=True):
        weak = limit_below(r.T.astype(np.float64), WEAK)[:, None]  # below it a component is worked in float32
        strong, faint = ((r * kind).astype(bool).mean(axis=0) * TILE for kind in (r >= weak, r < weak))
        work.append((member, strong.round().astype(int), faint.round().astype(int)))
    print(f"  components: {[len(m.rotation) for m, _, _ in work]}, carrying weight in a cell: "
          f"{[round((s.sum() + f.sum()) / TILE) for _, s, f in work]}")  # fmt: skip
    tile = np.random.default_rng(0).standard_normal((POOLS, TILE))
    coefficients = np.vstack([np.ones(TILE), tile]).T.copy()  # one for the mean, and the coordinates
    coordinates = coefficients, coefficients.astype(np.float32)

    def block(rows: slice) -> None:
        for _ in range(0, rows.stop - rows.start, TILE):
            for member, strong, faint in work:
                for k in range(len(member.rotation)):
                    np.dot(member.rotation[k], tile)
                    if strong[k]:
                        np.dot(coordinates[0][: strong[k]], member.gain[k])
                    if faint[k]:
                        np.dot(coordinates[1][: faint[k]], member.gain32[k])

    return seconds(lambda: map_blocks(block, len(D), n_threads))


def spams_decoding(D: Any, P: Any, X: Any, n_threads: int) -> tuple[float, float]:
    """Seconds of l1 decoding by SPAMS: 68 modules, 0.02 of the pools' energy left, 20 blocks of cells of similar size."""
    import spams

    scaled = np.asfortranarray((X / np.sqrt(np.mean(np.square(X), axis=0))).T)
    U = spams.nmf(scaled, return_lasso=True, K=68, iter=30, numThreads=n_threads)[0]
    A = np.asfortranarray((P * np.sqrt(np.mean(np.square(X), axis=0))[:, None]).T @ U)
    Y = np.asfortranarray(D.T)

    def decode() -> None:
        for block in np.array_split(np.argsort(np.linalg.norm(Y, axis=0)), 20):
            energy = np.square(Y[:, block]).sum() / len(block)
            W = spams.lasso(
                np.asfortranarray(Y[:, block]), A, lambda1=0.02 * energy, mode=1, pos=True, numThreads=n_threads
            )
            np.asarray((U @ W).T)

    return seconds(decode)


def neighbours(D: Any, P: Any, X: Any, n_threads: int) -> tuple[float, float]:
    """Seconds of the mean of the 15 nearest reference cells in pool space."""
    from sklearn.neighbors import NearestNeighbors

    scale = (X @ P).std(axis=0)
    search = NearestNeighbors(n_neighbors=15, algorithm="brute", n_jobs=n_threads).fit(X @ P / scale)
    return seconds(
        lambda: [X[search.kneighbors(D[i : i + 4096] / scale)[1]].mean(axis=1) for i in range(0, len(D), 4096)]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="also fit 100,000 cells")
    args = parser.parse_args()
    n, threads = args.cells, args.threads
    reference, design, D, variance = data(n)
    X, P = np.asarray(reference.X, dtype=np.float64), design.matrices[0]
    R = noise_covariance(variance, P, "pool")

    def say(what: str, taken: tuple[float, float], cells: int = n) -> tuple[float, float]:
        wall, used = taken
        print(
            f"{what:<46} {wall:8.2f} s {cells / wall:10,.0f} cells a second {cells / used:10,.0f} a processor second",
            flush=True,
        )
        return wall / cells, used / cells

    print(f"{n:,} cells, {POOLS} pools -> {GENES} genes, sd off, {threads} threads; {REFERENCE:,} reference cells")
    pools = up.pooled(D, design)
    up.decode(pools[:2000].copy(), reference, noise_var=R, sd=False, n_threads=threads)  # compile
    print(
        f"fit of {REFERENCE:,} x {GENES}: {seconds(lambda: up.Model.from_cells(reference, n_threads=threads))[0]:.1f} s"
    )
    model = up.Model.from_cells(reference, n_threads=threads).adapt(pools, noise_var=variance, n_threads=threads)
    ours = say("default model: posterior mean", seconds(
        lambda: model.posterior(D, P, noise_var=R, sd=False, n_threads=threads)))  # fmt: skip
    bare = say("its matrix products alone", products(model, D, P, R, threads))
    print(f"  ratio: {ours[0] / bare[0]:.2f} (processor time: {ours[1] / bare[1]:.2f})")
    whole = {"noise_var": R, "sd": False, "n_threads": threads, "crossfit": False}
    say("decode, all of it (fit, choices, adaptation)", seconds(lambda: up.decode(pools, reference, **whole)))
    quick = up.Model.from_cells(reference, fast=True, n_threads=threads)
    quick.posterior(D[:5000], P, noise_var=R, sd=False, fast=True)
    fast = say("fast=True: posterior mean", min(
        seconds(lambda: quick.posterior(D, P, noise_var=R, sd=False, fast=True, n_threads=threads)) for _ in range(3)))  # fmt: skip
    say("decode(fast=True), all of it", seconds(lambda: up.decode(pools, reference, fast=True, **whole)))
    with threadpool_limits(threads):
        some = min(n, 20_000)
        try:
            spams = say("SPAMS: l1 decoding, 68 modules", spams_decoding(D[:some], P, X, threads), some)
            print(
                f"  fast=True is {spams[0] / fast[0]:.1f} times as fast as SPAMS (processor time: {spams[1] / fast[1]:.1f})"
            )
        except ImportError:
            print("SPAMS is not installed")
        say("15 nearest neighbours", neighbours(D[:some], P, X, threads), some)
    if args.large:
        cells = up.simulate.cell_types(100_000, GENES, 12, rng=0)
        print(f"fit of 100,000 x {GENES}: {seconds(lambda: up.Model.from_cells(cells, n_threads=threads))[0]:.1f} s")


if __name__ == "__main__":
    main()
