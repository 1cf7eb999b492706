"""Model: what expression looks like, learned from cells in which every gene was measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from unpool._validate import (
    align,
    annotation,
    choice,
    columns_of,
    dense,
    expression,
    generator,
    integer,
    intensities,
    names,
)
from unpool.errors import InputError
from unpool.kernels.blocks import one_thread
from unpool.kernels.mixture import DROPPED
from unpool.measure import NOISE_STAGES, design_noise, noise_covariance, recorded_design, recorded_noise
from unpool.model._adapt import GAIN_SD, Adapted, Strengths, adapted
from unpool.model._adapt import SAMPLE as ADAPT_SAMPLE
from unpool.model._crossfit import per_gene_pearson, simulated_pools
from unpool.model._file import read_arrays, write_arrays
from unpool.model._fit import fitted, reference_rows
from unpool.model._gain import estimate_gains
from unpool.model._labels import Labels
from unpool.model._misfit import foretold_misfit, strange_pools, typical_noise
from unpool.model._mixture import Array, Mixture
from unpool.model._modules import modules_mixture
from unpool.model._moments import one_gaussian
from unpool.model._noise import SAMPLE, estimate_variance
from unpool.model._posterior import Posterior, decode_blocks, see

__all__ = ["Model"]

MAX_MODULES = 300  # each pair of them is a component
NU = 5.0
FAST_DROPPED = 1e-3  # share of a cell's weight given up by skipping components, fast
_RESOLUTION_CELLS = 2048


class Model:
    """What expression looks like: a bag of mixtures over genes, linear scale.

    Each *member* is one clustering of a reference, on another scale of the genes; each cluster is a component with its own
    weight, mean and shrunk covariance and Student tails. A cell is decoded by the mean over the members of their posterior
    means. One member with one component and no tails is the linear decoder. What else a model may know (other sizes of a
    type, mixtures of two types) are further components of its members; what it learns from pooled cells are their weights
    and the members' shares: decoding needs nothing but these.

    Parameters
    ----------
    genes
        Names of the genes.
    members
        Mixtures over these genes.
    nu
        Degrees of freedom of the components, > 2; infinity makes them Gaussian.
    shares
        Share of each member in the answer; equal by default.
    labels
        Label composition of the components, or None.

    Examples
    --------
    >>> import unpool as up
    >>> cells = up.simulate.cell_types(300, 12, 3, rng=0)
    >>> model = up.Model.from_cells(cells[:150])
    >>> design = up.design.balanced(12, 6, pools_per_gene=2, rng=0)
    >>> posterior = model.posterior(cells.X[150:] @ design.matrices[0], design.matrices[0], noise_var=0.0)
    >>> posterior.mean.shape
    (150, 12)
    """

    def __init__(
        self, genes: Sequence[str], members: Sequence[Mixture], *, nu: float = NU, shares: Any = None,
        labels: Labels | None = None,
    ) -> None:  # fmt: skip
        self.genes = tuple(names(genes, "gene"))
        self.members = tuple(members)
        self.nu = float(nu)
        if not self.members or any(mixture.means.shape[1] != self.n_genes for mixture in self.members):
            raise InputError(f"a model needs at least one member, each over its {self.n_genes} genes")
        if not self.nu > 2:
            raise InputError(f"nu={nu!r}: expected more than 2 degrees of freedom, or infinity for Gaussian components")
        equal = np.full(len(self.members), 1 / len(self.members))
        self.shares: Array = equal if shares is None else np.asarray(shares, dtype=np.float64)
        self.labels = labels

    @classmethod
    def from_cells(
        cls, reference: Any, *, layer: str | None = None, label: Any = None, rng: Any = 0,
        n_members: int | None = None, fast: bool = False, n_threads: int | None = None,
    ) -> Model:  # fmt: skip
        """Learn from cells in which every gene was measured.

        Parameters
        ----------
        reference
            Cells x genes, linear scale, >= 0: AnnData, DataFrame, array or sparse matrix.
        layer
            Layer of an AnnData to use instead of X.
        label
            Column of the reference's obs, or one label a cell (cell types): the posterior then has the labels' probabilities.
            Cells without one (missing values) teach expression, but no label.
        rng
            Seed of the clusterings.
        n_members
            Clusterings, on the scales arcsinh, sqrt, linear, arcsinh with a finer and a coarser cofactor, composition, in
            turn. More than six start again with other seeds. None: 6 for at most 32 genes, 4 for more.
        fast
            One member of at most 16 clusters without extra components, whatever n_members.
        n_threads
            Threads; None: all cores of this process. They do not change the result.

        Notes
        -----
        At most 50,000 cells are used, and 20,000 by k-means: a random subset of larger references. Cost a member: cells *
        clusters * genes a k-means sweep, clusters = cells / 15 (4 to 400), and cells * genes² for the covariances.
        """
        table = expression(reference, what="the reference", layer=layer)
        labels = None if label is None else annotation(reference, label, what="label")
        return cls._from_array(
            table.X, table.columns, label=labels, rng=rng, n_members=n_members, fast=fast, n_threads=n_threads
        )

    @classmethod
    def _from_array(
        cls, X: Any, genes: Sequence[str], *, label: pd.Series[Any] | None = None, rng: Any = 0,
        n_members: int | None = None, extras: bool = True, fast: bool = False, n_threads: int | None = None,
    ) -> Model:  # fmt: skip
        members, labels = fitted(X, label, generator(rng), n_members, extras, fast, n_threads)
        return cls(genes, members, labels=labels)

    @classmethod
    def gaussian(cls, reference: Any, *, layer: str | None = None, rng: Any = 0) -> Model:
        """One Gaussian, the linear decoder: posterior mean mu + Σ P (Pᵀ Σ P + R)⁻¹ (d - Pᵀ mu), clipped at zero.

        Parameters
        ----------
        reference, layer
            As in `from_cells`.
        rng
            Chooses 50,000 cells of a larger reference.
        """
        table = expression(reference, what="the reference", layer=layer)
        return cls._gaussian(table.X, table.columns, rng=rng)

    @classmethod
    def from_moments(cls, mean: Any, covariance: Any, *, genes: Sequence[str] | None = None) -> Model:
        """One Gaussian with the given moments, for when the moments are all that is known.

        Parameters
        ----------
        mean
            Genes: mean expression, linear scale; a Series names the genes.
        covariance
            Genes x genes, symmetric and positive semidefinite.
        genes
            Names; default: those of `mean`, or gene_0, gene_1, ...
        """
        if genes is None:
            genes = list(mean.index) if isinstance(mean, pd.Series) else [f"gene_{j}" for j in range(len(mean))]
        if isinstance(covariance, pd.DataFrame) and isinstance(mean, pd.Series):
            align(list(mean.index), list(covariance.index), wanted_by="the mean", held_by="the covariance")
            covariance = covariance.loc[mean.index, mean.index]
        mu, S = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        if mu.ndim != 1 or S.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(S).all()):
            raise InputError(
                f"mean of shape {mu.shape} and covariance of shape {S.shape}: expected g and g x g finite values"
            )
        size = np.abs(S).max(initial=0.0)
        if np.abs(S - S.T).max(initial=0.0) > 1e-8 * size or np.linalg.eigvalsh(S).min(initial=0.0) < -1e-8 * size:
            raise InputError(
                "the covariance is not symmetric and positive semidefinite; correct it (nearest: clip eigenvalues)"
            )
        return cls(genes, [Mixture.of_moments([1.0], mu[None], [S])], nu=np.inf)

    @classmethod
    def from_modules(cls, table: pd.DataFrame, *, activity: float = 1.0) -> Model:
        """Cells as one or two gene modules at unknown strength, for when a dictionary of modules is all that is left.

        Parameters
        ----------
        table
            Genes x modules, >= 0, such as the dictionary of a published composite experiment.
        activity
            Mean activity of a module where it is active: what brings the table to the units of the pools. `decode` takes it
            from the pools.

        Notes
        -----
        One component a module and a pair of modules, at sizes 1/4 to 4, each with a little of all other modules, and one in
        which every module may be active.
        Much less is known than from cells: `adapt` (the default of `decode`) learns from the pools which of them occur.
        """
        U = np.asarray(table, dtype=np.float64)
        if U.ndim != 2 or 0 in U.shape or not np.isfinite(U).all() or U.min() < 0 or U.max() == 0:
            raise InputError(f"modules of shape {U.shape}: expected genes x modules, finite, >= 0 and not all zero")
        if U.shape[1] > MAX_MODULES:
            raise InputError(
                f"{U.shape[1]} modules, and at most {MAX_MODULES} are taken; if these are cells, pass them as cells x genes "
                "(table.T)"
            )
        return cls(list(table.index), [modules_mixture(U, float(activity))])

    @classmethod
    def _gaussian(cls, X: Any, genes: Sequence[str], *, rng: Any = 0) -> Model:
        with one_thread():
            return cls(genes, [one_gaussian(dense(X, reference_rows(X.shape[0], generator(rng))))], nu=np.inf)

    def linear(self) -> Model:
        """Return the one Gaussian with the mean and covariance of this model: its posterior mean is linear in the pools."""
        with one_thread():
            return Model(self.genes, [Mixture.of_moments([1.0], [self.mean], [self.covariance()])], nu=np.inf)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @cached_property
    def mean(self) -> Array:
        """Mean expression: genes, linear scale."""
        return np.asarray(sum(share * mixture.mean for share, mixture in zip(self.shares, self.members, strict=True)))

    @property
    def has_extras(self) -> bool:
        """Whether components are seen at several sizes, or paired."""
        return any(len(m.pairs) > 0 or len(m.sizes) > 1 for m in self.members)

    def covariance(self) -> Array:
        """Covariance of expression over all cells: genes x genes."""
        total = np.zeros((self.n_genes, self.n_genes))
        with one_thread():
            for share, mixture in zip(self.shares, self.members, strict=True):
                away = mixture.mean - self.mean
                total += share * (mixture.covariance() + np.outer(away, away))
        return total

    def posterior(
        self,
        D: Any,
        P: Any,
        *,
        noise_var: Any = None,
        noise_stage: str = "pool",
        sd: bool = True,
        responsibilities: bool = False,
        n_threads: int | None = None,
        out: NDArray[np.floating] | None = None,
        fast: bool = False,
    ) -> Posterior:
        """Expression of cells, given their pools.

        Parameters
        ----------
        D
            Cells x pools, linear scale, array or CSR.
        P
            Genes x pools: the design, genes in the model's order.
        noise_var
            Noise variance: a number, one per pool (pool stage) or per gene (expression stage), a pools x pools covariance,
            or None to have it estimated (`estimate_noise`).
        noise_stage
            "pool": noise in the pools; "expression": noise in every entry of M, before pooling.
        sd
            Whether the standard deviation is wanted; it costs about as much as the mean.
        responsibilities
            Whether the responsibilities of the components are wanted.
        n_threads
            Threads; None: all cores of this process. They do not change the result.
        out
            Cells x genes: where to write the mean; a new float32 array by default.
        fast
            Skip components that carry together at most 0.001 of a cell's weight, instead of 5e-8.

        Notes
        -----
        Cost a cell: components * pools², and pools * genes for each component to which the cell can belong. Memory beyond
        the outputs: 12 * components * pools * genes bytes (all members together), and some 50 MB a thread.
        """
        P, D = self._design(P), _pools(D)
        if D.shape[1] != P.shape[1]:
            raise InputError(f"D has {D.shape[1]} pools, P has {P.shape[1]}; give the design that D was measured with")
        choice(noise_stage, NOISE_STAGES, "noise_stage")
        if noise_var is None:
            noise_var = self.estimate_noise(D, P, noise_stage=noise_stage)
        R = noise_covariance(noise_var, P, noise_stage)
        seen = see(self.members, self.shares, self.nu, P, R, n_threads=n_threads)
        n = D.shape[0]
        if out is not None and out.shape != (n, self.n_genes):
            raise InputError(f"out has shape {out.shape}; expected {(n, self.n_genes)}")
        mean = np.empty((n, self.n_genes), dtype=np.float32) if out is None else out
        deviation = np.empty((n, self.n_genes), dtype=np.float32) if sd else None
        misfit = np.empty(n, dtype=np.float32)
        members = [
            np.empty((n, mixture.n_components), dtype=np.float32) for mixture in self.members if responsibilities
        ]
        called = None if self.labels is None else np.empty((n, len(self.labels.names)), dtype=np.float32)
        decode_blocks(
            seen, D, mean, deviation, misfit, members or None, labels=self.labels, probabilities=called,
            dropped=FAST_DROPPED if fast else DROPPED, n_threads=n_threads,
        )  # fmt: skip
        return Posterior(mean, deviation, misfit, tuple(members) or None, called)

    def estimate_noise(self, D: Any, P: Any, *, noise_stage: str = "pool") -> Array:
        """Noise variance by EM: one a pool (pool stage), or one number (expression stage).

        Uses the first member and at most 4,096 cells, evenly strided; never below 1e-6 of a pool's variance. A cell counts
        for less the worse the model explains it; still, small noise is overestimated where the reference is small or of
        another kind.
        """
        P, D = self._design(P), _pools(D)
        choice(noise_stage, NOISE_STAGES, "noise_stage")
        sample = dense(D, np.arange(0, D.shape[0], -(-D.shape[0] // SAMPLE)))
        with one_thread():
            return estimate_variance(self.members[0], sample, P, noise_stage, self.nu)

    def estimate_gains(self, D: Any, P: Any, *, noise_var: Any = None, rng: Any = 0) -> tuple[Array, Array]:
        """Gain and offset of every pool, D ≈ gain * (M P) + offset, by matching quantiles to what the model expects.

        Parameters
        ----------
        D
            Cells x pools, in any units.
        P
            Genes x pools.
        noise_var
            Noise covariance or variances in the units of D, if known.
        rng
            Seed of the 4,096 cells drawn from the model.
        """
        P, D, rng = self._design(P), _pools(D), generator(rng)
        sample = dense(D, np.arange(0, D.shape[0], -(-D.shape[0] // SAMPLE)))
        R = noise_covariance(0.0 if noise_var is None else noise_var, P, "pool")
        return estimate_gains(sample, self.sample(SAMPLE, rng) @ P, np.sqrt(np.diag(R)), rng)

    def pool_misfit(self, D: Any, P: Any, noise_cov: Any) -> Array:
        """Mean squared standardised error with which each pool is foretold from the others: pools; about 1 where all fits.

        Under each cell's most likely component, with at most 4,096 cells, evenly strided; a squared error counts at most 25.
        A pool that failed, or that was measured on another scale than the model's, stands out.
        """
        P, D = self._design(P), _pools(D)
        sample = dense(D, np.arange(0, D.shape[0], -(-D.shape[0] // SAMPLE)))
        with one_thread():
            return foretold_misfit(self.plain().members[:1], self.nu, sample, P, noise_covariance(noise_cov, P, "pool"))

    def _strange_pools(self, D: Any, P: Any, noise_cov: Any = None) -> NDArray[np.intp]:
        """Pools that disagree with all others; without a noise covariance, no pool may have much more noise than usual."""
        P, D = self._design(P), _pools(D)
        plain, sample = self.plain(), dense(D, np.arange(0, D.shape[0], -(-D.shape[0] // SAMPLE)))
        with one_thread():
            if noise_cov is None:
                v = estimate_variance(plain.members[0], sample, P, "pool", self.nu)
                noise_cov = np.diag(typical_noise(v, np.diag(P.T @ self.covariance() @ P)))
            return strange_pools(plain.members[:1], self.nu, sample, P, noise_covariance(noise_cov, P, "pool"))

    def adapt(
        self, pooled: AnnData, *, noise_var: Any = None, noise_stage: str = "pool", gains: bool = False,
        n_threads: int | None = None,
    ) -> Model:  # fmt: skip
        """The model with weights learned from pooled cells, whose types may come in other proportions.

        Parameters
        ----------
        pooled
            Cells x pools with their design, which may hold more genes than the model is asked for; at most 5,000 cells are
            looked at, evenly strided.
        noise_var, noise_stage
            As in `posterior`; "recorded" is what `measure` wrote.
        gains
            Whether genes may also have other gains than in the reference (another staining, another chemistry): one number
            a gene, near one unless the pools say otherwise. The model then speaks in the units of the pooled cells. It pays
            where the pools determine gains, many cells of several types, and costs a little where they are one.

        Notes
        -----
        EM of the weights of all components and sizes with a Dirichlet prior at their old values (as many pseudo-cells as
        components); means and covariances stay, but for the gains. Members are weighted by exp(3 * mean log density of a
        cell). On cells of the reference's own population weights cost next to nothing.
        """
        design, index = recorded_design(pooled)
        model = self.subset(design.genes)
        if isinstance(noise_var, str):
            choice(noise_var, ["recorded"], "noise_var")
            noise_var, noise_stage = recorded_noise(pooled)
        D, batches = intensities(pooled, what="the pools").X, []
        for b in np.unique(index):
            P, mine = design.matrices[b], np.flatnonzero(index == b)
            if noise_var is None:
                R = noise_covariance(model.estimate_noise(D[mine], P, noise_stage=noise_stage), P, noise_stage)
            else:
                R = design_noise(noise_var, noise_stage, design, int(b))
            batches.append((D, P, R, mine))
        strengths = Strengths(gain_sd=GAIN_SD if gains else 0.0)
        return model._adapted(batches, strengths, n_threads)[0]

    def _adapted(
        self, batches: Sequence[tuple[Any, Array, Array, NDArray[np.intp]]], strengths: Strengths, n_threads: int | None = None
    ) -> tuple[Model, Adapted]:  # fmt: skip
        """Adapt to (D, P, R, rows of D) of every design: the model, and what was learned."""
        stride = -(-sum(len(rows) for *_, rows in batches) // ADAPT_SAMPLE)
        sample = [(dense(D, rows[::stride]), P, R) for D, P, R, rows in batches]
        learned = adapted(self.members, self.shares, self.nu, sample, strengths, n_threads=n_threads)
        return Model(self.genes, learned.members, nu=self.nu, shares=learned.shares, labels=self.labels), learned

    def plain(self) -> Model:
        """The model without its extra components: every cluster at size one, no pairs."""
        labels = self.labels
        if labels is not None:
            own = [c[: m.n_components - len(m.pairs)] for c, m in zip(labels.compositions, self.members, strict=True)]
            labels = Labels(labels.names, tuple(own))
        return Model(self.genes, [m.plain() for m in self.members], nu=self.nu, shares=self.shares, labels=labels)

    def with_tails(self, nu: float) -> Model:
        """The model with other degrees of freedom: small ones for heavy tails, infinity for none."""
        return Model(self.genes, self.members, nu=nu, shares=self.shares, labels=self.labels)

    def subset(self, genes: Sequence[str]) -> Model:
        """Marginal model on some genes, by name, in the given order."""
        wanted = names(genes, "gene")
        index = np.asarray(align(wanted, self.genes, wanted_by="the subset", held_by="the model"))
        members = [mixture.subset(index) for mixture in self.members]
        return Model(wanted, members, nu=self.nu, shares=self.shares, labels=self.labels)

    def sample(self, n: int, rng: Any = None) -> Array:
        """Draw cells from the model, clipped at zero: cells x genes, linear scale."""
        rng = generator(rng)
        per_member = rng.multinomial(integer(n, "n", minimum=0), self.shares)
        with one_thread():
            drawn = [mixture.draw(int(k), self.nu, rng) for k, mixture in zip(per_member, self.members, strict=True)]
        return np.asarray(rng.permutation(np.maximum(np.concatenate(drawn), 0.0)))

    def resolution(self, P: Any, noise_cov: Array, *, rng: Any = 0) -> Array:
        """Share of each gene's variance that pools determine: genes, 0 to 1.

        Var(posterior mean) / (Var(posterior mean) + mean posterior variance) over 2,048 cells drawn from the model, with
        simulated noise.

        Parameters
        ----------
        P
            Genes x pools.
        noise_cov
            R, pools x pools.
        """
        rng, P = generator(rng), self._design(P)
        R = noise_covariance(noise_cov, P, "pool")
        D = simulated_pools(self.sample(_RESOLUTION_CELLS, rng), P, R, rng)
        posterior = self.posterior(D, P, noise_var=R)
        determined = np.var(posterior.mean, axis=0, dtype=np.float64)
        left = np.mean(np.square(np.asarray(posterior.sd, dtype=np.float64)), axis=0)
        total = determined + left
        return np.asarray(np.divide(determined, total, out=np.zeros_like(total), where=total > 0))

    def expected_error(self, P: Any, noise_var: Any, *, noise_stage: str = "pool", rng: Any = 0) -> pd.Series[float]:
        """Root mean squared error that each gene can be expected to keep, in the units of the model: simulated.

        Over 2,048 cells drawn from the model, measured with simulated noise and decoded; see `expected_accuracy`, which takes
        cells that the model does not know.
        """
        choice(noise_stage, NOISE_STAGES, "noise_stage")
        rng, P = generator(rng), self._design(P)
        R = noise_covariance(noise_var, P, noise_stage)
        X = self.sample(_RESOLUTION_CELLS, rng)
        answer = self.posterior(simulated_pools(X, P, R, rng), P, noise_var=R, sd=False)
        error: Array = np.sqrt(np.mean(np.square(X - answer.mean), axis=0))
        return pd.Series(error, index=pd.Index(self.genes, name="gene"), name="expected_error", dtype=float)

    def expected_accuracy(
        self, P: Any, noise_var: Any, *, noise_stage: str = "pool", cells: Any = None, rng: Any = 0
    ) -> pd.Series[float]:
        """Pearson correlation with the truth that each gene can be expected to reach, from simulated pools.

        Parameters
        ----------
        P
            Genes x pools.
        noise_var, noise_stage
            As in `posterior`.
        cells
            Cells x genes, linear scale, that the model was **not** fitted on: an AnnData or DataFrame, whose genes are
            matched by name, or an array of the model's genes in its order. Default: 2,048 cells drawn from the model, which
            promises too much, because the model is right about them.
        rng
            Seed of cells and noise.

        Notes
        -----
        `decode` asks models of the reference's other cells instead (cross-fitting) and writes var["expected_pearson"].

        Examples
        --------
        >>> import unpool as up
        >>> cells = up.simulate.cell_types(400, 12, 3, rng=0)
        >>> design = up.design.balanced(12, 6, pools_per_gene=2, rng=0)
        >>> model = up.Model.from_cells(cells[:200].copy())
        >>> r = model.expected_accuracy(design.matrices[0], 1.0, cells=cells[200:].copy())
        >>> bool(r.between(-1, 1).all())
        True
        """
        choice(noise_stage, NOISE_STAGES, "noise_stage")
        rng, P = generator(rng), self._design(P)
        R = noise_covariance(noise_var, P, noise_stage)
        X = self.sample(_RESOLUTION_CELLS, rng) if cells is None else self._expression(cells)
        answer = self.posterior(simulated_pools(X, P, R, rng), P, noise_var=R, sd=False)
        r = per_gene_pearson(X, np.asarray(answer.mean, dtype=np.float64))
        return pd.Series(r, index=pd.Index(self.genes, name="gene"), name="expected_pearson")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one npz file, atomically."""
        write_arrays(path, self.genes, self.nu, self.shares, self.members, self.labels)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model that `save` wrote."""
        genes, nu, shares, members, labels = read_arrays(path)
        return cls(genes, members, nu=nu, shares=shares, labels=labels)

    def __repr__(self) -> str:
        counts = [mixture.n_components for mixture in self.members]
        components = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        tails = "Gaussian" if np.isinf(self.nu) else f"Student t, nu = {self.nu:g}"
        some = ", ".join(self.genes[:4]) + (", ..." if self.n_genes > 4 else "")
        return f"Model of {self.n_genes} genes ({some}): {len(counts)} members of {components} components, {tails}"

    def _expression(self, cells: Any) -> Array:
        """Expression of the model's genes, cells x genes: by name where genes have names, else by position."""
        t = expression(cells, what="the cells")
        columns = np.arange(self.n_genes)
        if isinstance(cells, (AnnData, pd.DataFrame)):
            columns = align(self.genes, t.columns, wanted_by="the model", held_by="the cells")
        elif t.X.shape[1] != self.n_genes:
            raise InputError(
                f"the cells have {t.X.shape[1]} genes, the model {self.n_genes}; give the model's, in its order"
            )
        return columns_of(t.X, columns)

    def _design(self, P: Any) -> Array:
        """Check a design against the genes of the model."""
        weights: Array = np.asarray(P.toarray() if sparse.issparse(P) else P, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[0] != self.n_genes:
            raise InputError(
                f"P has shape {weights.shape}, the model {self.n_genes} genes; expected genes x pools in the model's order "
                "(Model.subset puts the model into the design's)"
            )
        if not np.isfinite(weights).all():
            raise InputError("P holds values that are not finite; correct the design")
        return weights


def _pools(D: Any) -> Any:
    D = D.tocsr() if sparse.issparse(D) else np.asarray(D)
    if D.ndim != 2 or D.shape[0] == 0 or D.shape[1] == 0:
        raise InputError(f"D has shape {D.shape}; expected cells x pools, at least one of each")
    return D
