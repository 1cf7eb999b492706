"""Gain and offset of every pool, estimated against a model: references come in counts, pools in fluorescence units."""

from __future__ import annotations

import numpy as np

from unpool.model._mixture import Array

__all__ = ["estimate_gains"]

_LEVELS = np.linspace(0.02, 0.98, 49)  # not the extremes: a few cells decide them


def estimate_gains(D: Array, simulated: Array, noise_sd: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Gains and offsets with D ≈ gain * (M P) + offset: each pool's quantiles are matched to those that the model expects.

    Parameters
    ----------
    D
        Cells x pools, in the units of the measurement.
    simulated
        Cells x pools drawn from the model, without noise, in the units of the reference.
    noise_sd
        Pools: standard deviation of the noise in D.

    Notes
    -----
    It takes the pooled cells for cells like those of the reference: where the proportions of the types differ much, part of
    that difference is taken for gain. A pool that does not vary keeps gain one.
    """
    m = D.shape[1]
    gain, offset = np.ones(m), np.zeros(m)
    observed = np.quantile(D, _LEVELS, axis=0)
    noise = rng.standard_normal(len(simulated))
    for k in range(m):
        total, size = float(D[:, k].var()), float(simulated[:, k].std())
        if size == 0 or total == 0:
            continue
        rough = np.sqrt(max(total - noise_sd[k] ** 2, 0.1 * total)) / size
        expected = np.quantile(simulated[:, k] + noise_sd[k] / rough * noise, _LEVELS)
        slope, intercept = np.polyfit(expected, observed[:, k], 1)
        if slope > 0:
            gain[k], offset[k] = slope, intercept
    return gain, offset
