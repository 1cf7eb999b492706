"""crossvalidate: a hidden pool stays hidden, scores are those of independent computations; checks have broken twins."""

from __future__ import annotations

import json
import re
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import unpool as up
from unpool.errors import InputError
from unpool.model import Model

module = import_module("unpool.crossvalidate")


@pytest.fixture(scope="module")
def experiment() -> SimpleNamespace:
    """12 genes in 6 mixed pools, and gene_3 measured directly twice, once at double weight."""
    cells = up.simulate.cell_types(600, 12, 4, mean_counts=8.0, rng=0)
    reference, truth = cells[:300].copy(), cells[300:].copy()
    W = np.zeros((12, 8))
    W[:, :6] = up.design.balanced(12, 6, pools_per_gene=2, rng=0).matrices[0]
    W[3, 6], W[3, 7] = 1.0, 2.0
    design = up.Design(W, genes=list(cells.var_names))
    return SimpleNamespace(reference=reference, design=design, pools=up.measure(truth, design, snr=5, rng=0))


@pytest.fixture(scope="module")
def recorded(experiment: SimpleNamespace) -> Any:
    return up.crossvalidate(experiment.pools, experiment.reference, noise_var="recorded")


def test_a_hidden_pool_cannot_be_seen(experiment: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that holds nothing but noise is foretold by nobody who does not look."""
    pools = experiment.pools.copy()
    rng = np.random.default_rng(0)
    pools.X[:, 2] = rng.permutation(pools.X[:, 2])

    def check(cv: Any) -> None:
        assert abs(cv.pools.loc["pool_2", "pearson"]) < 0.15
        assert abs(cv.pools.loc["pool_2", "pearson_linear"]) < 0.15
        assert cv.pools.loc["pool_1", "pearson"] > 0.3

    for method, noise_var in (("mixture", "recorded"), ("gaussian", None)):
        check(up.crossvalidate(pools, experiment.reference, method=method, noise_var=noise_var))
    monkeypatch.setattr(module, "_others", lambda design, b, k: np.ones(design.n_pools, dtype=bool))
    leaky = up.crossvalidate(pools, experiment.reference, noise_var=1e-6)
    with pytest.raises(AssertionError):
        check(leaky)
    assert leaky.pools["pearson"].min() > 0.9


def test_scores_are_those_of_a_decoding_without_the_pool(experiment: SimpleNamespace, recorded: Any) -> None:
    cv = recorded
    v = experiment.pools.uns["unpool"]["simulated"]["noise_var"]
    kept = np.arange(8) != 4
    model = Model.from_cells(experiment.reference, rng=0)

    def check(row: Any, x: Any) -> None:
        d, p = np.asarray(experiment.pools.X[:, 4], dtype=float), experiment.design.matrices[0][:, 4]
        assert row["pearson"] == pytest.approx(np.corrcoef(d, x @ p)[0, 1], abs=2e-2)
        assert row["relative_error"] == pytest.approx(
            np.linalg.norm(d - x @ p) / np.linalg.norm(d - d.mean()), abs=2e-2
        )
        assert row["ceiling"] == pytest.approx(np.sqrt(1 - v[4] / d.var()))
        total = experiment.pools.X[:, kept].sum(axis=1)
        assert row["pearson_total"] == pytest.approx(np.corrcoef(d, total)[0, 1])
        assert row["pearson_mean"] == 0

    P = experiment.design.matrices[0][:, kept]
    check(cv.pools.loc["pool_4"], model.posterior(experiment.pools.X[:, kept], P, noise_var=v[kept], sd=False).mean)
    seeing = model.posterior(experiment.pools.X, experiment.design.matrices[0], noise_var=v, sd=False).mean
    with pytest.raises(AssertionError):
        check(cv.pools.loc["pool_4"], seeing)


def test_directly_measured_genes_are_hidden_with_their_replicates(experiment: SimpleNamespace, recorded: Any) -> None:
    cv = recorded

    def check(genes: pd.DataFrame) -> None:
        assert list(genes.index) == ["gene_3", "gene_3"]
        assert list(genes["pool"]) == ["pool_6", "pool_7"]
        assert (genes["pearson"] < 0.97).all()
        assert (genes["pearson"] == cv.pools.loc[["pool_6", "pool_7"], "pearson"].to_numpy()).all()

    check(cv.genes)
    without_pool_6 = up.decode(
        experiment.pools[:, [0, 1, 2, 3, 4, 5, 7]].copy(), experiment.reference, noise_var=0.01, crossfit=False
    )
    r = np.corrcoef(np.asarray(without_pool_6[:, "gene_3"].X)[:, 0], experiment.pools.X[:, 6])[0, 1]
    with pytest.raises(AssertionError):
        check(cv.genes.assign(pearson=max(r, 0.97)))  # the twin that leaves the replicate in
    assert cv.summary["n_genes"] == 2
    assert "Genes measured directly, hidden likewise: 2" in str(cv)


def test_noise_may_come_in_every_form(experiment: SimpleNamespace) -> None:
    v = experiment.pools.uns["unpool"]["simulated"]["noise_var"]
    recorded, vector, matrix = (
        up.crossvalidate(experiment.pools, experiment.reference, method="gaussian", noise_var=noise).pools["pearson"]
        for noise in ("recorded", v, np.diag(v))
    )
    assert np.allclose(recorded, vector)
    assert np.allclose(recorded, matrix)
    by_gene = up.crossvalidate(
        experiment.pools, experiment.reference, method="gaussian", noise_var=np.full(12, 50.0), noise_stage="expression"
    )
    assert not np.allclose(recorded, by_gene.pools["pearson"], atol=1e-3)


def test_several_designs_are_scored_each_on_its_own(experiment: SimpleNamespace) -> None:
    genes = list(experiment.design.genes)
    cells = up.simulate.cell_types(600, 12, 4, mean_counts=8.0, rng=0)
    design = up.design.balanced(genes, 6, pools_per_gene=2, n_designs=2, rng=0)
    pools = up.measure(cells[300:].copy(), design, snr=5, rng=0)
    cv = up.crossvalidate(pools, cells[:300].copy(), method="gaussian", noise_var="recorded")
    assert len(cv.pools) == 12
    assert cv.pools.index[:2].tolist() == ["design_0: pool_0", "design_0: pool_1"]
    few = up.crossvalidate(pools, cells[:300].copy(), method="gaussian", noise_var="recorded", n_cells=100)
    assert few.summary["n_cells"] == 100


def test_one_pool_is_not_enough(experiment: SimpleNamespace) -> None:
    for only in ([0], [6, 7]):
        with pytest.raises(InputError, match="no pool is left"):
            up.crossvalidate(experiment.pools[:, only].copy(), experiment.reference)
    with pytest.raises(InputError, match="method"):
        up.crossvalidate(experiment.pools, experiment.reference, method="als")


def test_csv_json_and_report(tmp_path: Any, experiment: SimpleNamespace, recorded: Any) -> None:
    cv = recorded
    cv.to_csv(tmp_path / "pools.csv")
    assert np.allclose(pd.read_csv(tmp_path / "pools.csv", index_col=0)["pearson"], cv.pools["pearson"])
    json.dumps(cv.summary, allow_nan=False)
    decoded = up.decode(experiment.pools, experiment.reference, noise_var="recorded")

    def check(**given: Any) -> None:
        up.report(tmp_path / "r.html", decoded, pooled=experiment.pools, **given)
        page = (tmp_path / "r.html").read_text()
        assert "Hidden pools" in page
        assert len(re.findall(r"<tr><th>pool_\d</th>", page)) == 8
        assert f"{cv.pools['pearson'].min():.3f}" in page
        assert "Expected correlation" in page

    check(crossvalidation=cv)
    with pytest.raises(AssertionError):
        check()
