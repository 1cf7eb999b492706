"""Posterior: what a model says about cells whose pools were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unpool._validate import dense
from unpool.errors import InputError
from unpool.kernels.blocks import map_blocks, map_threads, one_thread
from unpool.kernels.mixture import DROPPED, JITTER, Conditioned, condition, posterior_moments
from unpool.measure import covariance_root
from unpool.model._labels import Labels
from unpool.model._mixture import Array, Mixture

__all__ = ["Posterior", "Seen", "decode_blocks", "see"]

_DEPENDENT = 1e-9  # pool coordinates with less than this share of the largest variance carry nothing


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior of expression given pools.

    Attributes
    ----------
    mean
        Cells x genes, float32, linear scale, >= 0.
    sd
        Cells x genes, float32: posterior standard deviation, or None.
    misfit
        Cells: (q - m) / sqrt(2 m), q the mean squared Mahalanobis distance of the cell's pools from the components that
        explain it and m the number of independent pools; near 0 where the model fits, large where it does not.
    responsibilities
        One array (cells x components, float32) a member, or None.
    labels
        Cells x labels, float32: probability of each of the model's labels, or None.
    """

    mean: NDArray[np.floating]
    sd: NDArray[np.floating] | None
    misfit: NDArray[np.float32]
    responsibilities: tuple[NDArray[np.float32], ...] | None = None
    labels: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """A model seen through a design: conditioned members, and the pool coordinates in which they stand.

    Coordinates z = (d - mean) T are an orthonormal basis of the space in which the pools vary, after each pool was put on
    unit scale: pools that repeat others, or that hold no gene, drop out.
    """

    centre: Array
    pool_centre: Array
    T: Array
    members: list[Conditioned]
    shares: Array
    nu: float

    @property
    def n_coordinates(self) -> int:
        """Number of independent pools."""
        return int(self.T.shape[1])


def see(
    members: Sequence[Mixture],
    shares: Array,
    nu: float,
    P: Array,
    R: Array,
    *,
    jitter: float = JITTER,
    n_threads: int | None = None,
) -> Seen:
    """Condition all members on a design P (genes x pools) with noise covariance R (pools x pools)."""
    with one_thread():
        centre = np.asarray(sum(share * member.mean for share, member in zip(shares, members, strict=True)))
        signal = sum(share * (P.T @ member.covariance() @ P) for share, member in zip(shares, members, strict=True))
        T = _coordinates(signal + R, (P != 0).any(axis=0))
        root = T.T @ covariance_root(R)
        T = T @ _discriminants(members, P @ T, root @ root.T)
        P_T, root = P @ T, T.T @ covariance_root(R)
        R_T = root @ root.T
        pool_centre = centre @ P

    def conditioned(member: Mixture) -> Conditioned:
        cross = member.times(P_T)
        means = member.component_means()
        return condition(
            member.joint_weights, means, member.variances(), cross, means @ P_T, P_T.T @ cross + R_T,
            noise=R_T, sizes=member.sizes, origin=centre @ P_T, jitter=jitter,
        )  # fmt: skip

    return Seen(centre, pool_centre, T, map_threads(conditioned, members, n_threads), np.asarray(shares), nu)


def _coordinates(covariance: Array, used: NDArray[np.bool_]) -> Array:
    """T, pools x coordinates: unit scale, then the eigenvectors of what varies."""
    size = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    used = used & (size > 0)
    if not used.any():
        return np.zeros((len(size), 0))
    inverse = np.where(used, 1.0 / np.where(used, size, 1.0), 0.0)
    eigenvalue, vector = np.linalg.eigh(covariance * np.outer(inverse, inverse))
    return np.asarray(inverse[:, None] * vector[:, eigenvalue > _DEPENDENT * eigenvalue[-1]])


def _discriminants(members: Sequence[Mixture], P: Array, R: Array) -> Array:
    """Coordinates in which components have unit covariance on average, those that tell components apart first."""
    within, between = np.zeros_like(R), np.zeros_like(R)
    for member in members:
        means = (member.component_means() - member.mean) @ P
        between += means.T @ (member.weights[:, None] * means)
        within += P.T @ member.within() @ P + R
    eigenvalue, vector = np.linalg.eigh((within + within.T) / 2)
    whiten = vector / np.sqrt(np.maximum(eigenvalue, 1e-12 * eigenvalue.max(initial=0.0)))
    return np.asarray(whiten @ np.linalg.eigh(whiten.T @ between @ whiten)[1][:, ::-1])


def decode_blocks(
    seen: Seen,
    D: Any,
    mean: NDArray[np.floating],
    sd: NDArray[np.floating] | None,
    misfit: NDArray[np.floating],
    responsibilities: Sequence[NDArray[np.floating]] | None = None,
    *,
    labels: Labels | None = None,
    probabilities: NDArray[np.floating] | None = None,
    clip: bool = True,
    dropped: float = DROPPED,
    n_threads: int | None = None,
) -> None:
    """Write the posterior of all cells into the given arrays, block by block on threads; labels into `probabilities`."""
    m = seen.n_coordinates

    def decode(rows: slice) -> None:
        block = dense(D, rows)
        if not np.isfinite(block).all():
            i, p = np.argwhere(~np.isfinite(block))[0]
            raise InputError(
                f"pool {p} of cell {rows.start + i} is {block[i, p]}; expected finite values: remove the cell, "
                "or the pool if it failed everywhere"
            )
        mine = None if responsibilities is None else [r[rows] for r in responsibilities]
        if mine is None and labels is not None:
            mine = [np.empty((len(block), len(member.log_weights)), np.float32) for member in seen.members]
        y, variance, distance = posterior_moments(
            (block - seen.pool_centre) @ seen.T,
            seen.members,
            seen.shares,
            seen.nu,
            centre=seen.centre,
            second=sd is not None,
            dropped=dropped,
            responsibilities=mine,
        )
        if labels is not None and mine is not None and probabilities is not None:
            probabilities[rows] = labels.probabilities(mine, seen.shares)
        mean[rows] = np.maximum(y, 0.0, out=y) if clip else y
        if sd is not None and variance is not None:
            sd[rows] = np.sqrt(variance, out=variance)
        misfit[rows] = (distance - m) / np.sqrt(2 * max(m, 1))

    map_blocks(decode, D.shape[0], n_threads)
