"""Learning from a reference: how many cells and genes are made dense, and what cannot be learned from."""

from __future__ import annotations

import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import unpool as up
from unpool import _learn
from unpool._validate import columns_of
from unpool.model import _model


def learn(reference, design, **options):
    options = {"label": None, "group": None, "method": "gaussian", "layer": None, "n_threads": 1} | options
    return _learn.learn(reference, design, rng=np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    "form", [np.asarray, np.asfortranarray, sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix]
)
def test_columns_of_any_matrix(form):
    X = np.random.default_rng(0).poisson(1.0, (9000, 7)).astype(np.float32)  # more rows than two blocks
    columns = np.array([5, 0, 3])
    stored = sparse.csr_matrix(form(X)) if sparse.issparse(form(X)) else form(X)
    for rows in (slice(None), slice(3, 8000), np.arange(1, 9000, 2)):
        found = columns_of(stored, columns, rows)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, X[rows][:, columns])


def test_only_the_genes_of_the_design_become_dense():
    n, g = 24_000, 1_000
    X = sparse.random(n, g, 0.005, "csr", rng=np.random.default_rng(0))
    reference = ad.AnnData(X, var=pd.DataFrame(index=[f"g{j}" for j in range(g)]))
    design = up.design.balanced([f"g{j}" for j in range(500, 520)], 5, rng=0)
    all_of_it = n * g * 8

    def check(f):
        tracemalloc.start()
        try:
            f()
            assert tracemalloc.get_traced_memory()[1] < all_of_it / 2
        finally:
            tracemalloc.stop()

    check(lambda: learn(reference, design))
    with pytest.raises(AssertionError):
        check(lambda: X.toarray()[:, :20])  # the twin that makes all genes dense


@pytest.mark.parametrize("layer", [None, "counts"])
def test_a_backed_reference_teaches_the_same(tmp_path, small, layer):
    for X in (small.reference.X, sparse.csr_matrix(small.reference.X)):
        held = ad.AnnData(X, obs=small.reference.obs, var=small.reference.var, layers={"counts": X})
        held.write_h5ad(tmp_path / "reference.h5ad")
        backed = ad.read_h5ad(tmp_path / "reference.h5ad", backed="r")
        np.testing.assert_array_equal(
            learn(backed, small.design, layer=layer).cells, learn(small.reference, small.design).cells
        )
        backed.file.close()


def test_of_a_large_reference_one_subset_is_used(monkeypatch, small):
    reference = small.reference[:, ::-1].copy()
    reference.obs["number"] = reference.obs_names
    monkeypatch.setattr(_model, "MAX_REFERENCE", 100)
    learned = learn(reference, small.design, method="mixture", label="cell_type", group="number")
    assert learned.cells.shape == (100, 12) and len(learned.groups) == 100
    assert 1 < len(learned.model.labels.names) <= 3

    def check(cells, names):
        held = reference[list(names), sorted(small.design.genes)].X
        np.testing.assert_array_equal(cells, np.asarray(held, dtype=float))

    check(learned.cells, learned.groups)
    with pytest.raises(AssertionError):
        check(learned.cells, reference.obs_names[:100])  # the twin whose groups are those of other cells
    decoded = up.decode(small.pools, reference, noise_var="recorded", reference_label="cell_type")
    assert decoded.uns["unpool"]["n_reference_cells"] == 100
    right = decoded.obs["unpool_label"].astype(str).to_numpy() == small.truth.obs["cell_type"].astype(str).to_numpy()
    assert right.mean() > 0.8
