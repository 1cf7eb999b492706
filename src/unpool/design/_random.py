"""Designs drawn at random: bernoulli and balanced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unpool._validate import generator, integer, names, number
from unpool.design._design import Design
from unpool.errors import InputError

__all__ = ["balanced", "bernoulli", "uncorrelated"]

Matrix = NDArray[np.float64]


def bernoulli(
    genes: int | Sequence[str],
    n_pools: int | None = None,
    *,
    pack_ratio: float | None = None,
    p: float = 0.25,
    n_designs: int = 1,
    rng: Any = None,
) -> Design:
    """Put each gene into each pool with probability p, redrawn until every gene is in a pool and every pool has a gene.

    Parameters
    ----------
    genes
        Number of genes, or their names.
    n_pools, pack_ratio
        Number of pools, or pools / genes: give one of the two.
    p
        Probability, 0 < p <= 1.
    n_designs
        Number of independent designs.
    rng
        Seed, numpy Generator or None.

    Examples
    --------
    >>> import unpool as up
    >>> up.design.bernoulli(100, pack_ratio=0.25, rng=0).n_pools
    25
    """
    p = number(p, "p", strict=True, maximum=1.0)

    def draw(n_genes: int, n_pools: int, rng: np.random.Generator) -> Matrix:
        for _ in range(1000):
            W = rng.random((n_genes, n_pools)) < p
            for _ in range(1000):  # genes are independent: redrawing the empty ones alone leaves the law unchanged
                empty = ~W.any(axis=1)
                if not empty.any():
                    break
                W[empty] = rng.random((int(empty.sum()), n_pools)) < p
            if W.any(axis=1).all() and W.any(axis=0).all():
                return W.astype(np.float64)
        raise InputError(
            f"p={p:g} leaves a gene or a pool empty in 1000 draws of {n_genes} x {n_pools}; choose a larger p"
        )

    return _designs(genes, n_pools, pack_ratio, n_designs, rng, draw)


def balanced(
    genes: int | Sequence[str],
    n_pools: int | None = None,
    *,
    pack_ratio: float | None = None,
    pools_per_gene: int = 3,
    n_designs: int = 1,
    rng: Any = None,
) -> Design:
    """Put every gene into the same number of pools, fill the pools equally, and let pairs of genes share few pools.

    The pools' sizes differ by one at most. Starting from a random design with these properties, exchanges between two
    genes are kept while they lower the sum over pairs of (shared pools)²; cost: at most 20,000 exchanges of O(genes).

    Parameters
    ----------
    genes
        Number of genes, or their names.
    n_pools, pack_ratio
        Number of pools, or pools / genes: give one of the two.
    pools_per_gene
        Number of pools of each gene.
    n_designs
        Number of independent designs.
    rng
        Seed, numpy Generator or None.

    Examples
    --------
    >>> import unpool as up
    >>> design = up.design.balanced(["CD3", "CD4", "CD8", "CD19", "CD20", "CD45"], 4, pools_per_gene=2, rng=0)
    >>> design.matrices[0].sum(axis=0).tolist()
    [3.0, 3.0, 3.0, 3.0]
    """
    k = integer(pools_per_gene, "pools_per_gene")

    def draw(n_genes: int, n_pools: int, rng: np.random.Generator) -> Matrix:
        if k > n_pools:
            raise InputError(f"pools_per_gene={k} is more than the {n_pools} pools; choose at most {n_pools}")
        if n_genes * k < n_pools:
            raise InputError(
                f"{n_genes} genes in {k} pools each cannot fill {n_pools} pools; choose at most {n_genes * k} pools"
            )
        return _spread(_equally_full(n_genes, n_pools, k, rng), rng)

    return _designs(genes, n_pools, pack_ratio, n_designs, rng, draw)


def uncorrelated(
    genes: int | Sequence[str],
    n_pools: int,
    *,
    pools_per_gene: tuple[int, int] = (1, 3),
    max_correlation: float = 0.8,
    max_fill_ratio: float = 4.0,
    rng: Any = None,
) -> Design:
    """Put each gene into a random number of random pools, redrawn while two genes are told apart badly.

    Parameters
    ----------
    genes
        Number of genes, or their names.
    n_pools
        Number of pools.
    pools_per_gene
        Fewest and most pools of a gene; the number is uniform between them (before redrawing).
    max_correlation
        Largest correlation between the rows of two genes; genes in all pools count as correlated by 1.
    max_fill_ratio
        Largest ratio of the numbers of genes in the fullest and the emptiest pool.
    rng
        Seed, numpy Generator or None.

    Examples
    --------
    >>> from unpool.design._random import uncorrelated
    >>> uncorrelated(100, 25, rng=0).n_pools
    25
    """
    low, high = (integer(k, "pools_per_gene") for k in pools_per_gene)
    if low > high or low > integer(n_pools, "n_pools"):
        raise InputError(
            f"pools_per_gene={pools_per_gene!r} with {n_pools} pools: expected fewest <= most, fewest <= pools"
        )
    limit = number(max_correlation, "max_correlation", maximum=1.0)

    def draw(n_genes: int, n_pools: int, rng: np.random.Generator) -> Matrix:
        for _ in range(30):
            W = _rows_apart(n_genes, n_pools, (low, min(high, n_pools)), limit, rng)
            if W is not None and W.sum(axis=0).max() <= max_fill_ratio * W.sum(axis=0).min():
                return W
        raise InputError(
            f"no random design of {n_genes} genes in {n_pools} pools keeps its genes' rows below a correlation of {limit:g} "
            f"and its pools within a factor of {max_fill_ratio:g}; choose more pools, fewer genes, or give a design"
        )

    listed = _gene_names(genes)
    return Design([draw(len(listed), n_pools, generator(rng))], genes=listed)


def _rows_apart(
    n_genes: int, n_pools: int, sizes: tuple[int, int], limit: float, rng: np.random.Generator
) -> Matrix | None:
    """Draw gene after gene, each until its row correlates with no earlier one above the limit; None after 1,000 draws."""
    # Z: rows centred and at unit norm; genes in all pools have no direction there and share one of their own
    W, Z = np.zeros((n_genes, n_pools)), np.zeros((n_genes, n_pools + 1))
    for j in range(n_genes):
        for _ in range(1000):
            row = np.zeros(n_pools)
            row[rng.choice(n_pools, int(rng.integers(sizes[0], sizes[1] + 1)), replace=False)] = 1.0
            z = np.append(row - row.mean(), float(row.all()))
            z /= np.linalg.norm(z)
            if j == 0 or (Z[:j] @ z).max() <= limit + 1e-12:
                W[j], Z[j] = row, z
                break
        else:
            return None
    return W


def _designs(
    genes: int | Sequence[str],
    n_pools: int | None,
    pack_ratio: float | None,
    n_designs: int,
    rng: Any,
    draw: Callable[[int, int, np.random.Generator], Matrix],
) -> Design:
    """Draw designs of the asked size."""
    listed = _gene_names(genes)
    if (n_pools is None) == (pack_ratio is None):
        raise InputError("give either n_pools or pack_ratio (pools / genes), and not both")
    if pack_ratio is not None:
        n_pools = max(1, round(number(pack_ratio, "pack_ratio", strict=True) * len(listed)))
    m, generators = integer(n_pools, "n_pools"), generator(rng).spawn(integer(n_designs, "n_designs"))
    return Design([draw(len(listed), m, g) for g in generators], genes=listed)


def _gene_names(genes: int | Sequence[str]) -> list[str]:
    if hasattr(genes, "var_names"):
        raise InputError("genes is an AnnData; give the names: list(adata.var_names)")
    if isinstance(genes, str):
        raise InputError(f"genes={genes!r}: give a number of genes, or a list of names")
    listed = [f"gene_{j}" for j in range(integer(genes, "genes"))] if np.ndim(genes) == 0 else names(genes, "gene")
    if not listed:
        raise InputError("genes is empty; give a number of genes or their names")
    return listed


def _equally_full(n_genes: int, n_pools: int, k: int, rng: np.random.Generator) -> Matrix:
    """Deal pools to genes from shuffled decks; a card that the gene holds already goes to the next gene."""
    W = np.zeros((n_genes, n_pools))
    deck: list[int] = []
    for row in W:
        taken = 0
        while taken < k:
            position = next((i for i, pool in enumerate(deck) if not row[pool]), None)
            if position is None:
                deck.extend(rng.permutation(n_pools).tolist())
                continue
            row[deck.pop(position)] = 1.0
            taken += 1
    return W


def _spread(W: Matrix, rng: np.random.Generator) -> Matrix:
    """Exchange pools between two genes while the sum over pairs of (shared pools)² does not grow."""
    n_genes = len(W)
    if n_genes < 2:
        return W
    steps = min(20_000, 200 * n_genes)
    pairs = rng.integers(n_genes, size=(steps, 2))
    picks = rng.random((steps, 2))
    for (i, j), (u, v) in zip(pairs, picks, strict=True):
        only_i, only_j = np.flatnonzero(W[i] > W[j]), np.flatnonzero(W[j] > W[i])
        if only_i.size == 0 or only_j.size == 0:
            continue
        a, b = only_i[int(u * only_i.size)], only_j[int(v * only_j.size)]
        change = W[:, b] - W[:, a]  # by which gene i's overlaps grow and gene j's shrink
        change[[i, j]] = 0.0
        difference = W @ (W[i] - W[j])
        if change @ (difference + change) <= 0:
            W[[i, i, j, j], [a, b, a, b]] = 0.0, 1.0, 1.0, 0.0
    return W
