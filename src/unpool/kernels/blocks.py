"""Row blocks on threads: cut at the same places and worked with one BLAS thread, so threads cannot change a result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's products use this BLAS: it must be here when threads are limited
from threadpoolctl import ThreadpoolController, threadpool_limits

from unpool._validate import BLOCK_ROWS, blocks, integer

__all__ = ["BLOCK_ROWS", "blocks", "map_blocks", "map_threads", "one_blas_thread", "one_thread", "spawn"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_thread() -> threadpool_limits:
    """Context in which BLAS and OpenMP use one thread, so that sums are always made in the same order."""
    return threadpool_limits(1)


@cache
def _blas() -> ThreadpoolController:
    """BLAS libraries of this process: numpy's and scipy's, loaded by now. Looking for them takes a millisecond."""
    return ThreadpoolController().select(user_api="blas")


def one_blas_thread() -> Any:
    """Context in which BLAS uses one thread; entered in microseconds, for solvers of small problems."""
    return _blas().limit(limits=1)


def map_threads(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int | None = None
) -> list[Result]:
    """Results of `function` for all items, in their order, on a pool of threads with one BLAS and OpenMP thread each.

    Parameters
    ----------
    function
        Called once an item; it must not depend on what the other calls do.
    n_threads
        Threads to use; None: as many as there are cores for this process.
    """
    items = list(items)
    n = min(len(items), _cores() if n_threads is None else integer(n_threads, "n_threads"))
    with threadpool_limits(1, user_api="blas"):
        if n <= 1:
            with threadpool_limits(1, user_api="openmp"):
                return [function(item) for item in items]
        # OpenMP counts threads for each calling thread; looking for its libraries takes as long as a thousand cells
        with ThreadPoolExecutor(n, initializer=threadpool_limits, initargs=(1, "openmp")) as pool:
            return list(pool.map(function, items))


def map_blocks(function: Callable[[slice], Result], n_rows: int, n_threads: int | None = None) -> list[Result]:
    """Results of `function(rows)` for all blocks of `BLOCK_ROWS` rows, in order; see `map_threads`.

    The function writes what is large into outputs that it was given, each block into its own rows.
    """
    return map_threads(function, blocks(n_rows), n_threads)


def spawn(rng: np.random.Generator, n_rows: int) -> list[np.random.Generator]:
    """One independent generator a block."""
    return rng.spawn(-(-n_rows // BLOCK_ROWS))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
