"""What the page says: plain numbers and sentences, no layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from unpool import __version__
from unpool._validate import table
from unpool.crossvalidate import POOL_BASELINES, CrossValidation
from unpool.design import Design
from unpool.evaluate import BASELINES, Scores
from unpool.measure import recorded_design

__all__ = ["Content", "Fact", "gather", "number"]

GENES_LISTED = 300
_STAGES = {"pool": "in the pools (detector)", "expression": "before pooling (in every gene)"}


@dataclass(frozen=True)
class Fact:
    """One number of the headline, with its label and what to compare it with."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Content:
    """Everything that the page shows."""

    headline: str
    lead: list[str]
    facts: list[Fact]
    done: list[tuple[str, str]]
    warnings: list[str]
    methods: list[dict[str, Any]]  # decoder first, then the baselines, best first
    genes: list[dict[str, Any]]
    genes_note: str
    shown_genes: list[tuple[str, str]]  # what is special about a gene, its name
    misfit_note: str
    hidden: list[dict[str, Any]]  # rows of the table of hidden pools
    hidden_note: str
    design: Design | None
    version: str


def gather(
    decoded: AnnData, pooled: AnnData | None, scores: Scores | None, crossvalidation: CrossValidation | None = None
) -> Content:
    """Collect the content from a decoded matrix and what belongs to it."""
    n_cells, names = decoded.n_obs, table(decoded, what="the decoded data").columns
    record = _mapping(decoded.uns.get("unpool"))
    design = _design(decoded, pooled, record)
    foreseen = decoded.var[[c for c in ("resolution", "expected_pearson") if c in decoded.var]].astype(np.float64)
    pools = f" from {design.n_pools:,} pools" if design else ""
    return Content(
        headline=f"{len(names):,} gene{'s' * (len(names) > 1)}{pools} in {n_cells:,} cell{'s' * (n_cells > 1)}",
        lead=_lead(scores, decoded),
        facts=_facts(design, foreseen, scores),
        done=[*_done(record, design, pooled), *_labels(decoded)],
        warnings=[str(w) for w in np.atleast_1d(record.get("warnings", []))],
        methods=_methods(scores),
        genes=_genes(names, foreseen, scores)[:GENES_LISTED],
        genes_note=_genes_note(len(names), foreseen, scores),
        shown_genes=_shown(scores),
        misfit_note=_misfit(decoded),
        hidden=_hidden(crossvalidation),
        hidden_note=str(crossvalidation.summary["verdict"]) if crossvalidation is not None else "",
        design=design,
        version=__version__,
    )


