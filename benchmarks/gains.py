"""Pools in other units than the reference's: accuracy and error bars with calibrate="gain".

imc16, published design, pool noise at SNR 5: the experiments of benchmarks/decoder.py's row. Every pool is multiplied by a
gain between 0.3 and 3 (log-uniform) and gets an offset of a tenth of its range; both are unknown to the decoder. Decoded as
they were, corrupted with calibrate="gain", and corrupted without; the noise covariance given (in the units of the pools) or
unknown. Writes results/gains.json.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any, NamedTuple

import numpy as np
from _cells import Experiment, experiment, imc16, split
from _harness import machine, show, verdict, write

import unpool as up
from unpool.evaluate import pearson

LEAST, MOST, OFFSET = 0.3, 3.0, 0.1
LOSS = 0.02
WAYS = ("clean", "calibrated", "not calibrated")
NOISE = ("noise given", "noise unknown")
TITLE = "Unknown gains and offsets of the pools"
NOTES = [
    "imc16, published design of 8 pools, pool noise at SNR 5, 60 % of the cells as reference, the last 20 % decoded; repeat k "
    "uses seed k. Gains log-uniform between 0.3 and 3, an offset of 10 % of the pool's range.",
]


class Score(NamedTuple):
    """Of one decoding: mean and worst per-gene Pearson; share of true values in the 90 % intervals, mean and worst gene."""

    mean: float
    worst: float
    covered: float = np.nan
    worst_covered: float = np.nan


def corrupted(e: Experiment, rng: np.random.Generator) -> Experiment:
    """The experiment with pools in unknown units; R is in the units of the pools."""
    pools = e.pools.copy()
    gain = np.exp(rng.uniform(np.log(LEAST), np.log(MOST), pools.n_vars))
    D = np.asarray(pools.X, dtype=np.float64) * gain
    pools.X = D + OFFSET * np.ptp(D, axis=0)
    return e._replace(pools=pools, R=e.R * np.outer(gain, gain))


def decoded(
    e: Experiment, calibrate: str | None, known: bool, intervals: bool, seed: int, threads: int | None
) -> Score:
    """Scores of one decoding; with error bars where `intervals`."""
    noise = e.R if known else None
    answer = up.decode(
        e.pools, e.reference, noise_var=noise, calibrate=calibrate, sd=intervals, crossfit=intervals, rng=seed, n_threads=threads
    )  # fmt: skip
    r = pearson(e.truth, np.asarray(answer.X, dtype=np.float64))
    score = Score(float(r.mean()), float(r.min()))
    if not intervals:
        return score
    lower, upper = (end.to_numpy() for end in up.intervals(answer, 0.9))
    inside = ((lower <= e.truth) & (e.truth <= upper)).mean(axis=0)
    return score._replace(covered=float(inside.mean()), worst_covered=float(inside.min()))


def repeat(clean: Experiment, k: int, intervals: bool, threads: int | None) -> np.ndarray[Any, Any]:
    """All decodings of one repeat: ways x noise given or unknown x scores."""
    other = corrupted(clean, np.random.default_rng([k, 1]))
    ways = ((clean, None), (other, "gain"), (other, None))
    found = [[decoded(e, how, known, intervals, k, threads) for known in (True, False)] for e, how in ways]
    return np.array(found)


def tables(found: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Accuracy, bars and coverage from scores (repeats x ways x noise x 4)."""
    mean = found.mean(axis=0)
    accuracy = [[way, *(f"{r:.3f} / {worst:.3f}" for r, worst, *_ in of)] for way, of in zip(WAYS, mean, strict=True)]
    lost = mean[0, :, 0] - mean[1, :, 0]
    most = (found[:, 0, :, 0] - found[:, 1, :, 0]).max(axis=0)
    bars = [
        [name, f"{a:+.4f}", f"{b:+.4f}", f"at most {LOSS:g}", verdict(float(a), most=LOSS)]
        for name, a, b in zip(NOISE, lost, most, strict=True)
    ]
    some = found[np.isfinite(found[:, 0, 0, 2])]
    covered = [
        [way, *(f"{x:.3f} / {worst:.3f}" for *_, x, worst in of)]
        for way, of in zip(WAYS, some.mean(axis=0) if len(some) else [], strict=False)
    ]
    return [
        {"title": f"Mean / worst per-gene Pearson, {len(found)} repeats", "columns": ["pools", *NOISE], "rows": accuracy},
        {
            "title": "Mean r lost by unknown gains, with calibrate=\"gain\"",
            "columns": ["", "mean over the repeats", "most of a repeat", "bar (on the mean)", ""],
            "rows": bars,
        },
        {
            "title": f"Share of true values in the 90 % intervals, all / worst gene, {len(some)} repeats",
            "columns": ["pools", *NOISE],
            "rows": covered,
        },
    ]  # fmt: skip


def main() -> None:
    """Decode, print, write results/gains.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--intervals", type=int, default=3, help="in how many of them the error bars are checked as well"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", help="folder of the imc16 files (default: UNPOOL_DATA)")
    a = parser.parse_args()
    about, source = machine(), imc16(a.data)
    if isinstance(source, str):
        print(f"skipped: {source}")
        return
    warnings.simplefilter("ignore")  # pools in other units are warned of: this is what is measured
    cells, design = source
    found = []
    for k in range(a.repeats):
        reference, test, rng = split(cells.n_obs, k)
        e = experiment(cells, design, reference, test, rng)
        found.append(repeat(e, k, k < a.intervals, a.threads))
        said = ", ".join(f"{way} {of[0]:.3f} and {of[1]:.3f}" for way, of in zip(WAYS, found[-1][:, :, 0], strict=True))
        print(f"repeat {k + 1} of {a.repeats}, mean r with noise given and unknown: {said}", flush=True)
    made = tables(np.array(found))
    for shown in made:
        show(shown)
    write(
        "gains",
        {
            "title": TITLE,
            "machine": about,
            "tables": made,
            "notes": NOTES,
            "repeats": np.where(np.isfinite(found), found, None),
        },
    )


if __name__ == "__main__":
    main()
