"""benchmark: the protocol by hand, no leak of test cells, failures kept, and random designs that obey their rules."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pandas as pd
import pytest

import unpool as up
from unpool.design._random import uncorrelated
from unpool.errors import InputError

module = import_module("unpool.benchmark")
FAST = {"unpool": None, "modules": None}


@pytest.fixture(scope="module")
def cells():
    cells = up.simulate.cell_types(200, 16, 4, rng=0)
    cells.X = cells.X + np.random.default_rng(1).gamma(1.0, 0.1, cells.shape)  # no two cells alike
    cells.obs["batch"] = np.arange(200) % 3
    return cells


def spy(seen):
    """A method that keeps what it is given and answers with zeros."""

    def method(D, P, reference, R, rng):
        seen.append((D, P, reference, R))
        return np.zeros((len(D), len(P)))

    return method


def by_hand(cells, k, m=8, snr=5.0):
    """The protocol of a random split with noise in the pools, written out."""
    X = np.asarray(cells.X, dtype=float)
    rng = np.random.default_rng(k)
    order = rng.permutation(200)
    reference, truth = X[order[:120]], X[order[160:]]
    norm = np.sqrt(np.square(reference).sum(axis=0))
    design = uncorrelated(list(cells.var_names), m, rng=rng)
    pools = up.measure(truth / norm, up.Design(design.matrices[0]), snr=snr, rng=rng)
    clean = truth / norm @ design.matrices[0]
    return {
        "D": pools.X,
        "P": design.matrices[0],
        "reference": reference / norm,
        "truth": truth / norm,
        "R": np.diag(clean.var(axis=0) / snr**2),
        "order": order,
    }


def test_the_protocol_by_hand(cells):
    seen = []
    up.benchmark(cells, pools=8, repeats=2, methods=FAST | {"spy": spy(seen)})
    for k, (D, P, reference, R) in enumerate(seen):
        want = by_hand(cells, k)
        assert np.allclose(D, want["D"])
        assert np.array_equal(P, want["P"])
        assert np.allclose(reference.X, want["reference"])
        assert np.allclose(np.linalg.norm(reference.X, axis=0), 1)
        assert np.allclose(R, want["R"])
        assert list(reference.obs_names) == [f"cell_{i}" for i in want["order"][:120]]
        twin = by_hand(cells, k + 1)
        assert not np.allclose(reference.X, twin["reference"])
        assert not np.array_equal(P, twin["P"])


def test_scores_by_hand(cells):
    def method(D, P, reference, R, rng):
        return D @ np.linalg.pinv(P)

    result = up.benchmark(cells, pools=(6, 8), repeats=3, methods=FAST | {"pinv": method})
    row = result.table.set_index(["pools", "method"]).loc[(8, "pinv")]

    def scores(k):
        e = by_hand(cells, k)
        answer = e["D"] @ np.linalg.pinv(e["P"])
        return [np.corrcoef(x, y)[0, 1] for x, y in zip(e["truth"].T, answer.T, strict=True)]

    r = np.array([scores(k) for k in range(3)])
    want = [r.mean(), r.mean(axis=1).std(ddof=1), r.min(axis=1).mean(), r.min(axis=1).std(ddof=1)]
    np.testing.assert_allclose(row[["mean", "sd", "worst", "worst_sd"]].astype(float), want, rtol=1e-5)
    assert abs(row["worst"] - r.mean(axis=0).min()) > 1e-4  # the twin: the worst gene of the averaged repeats
    mine = result.repeats.query("pools == 8 and method == 'pinv'")
    assert mine["worst_gene"].tolist() == [f"gene_{j}" for j in r.argmin(axis=1)]
    # the other setting changes nothing
    alone = (
        up.benchmark(cells, pools=8, repeats=3, methods=FAST | {"pinv": method}).table.set_index("method").loc["pinv"]
    )
    assert alone["mean"] == row["mean"]


def leaks(cells, **options):
    """Whether any test cell's noise-free pools are those of a reference cell."""
    seen = []
    up.benchmark(cells, pools=8, repeats=3, noise="none", methods=FAST | {"spy": spy(seen)}, **options)
    return any(
        np.isclose((reference.X @ P)[:, None], D[None], rtol=1e-9, atol=0).all(axis=2).any()
        for D, P, reference, _ in seen
    )


