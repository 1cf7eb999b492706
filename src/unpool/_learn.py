"""Learn from a reference, prepare for the pooled cells, and hold cells out to say how well: decoding with a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from unpool._validate import align, annotation, blocks, columns_of, dense, expression, names
from unpool.design import Design
from unpool.errors import InputError
from unpool.intervals import Calibration
from unpool.measure import noise_covariance

if TYPE_CHECKING:
    from unpool.model import Model, Rehearsal, Strengths

__all__ = [
    "Learned",
    "adapt_to",
    "are_modules",
    "chosen",
    "crossfitted",
    "estimated_noise",
    "from_modules",
    "in_reference_units",
    "learn",
    "prepared",
    "refuse_unused",
]

CROSSFIT_MEMBERS = 3  # of the models that hold cells out: errors need less than answers
LIGHT_TAILS = 30.0  # degrees of freedom that noise often asks for: it blurs tails


@dataclass(frozen=True, eq=False)
class Learned:
    """A model of the design's genes in the design's order, and what to learn smaller ones from."""

    model: Model
    cells: NDArray[np.float64] | None = None  # those used, x genes in the order of their names
    groups: Any = None
    fit: Callable[[NDArray[np.float64]], Model] | None = None
    extras: bool = True  # whether models keep their extra components
    nu: float | None = None  # degrees of freedom of their components; None: the model's own
    strengths: Strengths | None = None  # with which they adapt

    def shaped(self, model: Model) -> Model:
        """The model with the extra components and the tails that were chosen."""
        model = model if self.extras else model.plain()
        return model if self.nu is None else model.with_tails(self.nu)


def are_modules(reference: Any, design: Design) -> bool:
    """Whether a table is genes x modules: its rows are most of the design's genes and its columns are none."""
    if not isinstance(reference, pd.DataFrame):
        return False
    genes, rows, columns = set(design.genes), set(map(str, reference.index)), set(map(str, reference.columns))
    return 2 * len(genes & rows) > len(genes) and not genes & columns


def from_modules(table: pd.DataFrame, D: Any, design: Design, index: NDArray[np.intp]) -> Model:
    """Model of modules at the activity that the pools ask for: their total over that of one active module a cell."""
    from unpool.model import Model

    genes = names(table.index, "gene")
    rows = align(design.genes, genes, wanted_by="the design", held_by="the rows of the table of modules")
    table = table.set_axis(genes, axis=0)
    of_modules = table.iloc[rows].to_numpy(dtype=np.float64).mean(axis=1)
    of_designs = np.array([(of_modules @ P).sum() for P in design.matrices])
    measured = sum(float(dense(D, b).sum()) for b in blocks(D.shape[0]))
    expected = float(of_designs[index].sum())
    return Model.from_modules(table, activity=measured / expected if measured > 0 and expected > 0 else 1.0)


