"""Labels: what the reference calls the cells of each component, so that responsibilities become cell types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unpool.model._mixture import Array

__all__ = ["Labels", "composition"]


@dataclass(frozen=True, eq=False)
class Labels:
    """Label composition of every component of a bag of mixtures.

    Attributes
    ----------
    names
        The labels.
    compositions
        One array (components x labels, rows sum to 1) a member: share of each label among the component's reference cells.
    """

    names: tuple[str, ...]
    compositions: tuple[Array, ...]

    def probabilities(self, responsibilities: Sequence[NDArray[np.floating]], shares: Array) -> Array:
        """Probability of each label, cells x labels: Σ over members and components of responsibility x composition."""
        parts = [share * (r @ c) for share, r, c in zip(shares, responsibilities, self.compositions, strict=True)]
        return np.asarray(sum(parts))


def composition(component: NDArray[np.intp], code: NDArray[np.intp], n_labels: int) -> Array:
    """Share of each label in each component; a component without labelled cells gets the shares over all cells.

    Parameters
    ----------
    component
        Component of each cell.
    code
        Label of each cell; -1: none.
    """
    known = code >= 0
    count = np.zeros((component.max() + 1, n_labels))
    np.add.at(count, (component[known], code[known]), 1.0)
    total = count.sum(axis=1, keepdims=True)
    return np.asarray(np.where(total > 0, count / np.maximum(total, 1.0), count.sum(axis=0) / max(count.sum(), 1.0)))
