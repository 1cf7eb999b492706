"""A mixture from gene modules alone: cells are one or two modules at unknown strength, and a little of any others."""

from __future__ import annotations

import numpy as np

from unpool.model._mixture import Array, Mixture

__all__ = ["modules_mixture"]

SIZES = (1.0, 0.25, 0.5, 2.0, 4.0)
_SHARES = (0.4, 0.15, 0.2, 0.15, 0.1)
_ANY = 0.1  # weight of cells in which every module may be active
_SPREAD = 0.75  # relative standard deviation of a module's activity
_OTHERS = 0.75  # what all modules are active beside the one or two, in sum: of the activity of one
_OWN = 0.1  # standard deviation of a gene beside the modules, relative to its root mean square over them


def modules_mixture(U: Array, activity: float) -> Mixture:
    """One component a module and a pair of modules, at five sizes, and one in which every module may be active.

    Beside its module or two, a cell has a little of any other: of each of the K modules 0.75 / K of the activity on average,
    with standard deviation 0.75 / √K. Without these, what pools say beyond two modules would go to the wrong genes.

    Parameters
    ----------
    U
        Genes x modules, >= 0.
    activity
        Mean activity of a module where it is active.
    """
    K = U.shape[1]
    U = activity * U
    own = np.square(_OWN) * np.mean(np.square(U), axis=1)
    own = np.diag(np.maximum(own, 1e-4 * own.max(initial=0.0)))
    all_of_them = 2 * _SPREAD**2 / K * U @ U.T + own
    others = _OTHERS**2 / K * U @ U.T + own
    covariances = [_SPREAD**2 * np.outer(u, u) + others for u in U.T]
    pairs = 1 + np.column_stack(np.triu_indices(K, 1))
    weights = np.concatenate(
        [[_ANY], np.full(K, 0.5 * (1 - _ANY) / K), np.full(len(pairs), 0.5 * (1 - _ANY) / max(len(pairs), 1))]
    )
    # every source is a component: the one of all modules, the modules; then the pairs
    mean = U.mean(axis=1)
    means = np.vstack([mean, U.T + _OTHERS * mean])
    shares = np.tile(_SHARES, (len(weights), 1))
    return Mixture.of_moments(
        weights / weights.sum(), means, [all_of_them, *covariances], pairs=pairs, sizes=SIZES, shares=shares
    )
