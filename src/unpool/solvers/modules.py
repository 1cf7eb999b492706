"""Sparse modules: expression as a few active modules per cell, decoded from the pools by l1-penalised regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unpool._validate import generator, integer, number
from unpool.errors import InputError
from unpool.kernels.lasso import nonnegative_lasso
from unpool.measure import covariance_root
from unpool.solvers._input import as_batches, as_matrix
from unpool.solvers._solution import Array, Solution

__all__ = ["learn_modules", "modules"]

# What the reference chooses among by simulation, and what is taken where it cannot: the shares of energy that a cell's
# activities may leave unexplained in its expression (while learning) and in its pools (while decoding).
ACTIVITY_ERRORS = (0.2, 0.5)
DECODE_ERRORS = (0.02, 0.1, 0.05, 0.01, 0.005, 0.001)
MIN_REFERENCE = 40  # with fewer cells the first entries are taken
N_SIMULATED = 2000
N_STARTS = 3
N_BLOCKS = 20


def modules(
    D: Any,
    P: Any,
    reference: Any = None,
    *,
    dictionary: Any = None,
    n_modules: int = 80,
    module_error: float = 0.05,
    activity_error: float | None = None,
    decode_error: float | None = None,
    noise_covariance: Any = None,
    n_iter: int = 10,
    rng: Any = 0,
) -> Solution:
    """Decode by sparse module activities: the published method of composite in-situ imaging.

    X = W Uᵀ, where the columns of U (genes x modules) are sparse nonnegative modules learned from a reference
    (`learn_modules`), and the activities w >= 0 of a cell with pools d are

        min Σ w  s.t.  ‖d - Pᵀ U w‖² <= decode_error x (mean ‖d‖² of the cell's block),

    the blocks being 20 groups of cells of similar ‖d‖. Where no w reaches that error, one of least error is taken.

    Parameters
    ----------
    D
        Cells x pools, linear scale, or a sequence of such matrices, one a design.
    P
        Genes x pools, or a sequence of such matrices.
    reference
        Cells x genes, linear scale, nonnegative, in the units that the design pools. Not needed with a dictionary.
    dictionary
        Genes x modules, >= 0 (array or DataFrame, genes in the order of P), instead of learning one.
    n_modules, module_error, activity_error, n_iter
        See `learn_modules`. activity_error=None: 0.2 or 0.5, see decode_error.
    decode_error
        Share of the pools' energy that may be left unexplained, 0 to 1. None: of 0.1, 0.05, 0.02, 0.01, 0.005, 0.001 the
        one that decodes the simulated pools of reference cells best (mean per-gene Pearson of a quarter of the reference,
        at most 2,000 cells, held out from learning for this purpose); 0.02 with fewer than 40 reference cells, or none.
    noise_covariance
        Pools x pools, or one per design: added to those simulated pools. None: no noise.
    rng
        Seed of the starting modules, the held-out cells and the simulated noise.

    Returns
    -------
    Solution
        U: activities (cells x modules), V: the dictionary (genes x modules), X = U Vᵀ >= 0, linear scale; residual; the
        objective is Σ w over all cells.

    Notes
    -----
    Modules are learned from three starts, and the one that decodes simulated pools of reference cells best is kept; with
    the errors chosen as well, nine times in all. Cost: cells x (active modules) x (modules x active + active²), linear in
    the cells. A cell's answer depends on its
    block through the error alone. When it fails: cells of a type that the reference lacks, and genes that no module
    tells apart; a mixture model decodes both better.

    References
    ----------
    Cleary et al. (2017), Cell 171:1424 (sparse modules); Cleary et al. (2021), Nature Biotechnology 39:936 (imaging).

    Examples
    --------
    >>> import numpy as np, unpool as up
    >>> cells = np.asarray(up.simulate.cell_types(400, 30, 4, rng=0).X)
    >>> P = up.design.balanced(30, 12, rng=0).matrices[0]
    >>> up.solvers.modules(cells[200:] @ P, P, cells[:200]).X.shape
    (200, 30)
    """
    Ds, Ps = as_batches(D, P)
    rng = generator(rng)
    X = None if reference is None else _nonnegative(reference, "reference", ("cell", "gene"), len(Ps[0]))
    error = None if decode_error is None else number(decode_error, "decode_error", maximum=1.0)
    activity = None if activity_error is None else number(activity_error, "activity_error", maximum=1.0)
    learning: dict[str, Any] = {"n_modules": n_modules, "module_error": module_error, "n_iter": n_iter}
    V = None if dictionary is None else _nonnegative(dictionary, "dictionary", ("gene", "module"), len(Ps[0]))
    if V is None and X is None:
        raise InputError(
            "neither reference nor dictionary is given; pass reference= (cells x genes) to learn modules from"
        )
    if X is not None and len(X) >= MIN_REFERENCE:
        V, error = _chosen(X, Ps, _covariances(noise_covariance, Ps), V, activity, error, learning, rng)
    elif V is None:
        V = learn_modules(X, activity_error=ACTIVITY_ERRORS[0] if activity is None else activity, rng=rng, **learning)
    error = DECODE_ERRORS[0] if error is None else error
    parts = [_activities(d, p.T @ V, error) for d, p in zip(Ds, Ps, strict=True)]
    squares = np.concatenate([np.square(d - w @ (V.T @ p)).sum(axis=1) for d, p, w in zip(Ds, Ps, parts, strict=True)])
    W = np.vstack(parts)
    return Solution(
        U=W,
        V=V,
        objective=float(W.sum()),
        residual=float(np.sqrt(squares.sum())),
        status=f"solved: {V.shape[1]} modules, at most {error:.3g} of the pools' energy left unexplained where that is possible",
    )


def learn_modules(
    X: Any,
    *,
    n_modules: int = 80,
    module_error: float = 0.05,
    activity_error: float = 0.2,
    n_iter: int = 10,
    rng: Any = 0,
) -> Array:
    """Learn sparse nonnegative modules: X ≈ W Uᵀ with few active modules per cell and few genes per module.

    Starting from cells (chosen far apart, as k-means++ does), alternate between activities of least Σ w per cell, at a
    given error of the cell's expression, and modules of least Σ u per gene, at a given error of the gene. Modules that
    lose all their genes are dropped.

    Parameters
    ----------
    X
        Cells x genes, linear scale, nonnegative. Genes are brought to unit norm inside.
    n_modules
        Number of modules to start with; at most the number of cells that express anything.
    module_error
        Share of a gene's energy (sum of squares) that its modules may leave unexplained.
    activity_error
        Share of the cells' energy that their activities may leave unexplained, in 20 blocks of cells of similar norm.
    n_iter
        Alternations.
    rng
        Seed of the starting cells.

    Returns
    -------
    ndarray
        Genes x modules, >= 0, in the units of X; columns have unit norm where genes have unit norm.

    Notes
    -----
    Cost per alternation: (cells + genes) x modules² and the lasso paths; linear in the cells.

    Examples
    --------
    >>> import numpy as np
    >>> from unpool.solvers.modules import learn_modules
    >>> planted = np.kron(np.eye(3), np.ones((4, 1)))
    >>> cells = np.random.default_rng(0).gamma(1.0, 1.0, (200, 3)) @ planted.T
    >>> learn_modules(cells, n_modules=3).shape
    (12, 3)
    """
    from sklearn.cluster import kmeans_plusplus

    X = _nonnegative(X, "reference", ("cell", "gene"))
    n_modules, n_iter = integer(n_modules, "n_modules"), integer(n_iter, "n_iter")
    for value, name in ((module_error, "module_error"), (activity_error, "activity_error")):
        number(value, name, maximum=1.0)
    norms = np.linalg.norm(X, axis=0)
    X = X / np.where(norms > 0, norms, 1.0)
    size = np.linalg.norm(X, axis=1)
    if not size.any():
        raise InputError("the reference is zero everywhere; pass expression on the linear scale")
    shapes = X[size > 0] / size[size > 0, None]
    seed = int(generator(rng).integers(2**31))
    U = kmeans_plusplus(shapes, min(n_modules, len(shapes)), random_state=seed)[0].T
    squares = np.square(X).sum(axis=0)
    for _ in range(n_iter):
        W = _activities(X, U, activity_error)
        following = nonnegative_lasso(W.T @ W, X.T @ W, squares, error=module_error * squares)[0]
        following = following[:, following.any(axis=0)]
        if not following.size:  # every gene may be left unexplained: keep what there was
            break
        U = following / np.linalg.norm(following, axis=0)
    return np.asarray(U * norms[:, None])


def _activities(Y: Array, A: Array, share: float) -> Array:
    """Weights >= 0 of least sum that leave `share` of the energy of similar rows of Y unexplained: rows x atoms of A."""
    squares = np.square(Y).sum(axis=1)
    errors = np.empty(len(Y))
    for block in np.array_split(np.argsort(squares, kind="stable"), N_BLOCKS):
        errors[block] = share * squares[block].mean() if len(block) else 0.0
    return nonnegative_lasso(A.T @ A, Y @ A, squares, error=errors)[0]


def _chosen(
    X: Array,
    Ps: Sequence[Array],
    Rs: Sequence[Array],
    V: Array | None,
    activity: float | None,
    error: float | None,
    learning: dict[str, Any],
    rng: np.random.Generator,
) -> tuple[Array, float]:
    """Dictionary and decode error that decode simulated pools of reference cells best.

    The errors are chosen on held-out cells, by the mean over several starts (or the luck of one would choose); then, of
    several starts on the whole reference, the one that decodes these cells best is the dictionary.
    """
    order = rng.permutation(len(X))
    held = X[order[: min(len(X) // 4, N_SIMULATED)]]
    rest = X[order[len(held) :]]
    pools = [
        held @ P + rng.standard_normal((len(held), len(R))) @ covariance_root(R).T for P, R in zip(Ps, Rs, strict=True)
    ]

    def learn(cells: Array, a: float) -> list[Array]:
        return [V] if V is not None else [learn_modules(cells, activity_error=a, rng=s, **learning) for s in seeds]

    def score(U: Array, e: float) -> float:
        decoded = (_activities(D, P.T @ U, e) @ U.T for D, P in zip(pools, Ps, strict=True))
        return sum(_mean_correlation(held, Y) for Y in decoded)

    seeds = [int(s) for s in rng.integers(2**31, size=N_STARTS)]
    activities = (activity,) if activity is not None else ACTIVITY_ERRORS if V is None else ACTIVITY_ERRORS[:1]
    errors = DECODE_ERRORS if error is None else (error,)
    if len(activities) * len(errors) == 1:
        a, e = activities[0], errors[0]
    else:
        tried = {
            (a, e): np.mean([score(U, e) for U in Us]) for a in activities for Us in [learn(rest, a)] for e in errors
        }
        a, e = max(tried, key=lambda pair: tried[pair])
    return max(learn(X, a), key=lambda U: score(U, e)), e


def _mean_correlation(X: Array, Y: Array) -> float:
    """Mean over genes of the Pearson correlation; a constant gene counts as 0."""
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    scale = np.sqrt(np.square(X).sum(axis=0) * np.square(Y).sum(axis=0))
    return float(np.mean((X * Y).sum(axis=0) / np.where(scale > 0, scale, np.inf)))


def _nonnegative(values: Any, name: str, axes: tuple[str, str], n_genes: int | None = None) -> Array:
    matrix = as_matrix(values, name, *axes)
    if n_genes is not None and matrix.shape[axes.index("gene")] != n_genes:
        raise InputError(
            f"{name} has {matrix.shape[axes.index('gene')]} genes but P has {n_genes}; expected {axes[0]}s x {axes[1]}s "
            f"with the genes of P in order, got shape {matrix.shape}"
        )
    if (matrix < 0).any():
        i, j = (int(k[0]) for k in np.nonzero(matrix < 0))
        raise InputError(
            f"{name} holds {matrix[i, j]:g} at {axes[0]} {i}, {axes[1]} {j}; expected values >= 0: pass linear intensities, "
            "not scaled or centred ones"
        )
    return matrix


def _covariances(noise_covariance: Any, Ps: Sequence[Array]) -> list[Array]:
    """One pools x pools covariance per design."""
    if noise_covariance is None:
        return [np.zeros((p.shape[1], p.shape[1])) for p in Ps]
    several = isinstance(noise_covariance, (list, tuple)) and np.ndim(noise_covariance[0]) == 2
    given = list(noise_covariance) if several else [noise_covariance] * len(Ps)
    if len(given) != len(Ps):
        raise InputError(f"{len(given)} noise covariances for {len(Ps)} designs; give one, or one for each design")
    matrices = [as_matrix(R, "noise_covariance", "pool", "pool") for R in given]
    for R, p in zip(matrices, Ps, strict=True):
        if R.shape != (p.shape[1], p.shape[1]):
            raise InputError(
                f"noise_covariance has shape {R.shape}; expected pools x pools, {p.shape[1]} x {p.shape[1]}"
            )
    return matrices
