"""Solvers beside their peers: nuclear norm (Clarabel, SCS), alternating least squares (cvxpy), NNLS (scipy, SPAMS).

Times are in units of one SVD of a 500 x 100 matrix with one BLAS thread; ratios to a peer are within this run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from _harness import TIMEOUT, Outcome, duration, in_svds, machine, medians, peer, show, write
from _nnls import measure_nnls
from _peers import conic_nuclear_norm, notebook_nuclear_norm, notebook_v_step
from scipy.stats import chi2, pearsonr

import unpool as up
from unpool.solvers import Solution, als, duality_gap, minimum_norm, nnls, nuclear_norm

Array = Any
Table = dict[str, Any]
SOLVERS = {None: "its default solver", "CLARABEL": "Clarabel", "SCS": "SCS"}
CERTIFICATE = ["problem", "solver", "time in SVDs", "time", "beside ours", "gap", "smallest entry", "residual"]


def notebook_data(seed: int = 0) -> tuple[Array, Array, Array]:
    """M, P and D = M P of the founding notebook: 500 cells x 100 genes of rank 10, 25 pools."""
    truth = up.simulate.low_rank(500, 100, 10, rng=seed)
    P = up.design.bernoulli(100, pack_ratio=0.25, p=0.25, rng=seed).matrices[0]
    return truth.X, P, truth.X @ P


def gamma_data(n: int, g: int, m: int, rank: int, seed: int) -> tuple[Array, Array]:
    """D and P of nonnegative expression with gamma(0.5) factors, so sparse that X >= 0 is active."""
    rng = np.random.default_rng(seed)
    M = rng.gamma(0.5, size=(n, rank)) @ rng.gamma(0.5, size=(rank, g))
    P = up.design.bernoulli(g, m, p=0.25, rng=rng).matrices[0]
    return M @ P, P


def certified(D: Any, P: Any, answer: Solution, radius: float) -> tuple[float, float, float]:
    """Gap recomputed from the dual point in plain numpy, smallest entry of X, residual beyond the radius over ‖D‖."""
    gap = duality_gap(answer.X, D, P, radius, *answer.dual)
    Ds = D if isinstance(D, list) else [D]
    size = np.sqrt(sum(np.sum(d**2) for d in Ds))
    return gap, float(answer.X.min()), (answer.residual - radius) / size


def row(
    problem: str, name: str, D: Any, P: Any, radius: float, answer: Solution, svds: float, seconds: float
) -> list[Any]:
    """One of our answers as a row of the certificates' table."""
    gap, least, beyond = certified(D, P, answer, radius)
    return [problem, name, round(svds, 2), duration(seconds), "1", f"{gap:.1e}", least, f"radius {beyond:+.1e} ‖D‖"]


def peer_row(problem: str, name: str, outcome: Outcome, ours: float, gap: str = "", residual: str = "") -> list[Any]:
    """A peer's answer, or what became of it, as a row of the same table."""
    return [problem, name, "", outcome.text, outcome.times(ours), gap, "", residual]


def nuclear_notebook() -> Table:
    """The notebook's data: ours at radius 0 and at the notebook's radius; its own cvxpy program."""
    _, P, D = notebook_data()
    what, rows, fastest = "500 x 100, 25 pools", [], np.inf
    for radius in (0.0, 1e-7 * D.size):
        answer = nuclear_norm(D, P, radius=radius)
        svds, seconds = in_svds(lambda radius=radius: nuclear_norm(D, P, radius=radius))
        rows.append(row(what, f"unpool, radius {radius:.3g}", D, P, radius, answer, svds, seconds))
        fastest = seconds  # the last one solves the peers' program
    for solver in (None, "SCS"):
        outcome = peer(notebook_nuclear_norm, D, P, solver, needs=["cvxpy"])
        rows.append(peer_row(what, f"the notebook's program, cvxpy with {SOLVERS[solver]}", outcome, fastest))
    notes = [f"The notebook's program asks for a residual of at most 1e-7 x D.size = {1e-7 * D.size:.3g}."]
    return {"title": "Nuclear norm, the founding notebook's data", "columns": CERTIFICATE, "rows": rows, "notes": notes}


def nuclear_small() -> Table:
    """50 x 20 x 5 at 1 %, three seeds: small enough for the conic solvers to end."""
    rows = []
    for seed in range(3):
        D, P = gamma_data(50, 20, 5, 10, seed)
        radius, what = 0.01 * float(np.linalg.norm(D)), f"50 x 20, 5 pools, seed {seed}"
        answer = nuclear_norm(D, P, radius=radius)
        svds, seconds = in_svds(lambda D=D, P=P, radius=radius: nuclear_norm(D, P, radius=radius))
        rows.append(row(what, "unpool", D, P, radius, answer, svds, seconds))
        for solver in ("CLARABEL", "SCS"):
            outcome = peer(conic_nuclear_norm, D, P, radius, solver, needs=["cvxpy"])
            gap = beyond = ""
            if not outcome.failed:
                objective, X, status = outcome.value
                gap = f"objective {objective / answer.objective - 1:+.1e} of ours ({status})"
                beyond = f"radius {(np.linalg.norm(X @ P - D) - radius) / np.linalg.norm(D):+.1e} ‖D‖"
            rows.append(peer_row(what, f"cvxpy with {SOLVERS[solver]}", outcome, seconds, gap, beyond))
    return {"title": "Nuclear norm, small: radius 1 % of ‖D‖, gamma(0.5) factors of rank 10", "columns": CERTIFICATE,
            "rows": rows, "notes": ["Tolerances: Clarabel 1e-8 (its own), SCS 1e-6, ours a gap of 1e-6."]}  # fmt: skip


