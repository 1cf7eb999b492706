"""Nonnegative least squares of many right-hand sides: unpool.solvers.nnls beside scipy and SPAMS.

Every time is a median of several runs in one process; peers run between ours, so that both see the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from unpool.solvers import nnls

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
