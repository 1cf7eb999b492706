"""Doubt: where pools and reference contradict each other, in numbers for the record and in sentences for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from unpool._validate import dense
from unpool.design import Design

if TYPE_CHECKING:
    from unpool.model import Model

__all__ = ["contradictions", "doubts"]

SAMPLE = 4096  # cells that are looked at, evenly strided
FEW_CELLS = 50  # say nothing about a pool
STRANGE_CELL, STRANGE_SHARE = 10.0, 0.05  # misfit, and share of the cells
UNLIKELY_SHARE = 0.05
NOISY_SHARE = 0.5
OTHER_UNITS = 3.0


def contradictions(
    model: Model,
    D: Any,
    design: Design,
    index: NDArray[np.intp],
    noise: dict[int, NDArray[np.float64]],
    estimated: bool,
) -> dict[str, Any]:
    """Misfit of every pool and the pools to blame; signal against what the reference foretells; share of the noise.

    ``pool_misfit``: mean squared distance of a pool from what the others foretell, in units of what is to be expected.
    ``strange_pools``: names. ``measured_to_foretold``: mean of all pools by that of the reference's cells; 1 where units and
    types are alike. ``noise_share``: noise variance by variance of a pool, the median.
    """
    record: dict[str, Any] = {}
    blamed: list[str] = []
    shares, measured, foretold = [], 0.0, 0.0
    for b, R in noise.items():
        rows, P = np.flatnonzero(index == b), design.matrices[b]
        cells = dense(D, rows[:: -(-len(rows) // SAMPLE)])
        record["pool_misfit" if design.n_designs == 1 else f"pool_misfit_{b}"] = model.pool_misfit(cells, P, R)
        measured += len(rows) * float(cells.mean(axis=0).sum())
        foretold += len(rows) * float((model.mean @ P).sum())
        if len(rows) < FEW_CELLS:
            continue
        where = "" if design.n_designs == 1 else f"{design.names[b]}: "
        blamed += [f"{where}{design.pools[k]}" for k in model._strange_pools(cells, P, None if estimated else R)]
        variance = cells.var(axis=0)
        shares += list(np.diag(R)[variance > 0] / variance[variance > 0])
    record["strange_pools"] = np.array(blamed, dtype=object)
    record["silent_genes"] = np.array(
        [g for g, m in zip(design.genes, model.mean, strict=True) if m == 0], dtype=object
    )
    if foretold > 0:
        record["measured_to_foretold"] = measured / foretold
    if shares:
        record["noise_share"] = float(np.median(shares))
    return record


def doubts(result: AnnData, record: dict[str, Any], pooled: AnnData) -> list[str]:
    """Sentences about units, noise, pools and cells that deserve doubt."""
    return [
        *_of_reference(record),
        *_of_units(record),
        *_of_noise(record),
        *_of_pools(record),
        *_of_cells(result, record, pooled),
    ]


def _of_reference(record: dict[str, Any]) -> list[str]:
    said, silent = [], record.get("silent_genes", ())
    if len(silent):
        said.append(
            f"zero in every cell of the reference: {_counted(silent, 'gene')}; decoded as zero, whatever the pools say. Leave "
            "them out of the design, or add cells that express them"
        )
    if "too few" in str(record.get("intervals", {}).get("source", "")):
        said.append(
            "too few cells (or groups) in the reference to hold any out: intervals are not calibrated, and nothing tells how "
            "well genes are decoded; give at least 20 different cells, and two groups where reference_group is used"
        )
    return said


def _of_units(record: dict[str, Any]) -> list[str]:
    ratio = record.get("measured_to_foretold", 1.0)
    if 1 / OTHER_UNITS <= ratio <= OTHER_UNITS:
        return []
    return [
        f"the pools are on average {ratio:.2g} times what the reference foretells: other units, logarithms, or background "
        'subtracted? Bring both to one linear scale, or try calibrate="gain"'
    ]


def _of_noise(record: dict[str, Any]) -> list[str]:
    share = record.get("noise_share", 0.0)
    if record.get("noise") != "estimated" or share <= NOISY_SHARE:
        return []
    return [
        f"the estimated noise makes up {min(share, 1.0):.0%} of a pool's variance: either the pools are that noisy, or the "
        "reference and the design do not explain them (units, the order of the design's rows, failed pools). Pass noise_var "
        "if you know it, and see what crossvalidate says"
    ]


def _of_pools(record: dict[str, Any]) -> list[str]:
    blamed = record.get("strange_pools", ())
    if not len(blamed):
        return []
    return [
        f"far from what the other pools foretell: {_counted(blamed, 'pool')}; a failed channel, a wrong row of the design or "
        'another gain? Leave such a pool out (pooled[:, keep]), correct the design, or try calibrate="gain"'
    ]


def _of_cells(result: AnnData, record: dict[str, Any], pooled: AnnData) -> list[str]:
    why = 'cell types or states that it lacks, or other units than the reference\'s (calibrate="gain")? Do not trust'
    misfit = result.obs.get("unpool_misfit", pd.Series(dtype=float)).to_numpy()
    strange = np.flatnonzero(misfit > STRANGE_CELL)
    shift = record.get("shift", {"unlikely": 0.0, "n_cells": 1})
    chance = 3 * np.sqrt(2 * 0.01 / shift["n_cells"])  # three standard errors of a share of 1 %, on both sides
    if len(strange) > STRANGE_SHARE * result.n_obs:
        return [
            f"{len(strange):,} of {result.n_obs:,} cells have pools that the reference does not explain "
            f"({_listed(pooled.obs_names[strange])}; obs['unpool_misfit'] above {STRANGE_CELL:g}): {why} these cells"
        ]
    if shift["unlikely"] > UNLIKELY_SHARE + chance:
        return [
            f"{shift['unlikely']:.0%} of the cells have pools that are less likely than those of 99 % of the reference's own "
            f"cells, measured in simulation: {why} cells of large obs['unpool_misfit']"
        ]
    return []


def _counted(items: Any, what: str) -> str:
    """How many, and the first five."""
    return f"{len(items)} {what}{'s' * (len(items) > 1)} ({_listed(items)})"


def _listed(items: Any) -> str:
    """The first five."""
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
