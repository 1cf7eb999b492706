"""Adaptation: weights of the components and members learned from the pooled cells themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from unpool.kernels.blocks import map_threads
from unpool.kernels.mixture import sparse_responsibilities
from unpool.model._mixture import Array, Mixture
from unpool.model._posterior import see

__all__ = ["SAMPLE", "adapted_weights"]

SAMPLE = 5000  # pooled cells that adaptation looks at, evenly strided
PRIOR_CELLS = 1.0  # a component's old weight counts as much as this many cells, times the number of components
STEPS = 20
TRUST = 3.0  # a member's share grows with exp(this * its mean log density of a cell)


def adapted_weights(
    members: Sequence[Mixture],
    shares: Array,
    nu: float,
    batches: Sequence[tuple[Array, Array, Array]],
    *,
    n_threads: int | None = None,
) -> tuple[list[Array], Array, float]:
    """Weights (components x sizes, one array a member) learned by EM from pooled cells, shares of the members, and the mean log density gained a cell.

    Reference and pooled cells often hold the same types in other proportions. EM maximises the likelihood of the pools
    over the weights of all components and sizes, with a Dirichlet prior at the old weights; means and covariances stay.
    Members are then trusted by how well they predict the pools.

    Parameters
    ----------
    members, shares, nu
        As in `Model`.
    batches
        One (D, P, R) a design: cells x pools, genes x pools, pools x pools; a few thousand cells in all.

    Notes
    -----
    Cost: one pass of the posterior without genes, and 20 sparse products.
    """
    seen = [see(members, shares, nu, P, R, n_threads=n_threads) for _, P, R in batches]

    def learned(b: int) -> tuple[Array, float, float]:
        parts = [
            sparse_responsibilities((D - s.pool_centre) @ s.T, s.members[b], nu)
            for s, (D, _, _) in zip(seen, batches, strict=True)
        ]
        r = sparse.vstack([part[0] for part in parts], format="csr")
        evidence = float(np.mean(np.concatenate([part[1] for part in parts])))
        weights, gained = _weights(r, members[b].joint_weights.ravel())
        return weights, evidence, gained

    answers = map_threads(learned, range(len(members)), n_threads)
    evidence = np.array([before + gained for _, before, gained in answers])
    trust = np.asarray(shares) * np.exp(TRUST * (evidence - evidence.max()))
    weights = [w.reshape(member.size_shares.shape) for member, (w, _, _) in zip(members, answers, strict=True)]
    return weights, trust / trust.sum(), float(np.mean([gained for _, _, gained in answers]))


def _weights(r: sparse.csr_matrix, old: Array) -> tuple[Array, float]:
    """Weights by EM from responsibilities under the old weights, and the mean log density gained."""
    n = r.shape[0]
    prior = PRIOR_CELLS * np.count_nonzero(old)
    ratio = np.ones_like(old)  # new weight by old one
    transposed = r.T.tocsr()
    for _ in range(STEPS):
        total = r @ ratio
        counted = ratio * (transposed @ (1 / total))
        new = (counted + prior * old) / (n + prior)
        ratio = np.divide(new, old, out=np.ones_like(old), where=old > 0)
    return old * ratio, float(np.mean(np.log(r @ ratio)))
