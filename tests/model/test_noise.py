"""Noise estimated from the pools."""

from __future__ import annotations

import numpy as np
import pytest

import unpool as up
from unpool.model import Model
from unpool.model import _noise as noise


@pytest.fixture(scope="module")
def setup():
    X = np.asarray(up.simulate.cell_types(2600, 20, 5, rng=0).X, dtype=float)
    model = Model._from_array(X[:1000], [f"g{j}" for j in range(20)], n_members=1)
    P = up.design.balanced(20, 12, pools_per_gene=3, rng=0).matrices[0]
    return model, X[1000:], P


@pytest.mark.parametrize("snr", [1.5, 5.0])
def test_pool_noise_is_recovered_within_a_factor(setup, snr, monkeypatch):
    model, X, P = setup
    v = (X @ P).var(axis=0) / snr**2 * np.linspace(0.5, 2, 12)
    D = X @ P + np.sqrt(v) * np.random.default_rng(0).standard_normal((len(X), 12))

    def far() -> tuple[float, float]:
        factor = np.exp(np.abs(np.log(model.estimate_noise(D, P) / v)))
        return float(np.median(factor)), float(factor.max())

    median, worst = far()
    assert median < 1.2
    assert worst < 1.8  # one pool of small noise, decided by few cells
    monkeypatch.setattr(noise, "_CYCLES", 0)  # the start is not the answer
    assert far()[0] > 1.2 or far()[1] > 1.8


def test_expression_noise_is_recovered_within_a_factor(setup, monkeypatch):
    model, X, P = setup
    X = X / np.sqrt(np.mean(X**2, axis=0))
    v = 0.3
    scaled = Model._from_array(X[:800], model.genes, n_members=1)
    noisy = X[800:] + np.sqrt(v) * np.random.default_rng(0).standard_normal(X[800:].shape)
    estimate = scaled.estimate_noise(noisy @ P, P, noise_stage="expression")
    assert estimate.shape == ()
    assert 1 / 1.5 < estimate / v < 1.5
    monkeypatch.setattr(noise, "_CYCLES", 0)
    assert not 1 / 1.5 < scaled.estimate_noise(noisy @ P, P, noise_stage="expression") / v < 1.5


def test_no_noise_is_estimated_small(setup):
    model, X, P = setup
    assert (model.estimate_noise(X @ P, P) < 0.02 * (X @ P).var(axis=0)).all()


def test_estimated_noise_costs_little(setup):
    model, X, P = setup
    v = (X @ P).var(axis=0) / 25
    D = X @ P + np.sqrt(v) * np.random.default_rng(0).standard_normal((len(X), 12))
    given, estimated, wrong = (
        np.mean((model.posterior(D, P, noise_var=value, sd=False).mean - X) ** 2) for value in (v, None, 30 * v)
    )
    assert estimated < 1.03 * given
    assert wrong > 1.03 * given


def test_pools_without_genes_have_no_estimate(setup):
    model, X, P = setup
    P = np.column_stack([P[:, :5], np.zeros(20)])
    estimate = model.estimate_noise(X @ P, P)
    assert estimate.shape == (6,)
    assert estimate[5] == 0
    assert np.isfinite(estimate).all()


def test_cells_that_the_model_lacks_do_not_pass_for_noise(setup, monkeypatch):
    model, X, P = setup
    rng = np.random.default_rng(0)
    v, X = (X @ P).var(axis=0) / 25, X.copy()
    X[::8] = 3 * rng.permuted(X[::8], axis=1)  # other cells: genes exchanged, and brighter
    D = X @ P + np.sqrt(v) * rng.standard_normal((len(X), 12))
    assert np.median(model.estimate_noise(D, P) / v) < 2
    monkeypatch.setattr(noise, "_TAILS", 1e9)  # every cell counts the same
    assert np.median(model.estimate_noise(D, P) / v) > 2


def test_the_estimate_has_converged(setup, monkeypatch):
    """Small noise is found slowly by EM: more cycles change nothing, and fewer do."""
    model, X, P = setup
    D = X @ P + np.sqrt((X @ P).var(axis=0) / 400) * np.random.default_rng(0).standard_normal((len(X), 12))
    found = model.estimate_noise(D, P)
    monkeypatch.setattr(noise, "_CYCLES", 100)
    np.testing.assert_allclose(found, model.estimate_noise(D, P), rtol=0.02)
    monkeypatch.setattr(noise, "_CYCLES", 2)
    assert not np.allclose(found, model.estimate_noise(D, P), rtol=0.02)
