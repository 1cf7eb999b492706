"""What kernels share: `njit`, cached on disk where possible and free of the GIL; the types of their arrays; a norm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Ints", "Mask", "Singles", "njit", "norm"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

Function = TypeVar("Function", bound=Callable[..., Any])


def njit(**options: Any) -> Callable[[Function], Function]:
    """Compile a function on its first call, and keep the machine code for later processes.

    Kernels run without the GIL, so blocks of rows go to plain Python threads: unlike `parallel=True` this is safe inside
    other people's threads (Dask), and compiles in half the time. Division by zero gives inf, as in NumPy.

    A read-only installation, a zip file or a frozen program has no place for the cache; numba then refuses to decorate
    at all, and we compile anew in each process instead; so we do where the disk is full. The cache notices a change in the
    kernel's own file only, so kernels that call each other share a file. In kernels, a loop compiles faster than an array
    expression: above all `a[:] = b`, whose error message alone costs a second.
    """
    options = {"nogil": True, "error_model": "numpy"} | options

    def decorate(function: Function) -> Function:
        compiled: Function
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            compiled = numba.njit(**options)(function)
        else:
            _survive_a_full_disk(compiled)
        return compiled

    return decorate


def _survive_a_full_disk(compiled: Any) -> None:
    """Let a kernel run although its machine code cannot be saved."""
    cache: Any = getattr(compiled, "_cache", None)
    save = getattr(cache, "save_overload", None)
    if save is None:
        return

    def save_if_possible(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except OSError as error:
            logging.getLogger("unpool").debug("the compiled %s is not cached: %s", compiled.__name__, error)

    cache.save_overload = save_if_possible


@njit(fastmath={"contract", "reassoc"})
def norm(v: Floats) -> float:
    """Euclidean norm, also where squares overflow or vanish."""
    total, top = 0.0, 0.0
    for k in range(len(v)):
        total += v[k] * v[k]
    if 1e-280 < total < 1e280:
        return float(np.sqrt(total))
    for k in range(len(v)):
        top = max(top, abs(v[k]))
    total = 0.0
    for k in range(len(v)):
        total += (v[k] / top) ** 2
    return float(top * np.sqrt(total)) if top > 0 else 0.0
