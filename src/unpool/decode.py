"""The front door: pooled AnnData in, decoded AnnData out; chooses a method and says which and why."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from unpool._doubt import contradictions, doubts
from unpool._learn import (
    are_modules,
    crossfitted,
    estimated_noise,
    from_modules,
    in_reference_units,
    learn,
    prepared,
    refuse_unused,
)
from unpool._validate import blocks, choice, dense, generator, integer, intensities
from unpool.design import Design
from unpool.errors import InputError, NotConvergedWarning, NotIdentifiableError, UnpoolWarning
from unpool.measure import NOISE_STAGES, design_noise, recorded_design, recorded_noise

if TYPE_CHECKING:
    from unpool.model import Model

__all__ = ["METHODS", "decode"]

METHODS = ("auto", "mixture", "gaussian", "minimum_norm", "nuclear_norm", "als")
DOUBLE_DIPPING = (
    "Decoded values are posterior means: they vary less than the truth, and their errors are correlated between genes and "
    "between alike cells. Clustering on them and then testing the same values for differences counts evidence twice; test "
    "on measured pools, or on cells and genes that the clustering did not use."
)
_WITHOUT_REFERENCE = ("minimum_norm", "nuclear_norm", "als")


def decode(
    pooled: AnnData,
    reference: Any = None,
    *,
    method: str = "auto",
    rank: int | None = None,
    noise_var: float | str | ArrayLike | None = None,
    noise_stage: str = "pool",
    sd: bool = True,
    adapt: bool | str = "auto",
    selection: bool = True,
    calibrate: str | None = None,
    fast: bool = False,
    crossfit: bool = True,
    reference_label: Any = None,
    reference_group: Any = None,
    layer: str | None = None,
    rng: Any = 0,
    n_threads: int | None = None,
) -> AnnData:
    """Recover every gene of every cell from its pools.

    Parameters
    ----------
    pooled
        Cells x pools on the linear scale, with the design (from `measure` or `pooled`). Negative values are noise.
    reference
        Cells x genes on the linear scale, in the units in which the design pools them (AnnData, DataFrame), a fitted
        `Model`, or a dictionary of gene modules (DataFrame, genes x modules; see `Model.from_modules`). Genes are matched by name; genes that the design lacks are left out.
    method
        "mixture" (needs a reference): posterior mean and standard deviation under a bag of mixtures. "gaussian" (needs a
        reference): the same with one Gaussian, which is the best linear decoder. Without a reference: "minimum_norm" (D P⁺),
        "nuclear_norm" (least nuclear norm, nonnegative, with a certificate), "als" (nonnegative factors of a given rank);
        with one design they know nothing beyond the pools' span. "auto": mixture with a reference, otherwise an error that
        says what would do.
    rank
        Number of factors of "als".
    noise_var
        Noise variance: None (estimated), a number, one per pool (per gene where the noise comes before pooling), the
        pools x pools covariance, or "recorded" (what `measure` wrote).
    noise_stage
        "pool" (detector) or "expression" (before pooling).
    sd
        Whether to return the posterior standard deviation, layers["sd"].
    adapt
        Whether the pooled cells may teach the model in which proportions types, sizes and mixtures of types come (EM on at
        most 5,000 of them, see `Model.adapt`). "auto": where they are another population than the reference, which is so
        where adapting gains more log density on them than on reference cells that were held out and measured in
        simulation (uns["unpool"]["shift"]). With reference_group, groups of the reference are held out and adapted to
        with several strengths, also with gains of the genes, and the best is used: the pooled cells are taken for one
        more such group. Without cells to hold out (a Model as reference, selection=False), where the model has extra
        components. True may be worth a little more than "auto" where the reference holds a few hundred cells and the
        pools thousands: these know better how frequent sizes and mixtures are.
    selection
        Whether to measure held-out reference cells in simulation, with this design and noise, and choose what decodes them
        best: with or without the extra components (other sizes of each cluster, pairs of types), then heavy or light tails
        of the components. False: extra components and heavy tails.
    calibrate
        "gain": estimate a gain and an offset for every pool first, for pools in other units than the reference's. It takes
        the pooled cells for cells like the reference's. A given noise_var is in the units of the pools.
    fast
        One small mixture, no selection, and no adaptation unless adapt=True: an order of magnitude faster, less accurate.
    crossfit
        Whether to hold reference cells out in turn, measure them in simulation (the same design and noise) and decode them
        by small models of the others. It calibrates layers["sd"] and `intervals` per gene, and tells before any truth how
        well each gene can be expected to be decoded, var["expected_pearson"]. Costs three small fits (five for at most
        1,000 cells) and the decoding of at most 6,000 cells, whatever the number of cells in the pools. Takes at least 20
        cells as reference; a Model cannot be cross-fitted.
    reference_label
        Column of the reference's obs (or one label a cell), e.g. "cell_type": adds obs["unpool_label"] and
        obsm["unpool_label_probability"] to the answer.
    reference_group
        Column of the reference's obs (or one value a cell), e.g. "donor": whole groups are held out in turn, so that
        intervals and expected accuracies are those of a new group, and adaptation is as strong as helps such a group.
    layer
        Layer of the reference to use instead of X.
    rng
        Seed of the clusterings. The same input, rng and version give the same bytes, whatever the number of threads.
    n_threads
        Threads; default: all.

    Returns
    -------
    AnnData
        X: cells x genes, float32, linear scale of the reference; layers["sd"]; obs, obsm, obsp and uns of the pooled data;
        obs["unpool_misfit"] (about 0 ± 1 for cells that the model explains); var["resolution"] (share of the gene's
        variance that the measurement determines, 0 to 1); var["expected_pearson"]; varm["design"]; uns["unpool"] (what was
        done; "labels" names the columns of the label probabilities).

    Raises
    ------
    NotIdentifiableError
        method="auto" without a reference: one design determines nothing beyond the pools' span.
    InputError
        For input that cannot be used; the message names the item and the remedy.

    Warns
    -----
    NotConvergedWarning
        When a solver stopped before its tolerance: with the value, the tolerance and the remedy.
    UnpoolWarning
        For genes in no pool, for methods that guess beyond what the pools determine, and where pools and reference
        contradict each other: other units, failed pools, strange cells, noise that explains everything.

    Notes
    -----
    Decoded values are posterior means: they vary less than the truth, and their errors are correlated between genes. Tests
    that treat them as independent measurements (differential expression after clustering on them) count evidence twice.
    Cost: cells x components x (pools² + genes); memory: the output, and 4,096 rows at a time.

    Examples
    --------
    >>> import unpool as up
    >>> cells = up.simulate.cell_types(600, 24, 4, rng=0)
    >>> reference, truth = cells[:300].copy(), cells[300:].copy()
    >>> pools = up.measure(truth, up.design.balanced(24, 8, rng=0), snr=10, rng=0)
    >>> up.decode(pools, reference, noise_var="recorded").shape
    (300, 24)
    """
    method = choice(method, METHODS, "method")
    noise_stage = choice(noise_stage, NOISE_STAGES, "noise_stage")
    if not isinstance(adapt, bool) and adapt != "auto":
        raise InputError(f"adapt={adapt!r}: choose True, False or 'auto'")
    if calibrate is not None:
        choice(calibrate, ["gain"], "calibrate")
    design, index = recorded_design(pooled)
    D = intensities(pooled, what="the pools").X
    if isinstance(noise_var, str):
        choice(noise_var, ["recorded"], "noise_var")
        noise_var, noise_stage = recorded_noise(pooled)
    if method == "auto":
        method = _choose(design, reference)
    if method in _WITHOUT_REFERENCE:
        refuse_unused(method, reference_label=reference_label, reference_group=reference_group, calibrate=calibrate)
    if method == "minimum_norm":
        result, record = _minimum_norm(D, design, index)
    elif method in _WITHOUT_REFERENCE:
        result, record = _solved(D, design, index, method, rank, noise_var, noise_stage, rng)
    elif reference is None:
        raise InputError(f'method={method!r} needs a reference; pass one, or use method="minimum_norm" as a best guess')
    else:
        seed = generator(rng)
        modules = are_modules(reference, design)
        if modules:
            reference = from_modules(reference, D, design, index)
        learned = learn(reference, design, method, layer, reference_label, reference_group, seed, n_threads, fast)
        used = [int(b) for b in np.unique(index)]
        noise = {} if noise_var is None else {b: design_noise(noise_var, noise_stage, design, b) for b in used}
        gains: dict[str, Any] = {}
        if calibrate is not None:
            D, noise, gains = in_reference_units(learned.model, D, design, index, noise)
        parameters = {
            "adapt": str(adapt), "selection": selection, "fast": fast, "calibrate": str(calibrate), "crossfit": crossfit,
            "members": len(learned.model.members),
        }  # fmt: skip
        stated = {
            "parameters": parameters,
            "noise": "estimated" if noise_var is None else "given",
            "noise_stage": noise_stage,
        } | gains
        stated |= {} if learned.cells is None else {"n_reference_cells": len(learned.cells)}
        if noise_var is None:
            noise = {b: estimated_noise(learned.model, D, design, index, b, noise_stage) for b in used}
        stated |= {
            "noise_covariance" if design.n_designs == 1 else f"noise_covariance_{b}": R for b, R in noise.items()
        }
        # modules tell which genes go together, but too little of how much to judge pools by
        against = {} if modules else contradictions(learned.model, D, design, index, noise, noise_var is None)
        learned, chosen = prepared(learned, D, design, index, noise, adapt, selection and not fast, seed, n_threads)
        result, record = _posterior(learned.model, D, design, index, noise, sd, n_threads, fast)
        record |= stated | chosen | against
        if sd or crossfit:
            crossfitted(result, record, learned, design, index, seed if crossfit else None, n_threads)
    notes = [
        *_unmeasured(design, method),
        *_undetermined(result, design, method),
        *doubts(result, record, pooled),
    ]
    for note in notes:
        warnings.warn(note, UnpoolWarning, stacklevel=2)
    if not record.get("converged", True):
        exact = method == "nuclear_norm" and noise_var is None
        first = "pass noise_var, for noisy pools are hard to fit exactly, or " if exact else ""
        remedy = f"{first}call solvers.{method}, which takes tol and max_iter"
        warnings.warn(f"{method}: {record['status']}; {remedy}", NotConvergedWarning, stacklevel=2)
    return _annotate(result, pooled, design, record | {"method": method, "warnings": notes, "seed": str(rng)})


def _choose(design: Design, reference: Any) -> str:
    """Return the method that the data allow, or say what would be needed."""
    if reference is not None:
        return "mixture"
    g, m, B = design.n_genes, design.n_pools, design.n_designs
    r = max(1, min(10, m // 2))
    needed = -(-(g - r) // max(m - r, 1))
    raise NotIdentifiableError(
        f"{B} design{'s' * (B > 1)} of {m} pools cannot determine {g} genes without a reference: expression of rank {r} needs "
        f"sum over designs of (pools - rank) >= genes - rank, here {B * (m - r)} >= {g - r} "
        f"({needed} designs of {m} pools reach it), and at least {r} cells in each. Pass reference= (cells with every gene "
        'measured), or method="minimum_norm" for a best guess that knows nothing beyond the pools\' span'
    )


def _posterior(
    model: Model, D: Any, design: Design, index: NDArray[np.intp], noise: dict[int, NDArray[np.float64]], sd: bool,
    n_threads: int | None, fast: bool = False,
) -> tuple[AnnData, dict[str, Any]]:  # fmt: skip
    """Posterior mean and sd of all cells, design by design."""
    n, g = D.shape[0], design.n_genes
    mean = np.empty((n, g), dtype=np.float32)
    deviation = np.empty((n, g), dtype=np.float32) if sd else None
    misfit = np.empty(n, dtype=np.float32)
    called = None if model.labels is None else np.empty((n, len(model.labels.names)), dtype=np.float32)
    resolution = np.zeros(g)
    record: dict[str, Any] = {}
    for b, R in noise.items():
        P, mine = design.matrices[b], index == b
        alone = bool(mine.all())
        cells = D if alone else D[mine]
        answer = model.posterior(
            cells, P, noise_var=R, sd=sd, n_threads=n_threads, out=mean if alone else None, fast=fast
        )
        if not alone:
            mean[mine] = answer.mean
        if deviation is not None:
            deviation[mine] = answer.sd
        misfit[mine] = answer.misfit
        if called is not None:
            called[mine] = answer.labels
        resolution += mine.mean() * model.resolution(P, R)
    result = AnnData(
        mean,
        obs=pd.DataFrame({"unpool_misfit": misfit}, index=pd.RangeIndex(n).astype(str)),
        var=pd.DataFrame({"resolution": resolution}, index=pd.Index(design.genes)),
    )
    if deviation is not None:
        result.layers["sd"] = deviation
    if called is not None and model.labels is not None:
        result.obsm["unpool_label_probability"] = called
        record["labels"] = np.array(model.labels.names, dtype=object)
    return result, record | {"status": "solved"}


def _minimum_norm(D: Any, design: Design, index: NDArray[np.intp]) -> tuple[AnnData, dict[str, Any]]:
    """D P⁺, block by block."""
    inverses = [np.linalg.pinv(P) for P in design.matrices]
    X = np.empty((D.shape[0], design.n_genes), dtype=np.float32)
    for rows in blocks(D.shape[0]):
        block = dense(D, rows)
        for b in np.unique(index[rows]):
            mine = index[rows] == b
            X[rows][mine] = block[mine] @ inverses[b]
    status = "solved: nothing beyond the pools' span is determined"
    return AnnData(X, var=_span_share(design, index)), {"status": status}


def _solved(
    D: Any, design: Design, index: NDArray[np.intp], method: str, rank: int | None, noise_var: Any, noise_stage: str, rng: Any
) -> tuple[AnnData, dict[str, Any]]:  # fmt: skip
    """Answer of an iterative solver, and how it ended. All cells are in memory: cells x genes, float64."""
    from unpool import solvers

    used = np.unique(index)
    rows = [np.flatnonzero(index == b) for b in used]
    channels = [design.matrices[b].any(axis=0) for b in used]
    Ds = [dense(D, r)[:, c] for r, c in zip(rows, channels, strict=True)]
    Ps = [design.matrices[b][:, c] for b, c in zip(used, channels, strict=True)]
    if method == "als":
        if rank is None:
            raise InputError(f'method="als" needs rank=, the number of factors: try {min(10, design.n_pools - 1)}')
        solution = solvers.als(Ds, Ps, integer(rank, "rank"), rng=generator(rng))
    else:
        R: Any = None
        if noise_var is not None:
            every = [design_noise(noise_var, noise_stage, design, int(b)) for b in used]
            each = [r[np.ix_(c, c)] for r, c in zip(every, channels, strict=True)]
            R = each if len(each) > 1 else each[0]
        solution = solvers.nuclear_norm(Ds, Ps, noise_var=R)
    X = np.empty((D.shape[0], design.n_genes), dtype=np.float32)
    X[np.concatenate(rows)] = solution.X
    record = {k: getattr(solution, k) for k in ("status", "converged", "objective", "residual", "gap", "n_iter")}
    return AnnData(X, var=_span_share(design, index)), {k: v for k, v in record.items() if v is not None}


def _span_share(design: Design, index: NDArray[np.intp]) -> pd.DataFrame:
    """Resolution without a prior: the squared length of each gene's axis inside the span of a cell's pools."""
    each = [np.sum(P * np.linalg.pinv(P).T, axis=1) for P in design.matrices]
    share = np.bincount(index, minlength=design.n_designs) / len(index)
    return pd.DataFrame({"resolution": np.clip(share @ each, 0.0, 1.0)}, index=pd.Index(design.genes))


def _undetermined(result: AnnData, design: Design, method: str) -> list[str]:
    """What a method without a reference leaves undetermined."""
    if method not in ("nuclear_norm", "als"):
        return []
    resolution = result.var["resolution"]
    beyond = (
        "with one design nothing beyond the pools' span is determined"
        if design.n_designs == 1
        else "what the designs determine together, beyond each cell's own pools, is not judged here"
    )
    return [
        f"{method} without a reference: {beyond}. A cell's pools determine {resolution.mean():.0%} of a gene on average "
        f"(least: {resolution.idxmin()}, {resolution.min():.0%}; all in var['resolution']); pass reference= for more"
    ]


def _unmeasured(design: Design, method: str) -> list[str]:
    genes = design.unmeasured
    if not genes:
        return []
    shown = ", ".join(genes[:5]) + (", ..." if len(genes) > 5 else "")
    guessed = method in _WITHOUT_REFERENCE
    how = "not determined at all" if guessed else "inferred from the genes that go with them in the reference"
    return [f"{len(genes)} of {design.n_genes} genes are in no pool ({shown}): they are {how}"]


def _annotate(result: AnnData, pooled: AnnData, design: Design, record: dict[str, Any]) -> AnnData:
    """Give the result the pooled object's annotation and the account of what was done."""
    misfit = result.obs.get("unpool_misfit")
    result.obs = pooled.obs.copy()
    if misfit is not None:
        result.obs["unpool_misfit"] = misfit.to_numpy()
    probability = result.obsm.get("unpool_label_probability")
    if probability is not None:
        most_likely = np.argmax(probability, axis=1)
        result.obs["unpool_label"] = pd.Categorical.from_codes(most_likely, categories=pd.Index(record["labels"]))
    for key in ("obsm", "obsp"):
        getattr(result, key).update({k: v for k, v in getattr(pooled, key).items() if k not in getattr(result, key)})
    for name, P in zip(
        ["design"] if design.n_designs == 1 else [f"design_{b}" for b in range(design.n_designs)],
        design.matrices,
        strict=True,
    ):
        result.varm[name] = np.array(P)
    result.uns.update({k: v for k, v in pooled.uns.items() if k != "unpool"})
    text = {k: np.array(v, dtype=object) for k, v in (("pools", design.pools), ("designs", design.names))}
    versions = {p: version(p) for p in ("unpool", "numpy", "scipy", "anndata", "scikit-learn", "numba")}
    result.uns["unpool"] = {
        "kind": "decoded",
        "note": DOUBLE_DIPPING,
        **record,
        **text,
        "design_digest": design.digest,
        "versions": versions,
    }
    return result
