"""Cross-fitting: every reference cell is measured in simulation and decoded by a model that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unpool.errors import InputError
from unpool.kernels.blocks import one_thread
from unpool.measure import covariance_root
from unpool.model._mixture import Array

if TYPE_CHECKING:
    from unpool.model._model import Model

__all__ = ["HeldOut", "crossfit", "folds_of", "per_gene_pearson", "profiles", "simulated_pools"]

MAX_CELLS = 6_000  # of a larger reference a random subset of this size is cross-fitted
MIN_CELLS = 20  # fewer held-out cells say nothing about a 90 % interval
_FEW = 1_000  # up to here five folds, beyond three: what is left to learn from matters most where there is little
_MAX_GROUP_FOLDS = 10


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Cells decoded from simulated pools by models that did not see them.

    Attributes
    ----------
    truth, mean
        Cells x genes, linear scale: expression, and its posterior mean.
    sd
        Cells x genes: posterior standard deviation, or None.
    group
        Group of each cell, or None.
    n_folds
        Number of folds.
    """

    truth: Array
    mean: Array
    sd: Array | None
    group: NDArray[np.intp] | None
    n_folds: int

    def sd_ratio(self) -> Array:
        """Root of mean squared error over mean variance per gene: sd times this is as large as the errors are."""
        if self.sd is None:
            raise InputError("these cells were decoded without sd")
        tiny = 1e-6 * len(self.mean) * self.mean.var(axis=0)
        error, claimed = (np.square(a).sum(axis=0) + tiny for a in (self.truth - self.mean, self.sd))
        return np.asarray(np.sqrt(np.divide(error, claimed, out=np.ones_like(error), where=claimed > 0)))

    def pearson(self) -> Array:
        """Correlation of truth and answer per gene: over all cells, or the mean over the groups of that within a group.

        Groups differ from each other, so that the correlation over all of them would promise what no single group holds.
        """
        if self.group is None:
            return per_gene_pearson(self.truth, self.mean)
        groups = [self.group == k for k in np.unique(self.group)]
        within = [per_gene_pearson(self.truth[mine], self.mean[mine]) for mine in groups if mine.sum() > 2]
        return np.asarray(np.mean(within, axis=0)) if within else per_gene_pearson(self.truth, self.mean)


def per_gene_pearson(X: Array, Y: Array) -> Array:
    """Pearson correlation of each column of X with that of Y; 0 where one does not vary."""
    centred = [(Z - Z.mean(axis=0), np.abs(Z).max(axis=0, initial=0.0)) for Z in (X, Y)]
    vary = np.all([np.abs(Z).max(axis=0, initial=0.0) > 1e-12 * largest for Z, largest in centred], axis=0)
    X, Y = (Z / np.where(vary, np.linalg.norm(Z, axis=0), 1.0) for Z, _ in centred)
    return np.where(vary, np.einsum("ij,ij->j", X, Y), 0.0)


def crossfit(
    X: Array,
    designs: Sequence[tuple[Array, Array]],
    shares: Sequence[float],
    fit: Callable[[Array], Model],
    *,
    adapt: Callable[[Model, Sequence[tuple[Array, Array, Array]]], Model] | None = None,
    groups: Any = None,
    sd: bool = True,
    rng: np.random.Generator,
    n_threads: int | None = None,
) -> HeldOut | None:
    """Decode every reference cell from simulated pools, by a model of the other folds.

    Parameters
    ----------
    X
        Cells x genes, linear scale.
    designs
        Each design's P (genes x pools) and R (pools x pools).
    shares
        Share of the cells that each design measures.
    fit
        Learns a model from cells x genes.
    adapt
        Lets a model learn from the pools that it is to decode, (D, P, R) of each design: what the real pools may teach, the
        simulated ones must be allowed to.
    groups
        Group of each cell: groups are left out as a whole.
    rng
        Chooses subset, folds and noise.

    Returns
    -------
    HeldOut
        Or None where there are fewer than 20 different cells, or only one group.

    Notes
    -----
    Copies of a cell are held out together, or a model would know the cell that it decodes; cells without any expression
    count as different. Cost: 3 fits (5 for at most 1,000 cells; one a group, at most 10) and one posterior, of at most 6,000 cells.
    """
    n = len(X)
    rows = np.arange(n) if n <= MAX_CELLS else np.sort(rng.choice(n, MAX_CELLS, replace=False))
    X = X[rows]
    group = None if groups is None else np.unique(np.asarray(groups)[rows], return_inverse=True)[1].astype(np.intp)
    unit = profiles(X)
    if unit.max(initial=0) + 1 < MIN_CELLS or (group is not None and group.max() == 0):
        return None
    fold = folds_of(unit.max() + 1, None, rng)[unit] if group is None else folds_of(len(X), group, rng)
    measured_by = rng.choice(len(designs), size=len(X), p=np.asarray(shares) / np.sum(shares))
    pools = [simulated_pools(X, P, R, rng) for P, R in designs]
    mean, deviation = np.empty(X.shape), np.empty(X.shape) if sd else None
    for k in range(fold.max() + 1):
        model = fit(X[fold != k])
        mine = [np.flatnonzero((fold == k) & (measured_by == b)) for b in range(len(designs))]
        batches = [(pools[b][rows], *designs[b]) for b, rows in enumerate(mine)]
        if adapt is not None:
            model = adapt(model, [batch for batch in batches if len(batch[0])])
        for rows, (D, P, R) in zip(mine, batches, strict=True):
            if len(rows):
                answer = model.posterior(D, P, noise_var=R, sd=sd, n_threads=n_threads)
                mean[rows] = answer.mean
                if deviation is not None:
                    deviation[rows] = answer.sd
    return HeldOut(X, mean, deviation, group, int(fold.max()) + 1)


def profiles(X: Array) -> NDArray[np.intp]:
    """Number of each cell's profile, 0, 1, ... as they appear: equal for copies, unless they express nothing."""
    copies = np.unique(X, axis=0, return_inverse=True)[1].ravel()
    silent = np.flatnonzero(~X.any(axis=1))
    copies[silent] = len(X) + np.arange(len(silent))
    _, first, of_cell = np.unique(copies, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[of_cell])


def simulated_pools(X: Array, P: Array, R: Array, rng: np.random.Generator) -> Array:
    """X P + noise, cells x pools; the order of the pools is only an order."""
    order = np.lexsort(P)
    draws = rng.standard_normal((len(X), len(R)))
    with one_thread():
        D = X @ P
        D[:, order] += draws @ covariance_root(R[np.ix_(order, order)]).T
    return np.asarray(D)


def folds_of(n: int, group: NDArray[np.intp] | None, rng: np.random.Generator) -> NDArray[np.intp]:
    """Fold of each cell: balanced and random, or whole groups, the largest first to the smallest fold."""
    if group is None:
        return rng.permutation(n) % (5 if n <= _FEW else 3)
    size = np.bincount(group)
    filled = np.zeros(min(len(size), _MAX_GROUP_FOLDS), dtype=np.intp)
    fold_of_group = np.empty(len(size), dtype=np.intp)
    for k in np.argsort(-size, kind="stable"):
        fold_of_group[k] = np.argmin(filled)
        filled[fold_of_group[k]] += size[k]
    return fold_of_group[group]
