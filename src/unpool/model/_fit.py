"""Fit: the mixtures of a model from cells, one clustering a member."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unpool._validate import dense, integer
from unpool.errors import InputError
from unpool.kernels.blocks import map_threads
from unpool.model._labels import Labels, composition
from unpool.model._mixture import Array, Mixture
from unpool.model._moments import shrunk_mixture, with_extras

__all__ = ["FAST_CLUSTERS", "FEW", "FEW_GENES", "MANY", "MAX_REFERENCE", "Extent", "fitted", "reference_rows"]

MAX_REFERENCE = 50_000  # a fit uses at most this many cells, a random subset of larger references
FAST_CLUSTERS = 16


class Extent(NamedTuple):
    """How much a model holds: members, coarse types to pair, weight at other sizes, and whether pairs have sizes."""

    members: int
    types: int
    other_sizes: float
    sized_pairs: bool


FEW_GENES = 32  # up to here a component costs little
FEW, MANY = Extent(6, 50, 0.3, True), Extent(4, 25, 0.1, False)


class _Called(NamedTuple):
    """Names of the labels, and the label of each cell; -1: none."""

    names: tuple[str, ...]
    code: NDArray[np.intp]


def reference_rows(n: int, rng: np.random.Generator) -> Any:
    """Cells that a fit looks at: all, or a sorted random subset of a large reference."""
    return slice(None) if n <= MAX_REFERENCE else np.sort(rng.choice(n, MAX_REFERENCE, replace=False))


def fitted(
    X: Any, label: pd.Series[Any] | None, rng: np.random.Generator, n_members: int | None, extras: bool, fast: bool,
    n_threads: int | None,
) -> tuple[list[Mixture], Labels | None]:  # fmt: skip
    """Members of a model of cells x genes, and how its components divide over the labels; see `Model.from_cells`.

    extras: whether components are also seen at other sizes and in pairs of types.
    """
    from sklearn.exceptions import ConvergenceWarning

    from unpool.model._cluster import MAX_CLUSTERS, SCALES  # scikit-learn: only fitting needs it

    extent = FEW if X.shape[1] <= FEW_GENES else MANY
    if fast or n_members is None:
        n_members = 1 if fast else extent.members
    n_members = integer(n_members, "n_members")
    rows = reference_rows(X.shape[0], rng)
    X, called = dense(X, rows), None if label is None else _labelled(label, rows)
    scales = list(SCALES)
    jobs = [(scales[number % len(scales)], seed) for number, seed in enumerate(rng.spawn(n_members))]
    one = partial(_member, X, called, extent if extras and not fast else None, FAST_CLUSTERS if fast else MAX_CLUSTERS)
    with warnings.catch_warnings():
        # duplicated cells leave fewer distinct points than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        members = map_threads(one, jobs, n_threads)
    labels = None if called is None else Labels(called.names, tuple(c for _, c in members if c is not None))
    return [mixture for mixture, _ in members], labels


def _labelled(label: pd.Series[Any], rows: Any) -> _Called:
    """Labels of the cells that are used."""
    of_label = label.astype("category").cat.remove_unused_categories().cat
    code = of_label.codes.to_numpy()[rows].astype(np.intp)
    if (code < 0).all():
        column = "" if label.name is None else f" {label.name!r}"
        raise InputError(
            f"the label{column} is missing for all {len(code):,} cells of the reference; label some cells, or leave the "
            "label out"
        )
    return _Called(tuple(map(str, of_label.categories)), code)


def _member(
    X: Array, called: _Called | None, extent: Extent | None, most: int, job: tuple[str, np.random.Generator]
) -> tuple[Mixture, Array | None]:
    """One clustering as a mixture, with extra components if an extent is given; components x labels."""
    from unpool.model._cluster import cluster, coarse_types

    scale, seed = job
    clusters = cluster(X, scale, seed, most=most)
    mixture = shrunk_mixture(X, clusters)
    shares = None if called is None else composition(clusters, called.code, len(called.names))
    if extent is None:
        return mixture, shares
    type_of = coarse_types(mixture.means, mixture.weights, X.std(axis=0), extent.types, seed)
    types = type_of[clusters]
    mixture = with_extras(
        mixture, shrunk_mixture(X, types), type_of, other_sizes=extent.other_sizes, sized_pairs=extent.sized_pairs
    )
    if called is not None and shares is not None:
        of_type = composition(types, called.code, len(called.names))
        i, j = (mixture.pairs - len(shares)).T
        shares = np.concatenate([shares, (of_type[i] + of_type[j]) / 2])
    return mixture, shares
