"""Mixture: weights, means and structured covariances of the components of one member, their sizes and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Mixture"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture over expression, linear scale.

    *Sources* l have means mu_l and covariances

        S_l = F_lᵀ F_l + diag(u_l) + diag(s_l) C diag(s_l)

    where F_l (few rows) holds what is the source's own, and the correlation C is shared by many. It stores sources * genes
    + rows * genes + genes² numbers, never sources * genes².

    The first components are sources themselves. The others, *pairs* (i, j), are cells on the border of two sources: mean
    (mu_i + mu_j) / 2, covariance (S_i + S_j) / 4. A component may be seen at several sizes s: mean s mu, covariance s² S.

    Attributes
    ----------
    weights
        Components, sum 1.
    means
        Sources x genes: mu_l.
    factors, starts
        Rows x genes; F_l is factors[starts[l]:starts[l + 1]].
    diagonal
        Sources x genes: u_l, variances.
    scale
        Sources x genes: s_l, standard deviations.
    correlations
        Correlations x genes x genes.
    family
        Sources: which correlation each has.
    pairs
        Pairs x 2: sources of the components that are pairs.
    sizes
        Sizes at which components may be seen.
    size_shares
        Components x sizes: how a component's weight divides over the sizes; rows sum to 1.
    """

    weights: Array
    means: Array
    factors: Array
    starts: NDArray[np.intp]
    diagonal: Array
    scale: Array
    correlations: Array
    family: NDArray[np.intp]
    pairs: NDArray[np.intp]
    sizes: Array
    size_shares: Array

    @classmethod
    def of_moments(
        cls, weights: Any, means: Any, covariances: Sequence[Any], *, pairs: Any = (), sizes: Any = (1.0,), shares: Any = None
    ) -> Mixture:  # fmt: skip
        """Build from explicit covariance matrices, one genes x genes a source."""
        means = np.array(means, dtype=np.float64, ndmin=2)
        L, g = means.shape
        roots = []
        for covariance in covariances:
            eigenvalue, vector = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
            roots.append(np.sqrt(np.maximum(eigenvalue, 0.0))[:, None] * vector.T)
        plain = cls.of_sources(
            np.array(weights, dtype=np.float64, ndmin=1),
            means,
            np.concatenate(roots),
            np.arange(L + 1) * g,
            np.zeros((L, g)),
            np.zeros((L, g)),
            np.eye(g),
        )
        K, sizes = len(plain.weights), np.array(sizes, dtype=np.float64)
        shares = np.tile(np.eye(len(sizes))[0], (K, 1)) if shares is None else np.array(shares, dtype=np.float64)
        return replace(plain, pairs=np.array(pairs, dtype=np.intp).reshape(-1, 2), sizes=sizes, size_shares=shares)

    @classmethod
    def of_sources(
        cls,
        weights: Array,
        means: Array,
        factors: Array,
        starts: Any,
        diagonal: Array,
        scale: Array,
        correlation: Array,
    ) -> Mixture:
        """Every source a component of size one, with one correlation."""
        return cls(
            weights=weights,
            means=means,
            factors=factors,
            starts=np.asarray(starts, dtype=np.intp),
            diagonal=diagonal,
            scale=scale,
            correlations=correlation[None],
            family=np.zeros(len(means), dtype=np.intp),
            pairs=np.zeros((0, 2), dtype=np.intp),
            sizes=np.ones(1),
            size_shares=np.ones((len(weights), 1)),
        )

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.weights)

    @property
    def joint_weights(self) -> Array:
        """Weights of components x sizes, sum 1."""
        return np.asarray(self.weights[:, None] * self.size_shares)

    @property
    def mean(self) -> Array:
        """Mean over the components: genes."""
        return np.asarray((self.joint_weights @ self.sizes) @ self.component_means())

    def component_means(self) -> Array:
        """Means of the components at size one: components x genes."""
        return self._components(self.means, 2)

    def covariance(self) -> Array:
        """Covariance over all components and sizes: genes x genes."""
        total = self.within()
        means = self.component_means()
        for size, share in zip(self.sizes, self.joint_weights.T, strict=True):
            centred = size * means - self.mean
            total += centred.T @ (share[:, None] * centred)
        return total

    def within(self) -> Array:
        """Mean covariance of the components at their sizes: genes x genes."""
        second = self.joint_weights @ np.square(self.sizes)
        n_own = self.n_components - len(self.pairs)
        weight = np.zeros(len(self.means))  # with which a source's covariance enters
        weight[:n_own] = second[:n_own]
        for side in self.pairs.T:
            np.add.at(weight, side, second[n_own:] / 4)
        w = weight[:, None]
        rows = self.factors * np.sqrt(np.repeat(weight, np.diff(self.starts)))[:, None]
        within = rows.T @ rows + np.diag((w * self.diagonal).sum(axis=0))
        for c, correlation in enumerate(self.correlations):
            mine = self.family == c
            within += correlation * (self.scale[mine].T @ (w[mine] * self.scale[mine]))
        return np.asarray(within)

    def variances(self) -> Array:
        """Diagonals of the covariances at size one: components x genes."""
        own = np.stack([np.square(F).sum(axis=0) for F in self._roots()])
        shared = np.diagonal(self.correlations, axis1=1, axis2=2)[self.family]
        return self._components(np.asarray(own + self.diagonal + np.square(self.scale) * shared), 4)

    def times(self, P: Array) -> Array:
        """S_k P of all components at size one: components x genes x pools."""
        product = self.diagonal[:, :, None] * P
        for c, correlation in enumerate(self.correlations):
            scale = self.scale[self.family == c, :, None]
            product[self.family == c] += scale * (correlation @ (scale * P))
        for k, F in enumerate(self._roots()):
            product[k] += F.T @ (F @ P)
        return self._components(product, 4)

    def subset(self, genes: NDArray[np.intp]) -> Mixture:
        """Marginal mixture on some genes, in the given order."""
        return replace(
            self,
            means=self.means[:, genes],
            factors=self.factors[:, genes],
            diagonal=self.diagonal[:, genes],
            scale=self.scale[:, genes],
            correlations=self.correlations[:, genes][:, :, genes],
        )

    def plain(self) -> Mixture:
        """The components that are sources, at size one: without pairs and other sizes."""
        n_own = self.n_components - len(self.pairs)
        kept = slice(0, n_own)
        return replace(
            self,
            weights=self.weights[kept] / self.weights[kept].sum(),
            means=self.means[kept],
            factors=self.factors[: self.starts[n_own]],
            starts=self.starts[: n_own + 1],
            diagonal=self.diagonal[kept],
            scale=self.scale[kept],
            family=self.family[kept],
            pairs=self.pairs[:0],
            sizes=np.ones(1),
            size_shares=np.ones((n_own, 1)),
        )

    def reweighted(self, joint_weights: Array) -> Mixture:
        """The same components at the same sizes with other weights, components x sizes."""
        joint_weights = joint_weights / joint_weights.sum()
        weights = joint_weights.sum(axis=1)
        shares = np.where(
            weights[:, None] > 0, joint_weights / np.where(weights > 0, weights, 1)[:, None], self.size_shares
        )
        return replace(self, weights=weights, size_shares=shares)

    def rescaled(self, gains: Array) -> Mixture:
        """The mixture of the same cells with every gene multiplied by its gain."""
        return replace(
            self,
            means=self.means * gains,
            factors=self.factors * gains,
            diagonal=self.diagonal * np.square(gains),
            scale=self.scale * gains,
        )

    def draw(self, n: int, nu: float, rng: np.random.Generator) -> Array:
        """Draw n cells (may be negative): cells x genes."""
        weights = self.joint_weights.ravel() / self.joint_weights.sum()
        component, size = np.divmod(rng.choice(len(weights), size=n, p=weights), len(self.sizes))
        n_own = self.n_components - len(self.pairs)
        pair = component >= n_own
        means = self.component_means()[component]
        first = np.where(pair, 0, component)
        first[pair] = self.pairs[component[pair] - n_own, 0]
        deviation = self._deviations(first, rng)
        deviation[pair] += self._deviations(self.pairs[component[pair] - n_own, 1], rng)
        deviation[pair] /= 2
        if nu < np.inf:
            deviation *= np.sqrt((nu - 2) / rng.chisquare(nu, size=n))[:, None]
        return np.asarray(self.sizes[size][:, None] * (means + deviation))

    def _deviations(self, source: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """Draw from N(0, S_l), one cell for each given source."""
        n, g = len(source), self.means.shape[1]
        deviation = np.empty((n, g))
        for c, correlation in enumerate(self.correlations):
            mine = np.flatnonzero(self.family[source] == c)
            eigenvalue, vector = np.linalg.eigh(correlation)
            shared = rng.standard_normal((len(mine), g)) @ (np.sqrt(np.maximum(eigenvalue, 0.0))[:, None] * vector.T)
            deviation[mine] = self.scale[source[mine]] * shared
        deviation += np.sqrt(self.diagonal[source]) * rng.standard_normal((n, g))
        for k in np.unique(source):
            mine = np.flatnonzero(source == k)
            F = self.factors[self.starts[k] : self.starts[k + 1]]
            deviation[mine] += rng.standard_normal((len(mine), len(F))) @ F
        return deviation

    def _components(self, of_sources: Array, divisor: int) -> Array:
        """Values of the components from those of the sources: pairs have (first + second) / divisor."""
        own = of_sources[: self.n_components - len(self.pairs)]
        if not len(self.pairs):
            return own
        return np.concatenate([own, (of_sources[self.pairs[:, 0]] + of_sources[self.pairs[:, 1]]) / divisor])

    def _roots(self) -> list[Array]:
        return [self.factors[a:b] for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]
