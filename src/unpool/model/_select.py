"""Selection: whether the extra components help, by measuring held-out reference cells in simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from unpool.model._crossfit import folds_of, per_gene_pearson, simulated_pools
from unpool.model._mixture import Array

if TYPE_CHECKING:
    from unpool.model._model import Model

__all__ = ["extras_help"]

MIN_CELLS = 20  # fewer say nothing about which is better
_ALL_FOLDS = 2_000  # up to here every cell is held out once; beyond, one fold
_MOST_HELD = 1_500


def extras_help(
    X: Array,
    P: Array,
    R: Array,
    fit: Callable[[Array], Model],
    *,
    groups: Any = None,
    rng: np.random.Generator,
    n_threads: int | None = None,
) -> dict[str, float] | None:
    """Mean per-gene Pearson of held-out reference cells with and without the extra components: sizes and pairs.

    Both are decoded by the same fits, so that this costs little more than the fits: 3 to 5 (one a group, at most 10) for at
    most 2,000 cells, else one, with at most 1,500 cells held out.

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
    dict
        "with" and "without"; None where there are fewer than 20 cells or one group.
    """
    n = len(X)
    group = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.intp)
    if n < MIN_CELLS or (group is not None and group.max() == 0):
        return None
    fold = folds_of(n, group, rng)
    D = simulated_pools(X, P, R, rng)
    truth, answers = [], []
    for k in range(fold.max() + 1 if n <= _ALL_FOLDS else 1):
        held = np.flatnonzero(fold == k)
        if len(held) > _MOST_HELD:
            held = np.sort(rng.choice(held, _MOST_HELD, replace=False))
        kept = np.ones(n, dtype=bool)
        kept[held] = False
        model = fit(X[kept & (fold != k) if group is not None else kept])
        truth.append(X[held])
        answers.append(
            [m.posterior(D[held], P, noise_var=R, sd=False, n_threads=n_threads).mean for m in (model, model.plain())]
        )
    M = np.concatenate(truth)
    with_, without = (
        float(per_gene_pearson(M, np.concatenate([a[i] for a in answers]).astype(np.float64)).mean()) for i in (0, 1)
    )
    return {"with": with_, "without": without}