@pytest.mark.parametrize("split", ["random", "group:cell_type"])
def test_no_test_cell_is_in_the_reference(cells, split, monkeypatch):
    assert not leaks(cells, split=split)
    honest = module._split

    def leaking(order, groups, k):
        reference, test = honest(order, groups, k)
        return np.append(reference, test[0]), test

    monkeypatch.setattr(module, "_split", leaking)
    assert leaks(cells, split=split)


def test_groups_are_held_out_whole(cells):
    seen = []
    result = up.benchmark(cells, pools=8, split="group:batch", repeats=9, methods=FAST | {"spy": spy(seen)})
    assert len(seen) == result.parameters["repeats"] == 3
    for k, (D, _, reference, _) in enumerate(seen):
        assert sorted(set(reference.obs["batch"])) == [b for b in range(3) if b != k]
        assert len(D) + reference.n_obs == 200


def test_noise(cells):
    def noise(stage):
        seen = []
        up.benchmark(cells, pools=8, repeats=1, noise=stage, methods=FAST | {"spy": spy(seen)})
        return seen[0][3], seen[0][1]

    assert not noise("none")[0].any()
    R, P = noise("expression")
    truth = by_hand(cells, 0)["truth"]
    assert np.allclose(R, np.mean(truth**2) / 25 * P.T @ P)
    assert not np.allclose(R, noise("pool")[0])


def test_a_given_design_takes_its_genes_by_name(cells):
    design = up.design.balanced(list(cells.var_names[::-1][:12]), 6, pools_per_gene=2, rng=0)
    seen = []
    for options in ({"design": design}, {"pools": design}):
        result = up.benchmark(cells, repeats=1, methods=FAST | {"spy": spy(seen)}, **options)
        assert set(result.table["pools"]) == {6}
        assert list(seen[-1][2].var_names) == list(design.genes)
        assert np.array_equal(seen[-1][1], design.matrices[0])
    assert result.parameters["n_genes"] == 12


def test_every_method_is_a_row_and_failures_stay(cells):
    def fails(D, P, reference, R, rng):
        raise ZeroDivisionError("no such luck")

    def once(D, P, reference, R, rng, calls=[]):  # noqa: B006 - counts its calls
        calls.append(1)
        return np.zeros((len(D), 16)) if len(calls) > 1 else np.full((len(D), 16), np.nan)

    extra = {"fails": fails, "shape": lambda D, P, reference, R, rng: D, "once": once}
    result = up.benchmark(cells, pools=8, repeats=2, methods=extra)
    table = result.table.set_index("method")
    assert list(table.index) == ["unpool", "modules", "neighbours", "linear", "total", "fails", "shape", "once"]
    assert table["failures"].to_dict() == dict.fromkeys(table.index[:5], 0) | {"fails": 2, "shape": 2, "once": 1}
    assert table.loc["fails", "error"] == "ZeroDivisionError: no such luck"
    assert "expected cells x genes, (40, 16)" in table.loc["shape", "error"]
    assert np.isnan(table.loc["fails", "mean"])
    assert table.loc["once", "mean"] == 0.0  # constant answers count as 0
    assert (table["mean"].iloc[:5] > 0.1).all()
    assert table.loc["unpool", "mean"] > table.loc["total", "mean"]
    text = str(result)
    assert "failed 2 times: ZeroDivisionError: no such luck" in text
    assert all(name in text for name in table.index)
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["table"][5]["mean"] is None
    assert len(written["repeats"]) == 16


