"""Adaptation: weights of the components and members, and gains of the genes, learned from the pooled cells themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import sparse

from unpool.kernels.blocks import map_threads, one_thread
from unpool.kernels.mixture import sparse_responsibilities
from unpool.model._mixture import Array, Mixture
from unpool.model._posterior import Seen, see

__all__ = ["SAMPLE", "Adapted", "Strengths", "adapted"]

SAMPLE = 5000  # pooled cells that adaptation looks at, evenly strided
STEPS = 20
DROPPED = (
    1e-4  # share of a cell's weight given up by skipping components: what it costs is not seen, and EM is much faster
)
GAIN_SD = 0.1  # how far gains are expected to be from one
GAIN_ROUNDS = 2  # the new gains tell better which component a cell belongs to
_LEAST_GAIN = 0.05

Batches = Sequence[tuple[Array, Array, Array]]


@dataclass(frozen=True)
class Strengths:
    """How much the pooled cells may teach.

    Attributes
    ----------
    prior
        A component's old weight counts as much as this many cells, times the number of components.
    trust
        A member's share grows with exp(this * its mean log density of a cell).
    gain_sd
        Standard deviation with which the genes' gains are expected around one; 0: gains are one.
    """

    prior: float = 1.0
    trust: float = 3.0
    gain_sd: float = 0.0


@dataclass(frozen=True, eq=False)
class Adapted:
    """What pooled cells have taught.

    Attributes
    ----------
    members, shares
        As in `Model`.
    gains
        Genes: what the reference's expression is multiplied with; None where they were not asked for.
    log_density, gained
        Cells: log density of the pools before, and what adapting added; means over the members, up to a constant that
        depends on the design alone.
    """

    members: list[Mixture]
    shares: Array
    gains: Array | None
    log_density: Array
    gained: Array


def adapted(
    members: Sequence[Mixture],
    shares: Array,
    nu: float,
    batches: Batches,
    strengths: Strengths,
    *,
    n_threads: int | None = None,
) -> Adapted:
    """Learn weights by EM from pooled cells, shares of the members, and gains of the genes where they are asked for.

    Reference and pooled cells often hold the same types in other proportions. EM maximises the likelihood of the pools
    over the weights of all components and sizes, with a Dirichlet prior at the old weights; means and covariances stay.
    Members are then trusted by how well they predict the pools. Gains and weights are learned in turn: with the components
    to which the cells then seem to belong, gains γ minimise

        Σ_cells |d - (mu ∘ γ) P|²_{C⁻¹} + |γ - 1|² / gain_sd²

    with mean mu and covariance C (in the pools) of the cell's component.

    Parameters
    ----------
    members, shares, nu
        As in `Model`.
    batches
        One (D, P, R) a design: cells x pools, genes x pools, pools x pools; a few thousand cells in all.
    strengths
        How much they may teach.

    Notes
    -----
    Cost: one pass of the posterior without genes, and 20 sparse products; with gains three times as much, and
    components * pools * genes² each time.
    """
    answer, belonging = _reweighted(members, shares, nu, batches, strengths, n_threads)
    if strengths.gain_sd == 0:
        return answer
    before, gains = answer.log_density, np.ones(members[0].means.shape[1])
    for _ in range(GAIN_ROUNDS):
        gains = _gains(members, answer.shares, batches, belonging, strengths.gain_sd)
        rescaled = [member.rescaled(gains) for member in members]
        answer, belonging = _reweighted(rescaled, shares, nu, batches, strengths, n_threads)
    gained = answer.log_density + answer.gained - before
    return Adapted(answer.members, answer.shares, gains, before, gained)


@dataclass(frozen=True, eq=False)
class _Belonging:
    """Which components the cells of one design belong to: responsibilities, cells x (components * sizes), one a member."""

    seen: Seen
    Z: Array
    responsibilities: list[sparse.csr_matrix]


def _reweighted(
    members: Sequence[Mixture], shares: Array, nu: float, batches: Batches, strengths: Strengths, n_threads: int | None
) -> tuple[Adapted, list[_Belonging]]:
    """Weights and shares; and which components the cells belong to under the new weights."""
    seen = [see(members, shares, nu, P, R, n_threads=n_threads) for _, P, R in batches]
    Z = [(D - s.pool_centre) @ s.T for s, (D, _, _) in zip(seen, batches, strict=True)]
    start = np.cumsum([0, *map(len, Z)])

    def learned(b: int) -> tuple[Array, Array, Array, list[sparse.csr_matrix]]:
        parts = [sparse_responsibilities(z, s.members[b], nu, dropped=DROPPED) for s, z in zip(seen, Z, strict=True)]
        r = sparse.vstack([part[0] for part in parts], format="csr")
        density = [part[1] + np.linalg.slogdet(s.T.T @ s.T)[1] / 2 for s, part in zip(seen, parts, strict=True)]
        new, ratio = _weights(r, members[b].joint_weights.ravel(), strengths.prior)
        total = r @ ratio
        r = sparse.diags_array(1 / total) @ r @ sparse.diags_array(ratio)
        each = [r[i:j] for i, j in pairwise(start)]
        return new, np.concatenate(density), np.log(total), each

    answers = map_threads(learned, range(len(members)), n_threads)
    evidence = np.array([np.mean(before + gained) for _, before, gained, _ in answers])
    trust = np.asarray(shares) * np.exp(strengths.trust * (evidence - evidence.max()))
    answer = Adapted(
        [m.reweighted(new.reshape(m.size_shares.shape)) for m, (new, *_) in zip(members, answers, strict=True)],
        trust / trust.sum(),
        None,
        np.mean([before for _, before, _, _ in answers], axis=0),
        np.mean([gained for _, _, gained, _ in answers], axis=0),
    )
    return answer, [_Belonging(s, z, [a[3][i] for a in answers]) for i, (s, z) in enumerate(zip(seen, Z, strict=True))]


def _weights(r: sparse.csr_matrix, old: Array, strength: float) -> tuple[Array, Array]:
    """Weights by EM from responsibilities under the old weights, and their ratio to the old ones."""
    n = r.shape[0]
    prior = strength * np.count_nonzero(old)
    ratio = np.ones_like(old)  # new weight by old one
    transposed = r.T.tocsr()
    for _ in range(STEPS):
        total = r @ ratio
        counted = ratio * (transposed @ (1 / total))
        new = (counted + prior * old) / (n + prior)
        ratio = np.divide(new, old, out=np.ones_like(old), where=old > 0)
    return old * ratio, ratio


def _gains(
    members: Sequence[Mixture], shares: Array, batches: Batches, belonging: Sequence[_Belonging], sd: float
) -> Array:
    """Gains of the genes by generalised least squares, given the components to which the cells belong."""
    g = members[0].means.shape[1]
    information, away = np.eye(g) / sd**2, np.zeros(g)
    with one_thread():
        for (_, P, _), cells in zip(batches, belonging, strict=True):
            for b, (member, share) in enumerate(zip(members, shares, strict=True)):
                A, a = _information(member, P @ cells.seen.T, cells, b)
                information += share * A
                away += share * a
        return np.asarray(np.maximum(1 + np.linalg.solve(information, away), _LEAST_GAIN))


def _information(member: Mixture, P: Array, cells: _Belonging, b: int) -> tuple[Array, Array]:
    """Normal equations of the gains less one: genes x genes and genes; P in the coordinates of the pools."""
    seen, r = cells.seen.members[b], cells.responsibilities[b]
    means, sizes = member.component_means(), member.sizes
    K, S, m = len(means), len(sizes), P.shape[1]
    count = np.asarray(r.sum(axis=0)).reshape(K, S, 1)
    expected = sizes[:, None] * (means @ P)[:, None, :] - cells.seen.pool_centre @ cells.seen.T
    residual = (r.T @ cells.Z).reshape(K, S, m) - count * expected
    slope = means[:, :, None] * (P @ seen.rotation.transpose(0, 2, 1))  # components x genes x pools
    weight = np.sum(count * np.square(sizes)[:, None] * seen.precision, axis=1)
    rows = (slope * np.sqrt(weight)[:, None, :]).transpose(0, 2, 1).reshape(K * m, -1)
    pull = np.sum(sizes[:, None] * seen.precision * (residual @ seen.rotation.transpose(0, 2, 1)), axis=1)
    return rows.T @ rows, np.einsum("kgm,km->g", slope, pull)