def refuse_unused(method: str, **options: Any) -> None:
    """Name the first option that was given to a method that would ignore it."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f'{name} has no effect with method={method!r}: leave {name} out, or use method="mixture"')


def group_of_cells(reference: Any, group: Any, rows: Any) -> NDArray[Any]:
    """Group of each of these cells, as text; none may be missing."""
    given = annotation(reference, group, what="reference_group")
    missing = np.flatnonzero(given.isna())
    if len(missing):
        column = f"{group!r} " if isinstance(group, str) else ""
        cell = given.index[missing[0]]
        raise InputError(
            f"reference_group {column}is missing for {len(missing):,} of {len(given):,} cells of the reference (first: "
            f"{cell!r}); give these cells a group, or leave them out of the reference"
        )
    return np.asarray(given.iloc[rows].astype(str))


def learn(
    reference: Any, design: Design, method: str, layer: str | None, label: Any, group: Any, rng: np.random.Generator,
    n_threads: int | None, fast: bool = False,
) -> Learned:  # fmt: skip
    """Learn from the genes in the order of their names, so that the order of a design is only an order.

    At most 50,000 cells are used, a random subset of larger references: only these are made dense.
    """
    from unpool.model import Model
    from unpool.model._fit import reference_rows

    if isinstance(reference, Model):
        align(design.genes, reference.genes, wanted_by="the design", held_by="the model")
        if group is not None or (label is not None and reference.labels is None):
            raise InputError(
                "the reference is a Model, which holds no cells: pass the cells to use reference_group=, and cells or "
                "Model.from_cells(cells, label=...) to use reference_label="
            )
        return Learned(reference.subset(design.genes))
    if method == "gaussian":
        refuse_unused(method, reference_label=label)
    t = expression(reference, what="the reference", layer=layer)
    genes = sorted(design.genes)
    columns = align(genes, t.columns, wanted_by="the design", held_by="the reference")
    rows = reference_rows(t.X.shape[0], rng)
    cells = columns_of(t.X, columns, rows)
    if not cells.any():
        raise InputError(
            "the reference is zero in every gene of the design; give cells in which these genes were measured"
        )
    labels = None if label is None else annotation(reference, label, what="reference_label").iloc[rows]
    groups = None if group is None else group_of_cells(reference, group, rows)
    if method == "gaussian":
        model = Model._gaussian(cells, genes, rng=rng)
        return Learned(model.subset(design.genes), cells, groups, lambda X: Model._gaussian(X, genes, rng=rng))
    model = Model._from_array(cells, genes, label=labels, rng=rng, fast=fast, n_threads=n_threads)

    def fit(X: NDArray[np.float64]) -> Model:
        return Model._from_array(X, genes, rng=rng, n_members=CROSSFIT_MEMBERS, fast=fast, n_threads=n_threads)

    return Learned(model.subset(design.genes), cells, groups, fit)


def estimated_noise(
    model: Model, D: Any, design: Design, index: NDArray[np.intp], b: int, noise_stage: str
) -> NDArray[np.float64]:
    """Noise covariance in the pools of one design."""
    cells, P = D if (index == b).all() else D[index == b], design.matrices[b]
    return noise_covariance(model.estimate_noise(cells, P, noise_stage=noise_stage), P, noise_stage)


def in_reference_units(
    model: Model, D: Any, design: Design, index: NDArray[np.intp], noise: dict[int, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], dict[int, NDArray[np.float64]], dict[str, Any]]:
    """Pools and their noise, if it is known, in the units of the reference; and a record of gains and offsets."""
    pools = dense(D).astype(np.float64)
    scaled: dict[int, NDArray[np.float64]] = {}
    record: dict[str, Any] = {}
    for b in map(int, np.unique(index)):
        mine, R = index == b, noise.get(b)
        gain, offset = model.estimate_gains(pools[mine], design.matrices[b], noise_var=R)
        pools[mine] = (pools[mine] - offset) / gain
        if R is not None:
            scaled[b] = R / np.outer(gain, gain)
        suffix = "" if design.n_designs == 1 else f"_{b}"
        record |= {f"pool_gain{suffix}": gain, f"pool_offset{suffix}": offset}
    return pools, scaled, record


def prepared(
    learned: Learned, D: Any, design: Design, index: NDArray[np.intp], noise: dict[int, NDArray[np.float64]],
    adapt: bool | str, selection: bool, rng: np.random.Generator, n_threads: int | None,
) -> tuple[Learned, dict[str, Any]]:  # fmt: skip
    """Leave out extra components and heavy tails that would not help, and adapt to the pooled cells where it pays."""
    learned, record = chosen(learned, D, design, index, noise, adapt, selection, rng, n_threads)
    if learned.strengths is not None:
        batches = [(D, design.matrices[b], R, np.flatnonzero(index == b)) for b, R in noise.items()]
        model, found = learned.model._adapted(batches, learned.strengths, n_threads)
        learned = replace(learned, model=model)
        record |= {"log_density_gained_by_adapting": float(found.gained.mean())}
        record |= {"member_shares": found.shares} | ({} if found.gains is None else {"gene_gain": found.gains})
    return learned, record


def chosen(
    learned: Learned, D: Any, design: Design, index: NDArray[np.intp], noise: dict[int, NDArray[np.float64]],
    adapt: bool | str, selection: bool, rng: np.random.Generator, n_threads: int | None,
) -> tuple[Learned, dict[str, Any]]:  # fmt: skip
    """Choose extra components, tails and the strengths to adapt with (None: not at all), without adapting yet."""
    record: dict[str, Any] = {}
    b = max(noise, key=lambda b: int((index == b).sum()))
    rehearsal = _rehearsal(learned, design, b, noise[b], rng, n_threads) if selection else None
    if rehearsal is not None:
        learned, record["selection"] = _selected(learned, rehearsal)
    cells = D if (index == b).all() else D[index == b]
    strengths, why = _strengths(learned, rehearsal, cells, adapt)
    record |= {"extras": learned.model.has_extras, "nu": learned.model.nu, "adapted": strengths is not None} | why
    if strengths is not None:
        record["strengths"] = vars(strengths)
    return replace(learned, strengths=strengths), record


def _selected(learned: Learned, rehearsal: Rehearsal) -> tuple[Learned, dict[str, float]]:
    """Extra components or none, then heavy tails or light ones: what decodes held-out cells of the reference best."""
    best, plain = learned, replace(learned, extras=False)
    scores = {"with_extras": rehearsal.score(learned.shaped), "without_extras": rehearsal.score(plain.shaped)}
    if scores["without_extras"] > scores["with_extras"]:
        best = plain
    light = replace(best, nu=LIGHT_TAILS)
    scores["with_light_tails"] = rehearsal.score(light.shaped)
    if scores["with_light_tails"] > max(scores["with_extras"], scores["without_extras"]):
        best = light
    return replace(best, model=best.shaped(best.model)), {f"held_out_pearson_{k}": v for k, v in scores.items()}


def _rehearsal(
    learned: Learned, design: Design, b: int, R: NDArray[np.float64], rng: np.random.Generator, n_threads: int | None
) -> Rehearsal | None:
    """Reference cells to decode from simulated pools of design b; None where there is nothing to choose, or no cells."""
    from unpool.model import rehearse

    if learned.fit is None or learned.cells is None or not learned.model.has_extras:
        return None
    P = design.matrices[b][np.argsort(np.array(design.genes, dtype=object), kind="stable")]
    return rehearse(learned.cells, P, R, learned.fit, groups=learned.groups, rng=rng, n_threads=n_threads)


def _strengths(
    learned: Learned, rehearsal: Rehearsal | None, D: Any, adapt: bool | str
) -> tuple[Strengths | None, dict[str, Any]]:
    """How strongly to adapt (None: not at all), and why: D are the pools of the rehearsal's design."""
    from unpool.model import Strengths

    if adapt is False:
        return None, {"adapted_because": "adapt=False"}
    if rehearsal is not None and learned.groups is not None:
        scores = rehearsal.scores(learned.shaped)
        best = max((s for s in scores if s is not None or adapt == "auto"), key=scores.__getitem__)
        return best, {
            "adapted_because": "groups of the reference that were held out are decoded best so",
            "held_out_pearson_by_strengths": {_told(s): score for s, score in scores.items()},
        }
    if adapt is True:
        return Strengths(), {"adapted_because": "adapt=True"}
    if rehearsal is not None:
        shift = rehearsal.shift(D)
        more = "more" if shift.found else "no more"
        return Strengths() if shift.found else None, {
            "adapted_because": f"adapting gains {more} on the pooled cells than on cells of the reference",
            "shift": vars(shift),
        }
    if learned.model.has_extras:
        return Strengths(), {"adapted_because": "the model has extra components, and no cells are held out"}
    return None, {"adapted_because": "the model has no extra components, and no cells are held out"}


