"""evaluate: every number against an independent computation, each check with a broken twin that it must catch."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import unpool as up
from unpool import baselines
from unpool.errors import InputError
from unpool.evaluate import evaluate
from unpool.measure import recorded_design

module = import_module("unpool.evaluate")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, so that merging them is tested."""
    monkeypatch.setattr(module, "blocks", lambda n: (slice(i, min(i + 64, n)) for i in range(0, n, 64)))


def experiment(n_designs: int = 1, n_cells: int = 200) -> dict[str, Any]:
    """Truth, reference, pools and a noisy decoded matrix with its sd."""
    rng = np.random.default_rng(3)
    cells = up.simulate.cell_types(n_cells + 150, 12, 4, rng=1)
    reference, truth = cells[:150].copy(), cells[150:].copy()
    design = up.design.balanced(list(cells.var_names), 6, pools_per_gene=2, n_designs=n_designs, rng=0)
    pools = up.measure(truth, design, snr=5, rng=0)
    X = np.asarray(truth.X, dtype=np.float64)
    decoded = ad.AnnData((X + rng.normal(0, X.std(axis=0) / 2, X.shape)).astype(np.float32), obs=truth.obs.copy())
    decoded.var_names = truth.var_names
    decoded.layers["sd"] = np.broadcast_to(X.std(axis=0) / 2, X.shape).astype(np.float32)
    decoded.uns["unpool"] = {"method": "mixture", "noise_covariance": np.eye(6)}
    return {"decoded": decoded, "truth": truth, "pooled": pools, "reference": reference}


def catches(check: Callable[..., None], **broken: Any) -> None:
    with pytest.raises(AssertionError):
        check(**broken)


# Per gene and per cell


def test_pearson_spearman_and_relative_error_are_those_of_scipy_and_numpy() -> None:
    e = experiment()
    X, Y = np.asarray(e["truth"].X, dtype=np.float64), np.asarray(e["decoded"].X, dtype=np.float64)
    scores = evaluate(e["decoded"], e["truth"])

    def check(pearson: Any, spearman: Any, error: Any, cell: Any) -> None:
        assert np.allclose(pearson, [stats.pearsonr(x, y)[0] for x, y in zip(X.T, Y.T, strict=True)], atol=1e-12)
        assert np.allclose(spearman, [stats.spearmanr(x, y)[0] for x, y in zip(X.T, Y.T, strict=True)], atol=1e-12)
        assert np.allclose(error, np.linalg.norm(X - Y, axis=0) / np.linalg.norm(X, axis=0), atol=1e-12)
        assert np.allclose(cell, [stats.pearsonr(x, y)[0] for x, y in zip(X, Y, strict=True)], atol=1e-12)

    right = {
        "pearson": scores.genes["pearson"],
        "spearman": scores.genes["spearman"],
        "error": scores.genes["relative_error"],
        "cell": scores.cells["pearson"],
    }
    check(**right)
    cosine = (X * Y).sum(axis=0) / np.linalg.norm(X, axis=0) / np.linalg.norm(Y, axis=0)
    catches(check, **{**right, "pearson": cosine})  # not centred
    ordinal = [stats.pearsonr(x.argsort().argsort(), y.argsort().argsort())[0] for x, y in zip(X.T, Y.T, strict=True)]
    catches(check, **{**right, "spearman": ordinal})  # ties broken by order
    catches(check, **{**right, "error": np.square(right["error"])})
    catches(check, **{**right, "cell": right["cell"][::-1]})


def test_blocks_far_from_zero_lose_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X = rng.random((300, 3)) + 1e7
    Y = X + rng.normal(0, 0.2, X.shape)
    want = [stats.pearsonr(x, y)[0] for x, y in zip(X.T, Y.T, strict=True)]

    def check() -> None:
        got = evaluate(ad.AnnData(Y), ad.AnnData(X)).genes["pearson"]
        assert np.allclose(got, want, atol=1e-6)

    check()

    class Textbook(module._Moments):
        """E xy - E x E y, which cancels."""

        def pearson(self) -> Any:
            n = self.n
            xx, yy, xy = self.raw / n
            scale = np.sqrt(np.abs((xx - self.mx**2) * (yy - self.my**2)))
            return (xy - self.mx * self.my) / np.where(scale > 0, scale, 1.0)

        raw: Any = 0.0

        def add(self, X: Any, Y: Any) -> None:
            super().add(X, Y)
            self.raw = self.raw + np.stack([(X * X).sum(axis=0), (Y * Y).sum(axis=0), (X * Y).sum(axis=0)])

    monkeypatch.setattr(module, "_Moments", Textbook)
    catches(check)


