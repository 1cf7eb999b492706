"""numba.njit with what every kernel here wants: no GIL, compiled once and cached on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["njit"]

F = TypeVar("F", bound=Callable[..., Any])


def njit(**options: Any) -> Callable[[F], F]:
    """Compile a kernel on first use; `cache=True` is given up where no folder can hold the cache (zip, read-only)."""

    def compiled(function: F) -> F:
        try:
            return numba.njit(nogil=True, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return numba.njit(nogil=True, **{**options, "cache": False})(function)  # type: ignore[no-any-return]

    return compiled
