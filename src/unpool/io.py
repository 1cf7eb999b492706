"""Files: h5ad and csv in and out; writing is beside, fsync, rename, so a failure leaves the old file untouched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd

from unpool.errors import FileError

__all__ = ["read_cells", "read_h5ad", "write_csv", "write_h5ad", "write_text", "writing"]


def existing(path: str | os.PathLike[str]) -> Path:
    """Return the path of a readable, nonempty file, or say what is wrong with it."""
    path = Path(path)
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob(f"*{path.suffix}"))[:5] if path.parent.is_dir() else []
        hint = f"; {path.parent} holds {', '.join(beside)}" if beside else ""
        raise FileError(f"{path} does not exist{hint}; check the name")
    if path.is_dir():
        raise FileError(f"{path} is a folder; name a file")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not first:
        raise FileError(f"{path} is empty (0 bytes); write it again")
    return path


def read_h5ad(path: str | os.PathLike[str]) -> ad.AnnData:
    """Read an h5ad file into memory; a file that is none, or is cut off, is named."""
    path = existing(path)
    with path.open("rb") as file:
        signature = file.read(8)
    if signature != b"\x89HDF\r\n\x1a\n":
        raise FileError(
            f"{path} is not an h5ad file (it starts with {signature[:8]!r}); expected HDF5 written by anndata"
        )
    try:
        return ad.read_h5ad(path)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise FileError(
            f"{path} cannot be read as h5ad: it is cut off, damaged, or not an AnnData ({reason}); write or copy it again"
        ) from error


def read_cells(path: str | os.PathLike[str]) -> ad.AnnData | pd.DataFrame:
    """Read cells x genes from h5ad, or from csv with cells as rows and a header of gene names."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        return read_h5ad(path)
    return read_csv(path, index_col=0)


def read_csv(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """Read a csv table; a file that is none is named."""
    path = existing(path)
    try:
        frame: pd.DataFrame = pd.read_csv(path, **options)
        return frame
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FileError(f"{path} cannot be read as a csv table ({reason}); expected comma-separated text") from error


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a fresh file beside `path` to write into; on success it is flushed to disk and takes the name."""
    path = Path(path)
    if path.is_dir():
        raise FileError(f"cannot write {path}: it is a folder; name a file")
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        beside = Path(name)
        yield beside
        descriptor = os.open(beside, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.chmod(beside, mode)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, FileError):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise FileError(f"cannot write {path}: {reason}; free some space or choose another place with -o") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_h5ad(adata: ad.AnnData, path: str | os.PathLike[str]) -> None:
    """Write an h5ad file atomically, with text in the encoding that R and old readers know."""
    encoding = {"allow_write_nullable_strings": False} if hasattr(ad.settings, "allow_write_nullable_strings") else {}
    with writing(path) as beside, ad.settings.override(**encoding), _DeferredErrors(beside, "w+") as raw:
        try:
            with h5py.File(raw, "w") as file:
                ad.io.write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip", "compression_opts": 1})
        finally:
            raw.raise_error()  # the cause, whatever HDF5 made of it


class _DeferredErrors(FileIO):
    """A file whose failed writes are told at the end: HDF5 cannot survive them, and takes the process down at exit."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def readinto(self, buffer: Any) -> int:
        return len(buffer) if self.error else super().readinto(buffer)

    def truncate(self, size: int | None = None) -> int:
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error


def write_csv(frame: pd.DataFrame, path: str | os.PathLike[str], *, index: bool = True) -> None:
    """Write a csv table atomically; numbers keep all their digits."""
    with writing(path) as beside:
        frame.to_csv(beside, index=index)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text file atomically, in UTF-8."""
    with writing(path) as beside:
        beside.write_text(text, encoding="utf-8")