def test_coverage_of_a_known_gaussian_is_90_percent() -> None:
    rng = np.random.default_rng(0)
    mean = np.full((20_000, 2), 100.0)
    sd = np.broadcast_to([1.0, 3.0], mean.shape)
    X = mean + sd * rng.standard_normal(mean.shape)

    def check(factor: float) -> None:
        decoded = ad.AnnData(mean, layers={"sd": sd * factor})
        coverage = evaluate(decoded, ad.AnnData(X)).genes["coverage_90"]
        assert np.allclose(coverage, 0.9, atol=0.01)  # 4.7 standard errors

    check(factor=1.0)
    catches(check, factor=1.1)
    catches(check, factor=0.9)


def test_the_interval_is_cut_at_zero_and_holds_its_ends() -> None:
    decoded = ad.AnnData(np.array([[1.0], [1.0]]), layers={"sd": np.array([[1.0], [0.0]])})
    assert evaluate(decoded, ad.AnnData(np.array([[0.0], [1.0]]))).genes["coverage_90"].tolist() == [1.0]
    assert "coverage_90" not in evaluate(ad.AnnData(decoded.X), ad.AnnData(decoded.X)).genes


def test_constant_genes_count_as_zero_and_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment()
    names = list(e["truth"].var_names)
    e["truth"].X[:, 2] = 0.1  # no power of two: its mean rounds
    e["decoded"].X[:, 5] = 7.0
    e["truth"].X[:, 7] = 0.0

    def check(drop: bool = False) -> None:
        scores = evaluate(e["decoded"], e["truth"])
        r = scores.genes["pearson"].replace(0.0, np.nan) if drop else scores.genes["pearson"]
        assert len(scores.genes) == 12
        assert r[[names[2], names[5], names[7]]].tolist() == [0.0, 0.0, 0.0]
        assert scores.summary["constant_genes"] == [names[2], names[5], names[7]]
        others = [stats.pearsonr(e["truth"].X[:, j], e["decoded"].X[:, j])[0] for j in (0, 1, 3, 4, 6, 8, 9, 10, 11)]
        assert scores.summary["pearson_mean"] == pytest.approx(sum(others) / 12, abs=1e-6)
        assert scores.summary["pearson_worst"] <= 0
        json.dumps(scores.summary, allow_nan=False)

    check()
    catches(check, drop=True)
    monkeypatch.setattr(module, "_flat", lambda n, mean, square: square < 0)
    with np.errstate(all="ignore"):
        catches(check)


def test_a_constant_cell_counts_as_zero() -> None:
    X = np.random.default_rng(0).random((5, 4))
    Y = X.copy()
    Y[3] = 0.3
    assert evaluate(ad.AnnData(Y), ad.AnnData(X)).cells["pearson"].round(9).tolist() == [1, 1, 1, 0, 1]


# Matching by name


def test_genes_and_cells_are_matched_by_name_in_any_order() -> None:
    e = experiment()
    want = evaluate(**e)
    rng = np.random.default_rng(5)
    cells, genes = rng.permutation(200), rng.permutation(12)

    def check(truth: Any) -> None:
        got = evaluate(e["decoded"], truth, pooled=e["pooled"][cells].copy(), reference=e["reference"][:, genes].copy())
        pd.testing.assert_frame_equal(got.genes, want.genes, atol=1e-9)
        pd.testing.assert_frame_equal(got.cells, want.cells, atol=1e-9)

    check(e["truth"][cells][:, genes].copy())
    check(e["truth"].to_df().iloc[cells, genes])
    by_position = e["truth"][cells].copy()
    by_position.obs_names = e["truth"].obs_names
    catches(check, truth=by_position)


def test_storage_does_not_matter_and_extra_genes_and_cells_are_ignored() -> None:
    e = experiment()
    want = evaluate(**e).genes
    e["truth"].X = sparse.csr_matrix(e["truth"].X)
    e["reference"].X = sparse.csc_matrix(e["reference"].X)
    few = e["decoded"][10:150, 3:9].copy()
    pd.testing.assert_frame_equal(evaluate(**e).genes, want, atol=1e-9)
    X, Y = e["truth"].X.toarray()[10:150, 3:9], few.X
    want_few = [stats.pearsonr(x, y)[0] for x, y in zip(X.T.astype(float), Y.T.astype(float), strict=True)]
    assert np.allclose(
        evaluate(few, e["truth"], pooled=e["pooled"], reference=e["reference"]).genes["pearson"], want_few
    )


