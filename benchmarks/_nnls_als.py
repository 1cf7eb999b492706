"""Speed and accuracy of `unpool.solvers.nnls` and `als` beside scipy, SPAMS and cvxpy.

    python benchmarks/_nnls_als.py [threads]

Every time is a median of several runs in one process; peers run between ours, so that both see the same machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from unpool.solvers import als, nnls

SIZES = ((25, 10), (25, 20), (50, 40))  # pools, rank


def nnls_problem(m: int, r: int, n: int = 200_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A = PᵀV with P Bernoulli(0.25) of 4 m genes and V gamma(0.5); B = U Aᵀ with U gamma(0.5), and 5 % noise."""
    rng = np.random.default_rng(seed)
    P = (rng.random((4 * m, m)) < 0.25).astype(float)
    A = P.T @ rng.gamma(0.5, size=(4 * m, r))
    B = rng.gamma(0.5, size=(n, r)) @ A.T
    return A, B + 0.05 * B.std() * rng.standard_normal(B.shape)


def kkt_violation(A: np.ndarray, B: np.ndarray, X: np.ndarray) -> float:
    """Largest violation of the optimality conditions over all rows, relative to ‖a_j‖ ‖b‖."""
    gradient = (X @ A.T - B) @ A
    gradient /= np.linalg.norm(B, axis=1)[:, None] * np.linalg.norm(A, axis=0)
    return float(np.max(np.where(X > 0, np.abs(gradient), np.maximum(-gradient, 0.0))))


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


def measure_nnls(threads: int = 2, repeats: int = 5, n: int = 200_000, scipy_rows: int = 2_000) -> list[dict[str, Any]]:
    """Microseconds a row; scipy's loop runs on its first rows (one thread), SPAMS on all (`threads`)."""
    from scipy.optimize import nnls as scipy_nnls

    try:
        import spams
    except ImportError:
        spams = None
    numba.config.NUMBA_NUM_THREADS = threads
    results = []
    for m, r in SIZES:
        A, B = nnls_problem(m, r, n)
        dictionary, signals = np.asfortranarray(A), np.asfortranarray(B.T)

        def lasso(dictionary: np.ndarray = dictionary, signals: np.ndarray = signals) -> Any:
            return spams.lasso(signals, D=dictionary, lambda1=0.0, mode=spams.PENALTY, pos=True, numThreads=threads)

        nnls(A, B[:10])  # compiles
        ours, theirs, peers, cpu, cpu_scipy = [], [], [], [], []
        for _ in range(repeats):
            ours.append(seconds(lambda A=A, B=B: nnls(A, B)) / n)
            theirs.append(seconds(lambda A=A, B=B: [scipy_nnls(A, b) for b in B[:scipy_rows]]) / scipy_rows)
            cpu.append(seconds(lambda A=A, B=B: nnls(A, B), time.process_time) / n)
            cpu_scipy.append(
                seconds(lambda A=A, B=B: [scipy_nnls(A, b) for b in B[:scipy_rows]], time.process_time) / scipy_rows
            )
            if spams is not None:
                peers.append(seconds(lasso) / n)
        row = {
            "pools": m,
            "rank": r,
            "rows": n,
            "threads": threads,
            "us": 1e6 * statistics.median(ours),
            "scipy_us": 1e6 * statistics.median(theirs),
            "times_scipy": statistics.median(theirs) / statistics.median(ours),
            "times_scipy_cpu": statistics.median(cpu_scipy) / statistics.median(cpu),
            "kkt": kkt_violation(A, B, nnls(A, B)),
        }
        if peers:
            row |= {
                "spams_us": 1e6 * statistics.median(peers),
                "times_spams": statistics.median(peers) / statistics.median(ours),
                "spams_kkt": kkt_violation(A, B, np.asarray(lasso().todense()).T),
            }
        print("  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
        results.append(row)
    return results


def notebook_problem(seed: int = 0) -> dict[str, np.ndarray]:
    """U ~ N(10, 2), V ~ N(15, 3), P Bernoulli(0.25): 500 cells, 100 genes, 25 pools, rank 10; start N(10, 1)."""
    rng = np.random.default_rng(seed)
    M = rng.normal(10, 2, (500, 10)) @ rng.normal(15, 3, (100, 10)).T
    P = (rng.random((100, 25)) < 0.25).astype(float)
    return {"M": M, "P": P, "D": M @ P, "U": rng.normal(10, 1, (500, 10)), "V": rng.normal(10, 1, (100, 10))}


def mean_pearson(M: np.ndarray, X: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(M[:, j], X[:, j])[0, 1] for j in range(M.shape[1])]))


def measure_als(threads: int = 1, repeats: int = 5, cvxpy: bool = True, seed: int = 0) -> dict[str, Any]:
    """Seconds of 100 full iterations from the notebook's start, and of one V-step by cvxpy with its default solver."""
    numba.config.NUMBA_NUM_THREADS = threads
    data = notebook_problem(seed)
    D, P, start = data["D"], data["P"], (data["U"], data["V"])
    als(D, P, 10, init=start, max_iter=1)  # compiles
    times = [seconds(lambda: als(D, P, 10, init=start, tol=0, max_iter=100)) for _ in range(repeats)]
    found = als(D, P, 10, init=start, tol=0, max_iter=100)
    first = als(D, P, 10, init=start, max_iter=1)
    row: dict[str, Any] = {
        "seconds_100": statistics.median(times),
        "iterations": found.n_iter,
        "relative_residual": found.residual / float(np.linalg.norm(D)),
        "smallest_entry": float(min(found.U.min(), found.V.min())),
        "monotone": bool(np.all(np.diff(found.trace) <= 0)),
        "pearson": mean_pearson(data["M"], found.X),
        "pearson_of_total": mean_pearson(data["M"], np.repeat(D.sum(axis=1)[:, None], 100, axis=1)),
        "first_objective": first.objective,
    }
    if cvxpy:
        import cvxpy as cp

        V = cp.Variable((100, 10))
        program = cp.Problem(cp.Minimize(cp.norm(first.U @ V.T @ P - D, "fro")), [cp.min(V) >= 0])
        try:
            row["cvxpy_v_step"] = seconds(program.solve)
            row["cvxpy_objective"] = float(np.sum((first.U @ np.asarray(V.value).T @ P - D) ** 2))
            row["ratio"] = row["cvxpy_v_step"] / row["seconds_100"]
        except Exception as error:
            row["cvxpy_error"] = str(error)
    print(
        "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    )
    return row


if __name__ == "__main__":
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    measure_nnls(threads)
    measure_als(threads)