def nuclear_large() -> Table:
    """500 x 100 x 25 with X >= 0 active, three seeds, three radii; and a radius given by the noise."""
    rows = []
    for seed in range(3):
        D, P = gamma_data(500, 100, 25, 10, seed)
        for share in (0.0, 0.01, 0.1):
            radius = share * float(np.linalg.norm(D))
            answer = nuclear_norm(D, P, radius=radius)
            svds, seconds = in_svds(lambda D=D, P=P, radius=radius: nuclear_norm(D, P, radius=radius), repeats=3)
            rows.append(row(f"seed {seed}, radius {share:.0%}", "unpool", D, P, radius, answer, svds, seconds))
    D, P = gamma_data(500, 100, 25, 10, 0)
    for share in (0.01, 0.05, 0.2):
        sd = share * D.std()
        noisy = D + sd * np.random.default_rng(1).standard_normal(D.shape)
        radius = float(np.sqrt(sd**2 * chi2.ppf(0.95, D.size)))
        answer = nuclear_norm(noisy, P, noise_var=sd**2)
        svds, seconds = in_svds(lambda noisy=noisy, sd=sd: nuclear_norm(noisy, P, noise_var=sd**2), repeats=3)
        what = f"seed 0, noise {share:.0%} of sd(D), noise_var given"
        rows.append(row(what, "unpool", noisy, P, radius, answer, svds, seconds))
    return {"title": "Nuclear norm, 500 x 100 in 25 pools, gamma(0.5) factors of rank 10", "columns": CERTIFICATE,
            "rows": rows, "notes": ["Conic solvers do not end at this size (first table)."]}  # fmt: skip


def several_designs() -> Iterator[tuple[list[Array], list[Array], float]]:
    """20 random problems: 2 to 6 designs of unequal sizes, 23 to 60 genes, ranks 2 to 20, five radii."""
    rng = np.random.default_rng(0)
    for k in range(20):
        B, g, rank = int(rng.integers(2, 7)), int(rng.integers(23, 61)), int(rng.integers(2, 21))
        V = rng.gamma(0.5, size=(g, rank))
        P = [up.design.bernoulli(g, int(rng.integers(4, 13)), p=0.3, rng=rng).matrices[0] for _ in range(B)]
        D = [rng.gamma(0.5, size=(int(rng.integers(8, 41)), rank)) @ V.T @ p for p in P]
        size = np.sqrt(sum(np.sum(d**2) for d in D))
        share = (0.0, 0.003, 0.01, 0.1, 0.03)[k % 5]
        if k % 5 == 4:  # noise with its own radius
            sd = share * size / np.sqrt(sum(d.size for d in D))
            D = [d + sd * rng.standard_normal(d.shape) for d in D]
        yield D, P, share * float(size) * (1.0 if k % 5 < 4 else 1.1)


def nuclear_several() -> Table:
    """How many of the random problems with several designs end with a certificate."""
    rows, seconds = [], []
    for k, (D, P, radius) in enumerate(several_designs()):
        answer = nuclear_norm(D, P, radius=radius)
        [took] = medians(lambda D=D, P=P, radius=radius: nuclear_norm(D, P, radius=radius), repeats=1)
        gap, least, beyond = certified(D, P, answer, radius)
        seconds.append(took)
        rows.append([k, len(P), sum(map(len, D)), len(P[0]), bool(answer.converged), f"{gap:.1e}", least,
                     f"{beyond:+.1e}", duration(took)])  # fmt: skip
    solved = sum(r[4] for r in rows)
    notes = [f"{solved} of {len(rows)} certified; median {duration(float(np.median(seconds)))}, one run each."]
    columns = [
        "problem",
        "designs",
        "cells",
        "genes",
        "certified",
        "gap",
        "smallest entry",
        "(residual - radius) / ‖D‖",
        "time",
    ]
    return {"title": "Nuclear norm, several designs of unequal sizes", "columns": columns, "rows": rows, "notes": notes}


