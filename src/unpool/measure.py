"""The forward model D = M P + noise, and the AnnData that holds measured pools and the design they came from."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from unpool._validate import Table, align, blocks, choice, dense, expression, generator, instance, intensities, number
from unpool.design import Design
from unpool.errors import InputError

__all__ = [
    "NOISE_STAGES",
    "covariance_root",
    "design_keys",
    "design_noise",
    "measure",
    "noise_covariance",
    "pooled",
    "recorded_design",
    "recorded_noise",
    "unpool_record",
]

_DESIGN = "pass a Design: Design(matrix, genes=...), or Design.read_csv(path)"
NOISE_STAGES = ("pool", "expression")


def measure(
    truth: Any,
    design: Design,
    *,
    snr: float | None = None,
    noise_var: float | ArrayLike | None = None,
    noise_stage: str = "pool",
    shot: bool = False,
    saturation: float | None = None,
    design_index: Any = None,
    layer: str | None = None,
    rng: Any = None,
) -> AnnData:
    """Pool a true expression matrix as an assay would: D = M P + noise.

    Parameters
    ----------
    truth
        Cells x genes, linear scale, nonnegative (AnnData, DataFrame, array, sparse). Genes are matched by name to the
        design's; an array must hold the design's genes in order.
    design
        The pooling design.
    snr
        Signal to noise. Pool stage: the noise of pool k has the standard deviation of its noise-free values over the cells,
        divided by snr. Expression stage: every entry of M gets noise of variance mean(M²) / snr².
    noise_var
        Noise variance instead of snr, in squared units of D (pool stage: one number, or one per pool, or the pools x pools
        covariance) or of M (expression stage: one number, or one per gene). Neither snr nor noise_var: no noise.
    noise_stage
        "pool" (detector) or "expression" (before pooling: staining, biology).
    shot
        Whether the noise-free pools are counted: Poisson with their value as mean, before the other noise.
    saturation
        Largest value that the detector shows.
    design_index
        Several designs: which of them measures each cell, as numbers, names, or the name of a column of truth.obs.
        Default: cell i by design i modulo the number of designs.
    layer
        Layer of the AnnData to pool instead of X.
    rng
        Seed, numpy Generator or None.

    Returns
    -------
    AnnData
        X: cells x pools on the scale of M P, in the truth's precision; obs, obsm and obsp of the truth; obs["design"] where
        there are several designs; varm["design"] (or "design_0", ...): pools x genes; uns["unpool"].

    Examples
    --------
    >>> import unpool as up
    >>> truth = up.simulate.cell_types(100, 12, 3, rng=0)
    >>> pools = up.measure(truth, up.design.balanced(12, 6, pools_per_gene=2, rng=0), snr=5, rng=0)
    >>> pools.shape
    (100, 6)
    """
    noise_stage = choice(noise_stage, NOISE_STAGES, "noise_stage")
    if snr is not None and noise_var is not None:
        raise InputError(f"both snr={snr!r} and noise_var are given; give one of them")
    if isinstance(noise_var, str):
        raise InputError(f"noise_var={noise_var!r}: measuring needs numbers")
    instance(design, Design, "the design", _DESIGN)
    named = isinstance(truth, (AnnData, pd.DataFrame))
    t = expression(truth, what="the truth", layer=layer)
    columns = _gene_columns(t, design, named)
    index = design_indices(truth, design, design_index, t.X.shape[0])
    clean = _pool(t.X, design, columns, index)
    if snr is not None:
        noise_var = _variance_of_snr(number(snr, "snr", strict=True), noise_stage, t, columns, clean, design, index)
    seeds = generator(rng).spawn(2)
    D = _counted(clean, seeds[0]) if shot else clean
    if noise_var is not None:
        D = D + _noise(noise_var, noise_stage, design, index, seeds[1])
    if saturation is not None:
        D = np.minimum(D, number(saturation, "saturation", strict=True))
    result = pooled(D.astype(t.X.dtype, copy=False), design, design_index=index, obs=_obs(truth, t))
    if isinstance(truth, AnnData):
        for key in ("obsm", "obsp"):
            getattr(result, key).update(dict(getattr(truth, key)))
    record: dict[str, Any] = {"noise_stage": noise_stage, "shot": bool(shot)}
    record["noise_var"] = 0.0 if noise_var is None else np.asarray(noise_var, dtype=np.float64)
    record |= {k: float(v) for k, v in (("snr", snr), ("saturation", saturation)) if v is not None}
    result.uns["unpool"]["simulated"] = record
    return result


def pooled(D: Any, design: Design, *, design_index: Any = None, obs: pd.DataFrame | None = None) -> AnnData:
    """Wrap measured pools and the design that they were measured with.

    Parameters
    ----------
    D
        Cells x pools, linear intensities (negative values are noise and allowed): array, sparse matrix, or a DataFrame or
        AnnData, whose columns are matched by name to the design's pools.
    design
        The pooling design.
    design_index
        Several designs: which of them measured each cell, as numbers, names, or the name of a column of obs.
    obs
        Annotation of the cells; its index names them.

    Returns
    -------
    AnnData
        See `measure`.

    Examples
    --------
    >>> import numpy as np, unpool as up
    >>> design = up.Design([[1, 0], [1, 1], [0, 1]], genes=["CD3", "CD4", "CD8"])
    >>> up.pooled(np.array([[5.0, 2.0], [1.0, 0.5]]), design).var_names.tolist()
    ['pool_0', 'pool_1']
    """
    instance(design, Design, "the design", _DESIGN)
    t = intensities(D, what="the pools")
    order = None
    if isinstance(D, (AnnData, pd.DataFrame)):
        order = align(design.pools, t.columns, wanted_by="the design", held_by="the pools", what="pool")
        extra = sorted(set(t.columns) - set(design.pools))
        if extra:
            raise InputError(f"column {extra[0]!r} of the pools is no pool of the design; drop it or correct its name")
    elif t.X.shape[1] != design.n_pools:
        raise InputError(
            f"the pools have {t.X.shape[1]} columns, the design has {design.n_pools} pools; give one column a pool"
        )
    X = t.X if order is None or np.array_equal(order, np.arange(len(order))) else t.X[:, order]
    if obs is None and isinstance(D, AnnData):
        obs = D.obs
    if obs is not None and len(obs) != X.shape[0]:
        raise InputError(f"obs describes {len(obs)} cells, the pools hold {X.shape[0]}; give one row a cell")
    frame = pd.DataFrame(index=t.rows) if obs is None else obs.copy()
    frame.index = frame.index.astype(str)
    result = AnnData(X, obs=frame, var=pd.DataFrame(index=list(design.pools)))
    if isinstance(D, AnnData):
        for key in ("obsm", "obsp"):
            getattr(result, key).update(dict(getattr(D, key)))
    index = design_indices(result, design, design_index, X.shape[0])
    if design.n_designs > 1:
        result.obs["design"] = pd.Categorical.from_codes(index.tolist(), categories=pd.Index(design.names))
    for key, W in zip(design_keys(design.n_designs), design.matrices, strict=True):
        result.varm[key] = np.ascontiguousarray(W.T)
    result.uns["unpool"] = {
        "kind": "pooled",
        "genes": np.array(design.genes, dtype=object),
        "designs": np.array(design.names, dtype=object),
        "version": version("unpool"),
    }
    return result


def unpool_record(adata: Any, what: str) -> Any:
    """The uns["unpool"] of a pooled AnnData, or an error that says how it is made and how it gets lost."""
    if not isinstance(adata, AnnData):
        raise InputError(f"{what} is a {type(adata).__name__}; wrap measured pools with unpool.pooled(D, design)")
    record = adata.uns.get("unpool")
    if not hasattr(record, "get") or record.get("genes") is None:
        raise InputError(
            f"{what} holds no design (uns['unpool'] is missing): wrap measured pools with unpool.pooled(D, design); "
            'when joining, use anndata.concat(..., merge="same", uns_merge="same")'
        )
    return record


def recorded_design(adata: Any, what: str = "the pooled data") -> tuple[Design, NDArray[np.intp]]:
    """Read the design that a pooled AnnData carries, and which of its designs measured each cell."""
    record = unpool_record(adata, what)
    genes, designs = list(map(str, record["genes"])), list(map(str, record.get("designs", ["design_0"])))
    matrices = []
    for key in design_keys(len(designs)):
        if key not in adata.varm:
            raise InputError(
                f"{what} lost its design (varm[{key!r}] is missing): when joining measurements of one design, use "
                'anndata.concat(..., merge="same", uns_merge="same"), or wrap the pools again with unpool.pooled'
            )
        W = adata.varm[key]
        W = np.asarray(W.toarray() if sparse.issparse(W) else W, dtype=np.float64)
        if W.shape[1] != len(genes):
            raise InputError(
                f"{what}: varm[{key!r}] has {W.shape[1]} genes, uns['unpool'] names {len(genes)}; wrap the pools again"
            )
        matrices.append(W.T)
    if adata.n_vars == 0:
        raise InputError(f"{what} has no pools; check the selection that made it")
    design = Design(matrices, genes=genes, pools=list(map(str, adata.var_names)), names=designs)
    if design.n_designs == 1:
        return design, np.zeros(adata.n_obs, dtype=np.intp)
    if "design" not in adata.obs:
        raise InputError(
            f"{what} has {design.n_designs} designs but no obs['design'] that says which measured each cell; add it"
        )
    return design, design_indices(adata, design, "design", adata.n_obs)


def recorded_noise(adata: AnnData) -> tuple[Any, str]:
    """Noise variance and stage that `measure` wrote, or an error when these pools were not simulated."""
    record = unpool_record(adata, "the pooled data").get("simulated")
    if record is None:
        raise InputError(
            'noise_var="recorded", but these pools record no noise (they were not made by measure); '
            "give noise_var as a number or one per pool, or leave it out to have it estimated"
        )
    value = np.asarray(record["noise_var"], dtype=np.float64)
    return (float(value) if value.ndim == 0 else value), str(record["noise_stage"])


def design_indices(adata: Any, design: Design, index: Any, n_cells: int) -> NDArray[np.intp]:
    """Number of the design that measured each cell, from numbers, names, a column of obs, or in turn."""
    if index is None:
        return np.arange(n_cells) % design.n_designs
    if isinstance(index, str):
        if not isinstance(adata, AnnData) or index not in adata.obs:
            raise InputError(f"design_index={index!r} is no column of obs; give a column, or one design per cell")
        index = adata.obs[index]
    values = pd.Series(np.asarray(index)).reset_index(drop=True)
    if len(values) != n_cells:
        raise InputError(f"design_index has {len(values)} entries for {n_cells} cells; give one design per cell")
    position = {name: b for b, name in enumerate(design.names)} | {b: b for b in range(design.n_designs)}
    found = values.map(position)
    if found.isna().any():
        raise InputError(
            f"cell {int(np.flatnonzero(found.isna())[0])} has design {values[found.isna()].iloc[0]}; "
            f"the designs are {', '.join(design.names[:5])} (numbers 0 to {design.n_designs - 1})"
        )
    return np.asarray(found.to_numpy(), dtype=np.intp)


def design_keys(n_designs: int) -> list[str]:
    """Keys of varm that hold the designs."""
    return ["design"] if n_designs == 1 else [f"design_{b}" for b in range(n_designs)]


def _gene_columns(t: Table, design: Design, named: bool) -> Any:
    """Columns of the truth that are the design's genes; those of an array are taken in order."""
    if named:
        return align(design.genes, t.columns, wanted_by="the design", held_by="the truth")
    if t.X.shape[1] != design.n_genes:
        raise InputError(
            f"the truth has {t.X.shape[1]} genes, the design has {design.n_genes}; give the same genes in order"
        )
    return np.arange(design.n_genes)


