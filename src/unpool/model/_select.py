"""Rehearsal: held-out reference cells are measured in simulation, to see what helps in decoding them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unpool._validate import dense
from unpool.model._adapt import GAIN_SD, Adapted, Strengths
from unpool.model._crossfit import MAX_CELLS, HeldOut, folds_of, profiles, simulated_pools
from unpool.model._mixture import Array

if TYPE_CHECKING:
    from unpool.model._model import Model

__all__ = ["Rehearsal", "Shift", "rehearse"]

MIN_CELLS = 20  # fewer say nothing about which is better
_ALL_FOLDS = 2_000  # up to here every cell is held out once; beyond, one fold, or every fold of groups
_MOST_HELD = 1_500
_SURE = 2.5  # standard errors
_PRIORS = (Strengths(prior=0.3), Strengths(prior=1.0), Strengths(prior=5.0))


@dataclass(frozen=True)
class Shift:
    """Whether pooled cells are another population than the reference, told by what adapting to them gains.

    Attributes
    ----------
    gained_pooled, gained_reference
        Mean log density that a cell gains when a model adapts to pooled cells, and when it adapts to as many reference cells
        that it does not know either. Fitting gains something on both; a shift gains more.
    standard_error
        Of their difference.
    log_density_pooled, log_density_reference
        Mean log density of a cell's pools before, up to a constant. Where the pooled cells' is much lower though adapting
        gains nothing, they differ in what weights cannot mend: other states, other types, other units.
    unlikely
        Share of the pooled cells that, after adapting, are less likely than 99 % of the held-out reference cells: 0.01 is to
        be expected, also where types come in other proportions.
    n_cells
        Number of cells on each side.
    """

    gained_pooled: float
    gained_reference: float
    standard_error: float
    log_density_pooled: float
    log_density_reference: float
    unlikely: float
    n_cells: int

    @property
    def found(self) -> bool:
        """Whether adapting gains more on the pooled cells, beyond 2.5 standard errors."""
        return self.gained_pooled - self.gained_reference > _SURE * self.standard_error


@dataclass(frozen=True, eq=False)
class Fold:
    """Held-out cells, cells x genes, their simulated pools and groups, and a model of the other folds."""

    model: Model
    truth: Array
    D: Array
    group: NDArray[np.intp] | None


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Reference cells that were held out, measured in simulation with this design, and are to be decoded.

    Attributes
    ----------
    P, R
        Genes x pools, pools x pools: the design and the covariance of the noise.
    folds
        Cells and the models that do not know them. All that is tried shares these fits.
    n_threads
        Threads; None: all.
    """

    P: Array
    R: Array
    folds: list[Fold]
    n_threads: int | None = None

    def score(self, shaped: Callable[[Model], Model], strengths: Strengths | None = None) -> float:
        """Mean per-gene Pearson (within groups, if they were given) of at most 1,500 cells.

        Parameters
        ----------
        shaped
            What is done to each fold's model first.
        strengths
            With which it then adapts to all of the fold's pools; None: not at all.
        """
        stride = -(-sum(len(f.D) for f in self.folds) // _MOST_HELD)
        held = []
        for f in self.folds:
            model = shaped(f.model)
            if strengths is not None:
                model, _ = model._adapted([(f.D, self.P, self.R, np.arange(len(f.D)))], strengths, self.n_threads)
            answer = model.posterior(f.D[::stride], self.P, noise_var=self.R, sd=False, n_threads=self.n_threads)
            held.append(answer.mean.astype(np.float64))
        truth = np.concatenate([f.truth[::stride] for f in self.folds])
        group = [f.group[::stride] for f in self.folds if f.group is not None]
        groups = np.concatenate(group) if group else None
        return float(HeldOut(truth, np.concatenate(held), None, groups, len(self.folds)).pearson().mean())

    def scores(self, shaped: Callable[[Model], Model]) -> dict[Strengths | None, float]:
        """Scores without adaptation (None), with a few priors, and with the best of these and gains.

        Meant for groups: cells of the reference's own population have nothing to adapt to.
        """
        scores: dict[Strengths | None, float] = {s: self.score(shaped, s) for s in (None, *_PRIORS)}
        with_gains = replace(max(_PRIORS, key=scores.__getitem__), gain_sd=GAIN_SD)
        return scores | {with_gains: self.score(shaped, with_gains)}

    def shift(self, D: Any) -> Shift:
        """Compare what adapting gains on pooled cells D (cells x pools, of the same design) and on held-out cells.

        The same models adapt to as many cells of either kind, because fewer cells are easier to fit; without their extra
        components, whose weights the reference does not know well, so that adapting gains on any cells.
        """
        taught: dict[str, list[Adapted]] = {"pooled": [], "reference": []}
        N = D.shape[0]
        for k, fold in enumerate(self.folds):
            n = min(len(fold.D), N)
            rows = ((np.arange(n) + k / len(self.folds)) * N / n).astype(
                np.intp
            )  # evenly strided, others for each fold
            held = np.arange(n) * len(fold.D) // n
            model = fold.model.plain()
            for side, cells in (("pooled", dense(D, rows)), ("reference", fold.D[held])):
                batch = (cells, self.P, self.R, np.arange(n))
                taught[side].append(model._adapted([batch], Strengths(), self.n_threads)[1])
        gained = {side: np.concatenate([t.gained for t in folds]) for side, folds in taught.items()}
        before = {side: np.concatenate([t.log_density for t in folds]) for side, folds in taught.items()}
        after = {side: before[side] + gained[side] for side in taught}
        n_cells = len(gained["pooled"])
        return Shift(
            gained_pooled=float(gained["pooled"].mean()),
            gained_reference=float(gained["reference"].mean()),
            standard_error=float(np.sqrt((gained["pooled"].var() + gained["reference"].var()) / n_cells)),
            log_density_pooled=float(before["pooled"].mean()),
            log_density_reference=float(before["reference"].mean()),
            unlikely=float(np.mean(after["pooled"] < np.quantile(after["reference"], 0.01))),
            n_cells=n_cells,
        )


def rehearse(
    X: Array,
    P: Array,
    R: Array,
    fit: Callable[[Array], Model],
    *,
    groups: Any = None,
    rng: np.random.Generator,
    n_threads: int | None = None,
) -> Rehearsal | None:
    """Hold reference cells out and measure them in simulation.

    Parameters
    ----------
    X
        Cells x genes, linear scale.
    P, R
        Genes x pools, pools x pools: design and noise covariance that are simulated.
    fit
        Learns a model from cells x genes.
    groups
        Group of each cell: groups are held out as a whole.

    Returns
    -------
    Rehearsal
        None where there are fewer than 20 different cells, or one group.

    Notes
    -----
    Copies of a cell are held out together. Cost: 3 to 5 fits for at most 2,000 cells, else one; with groups one a group, at
    most 10, of at most 6,000 cells. At most 1,500 cells are held out at a time.
    """
    n, unit = len(X), profiles(X)
    group = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.intp)
    if unit.max(initial=-1) + 1 < MIN_CELLS or (group is not None and group.max() == 0):
        return None
    if group is not None and n > MAX_CELLS:
        some = np.sort(rng.choice(n, MAX_CELLS, replace=False))
        return rehearse(X[some], P, R, fit, groups=group[some], rng=rng, n_threads=n_threads)
    fold = folds_of(unit.max() + 1, None, rng)[unit] if group is None else folds_of(n, group, rng)
    D = simulated_pools(X, P, R, rng)
    folds = []
    for k in range(fold.max() + 1 if n <= _ALL_FOLDS or group is not None else 1):
        held = np.flatnonzero(fold == k)
        if len(held) > _MOST_HELD:
            held = np.sort(rng.choice(held, _MOST_HELD, replace=False))
        kept = np.isin(unit, unit[held], invert=True) if group is None else fold != k
        model = fit(X[kept])
        folds.append(Fold(model, X[held], D[held], None if group is None else group[held]))
    return Rehearsal(P, R, folds, n_threads)