def number(value: Any, digits: int = 3) -> str:
    """Return a number with a true minus sign; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _design(decoded: AnnData, pooled: AnnData | None, record: Mapping[str, Any]) -> Design | None:
    """Return the design that the pools carry, else the one that the decoded data carry, else None."""
    if pooled is not None:
        return recorded_design(pooled)[0]
    keys = ["design"] if "design" in decoded.varm else sorted(
        (k for k in decoded.varm if k.startswith("design_") and k[7:].isdigit()), key=lambda k: int(k[7:])
    )  # fmt: skip
    if not keys:
        return None
    named = {k: list(map(str, record[key])) for k, key in (("pools", "pools"), ("names", "designs")) if key in record}
    return Design([np.asarray(decoded.varm[k]) for k in keys], genes=list(map(str, decoded.var_names)), **named)


def _lead(scores: Scores | None, decoded: AnnData) -> list[str]:
    if scores is None:
        known = ["how much of each gene the measurement determines (resolution)"] * ("resolution" in decoded.var)
        known += ["how well each gene can be expected to be decoded"] * ("expected_pearson" in decoded.var)
        known += ["which cells disagree with the model (misfit)"] * ("unpool_misfit" in decoded.obs)
        none = "No true expression was given, so this page makes no claim about accuracy."
        listed = ", ".join(known[:-1]) + " and " * (len(known) > 1) + known[-1] if known else ""
        return [f"{none} It says {listed}." if known else none]
    s = scores.summary
    best = s["baselines"][s["best_baseline"]]
    compared = (
        f"Over the genes, decoded and true expression correlate with a mean of {number(s['pearson_mean'])} (Pearson); "
        f"the best baseline, {BASELINES[s['best_baseline']]}, reaches {number(best['pearson_mean'])}."
    )
    gained = (
        f"The decoder removed {s['removed_share']:.0%} of that baseline's error."
        if s["removed_share"] >= 0.005
        else "The decoder removed none of that baseline's error: here, decoding gained nothing over it."
    )
    few = [k for k in BASELINES if k not in s["baselines"]]
    missing = (
        ["Not compared, because it takes the pools or the reference: " + "; ".join(BASELINES[k] for k in few) + "."]
        if few
        else []
    )
    constant = s["constant_genes"]
    zero = (
        [
            f"{len(constant)} gene{'s do' if len(constant) > 1 else ' does'} not vary and count{'s' * (len(constant) == 1)} "
            f"as 0: {', '.join(constant[:10])}{', ...' if len(constant) > 10 else ''}."
        ]
        if constant
        else []
    )
    return [f"{compared} {gained}", *missing, *zero]


def _facts(design: Design | None, foreseen: pd.DataFrame, scores: Scores | None) -> list[Fact]:
    facts = []
    if scores is not None:
        s = scores.summary
        best = s["best_baseline"]
        share = s["removed_share"]
        facts = [
            Fact(
                "Mean Pearson",
                number(s["pearson_mean"]),
                f"best baseline {number(s['baselines'][best]['pearson_mean'])}",
            ),
            Fact("Error removed", f"{share:.0%}" if share >= 0.005 else "none", f"of {BASELINES[best]}"),
            Fact("Worst gene", number(s["pearson_worst"]), s["worst_gene"]),
        ]
        if "coverage_90_mean" in s:
            facts.append(Fact("In the 90 % interval", f"{s['coverage_90_mean']:.1%}", "of the true values"))
    if design is not None:
        facts.append(
            Fact("Pack ratio", f"{design.pack_ratio:.3g}", f"{design.n_pools:,} pools, {design.n_genes:,} genes")
        )
    if "expected_pearson" in foreseen:
        r = foreseen["expected_pearson"]
        facts.append(Fact("Expected correlation", number(r.mean()), "before any truth, mean over the genes"))
    if "resolution" in foreseen and scores is None:
        facts.append(Fact("Resolution", f"{foreseen['resolution'].median():.2f}", "median over the genes, 0 to 1"))
    return facts


def _done(record: Mapping[str, Any], design: Design | None, pooled: AnnData | None) -> list[tuple[str, str]]:
    """Terms and descriptions of what was measured and how it was decoded."""
    done = []
    if design is not None:
        done.append(
            ("Design", " ".join(repr(design).removeprefix("Design: ").split()).replace(") genes per", "); genes per"))
        )
    stage = str(record.get("noise_stage", ""))
    noise = [_STAGES[stage]] if stage in _STAGES else []
    variances = [np.diag(np.asarray(record[k])) for k in sorted(record) if k.startswith("noise_covariance")]
    if variances:
        sd = np.sqrt(np.maximum(np.concatenate(variances), 0))
        noise.append(f"standard deviation per pool {_extent(sd)}")
    if "noise" in record:
        noise.append(f"{record['noise']} to the decoder" if record["noise"] == "given" else str(record["noise"]))
    if "noise_share" in record:
        noise.append(f"{float(record['noise_share']):.0%} of a pool's variance")
    simulated = _mapping(_mapping(pooled.uns.get("unpool")).get("simulated")) if pooled is not None else {}
    if simulated:
        at = f" at signal to noise {_text(simulated['snr'])}" if "snr" in simulated else ""
        noise.append(f"simulated{at}{' with shot noise' if simulated.get('shot') else ''}")
    if noise:
        done.append(("Noise", "; ".join(noise)))
    if "method" in record:
        done.append(("Method", str(record["method"])))
    done += _learned(record)
    parameters = _mapping(record.get("parameters"))
    if parameters:
        done.append(("Parameters", ", ".join(f"{k} = {_text(v)}" for k, v in parameters.items())))
    source = _mapping(record.get("intervals")).get("source")
    if source is not None:
        done.append(("Intervals", f"calibrated on {source}" if "held out in" in str(source) else str(source)))
    for key in ("seed", "status"):
        if key in record:
            done.append((key.capitalize(), _text(record[key])))
    if "design_digest" in record:
        done.append(("Design digest", str(record["design_digest"])[:16]))
    versions = _mapping(record.get("versions"))
    if versions:
        done.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return done


def _labels(decoded: AnnData) -> list[tuple[str, str]]:
    """Share of the cells that each inferred label has, the most frequent first."""
    if "unpool_label" not in decoded.obs:
        return []
    shares = decoded.obs["unpool_label"].value_counts(normalize=True)
    shown = ", ".join(f"{label} {share:.0%}" for label, share in shares.items() if share > 0)
    return [("Inferred labels", shown)]


def _learned(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Terms and descriptions of what was chosen on held-out reference cells and learned from the pools."""
    told = []
    if "extras" in record:
        extras = (
            "cell types at other sizes and in pairs" if record["extras"] else "cell types as the reference shows them"
        )
        nu = float(record.get("nu", np.inf))
        tails = f"Student tails with {nu:g} degrees of freedom" if np.isfinite(nu) else "no heavy tails"
        scores = [
            f"{number(r)} {key.removeprefix('held_out_pearson_').replace('_', ' ')}"
            for key, r in sorted(_mapping(record.get("selection")).items(), key=lambda item: (-float(item[1]), item[0]))
        ]
        why = f"; chosen by the Pearson of held-out reference cells ({', '.join(scores)})" if scores else ""
        told.append(("Model", f"{extras}; {tails}{why}"))
    if "adapted" in record:
        because = f": {record['adapted_because']}" if "adapted_because" in record else ""
        told.append(("Adaptation", f"{'yes' if record['adapted'] else 'no'}{because}"))
    for what in ("gene_gain", "pool_gain"):
        values = [np.asarray(record[k]) for k in sorted(record) if k.startswith(what)]
        if values:
            told.append((f"Gains of the {what.removesuffix('_gain')}s", _extent(np.concatenate(values))))
    return told


