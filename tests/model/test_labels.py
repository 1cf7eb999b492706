"""Labels: cell types from responsibilities, by name, through files; each check has a broken twin."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import unpool as up
from unpool import io
from unpool.errors import InputError
from unpool.model import Model
from unpool.model._labels import composition


@pytest.fixture(scope="module")
def typed() -> SimpleNamespace:
    """Well separated types, with names that no file could hold as keys."""
    cells = up.simulate.cell_types(900, 20, 4, markers=0.4, fold=20.0, mean_counts=10.0, rng=0)
    names = dict(zip(cells.obs["cell_type"].cat.categories, ("CD4+/CD25 T", "B", "NK cell", "a/b/c"), strict=True))
    cells.obs["kind"] = cells.obs["cell_type"].map(names).astype(str)
    reference, truth = cells[:400].copy(), cells[400:].copy()
    design = up.design.balanced(list(cells.var_names), 10, rng=0)
    return SimpleNamespace(
        reference=reference, truth=truth, design=design, pools=up.measure(truth, design, snr=5, rng=0)
    )


def test_separated_types_are_recovered(tmp_path: Any, typed: SimpleNamespace) -> None:
    decoded = up.decode(typed.pools, typed.reference, noise_var="recorded", reference_label="kind")
    names = list(decoded.uns["unpool"]["labels"])
    true = typed.truth.obs["kind"].to_numpy()

    def check(probability: Any) -> None:
        assert np.allclose(probability.sum(axis=1), 1, atol=1e-5)
        called = np.array(names)[np.argmax(probability, axis=1)]
        assert (called == true).mean() > 0.95
        of_true = probability[np.arange(len(true)), [names.index(t) for t in true]]
        assert of_true.mean() > 0.9

    check(decoded.obsm["unpool_label_probability"])
    assert (decoded.obs["unpool_label"].astype(str) == true).mean() > 0.95
    assert isinstance(decoded.obs["unpool_label"].dtype, pd.CategoricalDtype)

    model = Model.from_cells(typed.reference, label="kind")
    assert model.labels is not None
    R = decoded.uns["unpool"]["noise_covariance"]
    P = typed.design.matrices[0]
    check(model.posterior(typed.pools.X, P, noise_var=R).labels)
    rng = np.random.default_rng(0)
    shuffled = replace(model.labels, compositions=tuple(rng.permutation(c) for c in model.labels.compositions))
    twin = Model(model.genes, model.members, labels=shuffled)
    with pytest.raises(AssertionError):
        check(twin.posterior(typed.pools.X, P, noise_var=R).labels)

    model.save(tmp_path / "model.npz")
    loaded = Model.load(tmp_path / "model.npz")
    check(loaded.posterior(typed.pools.X, P, noise_var=R).labels)
    again = up.decode(typed.pools, loaded, noise_var="recorded", adapt=bool(decoded.uns["unpool"]["adapted"]))
    assert np.allclose(again.obsm["unpool_label_probability"], decoded.obsm["unpool_label_probability"], atol=0.2)

    io.write_h5ad(decoded, tmp_path / "decoded.h5ad")
    back = io.read_h5ad(tmp_path / "decoded.h5ad")
    assert list(back.uns["unpool"]["labels"]) == names
    assert (back.obs["unpool_label"].astype(str) == decoded.obs["unpool_label"].astype(str)).all()


def test_composition_counts_the_cells_of_each_component() -> None:
    component, code = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, -1, -1])

    def check(found: Any) -> None:
        assert np.allclose(found, [[2 / 3, 1 / 3], [0, 1], [0.5, 0.5]])

    check(composition(component, code, 2))
    with pytest.raises(AssertionError):
        check(composition(component, np.maximum(code, 0), 2))  # the twin that takes "none" for the first label


def test_cells_without_a_label_teach_nothing(typed: SimpleNamespace) -> None:
    labels = typed.reference.obs["kind"].to_numpy(dtype=object).copy()
    labels[::2] = None
    decoded = up.decode(typed.pools, typed.reference, noise_var="recorded", reference_label=labels)
    assert (decoded.obs["unpool_label"].astype(str) == typed.truth.obs["kind"].to_numpy()).mean() > 0.9
    assert set(decoded.uns["unpool"]["labels"]) == set(typed.reference.obs["kind"])


def test_labels_that_cannot_be_found_are_named(typed: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="'knd' is no column"):
        up.decode(typed.pools, typed.reference, reference_label="knd")
    with pytest.raises(InputError, match="is no column"):
        up.decode(typed.pools, typed.reference.to_df(), reference_label="kind")
    with pytest.raises(InputError, match="holds no cells"):
        up.decode(typed.pools, Model.from_cells(typed.reference), reference_label="kind")
    with pytest.raises(InputError, match="2 values for 400 cells"):
        up.decode(typed.pools, typed.reference, reference_label=["a", "b"])