def factorisation() -> Table:
    """100 iterations of alternating least squares from the notebook's start, beside one cvxpy V-step."""
    M, P, D = notebook_data()
    rng = np.random.default_rng(0)
    start = rng.standard_normal((500, 10)) + 10, rng.standard_normal((100, 10)) + 10
    U = nnls(P.T @ start[1], D)
    step = peer(notebook_v_step, D, P, U, needs=["cvxpy"])
    total, least = D.sum(axis=1, keepdims=True) * np.ones(M.shape[1]), minimum_norm(D, P)
    rows: list[list[Any]] = [
        ["the cell's total", "", "", "", "", "", pearson(M, total)],
        ["D P⁺", "", "", "", f"{least.residual / np.linalg.norm(D):.1e}", "", pearson(M, least.X)],
    ]
    for name, init in (("the notebook's start", start), ("its own random start", None)):

        def run(init: Any = init) -> Solution:
            return als(D, P, 10, init=init, max_iter=100, tol=0.0)

        answer = run()
        svds, seconds = in_svds(run, repeats=3)
        rows.append([f"unpool.als, 100 iterations, {name}", round(svds, 1), duration(seconds), "1",
                     f"{answer.residual / np.linalg.norm(D):.1e}", float(min(answer.U.min(), answer.V.min())),
                     pearson(M, answer.X)])  # fmt: skip
        if init is start:
            rows.append(
                [
                    "one V-step by cvxpy, the notebook's start",
                    "",
                    step.text,
                    step.times(seconds),
                    *v_step(M, P, D, U, step),
                ]
            )
    columns = ["method", "time in SVDs", "time", "beside ours", "relative residual", "smallest entry of U, V",
               "mean per-gene Pearson"]  # fmt: skip
    notes = [
        "Beyond the span of the pools the data say nothing, and what a factorisation answers there is its start: the notebook's "
        "(all loadings near 10) happens to resemble its truth (all near 15), a random one does not. Compare with the cell's total."
    ]
    return {
        "title": "Alternating least squares, the founding notebook's size",
        "columns": columns,
        "rows": rows,
        "notes": notes,
    }


def v_step(M: Array, P: Array, D: Array, U: Array, step: Outcome) -> list[Any]:
    """Relative residual, smallest entry and score of a peer's V-step."""
    if step.failed:
        return ["", "", ""]
    V = step.value
    residual = np.linalg.norm(U @ V.T @ P - D) / np.linalg.norm(D)
    return [f"{residual:.1e}", f"{min(U.min(), V.min()):.1e}", pearson(M, U @ V.T)]


def pearson(M: Array, X: Array) -> str:
    """Mean over genes of the correlation between truth and answer, to four digits."""
    return f"{np.mean([pearsonr(M[:, j], X[:, j])[0] for j in range(M.shape[1])]):.4f}"


def least_squares() -> Table:
    """Many right-hand sides, two threads for us and for SPAMS; the peers run between our runs."""
    rows: list[list[Any]] = []
    for f in measure_nnls(threads=2):
        size = f"({f['pools']}, {f['rank']})"
        rows.append([size, "unpool.nnls", f"{f['us']:.3g}", "1", f"{f['kkt']:.1e}"])
        rows.append([size, "scipy.optimize.nnls in a Python loop", f"{f['scipy_us']:.3g}",
                     f"{f['times_scipy']:.3g} x ({f['times_scipy_cpu']:.3g} x the processor time)", ""])  # fmt: skip
        spams = (
            [f"{f['spams_us']:.3g}", f"{f['times_spams']:.3g} x", f"{f['spams_kkt']:.1e}"]
            if "spams_us" in f
            else ["", "absent", ""]
        )
        rows.append([size, "SPAMS, lasso with pos=True, 2 threads", *spams])
    columns = ["(pools, rank)", "method", "µs a row", "beside ours", "largest KKT violation"]
    notes = [
        "A = PᵀV: P has 4 genes a pool, each in it with probability 1/4; V and U gamma(0.5); B = U Aᵀ plus noise of 5 % of its sd.",
        "Violation of a row: the gradient where x > 0, its negative part where x = 0, in units of ‖a_j‖ ‖b‖.",
        "scipy's loop runs over the first 2,000 rows; medians of five.",
    ]
    return {
        "title": "Nonnegative least squares, 200,000 right-hand sides",
        "columns": columns,
        "rows": rows,
        "notes": notes,
    }


TABLES: dict[str, Callable[[], Table]] = {
    "notebook": nuclear_notebook,
    "small": nuclear_small,
    "large": nuclear_large,
    "several": nuclear_several,
    "als": factorisation,
    "nnls": least_squares,
}


def main() -> None:
    """Measure and print all tables (or those named) and write results/solvers.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(TABLES)}; writes no file then")
    chosen = parser.parse_args().tables
    about, tables = machine(), []
    for name in chosen or TABLES:
        tables.append(TABLES[name]())
        show(tables[-1])
    if not chosen:
        notes = [f"Medians of three to ten runs of ours; conic solvers once, {TIMEOUT:.0f} s at most."]
        write("solvers", {"title": "Solvers beside their peers", "machine": about, "tables": tables, "notes": notes})


if __name__ == "__main__":
    main()
