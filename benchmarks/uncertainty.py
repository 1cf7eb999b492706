"""Do the error bars hold? Intervals and expected accuracy on fresh cells, beside the reference's own quantiles.

Prints three settings (SNR 5, noise covariance given, genes at unit norm over the reference): 16 proteins in the 8 published
pools, the same with a whole tissue held out, and 100 blood genes in 25 random pools with the noise before pooling. Repeat k
uses seed k: 60 % of the cells as reference, the last 20 % to be decoded. Writes results/uncertainty.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
from _cells import SNR, imc16
from _harness import machine, show, write
from anndata import AnnData
from scipy.stats import spearmanr

import unpool as up
from unpool.demo import blood_cells

# per setting: coverage at 90 % and 50 %, the least coverage of a gene at 90 %, the interval score relative to the quantiles'
BARS: dict[str, dict[str, tuple[float, float]]] = {
    "imc16, pool noise": {
        "coverage_90": (0.87, 0.95), "coverage_50": (0.45, 0.57), "worst_gene_90": (0.75, 1.0),
        "score_90": (0.0, 0.45), "score_50": (0.0, 0.55),
    },
    "imc16, tissue held out": {"coverage_90": (0.84, 0.95)},
    "pbmc68k, 25 pools": {
        "coverage_90": (0.87, 0.98), "coverage_50": (0.45, 0.80), "worst_gene_90": (0.75, 1.0),
        "score_90": (0.0, 0.65), "score_50": (0.0, 0.65),
    },
}  # fmt: skip
# key -> what a reader sees
ROWS = {
    "coverage_90": "share of true values in the 90 % interval",
    "worst_gene_90": "the same, worst gene (mean over repeats)",
    "least_worst_gene_90": "the same, worst gene of all repeats",
    "score_90": "interval score at 90 %, of the quantiles'",
    "coverage_50": "share of true values in the 50 % interval",
    "worst_gene_50": "the same, worst gene (mean over repeats)",
    "score_50": "interval score at 50 %, of the quantiles'",
    "expected_off": "expected against real Pearson: mean absolute difference per gene",
    "expected_rank": "expected against real Pearson: rank correlation over genes",
    "seconds": "seconds of decode",
    "seconds_without_crossfit": "seconds of decode without cross-fitting",
}
TITLE = "Do the error bars hold?"
NOTES = [
    "Genes at unit norm over the reference, signal to noise 5, noise covariance given; repeat k uses seed k: 60 % of the cells "
    "as reference, the last 20 % decoded; or a whole tissue held out, with `reference_group`.",
    "Interval score (Winkler): width plus 2 / (1 - level) times how far outside the truth lies, relative to that of the "
    "reference's own quantiles per gene.",
    "Expected and real Pearson are averaged over the repeats per gene, then compared.",
]
EXPECTED_BARS = {"expected_off": (0.0, 0.04), "expected_rank": (0.8, 1.0)}
EXPECTED_IN = ("imc16, pool noise", "pbmc68k, 25 pools")


class Run(NamedTuple):
    """One repeat: what the decoder is given, and the truth."""

    pools: AnnData
    reference: AnnData
    truth: AnnData
    noise: np.ndarray[Any, Any]
    group: str | None


def random_design(n_genes: int, n_pools: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Each gene in 1 to 3 pools, no two rows correlated above 0.8, the fullest pool at most 4 times the emptiest."""
    while True:
        W = np.zeros((n_genes, n_pools))
        for j in range(n_genes):
            for _ in range(1000):
                row = np.zeros(n_pools)
                row[rng.choice(n_pools, rng.integers(1, 4), replace=False)] = 1
                if j == 0 or np.nan_to_num(np.corrcoef(row, W[:j])[0, 1:]).max() <= 0.8:
                    W[j] = row
                    break
            else:
                break
        count = W.sum(axis=0)
        if W.any(axis=1).all() and count.max() <= 4 * count.min():
            return W


def repeat(setting: str, cells: AnnData, published: up.Design | None, k: int) -> Run:
    """Split, scale, pool and add noise."""
    rng = np.random.default_rng(k)
    n, group = cells.n_obs, None
    order = rng.permutation(n)
    if "tissue" in setting:
        group = "tissue"
        tissues = sorted(cells.obs[group].unique())
        out = (cells.obs[group] == tissues[k % len(tissues)]).to_numpy()
        reference, truth = cells[~out].copy(), cells[out].copy()
    else:
        reference, truth = cells[order[: int(0.6 * n)]].copy(), cells[order[n - int(0.2 * n) :]].copy()
    norm = np.linalg.norm(reference.X, axis=0)
    norm[norm == 0] = 1.0
    reference.X, truth.X = reference.X / norm, truth.X / norm
    names = list(cells.var_names)
    design = up.Design(random_design(len(names), 25, rng), genes=names) if published is None else published
    P, X = design.matrices[0], truth[:, list(design.genes)].X
    if published is None:
        v = np.mean(X**2) / SNR**2
        R, D = v * P.T @ P, (X + np.sqrt(v) * rng.standard_normal(X.shape)) @ P
    else:
        v = (X @ P).var(axis=0) / SNR**2
        R, D = np.diag(v), X @ P + np.sqrt(v) * rng.standard_normal((len(X), len(v)))
    return Run(up.pooled(D, design, obs=truth.obs[[]]), reference, truth[:, list(design.genes)].copy(), R, group)


