"""Mixture: weights, means and structured covariances of the components of one member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Mixture"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture over expression, linear scale.

    Component k has weight w_k, mean mu_k and covariance

        S_k = F_kᵀ F_k + diag(u_k) + diag(s_k) C diag(s_k)

    where F_k (few rows) holds what is the component's own, and the correlation C is shared. It stores
    components * genes + rows * genes + genes² numbers, never components * genes².

    Attributes
    ----------
    weights
        Components, sum 1.
    means
        Components x genes: mu_k.
    factors, starts
        Rows x genes; F_k is factors[starts[k]:starts[k + 1]].
    diagonal
        Components x genes: u_k, variances.
    scale
        Components x genes: s_k, standard deviations.
    correlation
        Genes x genes: C.
    """

    weights: Array
    means: Array
    factors: Array
    starts: NDArray[np.intp]
    diagonal: Array
    scale: Array
    correlation: Array

    @classmethod
    def of_moments(cls, weights: Any, means: Any, covariances: Sequence[Any]) -> Mixture:
        """Build from explicit covariance matrices, one genes x genes a component."""
        means = np.array(means, dtype=np.float64, ndmin=2)
        K, g = means.shape
        roots = []
        for covariance in covariances:
            eigenvalue, vector = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
            roots.append(np.sqrt(np.maximum(eigenvalue, 0.0))[:, None] * vector.T)
        return cls(
            weights=np.array(weights, dtype=np.float64, ndmin=1),
            means=means,
            factors=np.concatenate(roots),
            starts=np.arange(K + 1) * g,
            diagonal=np.zeros((K, g)),
            scale=np.zeros((K, g)),
            correlation=np.eye(g),
        )

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.weights)

    @property
    def mean(self) -> Array:
        """Mean over the components: genes."""
        return np.asarray(self.weights @ self.means)

    def covariance(self) -> Array:
        """Covariance over all components: genes x genes."""
        w = self.weights[:, None]
        rows = self.factors * np.sqrt(np.repeat(self.weights, np.diff(self.starts)))[:, None]
        within = rows.T @ rows + np.diag((w * self.diagonal).sum(axis=0))
        within += self.correlation * (self.scale.T @ (w * self.scale))
        centred = self.means - self.mean
        return np.asarray(within + centred.T @ (w * centred))

    def variances(self) -> Array:
        """Diagonals of S_k: components x genes."""
        own = np.stack([np.square(F).sum(axis=0) for F in self._roots()])
        return np.asarray(own + self.diagonal + np.square(self.scale) * np.diag(self.correlation))

    def times(self, P: Array) -> Array:
        """S_k P of all components: components x genes x pools."""
        product = self.scale[:, :, None] * (self.correlation @ (self.scale[:, :, None] * P))
        product += self.diagonal[:, :, None] * P
        for k, F in enumerate(self._roots()):
            product[k] += F.T @ (F @ P)
        return product

    def subset(self, genes: NDArray[np.intp]) -> Mixture:
        """Marginal mixture on some genes, in the given order."""
        return Mixture(
            weights=self.weights,
            means=self.means[:, genes],
            factors=self.factors[:, genes],
            starts=self.starts,
            diagonal=self.diagonal[:, genes],
            scale=self.scale[:, genes],
            correlation=self.correlation[np.ix_(genes, genes)],
        )

    def draw(self, n: int, nu: float, rng: np.random.Generator) -> Array:
        """Draw n cells (may be negative): cells x genes."""
        component = rng.choice(self.n_components, size=n, p=self.weights / self.weights.sum())
        g = self.means.shape[1]
        eigenvalue, vector = np.linalg.eigh(self.correlation)
        shared = rng.standard_normal((n, g)) @ (np.sqrt(np.maximum(eigenvalue, 0.0))[:, None] * vector.T)
        deviation = self.scale[component] * shared
        deviation += np.sqrt(self.diagonal[component]) * rng.standard_normal((n, g))
        for k in np.unique(component):
            mine = component == k
            F = self.factors[self.starts[k] : self.starts[k + 1]]
            deviation[mine] += rng.standard_normal((int(mine.sum()), len(F))) @ F
        if nu < np.inf:
            deviation *= np.sqrt((nu - 2) / rng.chisquare(nu, size=n))[:, None]
        return np.asarray(self.means[component] + deviation)

    def _roots(self) -> list[Array]:
        return [self.factors[a:b] for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]
