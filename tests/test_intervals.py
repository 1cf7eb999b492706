"""Intervals and expected accuracy hold on fresh cells, and each check fails on a broken twin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import stats

import unpool as up
from unpool import io
from unpool.errors import InputError, UnpoolWarning
from unpool.intervals import PROBABILITIES, Calibration
from unpool.model import HeldOut, Model, crossfit
from unpool.model._crossfit import folds_of, per_gene_pearson, profiles, simulated_pools


def fails(check: Any, *broken: Any, **broken_by_name: Any) -> None:
    with pytest.raises(AssertionError):
        check(*broken, **broken_by_name)


@pytest.fixture(scope="module")
def fresh() -> SimpleNamespace:
    """400 reference cells; 1,500 fresh cells of 16 genes in 8 pools, decoded."""
    cells = up.simulate.cell_types(1900, 16, 5, mean_counts=12.0, rng=3)
    reference, truth = cells[:400].copy(), cells[400:].copy()
    design = up.design.balanced(list(cells.var_names), 8, pools_per_gene=2, rng=1).equalised(reference)
    pools = up.measure(truth, design, snr=5, rng=2)
    decoded = up.decode(pools, reference, noise_var="recorded")
    return SimpleNamespace(
        reference=reference,
        truth=truth,
        design=design,
        pools=pools,
        decoded=decoded,
        X=np.asarray(truth.X, dtype=float),
    )


def ends(decoded: ad.AnnData, level: float) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = up.intervals(decoded, level)
    return lower.to_numpy(), upper.to_numpy()


def test_intervals_hold_the_share_that_they_promise(fresh: SimpleNamespace) -> None:
    def check(decoded: ad.AnnData) -> None:
        for level in (0.9, 0.7, 0.5):
            lower, upper = ends(decoded, level)
            inside = ((lower <= fresh.X) & (fresh.X <= upper)).mean(axis=0)
            assert abs(inside.mean() - level) < 0.05
            assert inside.min() > level - 0.12

    check(fresh.decoded)
    fails(
        check, up.decode(fresh.pools, fresh.reference, noise_var="recorded", crossfit=False)
    )  # normal, not calibrated
    narrow = fresh.decoded.copy()
    narrow.layers["sd"] = narrow.layers["sd"] * 0.7
    fails(check, narrow)


def test_sd_is_as_large_as_the_errors(fresh: SimpleNamespace) -> None:
    def check(sd: np.ndarray) -> None:
        ratio = np.sqrt(np.square(fresh.X - fresh.decoded.X).mean(axis=0) / np.square(sd).mean(axis=0))
        assert np.abs(np.log(ratio)).mean() < 0.1

    check(fresh.decoded.layers["sd"])
    fails(check, fresh.decoded.layers["sd"] * 1.25)


def test_larger_levels_hold_smaller_ones_and_nothing_is_negative(fresh: SimpleNamespace) -> None:
    def check(decoded: ad.AnnData) -> None:
        last_lower, last_upper = ends(decoded, 0.01)
        for level in (0.02, 0.1, 0.33, 0.5, 0.77, 0.9, 0.95, 0.995):
            lower, upper = ends(decoded, level)
            assert (lower >= 0).all()
            assert (lower <= last_lower).all()
            assert (upper >= last_upper).all()
            last_lower, last_upper = lower, upper

    check(fresh.decoded)
    twin = fresh.decoded.copy()
    quantiles = twin.uns["unpool"]["intervals"]["quantiles"]
    twin.uns["unpool"]["intervals"]["quantiles"] = quantiles[np.random.default_rng(0).permutation(len(quantiles))]
    fails(check, twin)


def test_a_part_of_the_decoded_data_and_its_file_hold_the_same_intervals(tmp_path: Any, fresh: SimpleNamespace) -> None:
    lower, upper = up.intervals(fresh.decoded, 0.8)
    genes = [f"gene_{j}" for j in (11, 3, 7)]

    def check(part: ad.AnnData) -> None:
        found = up.intervals(part, 0.8)
        for whole, cut in ((lower, found.lower), (upper, found.upper)):
            assert whole.loc[part.obs_names, part.var_names].equals(cut)

    io.write_h5ad(fresh.decoded, tmp_path / "decoded.h5ad")
    check(io.read_h5ad(tmp_path / "decoded.h5ad"))
    part = fresh.decoded[100:700:3, genes].copy()
    check(part)
    io.write_h5ad(part, tmp_path / "part.h5ad")
    check(io.read_h5ad(tmp_path / "part.h5ad"))
    halves = [fresh.decoded[:700], fresh.decoded[700:]]
    check(ad.concat(halves, merge="same", uns_merge="same"))
    part.uns["unpool"]["intervals"]["genes"] = part.uns["unpool"]["intervals"]["genes"][::-1]
    fails(check, part)  # the twin that forgets which gene is which


def test_quantiles_are_those_of_the_bin() -> None:
    rng = np.random.default_rng(0)

    def cells() -> tuple[np.ndarray, np.ndarray]:
        """Answers from 10 to 20, with errors that are five times as large above 14; the sd does not know."""
        mean = rng.uniform(10, 20, (4000, 2))
        return mean, mean + np.where(mean > 14, 2.5, 0.5) * rng.standard_normal(mean.shape)

    def check(calibration: Calibration) -> None:
        new, x = cells()
        lower, upper = calibration.ends(new, np.ones_like(new), 0.8)
        for few in (new < 13.8, new > 14.2):
            assert abs(((x >= lower) & (x <= upper))[few].mean() - 0.8) < 0.05

    mean, truth = cells()
    sd = np.ones_like(mean)
    right = Calibration.fit(truth, mean, sd, "")
    check(right)
    one_bin = np.repeat(np.quantile((truth - mean) / sd, PROBABILITIES, axis=0)[:, :, None], 5, axis=2)
    fails(check, Calibration("", right.floor, right.edges, one_bin.astype(np.float32)))


def test_expected_accuracy_is_the_accuracy(fresh: SimpleNamespace) -> None:
    real = per_gene_pearson(fresh.X, np.asarray(fresh.decoded.X, dtype=float))

    def check(expected: Any) -> None:
        assert np.abs(expected - real).mean() < 0.03
        assert abs((expected - real).mean()) < 0.02
        assert stats.spearmanr(expected, real)[0] > 0.8

    check(fresh.decoded.var["expected_pearson"])
    fails(check, fresh.decoded.var["expected_pearson"][::-1])
    model = Model.from_cells(fresh.reference)
    P, R = fresh.design.matrices[0], fresh.decoded.uns["unpool"]["noise_covariance"]
    fails(check, model.expected_accuracy(P, R, cells=fresh.reference))  # the twin that has seen the cells
    check(model.expected_accuracy(P, R, cells=fresh.truth))
    scores = up.evaluate(fresh.decoded, fresh.truth)
    assert np.array_equal(scores.genes["expected_pearson"], fresh.decoded.var["expected_pearson"])
    assert "Expected before any truth" in str(scores)


def test_no_cell_is_decoded_by_a_model_that_saw_it() -> None:
    """The fit notes the cells that it sees."""
    rng = np.random.default_rng(0)
    X = rng.gamma(1.0, 1.0, (90, 4))
    P, R, genes = np.ones((4, 2)), np.eye(2), list("abcd")
    group = np.repeat(np.arange(6), 15)
    seen: list[set[bytes]] = []

    def fit(cells: np.ndarray) -> Model:
        seen.append({row.tobytes() for row in cells})
        return Model._gaussian(cells, genes)

    def check(found: HeldOut | None, groups: Any) -> None:
        assert found is not None
        assert np.array_equal(found.truth, X)
        assert np.isfinite(found.mean).all()
        rows = [row.tobytes() for row in X]
        times_left_out = np.sum([[row not in fold for row in rows] for fold in seen], axis=0)
        assert (times_left_out == 1).all()
        for fold in seen if groups is not None else ():
            left = {groups[i] for i, row in enumerate(rows) if row not in fold}
            assert not left & {groups[i] for i, row in enumerate(rows) if row in fold}

    for groups in (None, group):
        seen.clear()
        check(crossfit(X, [(P, R)], [1.0], fit, groups=groups, rng=np.random.default_rng(0)), groups)
        assert len(seen) == (5 if groups is None else 6)
    seen.clear()
    cells_alone = crossfit(X, [(P, R)], [1.0], fit, rng=np.random.default_rng(0))
    fails(check, cells_alone, group)  # the twin that splits groups


@pytest.mark.filterwarnings("ignore:.*that the reference does not explain")
def test_copies_of_a_cell_are_held_out_together(fresh: SimpleNamespace) -> None:
    """Twenty copies of each of 60 cells know as little about fresh cells as the 60."""
    copies = ad.AnnData(np.repeat(np.asarray(fresh.reference.X[:60]), 20, axis=0), var=fresh.reference.var[[]].copy())

    def check(decoded: ad.AnnData) -> None:
        lower, upper = ends(decoded, 0.9)
        assert ((lower <= fresh.X) & (fresh.X <= upper)).mean() > 0.8
        real = per_gene_pearson(fresh.X, np.asarray(decoded.X, dtype=float))
        assert (decoded.var["expected_pearson"] - real).mean() < 0.06

    check(up.decode(fresh.pools, copies, noise_var="recorded"))
    torn = ad.AnnData(np.asarray(copies.X) * (1 + 1e-6 * np.arange(1200)[:, None]), var=copies.var)
    fails(check, up.decode(fresh.pools, torn, noise_var="recorded"))  # the twin that tears them apart
    with pytest.warns(UnpoolWarning):
        few = up.decode(fresh.pools, copies[: 15 * 20].copy(), method="gaussian", noise_var="recorded")
    assert "not calibrated" in few.uns["unpool"]["intervals"]["source"]
    silent = profiles(np.array([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [1.0, 2.0]]))
    assert silent[0] != silent[2]
    assert silent[1] == silent[3]


def test_models_may_learn_from_the_simulated_pools_alone(fresh: SimpleNamespace) -> None:
    X = np.asarray(fresh.reference.X, dtype=float)
    P, R, genes = fresh.design.matrices[0], fresh.decoded.uns["unpool"]["noise_covariance"], fresh.design.genes
    shown: list[np.ndarray] = []

    def adapt(model: Model, batches: Any) -> Model:
        shown.extend(D for D, _, _ in batches)
        return Model(genes, model.linear().members, nu=np.inf)

    def run(adapting: Any) -> np.ndarray:
        found = crossfit(
            X, [(P, R), (P, R)], [0.5, 0.5], lambda X: Model._from_array(X, genes, n_members=1), adapt=adapting,
            rng=np.random.default_rng(0),
        )  # fmt: skip
        assert found is not None
        return found.mean

    adapted = run(adapt)
    assert sum(map(len, shown)) == len(X)
    assert len(shown) == 10  # five folds, two designs
    assert not np.allclose(adapted, run(None), rtol=1e-3)


def test_within_a_group_is_what_a_new_group_can_expect() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 200)
    truth = rng.standard_normal((600, 3)) + 5 * group[:, None]
    mean = truth + 2 * rng.standard_normal(truth.shape)
    wanted = np.mean(
        [[stats.pearsonr(truth[group == k, j], mean[group == k, j])[0] for j in range(3)] for k in range(3)], axis=0
    )

    def check(held: HeldOut) -> None:
        assert np.allclose(held.pearson(), wanted)

    check(HeldOut(truth, mean, None, group, 3))
    fails(check, HeldOut(truth, mean, None, None, 3))


def test_groups_reach_decode(fresh: SimpleNamespace) -> None:
    def source(group: Any) -> str:
        decoded = up.decode(fresh.pools, fresh.reference, method="gaussian", noise_var=1.0, reference_group=group)
        return str(decoded.uns["unpool"]["intervals"]["source"])

    assert source("cell_type").endswith("held out in 5 folds of whole groups")
    assert source(np.repeat(["a", "b", "c", "d"], 100)).endswith("held out in 4 folds of whole groups")
    with pytest.warns(UnpoolWarning, match="two groups"):
        assert "not calibrated" in source(np.repeat("a", 400))
    with pytest.raises(InputError, match="'typ' is no column"):
        source("typ")
    with pytest.raises(InputError, match="3 values for 400 cells"):
        source(["a", "b", "c"])


def test_folds_are_balanced() -> None:
    rng = np.random.default_rng(0)
    assert sorted(np.bincount(folds_of(3001, None, rng))) == [1000, 1000, 1001]
    assert len(np.bincount(folds_of(100, None, rng))) == 5
    many = np.repeat(np.arange(40), np.arange(1, 41))
    size = np.bincount(folds_of(len(many), many, rng))
    assert len(size) == 10
    assert size.max() - size.min() <= 20


def test_simulated_noise_has_the_covariance_and_ignores_the_order_of_pools() -> None:
    rng = np.random.default_rng(0)
    X, P = rng.gamma(1.0, 1.0, (20000, 5)), rng.gamma(1.0, 1.0, (5, 4))
    L = rng.standard_normal((4, 4))
    R = L @ L.T
    D = simulated_pools(X, P, R, np.random.default_rng(1))

    def check(noise: np.ndarray) -> None:
        assert np.abs(np.cov(noise.T) - R).max() < 0.1 * np.abs(R).max()

    check(D - X @ P)
    fails(check, np.sqrt(np.diag(R)) * rng.standard_normal(D.shape))
    order = np.array([2, 0, 3, 1])
    again = simulated_pools(X, P[:, order], R[np.ix_(order, order)], np.random.default_rng(1))
    assert np.allclose(again, D[:, order])
    assert not np.allclose(again, D)


def test_what_cannot_be_calibrated_says_so(fresh: SimpleNamespace) -> None:
    with pytest.warns(UnpoolWarning, match="20 different cells"):
        few = up.decode(fresh.pools, fresh.reference[:12].copy(), method="gaussian", noise_var="recorded")
    assert "too few reference cells" in few.uns["unpool"]["intervals"]["source"]
    assert "expected_pearson" not in few.var
    by_model = up.decode(fresh.pools, Model.from_cells(fresh.reference), noise_var="recorded")
    assert "a Model holds no cells" in by_model.uns["unpool"]["intervals"]["source"]
    lower, upper = ends(by_model, 0.9)
    X, sd = np.asarray(by_model.X, dtype=float), by_model.layers["sd"]
    assert np.allclose(upper, X + stats.norm.ppf(0.95) * sd, rtol=1e-5)
    assert np.allclose(lower, np.maximum(X - stats.norm.ppf(0.95) * sd, 0), rtol=1e-5, atol=1e-5)
    no_sd = up.decode(fresh.pools, fresh.reference, method="gaussian", noise_var="recorded", sd=False)
    assert "expected_pearson" in no_sd.var
    with pytest.raises(InputError, match="no layers"):
        up.intervals(no_sd)
    for level in (0, 1, 90, -0.1, "much"):
        with pytest.raises(InputError, match="level"):
            up.intervals(fresh.decoded, level)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds no cells"):
        up.decode(fresh.pools, Model.from_cells(fresh.reference), reference_group="cell_type")


def test_threads_change_no_byte(fresh: SimpleNamespace) -> None:
    one, two = (
        up.decode(fresh.pools, fresh.reference, noise_var="recorded", reference_label="cell_type", n_threads=k)
        for k in (1, 2)
    )

    def check(other: ad.AnnData) -> None:
        for key in ("quantiles", "edges", "floor"):
            assert one.uns["unpool"]["intervals"][key].tobytes() == other.uns["unpool"]["intervals"][key].tobytes()
        assert one.layers["sd"].tobytes() == other.layers["sd"].tobytes()
        assert one.var["expected_pearson"].equals(other.var["expected_pearson"])
        assert one.obsm["unpool_label_probability"].tobytes() == other.obsm["unpool_label_probability"].tobytes()

    check(two)
    fails(check, up.decode(fresh.pools, fresh.reference, noise_var="recorded", reference_label="cell_type", rng=1))


def test_several_designs_share_one_table(fresh: SimpleNamespace) -> None:
    design = up.design.balanced(list(fresh.design.genes), 8, pools_per_gene=2, n_designs=3, rng=0)
    pools = up.measure(fresh.truth, design, snr=5, rng=0)
    decoded = up.decode(pools, fresh.reference, noise_var="recorded")
    lower, upper = ends(decoded, 0.9)
    assert 0.86 < ((lower <= fresh.X) & (fresh.X <= upper)).mean() < 0.95
    real = per_gene_pearson(fresh.X, np.asarray(decoded.X, dtype=float))
    assert np.abs(decoded.var["expected_pearson"] - real).mean() < 0.05
