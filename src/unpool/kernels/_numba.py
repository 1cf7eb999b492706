"""`njit` as every kernel uses it: cached on disk where that is possible, free of the GIL."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["njit"]

Function = TypeVar("Function", bound=Callable[..., Any])


def njit(**options: Any) -> Callable[[Function], Function]:
    """Compile a function on its first call, and keep the machine code for later processes.

    Kernels run without the GIL, so blocks of rows go to plain Python threads: unlike `parallel=True` this is safe inside
    other people's threads (Dask), and compiles in half the time. Division by zero gives inf, as in NumPy.

    A read-only installation, a zip file or a frozen program has no place for the cache; numba then refuses to decorate
    at all, and we compile anew in each process instead; so we do where the disk is full. The cache notices a change in the
    kernel's own file only: kernels that call each other share a file.
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
