"""What every benchmark shares: the machine in words, medians, peers that may fail, and the file of results.

A result is ``results/<name>.json``: {"title", "machine", "columns", "rows", "notes"}, or {"title", "machine", "tables"} where
each table has the last three and a "title" of its own. `page.py` turns all of them into ``README.md``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

RESULTS = Path(__file__).parent / "results"
TIMEOUT = 120.0  # seconds that a peer may take
PACKAGES = (
    "unpool",
    "numpy",
    "scipy",
    "numba",
    "scikit-learn",
    "anndata",
    "scanpy",
    "cvxpy",
    "clarabel",
    "scs",
    "spams-bin",
)
BUDGET = 30.0  # seconds after which a peer is not run again
_SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


def machine() -> dict[str, Any]:
    """Processor, cores at hand, BLAS, load when asked, and versions: what a reader needs to judge a timing."""
    import numba

    blas = [f"{i['internal_api']} {i['version']} ({i['num_threads']} threads)"
            for i in threadpool_info() if i["user_api"] == "blas"]  # fmt: skip
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "numba threads": int(numba.config.NUMBA_NUM_THREADS),
        "blas": sorted(set(blas)),
        "load at start": round(os.getloadavg()[0], 1),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def medians(*runs: Callable[[], Any], repeats: int = 5) -> list[float]:
    """Median seconds of each run. They take turns, so that a slow spell of the machine falls on all of them."""
    seconds = np.empty((repeats, len(runs)))
    for i in range(repeats):
        for j, run in enumerate(runs):
            start = time.perf_counter()
            run()
            seconds[i, j] = time.perf_counter() - start
    return [float(x) for x in np.median(seconds, axis=0)]


def svd() -> None:
    """Do the unit of time: the singular value decomposition of a 500 x 100 matrix."""
    np.linalg.svd(_UNIT, full_matrices=False)


_UNIT = np.random.default_rng(0).standard_normal((500, 100))


def in_svds(run: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Median time of a run, in units of one SVD with one BLAS thread and in seconds; compiled before."""
    run()
    with threadpool_limits(1, user_api="blas"):
        svd()
        mine, unit = medians(run, svd, repeats=repeats)
    return mine / unit, mine


@dataclass(frozen=True)
class Outcome:
    """What became of a peer: its answer and median seconds, or the error in its place."""

    value: Any = None
    seconds: float = float("nan")
    runs: int = 0
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.error is not None

    @property
    def text(self) -> str:
        """The time in words, or the error."""
        return self.error or duration(self.seconds)

    def times(self, ours: float) -> str:
        """How many times as long as ours it took, or that it failed; a timeout is a lower bound."""
        if self.failed:
            return f"> {TIMEOUT / ours:,.0f} x" if self.error == _timeout(TIMEOUT) else "failed"
        return f"{self.seconds / ours:,.3g} x" if self.seconds < 1000 * ours else f"{self.seconds / ours:,.0f} x"


def peer(
    run: Callable[..., Any], *given: Any, needs: Sequence[str] = (), repeats: int = 1, timeout: float = TIMEOUT
) -> Outcome:
    """Run a function of a peer in a process of its own, which is ended after `timeout` seconds.

    The packages that it needs are imported before the clock starts; a slow one is not run again. An exception, a crash or
    the timeout is an outcome too.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, run, given, needs, repeats), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(timeout):
            return Outcome(error=_timeout(timeout))
        value, seconds, error = here.recv()
        return Outcome(value, float(np.median(seconds or [np.nan])), len(seconds), error)
    except EOFError:
        process.join()
        return Outcome(error=f"crashed, exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        here.close()


def _child(out: Connection, run: Callable[..., Any], given: Sequence[Any], needs: Sequence[str], repeats: int) -> None:
    try:
        for name in needs:
            import_module(name)
        seconds: list[float] = []
        while len(seconds) < repeats and sum(seconds) < BUDGET:
            start = time.perf_counter()
            value = run(*given)
            seconds.append(time.perf_counter() - start)
        out.send((value, seconds, None))
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0]
        out.send((None, [], f"{type(error).__name__}: {first}"[:160]))


def _timeout(seconds: float) -> str:
    return f"no answer after {seconds:.0f} s"


def duration(seconds: float) -> str:
    """Seconds as a reader likes them: 3.1 ms, 41 s."""
    if not np.isfinite(seconds):
        return ""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def verdict(value: float, *, least: float = -np.inf, most: float = np.inf) -> str:
    """Whether a value holds its bar, or by how much it does not."""
    missing = max(least - value, value - most)
    return "met" if missing <= 0 else f"missed by {missing:.3g}" if np.isfinite(missing) else "not measured"


def write(name: str, result: dict[str, Any]) -> Path:
    """Write results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=_plain) + "\n", encoding="utf-8")
    return path


def show(table: dict[str, Any]) -> None:
    """Print a table as the page shows it."""
    from page import markdown

    print(f"\n{table['title']}\n\n{markdown(table)}", flush=True)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