def test_baselines_are_those_of_evaluate(cells):
    e = by_hand(cells, 0)
    design = up.Design(e["P"], genes=list(cells.var_names))
    frame = {k: pd.DataFrame(e[k], columns=cells.var_names) for k in ("reference", "truth")}
    frame["truth"].index = [f"cell_{i}" for i in range(40)]
    pools = up.pooled(e["D"], design)
    decoded = up.decode(pools, frame["reference"], noise_var=e["R"])
    genes = up.evaluate(decoded, frame["truth"], pooled=pools, reference=frame["reference"]).genes
    table = up.benchmark(cells, pools=8, repeats=1, methods=FAST).table.set_index("method")
    for name in ("neighbours", "linear", "total"):
        assert abs(table.loc[name, "mean"] - genes[f"pearson_{name}"].mean()) < 1e-5
    assert abs(table.loc["linear", "mean"] - genes["pearson_neighbours"].mean()) > 1e-3


def test_methods_do_not_disturb_each_other(cells):
    def vandal(D, P, reference, R, rng):
        D[:], P[:], R[:] = 0, 0, 0
        reference.X[:] = 0
        rng.random(100)
        return np.zeros((len(D), 16))

    quiet = up.benchmark(cells, pools=8, repeats=1, methods={"unpool": None})
    noisy = up.benchmark(cells, pools=8, repeats=1, methods={"unpool": vandal}).table.iloc[1:]
    assert quiet.table["mean"].tolist() == noisy["mean"].tolist()


def test_bad_input_is_refused(cells):
    several = up.design.bernoulli(list(cells.var_names), 8, n_designs=2, rng=0)
    for options, message in (
        ({"noise": "loud"}, "noise='loud'"),
        ({"split": "batch"}, "split='batch'"),
        ({"split": "group:tissue"}, "no column 'tissue'; it has"),
        ({"design": "best"}, "design='best'"),
        ({"design": several}, "holds 2 designs"),
        ({"pools": 1}, "choose more pools"),
        ({"repeats": 0}, "repeats=0"),
        ({"methods": dict.fromkeys(module.METHODS)}, "every method"),
        ({"reference_group": "tissue"}, "no column 'tissue'"),
    ):
        with pytest.raises(InputError, match=message):
            up.benchmark(cells, **options)
    with pytest.raises(InputError, match="at least 10"):
        up.benchmark(cells[:9].copy())
    with pytest.raises(InputError, match="log"):
        up.benchmark(np.log1p(up.simulate.cell_types(100, 20, 3, rng=0).X))


def obeys(W):
    """The rules of random designs: 1 to 3 pools a gene, rows correlated by 0.8 at most, pools filled within 4."""
    r = np.corrcoef(W) - np.eye(len(W))
    fill, per_gene = W.sum(axis=0), W.sum(axis=1)
    return bool(
        set(np.unique(W)) <= {0.0, 1.0}
        and 1 <= per_gene.min() <= per_gene.max() <= 3
        and r.max() <= 0.8 + 1e-9
        and fill.max() <= 4 * fill.min()
    )


@pytest.mark.parametrize(("genes", "pools"), [(100, 10), (100, 25), (16, 8), (40, 12)])
def test_random_designs_obey_their_rules(genes, pools):
    W = uncorrelated(genes, pools, rng=0).matrices[0]
    assert obeys(W)
    assert set(W.sum(axis=1)) == {1.0, 2.0, 3.0}
    assert not np.array_equal(W, uncorrelated(genes, pools, rng=1).matrices[0])
    same = W.copy()
    same[1] = same[0]
    more = W.copy()
    more[0] = np.arange(pools) < 4
    empty = np.column_stack([W, np.zeros(len(W))])
    assert not any(map(obeys, (same, more, empty)))
    assert not obeys(up.design.bernoulli(genes, pools, p=0.25, rng=0).matrices[0])


def test_impossible_random_designs_say_so():
    with pytest.raises(InputError, match="choose more pools, fewer genes, or give a design"):
        uncorrelated(30, 3, rng=0)
    with pytest.raises(InputError, match="pools_per_gene"):
        uncorrelated(30, 2, pools_per_gene=(3, 4), rng=0)