def _obs(truth: Any, t: Table) -> pd.DataFrame:
    return truth.obs if isinstance(truth, AnnData) else pd.DataFrame(index=t.rows)


def _pool(X: Any, design: Design, columns: Any, index: NDArray[np.intp]) -> NDArray[np.float64]:
    """M P, block by block: cells x pools."""
    D = np.empty((X.shape[0], design.n_pools))
    for rows in blocks(X.shape[0]):
        M = dense(X, rows)[:, columns]
        for b in np.unique(index[rows]):
            mine = index[rows] == b
            D[rows][mine] = M[mine] @ design.matrices[b]
    return D


def _variance_of_snr(
    snr: float, stage: str, t: Table, columns: Any, clean: NDArray[np.float64], design: Design, index: NDArray[np.intp]
) -> Any:
    """Noise variance that a signal-to-noise ratio means: one per pool (and design), or one for all entries of M."""
    if stage == "expression":
        total = sum(float(np.square(dense(t.X, rows)[:, columns]).sum()) for rows in blocks(t.X.shape[0]))
        return total / (t.X.shape[0] * design.n_genes) / snr**2
    per_design = [np.var(clean[index == b], axis=0) if np.any(index == b) else np.zeros(design.n_pools)
                  for b in range(design.n_designs)]  # fmt: skip
    v = np.stack(per_design) / snr**2
    return v[0] if design.n_designs == 1 else v


