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
from unpool.model import Model, Strengths

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


def test_directly_measured_genes_are_hidden_with_their_replicates(
    experiment: SimpleNamespace, recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(cv: Any) -> None:
        assert list(cv.genes.index) == ["gene_3", "gene_3"]
        assert list(cv.genes["pool"]) == ["pool_6", "pool_7"]
        assert (cv.genes["pearson"] < 0.9).all()
        assert (cv.genes["pearson"] == cv.pools.loc[["pool_6", "pool_7"], "pearson"].to_numpy()).all()

    check(recorded)
    monkeypatch.setattr(module, "_others", lambda design, b, k: np.arange(design.n_pools) != k)
    replicate_left_in = up.crossvalidate(experiment.pools, experiment.reference, noise_var="recorded", fast=True)
    with pytest.raises(AssertionError):
        check(replicate_left_in)
    assert recorded.summary["n_genes"] == 2
    assert "Genes measured directly, hidden likewise: 2" in str(recorded)


def foretold(monkeypatch: pytest.MonkeyPatch, pools: Any, reference: Any, **options: Any) -> dict[int, Any]:
    """What the model says of each hidden pool, before it is compared: cells, by number of the pool."""
    seen = {}
    true_scores = module._scores

    def spy(design: Any, b: int, k: int, d: Any, predicted: Any, *rest: Any, **more: Any) -> Any:
        seen[k] = predicted[""]
        return true_scores(design, b, k, d, predicted, *rest, **more)

    with monkeypatch.context() as m:
        m.setattr(module, "_scores", spy)
        up.crossvalidate(pools, reference, **options)
    return seen


def modules_of(experiment: SimpleNamespace) -> pd.DataFrame:
    """Genes x modules: the mean of each cell type, at a scale of its own."""
    X = np.asarray(experiment.reference.X)
    kind = experiment.reference.obs["cell_type"].to_numpy()
    means = {f"module_{t}": X[kind == t].mean(axis=0) / 10 for t in np.unique(kind)}
    return pd.DataFrame(means, index=experiment.reference.var_names)


HOW = {
    "adapted": {"adapt": True, "selection": False},
    "calibrated": {"adapt": False, "selection": False, "calibrate": "gain"},
    "adapted and calibrated": {"adapt": True, "selection": False, "calibrate": "gain", "method": "gaussian"},
    "fast": {"fast": True},
}


@pytest.mark.parametrize("how", [*HOW, "modules"])
def test_hidden_pools_are_decoded_as_decode_does(
    experiment: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    options = HOW.get(how, {})
    reference = modules_of(experiment) if how == "modules" else experiment.reference
    found = foretold(monkeypatch, experiment.pools, reference, **options)[4]
    method = options.get("method", "mixture")
    kept = experiment.pools[:, np.arange(8) != 4].copy()

    def check(**other: Any) -> None:
        mine = up.decode(kept, reference, sd=False, crossfit=False, **{"method": method} | options | other)
        assert np.allclose(mine.X @ experiment.design.matrices[0][:, 4], found, rtol=1e-4)

    check()
    other = {"adapted": {"adapt": False}, "modules": {"adapt": False}, "fast": {"fast": False}}
    with pytest.raises(AssertionError):
        check(**other.get(how, {"calibrate": None}))


def test_hidden_pools_adapt_with_the_strengths_that_were_chosen(
    experiment: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, kept = experiment.pools, np.arange(8) != 4
    options: Any = {"selection": False, "adapt": True, "method": "gaussian", "noise_var": 20.0}

    def check(found: Any) -> None:
        mine = up.decode(pools[:, kept].copy(), experiment.reference, sd=False, crossfit=False, **options)
        assert np.allclose(mine.X @ experiment.design.matrices[0][:, 4], found, rtol=1e-4)

    usual = foretold(monkeypatch, pools, experiment.reference, **options)[4]
    chosen = Strengths(prior=0.1, gain_sd=0.5), {"adapted_because": "so chosen"}
    monkeypatch.setattr(import_module("unpool._learn"), "_strengths", lambda *_: chosen)
    check(foretold(monkeypatch, pools, experiment.reference, **options)[4])
    with pytest.raises(AssertionError):
        check(usual)


def test_choices_are_those_of_decode(experiment: SimpleNamespace) -> None:
    few = experiment.pools[::3].copy()
    record = up.decode(few, experiment.reference, sd=False, crossfit=False).uns["unpool"]

    def check(**options: Any) -> None:
        cv = up.crossvalidate(few, experiment.reference, **options)
        assert [cv.summary[k] for k in ("extras", "nu", "adapted")] == [record[k] for k in ("extras", "nu", "adapted")]
        assert str(cv.summary["adapted_because"]) in str(cv)

    check()
    with pytest.raises(AssertionError):
        check(selection=False, adapt=not record["adapted"])
    groups = up.crossvalidate(few, experiment.reference, reference_group="cell_type")
    assert "groups of the reference" in groups.summary["adapted_because"]


@pytest.mark.parametrize("how", ["adapted", "calibrated", "modules"])
def test_a_hidden_pool_has_no_part_in_its_prediction(
    experiment: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever is measured in pool 2, the same is foretold: by weights, gains, noise and the modules' activity."""
    options = HOW.get(how, {})
    reference = modules_of(experiment) if how == "modules" else experiment.reference
    other = experiment.pools.copy()
    other.X[:, 2] = 5 * np.random.default_rng(0).permutation(other.X[:, 2])

    def check() -> None:
        before, after = (foretold(monkeypatch, p, reference, **options) for p in (experiment.pools, other))
        assert np.array_equal(before[2], after[2])
        assert not np.array_equal(before[1], after[1])

    check()
    with monkeypatch.context() as m:
        broken_twin(m, how)
        with pytest.raises(AssertionError):
            check()


def broken_twin(m: pytest.MonkeyPatch, how: str) -> None:
    """Let the hidden pool in where this way of decoding estimates something: weights, gains or the modules' activity."""
    if how != "modules":
        m.setattr(module, "_others", lambda design, b, k: np.ones(design.n_pools, dtype=bool))
        return
    true, of_all = module.from_modules, []

    def first_of_all(table: Any, D: Any, design: Any, index: Any) -> Any:
        if D.shape[1] == 8:
            of_all[:] = [true(table, D, design, index)]
        return of_all[0]

    m.setattr(module, "from_modules", first_of_all)


def test_unknown_gains_are_calibrated(experiment: SimpleNamespace) -> None:
    scaled = experiment.pools.copy()
    scaled.X = scaled.X * np.random.default_rng(0).permutation(np.geomspace(0.3, 3, 8)) + 20
    fine = up.crossvalidate(experiment.pools, experiment.reference, fast=True)

    def check(**options: Any) -> None:
        cv = up.crossvalidate(scaled, experiment.reference, fast=True, **options)
        assert cv.summary["pearson_mean"] > fine.summary["pearson_mean"] - 0.03
        r = cv.pools["pearson"].clip(lower=0)
        assert np.allclose(cv.pools["relative_error"], np.sqrt(1 - r**2))
        assert (cv.pools["relative_error_mean"] == 1).all()

    check(calibrate="gain")
    with pytest.raises(AssertionError):
        check()
    with pytest.raises(InputError, match="calibrate"):
        up.crossvalidate(scaled, experiment.reference, calibrate="offset")
    with pytest.raises(InputError, match="adapt"):
        up.crossvalidate(scaled, experiment.reference, adapt="always")


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


def test_cells_of_other_designs_keep_all_their_pools(
    experiment: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool hidden in one design: the same as if that design had never had it."""
    genes = list(experiment.design.genes)
    cells = up.simulate.cell_types(600, 12, 4, mean_counts=8.0, rng=0)
    design = up.design.balanced(genes, 6, pools_per_gene=2, n_designs=2, rng=0)
    pools = up.measure(cells[300:].copy(), design, snr=5, rng=0)
    options: Any = {"selection": False, "adapt": True, "calibrate": "gain"}
    reference, second = cells[:300].copy(), (pools.obs["design"] == design.names[1]).to_numpy()
    found = foretold(monkeypatch, pools, reference, **options)[5]  # of design 1, which comes last

    def check(first: Any) -> None:
        alike = up.Design([first, design.matrices[1][:, :5]], genes=genes)
        D = np.array(pools.X)[:, : alike.n_pools]
        D[second, 5:] = 0
        decoded = up.decode(up.pooled(D, alike, design_index=second.astype(int)), reference, crossfit=False, **options)
        assert np.allclose(decoded.X[second] @ design.matrices[1][:, 5], found, rtol=1e-4)

    check(design.matrices[0])
    with pytest.raises(AssertionError):
        check(design.matrices[0][:, :5])  # hidden there as well


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
    again = module.CrossValidation.read_csv(tmp_path / "pools.csv")
    assert again.summary["verdict"] == cv.summary["verdict"]
    assert list(again.genes.index) == list(cv.genes.index)
    assert "8 pools\n" in str(again)
    check(crossvalidation=again)
    cv.pools.drop(columns="ceiling").to_csv(tmp_path / "other.csv")
    with pytest.raises(InputError, match="other.csv has no column 'ceiling'; give the table"):
        module.CrossValidation.read_csv(tmp_path / "other.csv")
    with pytest.raises(AssertionError):
        check()
