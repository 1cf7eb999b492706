"""What unpool raises and warns: every message says what was passed, what was expected and what to do."""

from __future__ import annotations

__all__ = [
    "FileError",
    "InputError",
    "MissingExtraError",
    "NotConvergedWarning",
    "NotIdentifiableError",
    "UnpoolError",
    "UnpoolWarning",
]


class UnpoolError(Exception):
    """Base of every error that unpool raises on purpose; the command line prints it and exits with 2."""


class InputError(UnpoolError, ValueError):
    """The input cannot be used: the message names the item (gene, cell, pool, value) and the remedy."""


class FileError(UnpoolError, OSError):
    """A file cannot be read or written; whatever stood at the output path is untouched."""


class NotIdentifiableError(UnpoolError):
    """The measurement cannot determine the answer; the message says what would."""


class MissingExtraError(UnpoolError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""


class UnpoolWarning(UserWarning):
    """Something that the user should know about an answer that was given all the same."""


class NotConvergedWarning(UnpoolWarning):
    """A solver stopped before its tolerance: the message gives the value, the tolerance and the remedy."""