def noise_covariance(noise_var: Any, P: NDArray[np.float64], stage: str) -> NDArray[np.float64]:
    """R, the covariance of the noise in the pools: pools x pools.

    Parameters
    ----------
    noise_var
        A number, a vector (one per pool at the pool stage, one per gene at the expression stage), or R itself.
    P
        Genes x pools.
    stage
        "pool": R = diag(v); "expression": R = Pᵀ diag(v) P.
    """
    g, m = P.shape
    try:
        v = np.asarray(noise_var, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"noise_var={noise_var!r} is not a number; give a variance >= 0, or one per pool") from error
    if not np.isfinite(v).all():
        raise InputError("noise_var is not finite; give variances >= 0, or None to have them estimated")
    if v.ndim == 2 and v.shape == (m, m):
        return _checked_covariance(v)
    size, item = (m, "pool") if stage == "pool" else (g, "gene")
    if v.ndim > 1 or (v.ndim == 1 and len(v) != size):
        raise InputError(
            f"noise_var has shape {v.shape}; expected one number, one per {item} ({size}), or a {m} x {m} covariance"
        )
    if (v < 0).any():
        raise InputError(f"noise_var is {v.min():g}; a variance is >= 0")
    v = np.broadcast_to(v, (size,))
    return np.diag(v) if stage == "pool" else np.asarray(P.T @ (v[:, None] * P))


