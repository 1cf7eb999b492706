"""Model files: npz without pickle, with a format version, written atomically."""

from __future__ import annotations

import os
import zipfile
from dataclasses import fields
from typing import Any

import numpy as np

from unpool.errors import FileError
from unpool.io import existing, writing
from unpool.model._labels import Labels
from unpool.model._mixture import Mixture

__all__ = ["read_arrays", "write_arrays"]

FORMAT = 1


def write_arrays(
    path: str | os.PathLike[str], genes: tuple[str, ...], nu: float, shares: Any, members: tuple[Mixture, ...],
    labels: Labels | None = None,
) -> None:  # fmt: skip
    """Write the parts of a model; the file takes its name only once it is complete on disk."""
    arrays: dict[str, Any] = {
        "unpool_model": np.array(FORMAT),
        "genes": np.array(genes),
        "nu": np.array(nu),
        "shares": np.asarray(shares),
        "n_members": np.array(len(members)),
    }
    for b, member in enumerate(members):
        arrays |= {f"{b}/{f.name}": getattr(member, f.name) for f in fields(Mixture)}
    if labels is not None:
        arrays["labels"] = np.array(labels.names)
        arrays |= {f"{b}/labels": shares for b, shares in enumerate(labels.compositions)}
    with writing(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike[str]) -> tuple[
    tuple[str, ...], float, Any, tuple[Mixture, ...], Labels | None
]:  # fmt: skip
    """Genes, degrees of freedom, shares, members and labels of a model file."""
    path = existing(path)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if "unpool_model" not in file:
                raise FileError(f"{path} is not a model file; expected one written by Model.save")
            version = int(file["unpool_model"])
            if version > FORMAT:
                raise FileError(f"{path} has model format {version}, this unpool reads up to {FORMAT}; update unpool")
            members = tuple(
                Mixture(**{f.name: file[f"{b}/{f.name}"] for f in fields(Mixture)})
                for b in range(int(file["n_members"]))
            )
            labels = None
            if "labels" in file:
                labels = Labels(
                    tuple(map(str, file["labels"])), tuple(file[f"{b}/labels"] for b in range(len(members)))
                )
            return tuple(map(str, file["genes"])), float(file["nu"]), file["shares"], members, labels
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{path} is not a model file, or is damaged ({error}); write it again with Model.save"
        ) from error