def _told(strengths: Strengths | None) -> str:
    """Strengths in words."""
    if strengths is None:
        return "not adapted"
    return f"prior {strengths.prior:g}, gain_sd {strengths.gain_sd:g}"


def adapt_to(
    model: Model,
    batches: Sequence[tuple[Any, Any, Any]],
    n_threads: int | None = None,
    strengths: Strengths | None = None,
) -> Model:
    """Let the model learn from pools, (D, P, R) of each design, as much as the strengths allow."""
    from unpool.model import Strengths

    return model._adapted([(*b, np.arange(len(b[0]))) for b in batches], strengths or Strengths(), n_threads)[0]


def crossfitted(
    result: AnnData, record: dict[str, Any], learned: Learned, design: Design, index: NDArray[np.intp],
    rng: np.random.Generator | None, n_threads: int | None,
) -> None:  # fmt: skip
    """Scale the sd, and write the table of intervals and the expected accuracy: from reference cells held out in turn.

    Without cells to hold out, intervals are normal.
    """
    from unpool.model import crossfit

    held, sd = None, "sd" in result.layers
    why = "crossfit=False" if rng is None else "a Model holds no cells to hold out"
    if rng is not None and learned.cells is not None and learned.fit is not None:
        why = "too few reference cells (or groups) to hold out"
        by_name = np.argsort(np.array(design.genes, dtype=object), kind="stable")
        used, count = np.unique(index, return_counts=True)
        keys = ["noise_covariance" if design.n_designs == 1 else f"noise_covariance_{b}" for b in used]
        designs = [(design.matrices[b][by_name], record[key]) for b, key in zip(used, keys, strict=True)]
        fit, strengths = learned.fit, learned.strengths
        adapt = None if strengths is None else partial(adapt_to, strengths=strengths, n_threads=n_threads)
        held = crossfit(
            learned.cells, designs, list(count / count.sum()), lambda X: learned.shaped(fit(X)), adapt=adapt,
            groups=learned.groups, sd=sd, rng=rng, n_threads=n_threads,
        )  # fmt: skip
    if held is None:
        calibration = Calibration.normal(design.n_genes, f"normal distribution, not calibrated: {why}")
    else:
        own = np.argsort(by_name)
        what = f"{len(held.truth):,} reference cells held out in {held.n_folds} folds"
        result.var["expected_pearson"] = held.pearson()[own]
        if held.sd is not None:
            ratio = held.sd_ratio()
            result.layers["sd"] *= ratio[own].astype(np.float32)
            source = f"{what}{' of whole groups' if learned.groups is not None else ''}"
            calibration = Calibration.fit(held.truth[:, own], held.mean[:, own], (held.sd * ratio)[:, own], source)
    if sd:
        record["intervals"] = calibration.record(design.genes)