def test_repeated_cell_names_are_matched_in_order_or_refused() -> None:
    truth = pd.DataFrame(np.random.default_rng(0).random((4, 3)), index=list("aabb"), columns=list("xyz"))
    with pytest.warns(UserWarning, match="not unique"):
        decoded = ad.AnnData(truth)
    assert evaluate(decoded, truth).genes["pearson"].min() == pytest.approx(1)
    with pytest.raises(InputError, match="cell name 'a' occurs more than once in the decoded data"):
        evaluate(decoded, truth.iloc[[3, 0, 1, 2]])


def test_what_does_not_fit_is_named() -> None:
    e = experiment()
    with pytest.raises(InputError, match="1 of 200 cells of the decoded data are not in the truth"):
        evaluate(e["decoded"], e["truth"][1:].copy())
    with pytest.raises(InputError, match="1 of 12 genes of the decoded data are not in the truth"):
        evaluate(e["decoded"], e["truth"][:, 1:].copy())
    with pytest.raises(InputError, match="no layer 'counts'"):
        evaluate(e["decoded"], e["truth"], layer="counts")
    broken = e["decoded"].copy()
    broken.X[70, 3] = np.nan
    with pytest.raises(InputError, match=rf"gene '{broken.var_names[3]}' is nan in cell '{broken.obs_names[70]}'"):
        evaluate(broken, e["truth"])
    broken = e["decoded"].copy()
    broken.uns["unpool"]["noise_covariance"] = np.eye(5)
    with pytest.raises(InputError, match="6 pools"):
        evaluate(broken, e["truth"], pooled=e["pooled"], reference=e["reference"])


# Baselines


def predictions(e: dict[str, Any]) -> dict[str, Any]:
    """The baselines once more, in the plainest way, cell by cell."""
    design, index = recorded_design(e["pooled"])
    X, R = np.asarray(e["reference"].X, dtype=np.float64), np.eye(6)
    D = np.asarray(e["pooled"].X, dtype=np.float64)
    mu = X.mean(axis=0)
    from sklearn.covariance import LedoitWolf

    sd = X.std(axis=0)
    S = LedoitWolf().fit((X - mu) / sd).covariance_ * np.outer(sd, sd)
    total, norm, linear = [], [], []
    for d, b in zip(D, index, strict=True):
        P = design.matrices[b]
        total.append(mu * d.sum() / D[index == b].sum(axis=1).mean())
        norm.append(np.linalg.lstsq(P.T, d, rcond=None)[0])
        linear.append(np.maximum(mu + S @ P @ np.linalg.inv(P.T @ S @ P + R) @ (d - P.T @ mu), 0))
    return {"total": np.array(total), "minimum_norm": np.array(norm), "linear": np.array(linear)}


@pytest.mark.parametrize("n_designs", [1, 3])
def test_baselines_are_what_they_say(n_designs: int) -> None:
    e = experiment(n_designs)
    scores = evaluate(**e)
    X = np.asarray(e["truth"].X, dtype=np.float64)

    def check(predicted: dict[str, Any]) -> None:
        for name, Y in predicted.items():
            r = [stats.pearsonr(x, y)[0] for x, y in zip(X.T, Y.T, strict=True)]
            assert np.allclose(scores.genes[f"pearson_{name}"], r, atol=1e-6), name
            error = np.linalg.norm(X - Y, axis=0) / np.linalg.norm(X, axis=0)
            assert np.allclose(scores.genes[f"relative_error_{name}"], error, atol=1e-6), name

    right = predictions(e)
    check(right)
    for name in right:
        catches(check, predicted={name: np.roll(right[name], 1, axis=0)})
    mean = np.asarray(e["reference"].X, dtype=np.float64).mean(axis=0)
    assert np.allclose(
        scores.genes["relative_error_mean"], np.linalg.norm(X - mean, axis=0) / np.linalg.norm(X, axis=0)
    )
    assert scores.genes["pearson_mean"].tolist() == [0.0] * 12
    assert scores.genes["pearson_neighbours"].mean() > scores.genes["pearson_total"].mean()


def test_neighbours_find_the_reference_cells_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment()
    e["truth"] = e["reference"]
    e["pooled"] = up.measure(e["reference"], up.Design(np.eye(12), genes=list(e["reference"].var_names)))
    e["decoded"] = ad.AnnData(e["reference"].X, obs=e["reference"].obs, var=e["reference"].var)
    monkeypatch.setattr(baselines, "N_NEIGHBOURS", 1)

    def check() -> None:
        assert np.allclose(evaluate(**e).genes["pearson_neighbours"], 1)

    check()
    monkeypatch.setattr(baselines, "N_NEIGHBOURS", 15)
    catches(check)


