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
from unpool.errors import InputError
from unpool.model import Model, _fit


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
    monkeypatch.setattr(_fit, "MAX_REFERENCE", 100)
    learned = learn(reference, small.design, method="mixture", label="cell_type", group="number")
    assert learned.cells.shape == (100, 12)
    assert len(learned.groups) == 100
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


def test_a_group_or_label_that_is_missing_is_named(small):
    reference = small.reference.copy()
    reference.obs["donor"] = pd.Categorical(["a", "b", None] * 100)
    reference.obs["kind"] = pd.Series(np.nan, index=reference.obs_names)
    with pytest.raises(InputError, match=r"'donor' is missing for 100 of 300 cells .*first: 'cell_2'.*leave them out"):
        up.decode(small.pools, reference, reference_group="donor")
    with pytest.raises(InputError, match="missing for 300 of 300 cells"):
        up.decode(small.pools, reference, reference_group=[None] * 300)
    with pytest.raises(InputError, match=r"'kind' is missing for all 300 cells .*label some cells"):
        up.decode(small.pools, reference, reference_label="kind")
    with pytest.raises(InputError, match="missing for all 300"):
        Model.from_cells(reference, label=[np.nan] * 300)


def test_a_missing_label_is_not_the_last_one(small):
    labels = small.reference.obs["cell_type"].astype(object).to_numpy().copy()
    last = max(map(str, labels))
    labels[labels == last] = "other"
    labels[::3] = np.nan
    labels[0] = last  # one cell alone

    def check(labels):
        model = Model.from_cells(small.reference, label=labels, n_members=1)
        share = model.labels.compositions[0][:, model.labels.names.index(last)]
        assert share @ model.members[0].weights < 0.1

    check(labels)
    labels[::3] = last
    with pytest.raises(AssertionError):
        check(labels)  # the twin: what was missing is the last label


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("minimum_norm", {"reference_label": "cell_type"}),
        ("minimum_norm", {"reference_group": "cell_type"}),
        ("minimum_norm", {"calibrate": "gain"}),
        ("nuclear_norm", {"calibrate": "gain"}),
        ("als", {"reference_label": "cell_type"}),
        ("gaussian", {"reference_label": "cell_type"}),
    ],
)
def test_an_option_without_effect_is_named(small, method, option):
    (name,) = option
    with pytest.raises(InputError, match=f"{name} has no effect with method='{method}'"):
        up.decode(small.pools, small.reference, method=method, **option)


def modules_and_pools():
    """A table of 4 modules, and pools of 300 cells in two designs of other weights, 5 cells with the second one first."""
    rng = np.random.default_rng(0)
    genes = [f"g{j}" for j in range(12)]
    table = pd.DataFrame(rng.random((12, 4)), genes, [f"module {k}" for k in range(4)])
    P = up.design.balanced(genes, 6, pools_per_gene=2, rng=0).matrices[0]
    design = up.Design([P, 10 * P], genes=genes)
    index = np.r_[np.ones(5, dtype=int), np.zeros(295, dtype=int)]
    M = 3.0 * table.to_numpy().T[rng.integers(4, size=300)]  # one module a cell, at activity 3
    D = np.stack([m @ design.matrices[b] for m, b in zip(M, index, strict=True)])
    return table, D, design, index


def test_modules_are_scaled_by_every_design_in_use():
    table, D, design, index = modules_and_pools()

    def scale(order):
        return _learn.from_modules(table, D[order], design, index[order]).mean.sum()

    at_three = Model.from_modules(table, activity=3.0).mean.sum()

    def check(found):
        assert found == pytest.approx(at_three, rel=0.1)

    check(scale(np.arange(300)))
    check(scale(np.arange(300)[::-1]))
    with pytest.raises(AssertionError):  # the twin that takes all cells for cells of the first one's design
        check(_learn.from_modules(table, D, design, np.full(300, index[0])).mean.sum())


def test_what_a_table_of_modules_lacks_is_named():
    table, D, design, index = modules_and_pools()
    pools = up.pooled(D, design, design_index=index)
    with pytest.raises(InputError, match=r"1 of 12 genes of the design are not in .*table of modules: 'g3'"):
        up.decode(pools, table.drop(index="g3"))
    with pytest.raises(InputError, match=r"12 of 12 genes of the design are not in the reference"):
        up.decode(pools, table.iloc[:6])  # as many genes lack: cells that are called like genes
    with pytest.raises(InputError, match="gene name 'g0' occurs 2 times"):
        up.decode(pools, pd.concat([table, table.iloc[:1]]))


def test_cells_of_expected_accuracy_are_matched_by_name(small):
    model = Model.from_cells(small.reference, n_members=1)
    P = small.design.matrices[0]
    expected = model.expected_accuracy(P, 1.0, cells=small.truth)

    def check(cells):
        np.testing.assert_array_equal(model.expected_accuracy(P, 1.0, cells=cells), expected)

    check(np.asarray(small.truth.X))
    check(small.truth[:, ::-1].copy())
    more = small.truth.to_df().assign(other=1.0).iloc[:, ::-1]
    check(more)
    with pytest.raises(AssertionError):
        check(small.truth.X[:, ::-1])  # the twin that matches by position
    with pytest.raises(InputError, match="13 genes"):
        model.expected_accuracy(P, 1.0, cells=more.to_numpy())
    with pytest.raises(InputError, match="are not in the cells"):
        model.expected_accuracy(P, 1.0, cells=small.truth[:, 1:].copy())