def _text(value: Any) -> str:
    """Return a parameter as a reader would write it; long arrays by their extent."""
    array = np.asarray(value)
    if array.ndim == 0:
        item = array.item()
        return f"{item:.6g}" if isinstance(item, float) else str(item)
    if array.size <= 6:
        return "(" + ", ".join(_text(v) for v in array.ravel()) + ")"
    shape = " x ".join(map(str, array.shape))
    return f"{shape} values" + (f", {_extent(array)}" if array.dtype.kind in "iuf" else "")


def _extent(values: Any) -> str:
    low, high = f"{np.min(values):.3g}", f"{np.max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _methods(scores: Scores | None) -> list[dict[str, Any]]:
    """Mean, median and worst of the decoder and, best first, of the baselines."""
    if scores is None:
        return []
    s = scores.summary
    baselines = sorted(s["baselines"].items(), key=lambda item: -item[1]["pearson_mean"])
    rows = [{"label": s["method"], "decoder": True, **s}]
    return rows + [{"label": BASELINES[name], "decoder": False, **of} for name, of in baselines]


def _genes(names: list[str], foreseen: pd.DataFrame, scores: Scores | None) -> list[dict[str, Any]]:
    """One row a gene, those to distrust first."""
    frame = scores.genes.copy() if scores is not None else pd.DataFrame(index=names)
    for column in foreseen:
        frame[column] = pd.Series(foreseen[column].to_numpy(), index=names)
    by = [c for c in ("pearson", "expected_pearson", "resolution") if c in frame][:1]
    frame = frame.sort_values(by, kind="stable") if by else frame
    return [{"gene": str(gene), **dict(zip(frame.columns, map(float, row), strict=True))}
            for gene, row in zip(frame.index, frame.to_numpy(), strict=True)]  # fmt: skip


def _genes_note(n: int, foreseen: pd.DataFrame, scores: Scores | None) -> str:
    by = "correlation" if scores is not None else "resolution"
    order = f"lowest {'expected correlation' if scores is None and 'expected_pearson' in foreseen else by} first"
    return f"All {n:,} genes, {order}." if n <= GENES_LISTED else f"{GENES_LISTED} of {n:,} genes, {order}."


def _shown(scores: Scores | None) -> list[tuple[str, str]]:
    """The best, the median and the worst gene."""
    if scores is None:
        return []
    order = scores.genes["pearson"].sort_values(kind="stable").index
    picked = {"best": order[-1], "median": order[(len(order) - 1) // 2], "worst": order[0]}
    return [(what, str(gene)) for what, gene in picked.items()]


def _hidden(crossvalidation: CrossValidation | None) -> list[dict[str, Any]]:
    """One row a hidden pool, the least foretold first."""
    if crossvalidation is None:
        return []
    frame = crossvalidation.pools.sort_values("pearson", kind="stable").head(GENES_LISTED)
    shown = ["pearson", *(f"pearson_{name}" for name in POOL_BASELINES), "ceiling", "relative_error"]
    return [{"pool": str(pool), "genes": row["gene"] or f"{row['n_genes']} genes", **{k: float(row[k]) for k in shown}}
            for pool, row in frame.iterrows()]  # fmt: skip


def _misfit(decoded: AnnData) -> str:
    if "unpool_misfit" not in decoded.obs:
        return ""
    far = float(np.mean(decoded.obs["unpool_misfit"].to_numpy(dtype=np.float64) > 3))
    return f"About 0 ± 1 for cells that the model explains; {far:.1%} of the cells lie above 3, and their genes deserve doubt."