def test_baselines_depend_on_nothing_that_the_decoder_said() -> None:
    e = experiment()
    want = evaluate(**e).genes.filter(regex="_(mean|total|minimum_norm|linear|neighbours)$")
    assert want.shape == (12, 10)

    def check(name: str) -> None:
        other = e | {"decoded": e["decoded"].copy()}
        other["decoded"].X[:] = np.random.default_rng(1).random((200, 12))
        del other["decoded"].layers["sd"]
        got = evaluate(**other).genes
        assert np.array_equal(got[f"pearson_{name}" if name else "pearson"], want[f"pearson_{name or 'linear'}"])

    for name in module.BASELINES:
        check(name)
    catches(check, name="")  # the decoder's own column does depend on it


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ((), ["mean"]),
        (("reference",), ["mean"]),
        (("pooled",), ["mean", "total", "minimum_norm"]),
        (("pooled", "reference"), ["mean", "total", "minimum_norm", "linear", "neighbours"]),
    ],
)
def test_the_given_data_decide_which_baselines_there_are(given: tuple[str, ...], names: list[str]) -> None:
    e = experiment()
    scores = evaluate(e["decoded"], e["truth"], **{k: e[k] for k in given})
    assert list(scores.summary["baselines"]) == names
    assert [c[8:] for c in scores.genes if c.startswith("pearson_")] == names
    assert [c[8:] for c in scores.cells if c.startswith("pearson_")] == names


def test_noise_is_the_decoders_else_the_recorded_else_none() -> None:
    e = experiment()
    design, _ = recorded_design(e["pooled"])
    record = e["decoded"].uns["unpool"]
    assert np.array_equal(module._noise_covariance(e["decoded"], e["pooled"], design, 0), np.eye(6))
    e["decoded"].uns["unpool"] = {"noise_covariance_0": 2 * record["noise_covariance"]}
    assert np.array_equal(module._noise_covariance(e["decoded"], e["pooled"], design, 0), 2 * np.eye(6))
    del e["decoded"].uns["unpool"]
    measured = e["pooled"].uns["unpool"]["simulated"]["noise_var"]
    assert np.allclose(module._noise_covariance(e["decoded"], e["pooled"], design, 0), np.diag(measured))
    del e["pooled"].uns["unpool"]["simulated"]
    assert not module._noise_covariance(e["decoded"], e["pooled"], design, 0).any()


# Summary


def test_the_verdict_says_none_when_the_decoder_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment()
    better = evaluate(**e).summary
    r, b = better["pearson_mean"], max(of["pearson_mean"] for of in better["baselines"].values())
    assert better["removed_share"] == pytest.approx(((1 - b) - (1 - r)) / (1 - b))
    assert f"removed {better['removed_share']:.0%} of the best baseline's error" in better["verdict"]
    rng = np.random.default_rng(0)
    e["decoded"].X[:] = rng.permuted(e["decoded"].X, axis=0)

    def check() -> None:
        worse = evaluate(**e).summary
        assert worse["removed_share"] < 0
        assert "removed none of the best baseline's error" in worse["verdict"]
        assert module.BASELINES[worse["best_baseline"]] in worse["verdict"]

    check()
    monkeypatch.setattr(
        module, "_verdict", lambda r, b, best: (abs(r - b), "The decoder removed 40% of the best baseline's error")
    )
    catches(check)


def test_a_perfect_baseline_leaves_no_error_to_remove() -> None:
    assert module._verdict(1.0, 1.0, "total")[0] == 0.0
    assert "removed none of the best baseline's error" in module._verdict(0.9, 1.0, "total")[1]


def test_scores_read_well_and_survive_a_file(tmp_path: Any) -> None:
    e = experiment()
    scores = evaluate(**e)
    text = str(scores)
    assert len(text.splitlines()) <= 12
    assert all(label in text for label in module.BASELINES.values())
    assert scores.summary["worst_gene"] in text
    json.dumps(scores.summary, allow_nan=False)
    scores.to_csv(tmp_path / "scores.csv")
    back = pd.read_csv(tmp_path / "scores.csv")
    assert list(back.columns[:2]) == ["gene", "pearson"]
    assert np.allclose(back["pearson"], scores.genes["pearson"].to_numpy(), atol=0)
    assert back["gene"].tolist() == list(e["decoded"].var_names)
    with pytest.raises(AttributeError):
        scores.genes = back  # type: ignore[misc]
