"""Simulated truths."""

import numpy as np
import pytest

import unpool as up
from unpool.errors import InputError


def test_low_rank_is_the_product_of_its_factors():
    t = up.simulate.low_rank(300, 40, 7, rng=0)
    assert np.linalg.matrix_rank(t.X) == 7
    np.testing.assert_allclose(t.X, t.obsm["U"] @ t.varm["V"].T)
    assert abs(t.obsm["U"].mean() - 10) < 0.2
    assert abs(t.obsm["U"].std() - 2) < 0.2
    assert abs(t.varm["V"].mean() - 15) < 0.8
    assert abs(t.varm["V"].std() - 3) < 0.5


def test_cell_types_have_the_stated_moments():
    t = up.simulate.cell_types(30_000, 6, 2, size_sd=0.0, rng=0)
    of = t.obs["cell_type"].cat.codes.to_numpy()
    level, phi = t.varm["levels"], t.var["dispersion"].to_numpy()

    def agrees(variance):
        return all(
            np.allclose(t.X[of == k].astype(float).mean(axis=0), level[:, k], rtol=0.08)
            and np.allclose(t.X[of == k].astype(float).var(axis=0), variance(level[:, k]), rtol=0.15)
            for k in range(2)
        )

    assert agrees(lambda mu: mu + phi * mu**2)
    assert not agrees(lambda mu: mu)  # Poisson, the broken twin
    assert np.array_equal(t.X, np.rint(t.X))
    assert t.X.dtype == np.float32


def test_cell_types_are_reproducible_and_all_there():
    a, b = (up.simulate.cell_types(9000, 10, 5, rng=3) for _ in range(2))
    assert np.array_equal(a.X, b.X)
    assert a.obs["cell_type"].nunique() == 5
    assert a.obs["cell_type"].value_counts().nunique() > 1
    assert not np.array_equal(a.X, up.simulate.cell_types(9000, 10, 5, rng=4).X)
    with pytest.raises(InputError, match="n_types"):
        up.simulate.cell_types(10, 10, 0)