def design_noise(noise_var: Any, stage: str, design: Design, b: int) -> NDArray[np.float64]:
    """R of design b; with several designs, `noise_var` may also hold one row of pool variances per design."""
    per_design = stage == "pool" and design.n_designs > 1 and np.shape(noise_var) == (design.n_designs, design.n_pools)
    return noise_covariance(noise_var[b] if per_design else noise_var, design.matrices[b], stage)


def _checked_covariance(R: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = float(np.abs(R).max())
    if not np.allclose(R, R.T, rtol=0, atol=1e-8 * largest):
        raise InputError("noise_var is a matrix but no covariance: it is not symmetric; correct it")
    R = (R + R.T) / 2
    smallest = float(np.linalg.eigvalsh(R)[0])
    if smallest < -1e-8 * largest:
        raise InputError(f"noise_var is a matrix but no covariance: it has the eigenvalue {smallest:g}; correct it")
    return R


def covariance_root(R: NDArray[np.float64]) -> NDArray[np.float64]:
    """L with L Lᵀ = R, also for a singular R: standard normal rows times Lᵀ have covariance R."""
    eigenvalue, vector = np.linalg.eigh(R)
    return np.asarray(vector * np.sqrt(np.maximum(eigenvalue, 0.0)))


def _noise(noise_var: Any, stage: str, design: Design, index: NDArray[np.intp], rng: np.random.Generator) -> Any:
    """Noise in the pools, cells x pools."""
    roots = [covariance_root(design_noise(noise_var, stage, design, b)) for b in range(design.n_designs)]
    E = np.empty((len(index), design.n_pools))
    rows_of = list(blocks(len(index)))
    for rows, block_rng in zip(rows_of, rng.spawn(len(rows_of)), strict=True):
        z = block_rng.standard_normal((rows.stop - rows.start, design.n_pools))
        for b in np.unique(index[rows]):
            mine = index[rows] == b
            E[rows][mine] = z[mine] @ roots[b].T
    return E


def _counted(clean: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Poisson counts with the noise-free pools as means."""
    D = np.empty_like(clean)
    rows_of = list(blocks(len(clean)))
    for rows, block_rng in zip(rows_of, rng.spawn(len(rows_of)), strict=True):
        D[rows] = block_rng.poisson(clean[rows])
    return D