def winkler(x: Any, lower: Any, upper: Any, level: float) -> float:
    """Mean interval score: width plus 2 / (1 - level) times how far outside the truth lies (Gneiting & Raftery 2007)."""
    outside = np.maximum(lower - x, 0.0) + np.maximum(x - upper, 0.0)
    return float(np.mean(upper - lower + 2 / (1 - level) * outside))


def judge(run: Run, seed: int, threads: int) -> tuple[dict[str, float], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores of one repeat; expected and real per-gene Pearson."""
    start = time.perf_counter()
    decoded = up.decode(
        run.pools, run.reference, noise_var=run.noise, reference_group=run.group, rng=seed, n_threads=threads
    )
    found = {"seconds": time.perf_counter() - start}
    start = time.perf_counter()
    up.decode(run.pools, run.reference, noise_var=run.noise, crossfit=False, rng=seed, n_threads=threads)
    found["seconds_without_crossfit"] = time.perf_counter() - start
    x = np.asarray(run.truth.X)
    for level in (0.9, 0.5):
        lower, upper = (end.to_numpy() for end in up.intervals(decoded, level))
        ours = run.reference[:, run.truth.var_names].X
        quantiles = np.quantile(ours, [(1 - level) / 2, (1 + level) / 2], axis=0)
        inside = ((lower <= x) & (x <= upper)).mean(axis=0)
        name = f"{100 * level:.0f}"
        found |= {f"coverage_{name}": float(inside.mean()), f"worst_gene_{name}": float(inside.min())}
        found[f"score_{name}"] = winkler(x, lower, upper, level) / winkler(x, *quantiles, level)
    real = up.evaluate(decoded, run.truth).genes["pearson"].to_numpy()
    return found, decoded.var["expected_pearson"].to_numpy(), real


def table(setting: str, runs: list[Any]) -> dict[str, Any]:
    """Means over the repeats with their bars; expected and real correlations are averaged over the repeats per gene first."""
    found = {key: float(np.mean([run[0][key] for run in runs])) for key in runs[0][0]}
    expected, real = (np.mean([run[i] for run in runs], axis=0) for i in (1, 2))
    found |= {"pearson": float(real.mean()), "expected_pearson": float(expected.mean())}
    found["expected_off"] = float(np.abs(expected - real).mean())
    found["expected_rank"] = float(spearmanr(expected, real)[0])
    found["least_worst_gene_90"] = min(run[0]["worst_gene_90"] for run in runs)
    return of_means(setting, found, len(runs))


def of_means(setting: str, found: dict[str, float], repeats: int) -> dict[str, Any]:
    """Rows as the page shows them."""
    bars = BARS[setting] | (EXPECTED_BARS if setting in EXPECTED_IN else {})
    rows = []
    for key, what in ROWS.items():
        low, high = bars.get(key, (None, None))
        bar = "" if low is None else f"{low:g} to {high:g}"
        verdict = "" if low is None or high is None else "holds" if low <= found[key] <= high else "MISSED"
        rows.append([what, f"{found[key]:.3f}" if "seconds" not in key else f"{found[key]:.1f}", bar, verdict])
    return {
        "title": f"{setting}, {repeats} repeats",
        "columns": ["", "measured", "bar", ""],
        "rows": rows,
        "notes": [f"Mean per-gene Pearson {found['pearson']:.3f}, expected {found['expected_pearson']:.3f}."],
    }


def main() -> None:
    """Print the table and write results/uncertainty.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the imc16 files (default: UNPOOL_DATA)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="part of a setting's name")
    given = parser.parse_args()
    about = machine() | {"threads": given.threads}
    source = imc16(given.data)
    imc, published = (None, None) if isinstance(source, str) else source
    if isinstance(source, str):
        print(f"skipped, all of imc16: {source}")
    blood = blood_cells(100)
    blood.X = np.asarray(blood.X, dtype=np.float64)
    tables = []
    for setting in BARS:
        cells = imc if "imc16" in setting else blood
        if cells is None or (given.only and given.only not in setting):
            continue
        design = published if "imc16" in setting else None
        runs = [judge(repeat(setting, cells, design, k), k, given.threads) for k in range(given.repeats)]
        tables.append(table(setting, runs))
        show(tables[-1])
    write("uncertainty", {"title": TITLE, "machine": about, "tables": tables, "notes": NOTES})


if __name__ == "__main__":
    main()
