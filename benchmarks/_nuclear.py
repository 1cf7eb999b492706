"""Measurements of the nuclear norm: our solver beside general conic solvers, in units of one SVD of the same run.

Each function returns rows (dicts) for a table. The unit is np.linalg.svd of a 500 x 100 matrix with one BLAS thread,
timed beside each measurement. Peers run in a process of their own with a time limit; what fails or times out stays in the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

TIMEOUT = 120.0
PEERS = ("CLARABEL", "SCS")


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Median seconds of a call, after one that warms up, the same in SVDs, and its last result.

    An SVD of a 500 x 100 matrix with one BLAS thread is timed before and after every call; the median of the ratios
    counts, so that a change of the machine's load between two rows does not matter.
    """
    A = np.random.default_rng(0).normal(size=(500, 100))

    def seconds(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def svd() -> float:
        with threadpool_limits(1, user_api="blas"):
            return float(np.median([seconds(lambda: np.linalg.svd(A, full_matrices=False)) for _ in range(5)]))

    result = call()
    times, ratios = [], []
    before = svd()
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        after = svd()
        ratios.append(2 * times[-1] / (before + after))
        before = after
    return float(np.median(times)), float(np.median(ratios)), result


def bernoulli(genes: int, pools: int, rng: np.random.Generator) -> np.ndarray:
    """A gene is in a pool with probability 1/4."""
    return (rng.random((genes, pools)) < 0.25).astype(float)


def gamma_problem(
    cells: int = 500, genes: int = 100, pools: int = 25, rank: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free pools of a matrix with gamma(0.5) factors: many small entries, so that X >= 0 is active."""
    rng = np.random.default_rng(seed)
    M = rng.gamma(0.5, size=(cells, rank)) @ rng.gamma(0.5, size=(rank, genes))
    P = bernoulli(genes, pools, rng)
    return M @ P, P


def notebook_problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """500 cells, 100 genes, 25 pools, U ~ N(10, 2), V ~ N(15, 3), rank 10."""
    rng = np.random.default_rng(seed)
    M = rng.normal(10, 2, (500, 10)) @ rng.normal(15, 3, (100, 10)).T
    P = bernoulli(100, 25, rng)
    return M @ P, P


def several_designs_problem(seed: int) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, Any]]:
    """2 to 6 designs of unequal sizes, rank 2 to 20; the radius by turns 0, 0.3 %, 1 %, 10 % of ‖D‖, and from noise."""
    rng = np.random.default_rng(seed)
    n_designs, genes, rank = rng.integers(2, 7), rng.integers(20, 61), rng.integers(2, 21)
    cells = rng.integers(8, 40, size=n_designs)
    V = rng.gamma(0.5, size=(genes, rank))
    P = [bernoulli(genes, int(rng.integers(3, genes // 3 + 1)), rng) for _ in cells]
    D = [rng.gamma(0.5, size=(n, rank)) @ V.T @ p for n, p in zip(cells, P, strict=True)]
    if seed % 5 < 4:
        norm = np.sqrt(sum(np.linalg.norm(d) ** 2 for d in D))
        return D, P, {"radius": (0.0, 0.003, 0.01, 0.1)[seed % 5] * norm}
    sd = 0.05 * np.concatenate([d.ravel() for d in D]).std()
    return [d + sd * rng.normal(size=d.shape) for d in D], P, {"noise_var": sd**2}


def row(problem: str, D: Any, P: Any, repeats: int = 5, **arguments: Any) -> dict[str, Any]:
    """Our solver on one problem."""
    from unpool.solvers import nuclear_norm

    seconds, svds, solution = timed(lambda: nuclear_norm(D, P, **arguments), repeats)
    norm = float(np.sqrt(sum(np.linalg.norm(d) ** 2 for d in (D if isinstance(D, list) else [D]))))
    radius = arguments.get("radius")
    return {
        "problem": problem,
        "solver": "unpool",
        "seconds": seconds,
        "svds": svds,
        "converged": solution.converged,
        "gap": solution.gap,
        "residual": solution.residual / norm,
        "excess": None if radius is None else (solution.residual - radius) / norm,
        "least_entry": float(solution.X.min()),
        "objective": solution.objective,
        "n_iter": solution.n_iter,
        "status": solution.status,
    }


def notebook(repeats: int = 5) -> list[dict[str, Any]]:
    """The notebook's data, where D P⁺ is nonnegative: to be certified to 1e-9 within 5 SVDs."""
    D, P = notebook_problem()
    return [row("notebook 500 x 100 x 25", D, P, repeats)]


def full_size(seeds: range = range(3), repeats: int = 3) -> list[dict[str, Any]]:
    """500 x 100 x 25, rank 10, X >= 0 active: to be certified to 1e-6 within 60 / 40 / 10 SVDs."""
    rows = []
    for relative in (0.0, 0.01, 0.1):
        for seed in seeds:
            D, P = gamma_problem(seed=seed)
            name = f"500 x 100 x 25, radius {relative:.0%}, seed {seed}"
            rows.append(row(name, D, P, repeats, radius=relative * float(np.linalg.norm(D))))
    return rows


def from_noise(repeats: int = 3) -> list[dict[str, Any]]:
    """500 x 100 x 25, noise of 1 / 5 / 20 % of the pools' sd, radius from noise_var."""
    rows = []
    for share in (0.01, 0.05, 0.2):
        D, P = gamma_problem()
        sd = share * D.std()
        D = D + sd * np.random.default_rng(1).normal(size=D.shape)
        rows.append(row(f"500 x 100 x 25, noise {share:.0%}", D, P, repeats, noise_var=sd**2))
    return rows


def several_designs(count: int = 20) -> list[dict[str, Any]]:
    """Random problems with 2 to 6 designs, each solved once."""
    rows = []
    for seed in range(count):
        D, P, arguments = several_designs_problem(seed)
        rows.append(row(f"{len(D)} designs, problem {seed}", D, P, 1, **arguments))
    return rows


def beside_conic(seeds: range = range(3), repeats: int = 5, peers: tuple[str, ...] = PEERS) -> list[dict[str, Any]]:
    """50 x 20 x 5, radius 1 %: our solver, then general conic solvers, with the difference of the objectives."""
    rows = []
    for seed in seeds:
        D, P = gamma_problem(50, 20, 5, 4, seed)
        radius = 0.01 * float(np.linalg.norm(D))
        name = f"50 x 20 x 5, radius 1%, seed {seed}"
        ours = row(name, D, P, repeats, radius=radius)
        rows.append(ours)
        for solver in peers:
            other = {"problem": name, **peer(solver, D, P, radius)}
            if other["objective"] is not None:
                other["slower_by"] = other["seconds"] / ours["seconds"]
                other["objective_difference"] = (other["objective"] - ours["objective"]) / ours["objective"]
            rows.append(other)
    return rows


def peer(solver: str, D: np.ndarray, P: np.ndarray, radius: float, timeout: float = TIMEOUT) -> dict[str, Any]:
    """One run of cvxpy with a conic solver, in a process of its own; a failure or the time limit is a result too."""
    failed: dict[str, Any] = {"solver": f"cvxpy {solver}", "seconds": None, "objective": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        np.savez(path, D=D, P=P, radius=radius)
        command = [sys.executable, __file__, solver, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return {**failed, "status": f"timed out after {timeout:.0f} s"}
    if done.returncode != 0:
        return {**failed, "status": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return {"solver": f"cvxpy {solver}", **json.loads(done.stdout.strip().splitlines()[-1])}


def _run_peer(solver: str, path: str) -> dict[str, Any]:
    """Seconds of the solve call (compilation by cvxpy included, import not), objective, status."""
    import cvxpy

    with np.load(path) as data:
        D, P, radius = data["D"], data["P"], float(data["radius"])
    X = cvxpy.Variable((len(D), len(P)), nonneg=True)
    misfit = X @ P - D
    constraint = misfit == 0 if radius == 0 else cvxpy.norm(misfit, "fro") <= radius
    program = cvxpy.Problem(cvxpy.Minimize(cvxpy.normNuc(X)), [constraint])
    options = {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 100_000} if solver == "SCS" else {}
    start = time.perf_counter()
    program.solve(solver=solver, **options)
    seconds = time.perf_counter() - start
    value = None if program.value is None else float(program.value)
    return {"seconds": seconds, "objective": value, "status": str(program.status)}


if __name__ == "__main__":
    print(json.dumps(_run_peer(*sys.argv[1:])))
