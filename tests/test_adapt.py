"""Adaptation, gains, selection and what the reference does not explain; each check beside a broken twin."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import unpool as up
from unpool import _doubt, _learn
from unpool.errors import InputError, UnpoolWarning
from unpool.model import Model, Strengths, _misfit, rehearse

GENES = 16


def score(X, M):
    return np.mean([np.corrcoef(x, m)[0, 1] for x, m in zip(np.asarray(X).T, np.asarray(M).T, strict=True)])


def reweighted(model, weights, shares):
    """The same components with other weights (components x sizes of every member)."""
    return Model(model.genes, [m.reweighted(w) for m, w in zip(model.members, weights, strict=True)], shares=shares)


@pytest.fixture(scope="module")
def blood():
    """Reference, cells to decode, design, their pools and noise variances."""
    cells = up.simulate.cell_types(1600, GENES, 5, rng=0)
    reference, truth = cells[:500].copy(), cells[500:].copy()
    design = up.design.balanced(list(cells.var_names), 8, pools_per_gene=2, rng=0).equalised(reference)
    pools = up.measure(truth, design, snr=5, rng=0)
    return reference, truth, design, pools, pools.uns["unpool"]["simulated"]["noise_var"]


@pytest.fixture(scope="module")
def model(blood):
    return Model.from_cells(blood[0], n_members=2)


def sibling(truth, design, rng=1):
    return up.measure(truth, design, snr=5, rng=rng)


def decoded(model, pools, v, P):
    return model.posterior(pools.X, P, noise_var=v, sd=False).mean


def test_adapting_to_cells_of_the_reference_costs_nothing(blood, model):
    """Pools simulated from the reference's own population."""
    _, truth, design, pools, v = blood
    P, M = design.matrices[0], np.asarray(truth.X)
    before = score(decoded(model, pools, v, P), M)
    adapted = model.adapt(pools, noise_var=v)
    assert score(decoded(adapted, pools, v, P), M) > before - 0.003
    # a twin that trusts the pooled cells alone, and gives all weight to few components, pays
    few = [np.where(m.joint_weights >= np.sort(m.joint_weights.ravel())[-8], 1.0, 1e-9) for m in adapted.members]
    astray = reweighted(model, few, adapted.shares)
    assert score(decoded(astray, pools, v, P), M) < before - 0.003


def test_adapting_helps_where_proportions_have_shifted(blood, model):
    _, truth, design, pools, v = blood
    P, kind = design.matrices[0], truth.obs["cell_type"].to_numpy()
    rare = pd.Series(kind).value_counts().index[-1]
    mine = np.flatnonzero(kind == rare)
    some, M = pools[mine].copy(), np.asarray(truth.X)[mine]
    error = [np.mean((decoded(m, some, v, P) - M) ** 2) for m in (model, model.adapt(some, noise_var=v))]
    assert error[1] < error[0]


def test_weights_are_the_maximum_of_the_penalised_likelihood(blood):
    """EM of the weights against a general optimiser's optimality condition."""
    from unpool.kernels.mixture import sparse_responsibilities
    from unpool.model import _adapt
    from unpool.model._posterior import see

    _, _, design, pools, v = blood
    small = Model._from_array(np.asarray(blood[0].X, dtype=float)[:100], blood[0].var_names, n_members=1)
    P, R = design.matrices[0], np.diag(v)
    D = np.asarray(pools.X, dtype=float)[:300]
    seen = see(small.members, small.shares, small.nu, P, R)
    r, _ = sparse_responsibilities((D - seen.pool_centre) @ seen.T, seen.members[0], small.nu)
    old = small.members[0].joint_weights.ravel()
    kept = old > 0

    def gradient(weights):
        """Of Σ log density + prior Σ old log w, which is the same for all weights at the optimum."""
        ratio = np.where(kept, weights / np.where(kept, old, 1), 0)
        total = r @ ratio
        prior = 1.0 * kept.sum()
        return ((r.T @ (1 / total)) / np.where(kept, old, 1) + prior * old / np.where(kept, weights, 1))[kept]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_adapt, "STEPS", 2000)
        new, ratio = _adapt._weights(r, old, 1.0)
    assert new.sum() == pytest.approx(1)
    assert np.log(r @ ratio).mean() > 0
    assert np.ptp(gradient(new)) < 1e-3 * gradient(new).mean()
    assert np.ptp(gradient(old)) > 0.05 * gradient(old).mean()
    few, _ = _adapt._weights(r, old, 1.0)
    assert np.abs(few - new).sum() < 0.3 * np.abs(old - new).sum()


def test_pools_measured_by_several_designs_adapt_together(blood, model):
    _, truth, design, *_ = blood
    several = up.design.balanced(list(design.genes), 8, pools_per_gene=2, n_designs=2, rng=0)
    pools = up.measure(truth, several, snr=5, rng=0)
    adapted = model.adapt(pools, noise_var="recorded")
    assert adapted.genes == model.genes
    assert all(m.weights.sum() == pytest.approx(1) for m in adapted.members)
    estimated = model.adapt(pools)
    assert not np.allclose(adapted.members[0].weights, model.members[0].weights)
    assert np.abs(estimated.members[0].weights - adapted.members[0].weights).sum() < 0.5


def test_unknown_gains_and_offsets(blood):
    reference, truth, design, pools, v = blood
    rng, M = np.random.default_rng(0), np.asarray(truth.X)
    gain = np.exp(rng.uniform(np.log(0.3), np.log(3), 8))
    offset = 0.1 * gain * np.ptp(pools.X, axis=0)
    changed = up.pooled(pools.X * gain + offset, design)
    given = {"crossfit": False, "sd": False}
    clean = score(up.decode(pools, reference, noise_var=v, **given).X, M)
    calibrated = up.decode(changed, reference, noise_var=v * gain**2, calibrate="gain", **given)
    assert score(calibrated.X, M) > clean - 0.02
    assert np.abs(np.log(calibrated.uns["unpool"]["pool_gain"] / gain)).max() < 0.25
    with pytest.warns(UnpoolWarning) as caught:
        wrong = up.decode(changed, reference, noise_var=v * gain**2, **given)
    assert any("calibrate" in str(w.message) for w in caught)
    assert score(wrong.X, M) < clean - 0.02
    with pytest.raises(InputError, match="calibrate"):
        up.decode(pools, reference, calibrate="offset")


def test_selection_leaves_out_extras_that_do_not_help(blood):
    """Where extra components are made useless, they are found to be."""
    reference, _, design, _, v = blood
    X, P, R = np.asarray(reference.X, dtype=float), design.matrices[0], np.diag(v)

    def broken(X):
        model = Model._from_array(X, reference.var_names, n_members=1)
        [member] = model.members
        weights = np.zeros_like(member.joint_weights)
        weights[-len(member.pairs) :, 0] = 1.0  # nothing but pairs
        weights[: -len(member.pairs), 0] = 1e-9
        return reweighted(model, [weights], model.shares)

    def gain(fit):
        rehearsal = rehearse(X, P, R, fit, rng=np.random.default_rng(0))
        return rehearsal.score(lambda m: m) - rehearsal.score(lambda m: m.plain())

    assert gain(broken) < -0.01
    assert abs(gain(lambda X: Model._from_array(X, reference.var_names, n_members=1))) < 0.01
    assert rehearse(X[:10], P, R, broken, rng=np.random.default_rng(0)) is None


@pytest.mark.parametrize("nu", [3.0, np.inf])
def test_selection_takes_the_tails_that_the_cells_have(nu):
    """Cells drawn from components with heavy tails, or with none, and no noise to blur them."""
    source = Model.from_cells(up.simulate.cell_types(400, GENES, 5, rng=0), n_members=1).plain().with_tails(nu)
    X = source.sample(1500, rng=0)
    P = up.design.balanced(GENES, 8, pools_per_gene=2, rng=0).matrices[0]
    rehearsal = rehearse(
        X, P, 1e-3 * np.diag((X @ P).var(axis=0)), lambda _: source.with_tails(5.0), rng=np.random.default_rng(0)
    )
    learned = _learn.Learned(source.with_tails(5.0), X, extras=False)
    best, scores = _learn._selected(learned, rehearsal)
    assert best.model.nu == best.shaped(source.with_tails(5.0)).nu == (30.0 if np.isinf(nu) else 5.0)
    assert len(scores) == 3


# whether to adapt, and how strongly


def test_a_shift_is_found_where_proportions_have_changed_and_only_there():
    found, always = {"same": [], "other": []}, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cells = up.simulate.cell_types(3000, GENES, 5, rng=seed)
        X, kind = np.asarray(cells.X, dtype=float), cells.obs["cell_type"].cat.codes.to_numpy()
        design = up.design.balanced(GENES, 8, pools_per_gene=2, rng=seed).equalised(cells[:600].copy())
        P = design.matrices[0]
        v = (X @ P).var(axis=0) / 25
        rehearsal = rehearse(
            X[:600], P, np.diag(v), lambda X: Model._from_array(X, [str(j) for j in range(GENES)], n_members=1), rng=rng
        )
        rest = np.arange(600, 3000)
        common = np.argsort(np.bincount(kind))[-2:]  # they become rare
        scarce = rest[~np.isin(kind[rest], common) | (rng.random(len(rest)) < 0.05)]
        for name, rows in (("same", rest), ("other", scarce)):
            mine = rng.choice(rows, 600, replace=False)
            D = X[mine] @ P + np.sqrt(v) * rng.standard_normal((600, 8))
            shift = rehearsal.shift(D)
            found[name].append(shift.found)
            assert shift.n_cells == 600
            if name == "same":  # a twin that looks at the pooled cells alone
                always.append(shift.gained_pooled > 2.5 * shift.standard_error)
    assert found["same"] == [False] * 4
    assert found["other"] == [True] * 4
    assert all(always)


def test_decode_adapts_where_it_finds_a_shift(blood):
    reference, truth, _, pools, v = blood
    options = {"noise_var": v, "sd": False, "crossfit": False}
    same, never = (up.decode(pools, reference, adapt=a, **options) for a in ("auto", False))
    assert not same.uns["unpool"]["adapted"]
    np.testing.assert_array_equal(same.X, never.X)  # it costs nothing
    always = up.decode(pools, reference, adapt=True, **options)
    assert always.uns["unpool"]["adapted"]
    assert not np.array_equal(always.X, never.X)

    kind = truth.obs["cell_type"].to_numpy()
    mine = np.flatnonzero(kind == pd.Series(kind).value_counts().index[-1])
    some, M = pools[mine].copy(), np.asarray(truth.X)[mine]
    shifted, never = (up.decode(some, reference, adapt=a, **options) for a in ("auto", False))
    record = shifted.uns["unpool"]
    assert record["adapted"]
    assert (
        record["shift"]["gained_pooled"] > record["shift"]["gained_reference"] + 2.5 * record["shift"]["standard_error"]
    )
    assert np.mean((shifted.X - M) ** 2) < np.mean((never.X - M) ** 2)


def test_rescaled_is_the_mixture_of_rescaled_cells(model):
    gains = np.exp(np.random.default_rng(0).normal(0, 0.5, GENES))
    member = model.members[0]
    rescaled = member.rescaled(gains)
    np.testing.assert_allclose(rescaled.mean, member.mean * gains)
    expected = member.covariance() * np.outer(gains, gains)
    np.testing.assert_allclose(rescaled.covariance(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rescaled.variances(), member.variances() * gains**2)
    broken = replace(rescaled, diagonal=member.diagonal * gains)
    assert not np.allclose(broken.covariance(), expected)


def with_gains(truth, design, gains, v):
    M = np.asarray(truth.X, dtype=float) * gains
    D = M @ design.matrices[0] + np.sqrt(v) * np.random.default_rng(1).standard_normal((len(M), len(v)))
    return M, up.pooled(D, design)


def test_gains_of_the_genes_are_learned_from_the_pools(blood):
    """Most of what unknown gains cost comes back; where there are none, looking for them costs next to nothing."""
    reference, truth, design, _, v = blood
    P, lost, regained, inverse, cost = design.matrices[0], 0.0, 0.0, 0.0, 0.0
    model = Model.from_cells(reference, n_members=2)
    for seed in range(3):
        gains = np.exp(0.3 * np.random.default_rng(seed).standard_normal(GENES))
        M, pools = with_gains(truth, design, gains, v)
        oracle = Model(model.genes, [m.rescaled(gains) for m in model.members])
        weights, both = (model.adapt(pools, noise_var=v, gains=g) for g in (False, True))
        learned = both.members[0].means[:5].sum(axis=0) / model.members[0].means[:5].sum(axis=0)
        wrong = Model(model.genes, [m.rescaled(learned**-2) for m in both.members])  # a twin: gains the wrong way
        base, best, got, bad = (score(decoded(m, pools, v, P), M) for m in (weights, oracle, both, wrong))
        lost, regained, inverse = lost + best - base, regained + got - base, inverse + bad - base
        assert np.square(np.log(learned / gains)).sum() < 0.7 * np.square(np.log(gains)).sum()
        M, pools = with_gains(truth, design, np.ones(GENES), v)
        cost += score(decoded(model, pools, v, P), M) - score(
            decoded(model.adapt(pools, noise_var=v, gains=True), pools, v, P), M
        )
    assert lost > 0.01
    assert regained > 0.6 * lost
    assert inverse < 0
    assert cost / 3 < 0.003


def grouped(reference, change):
    """Three groups, each with its own change: AnnData with obs["donor"]."""
    X = np.asarray(reference.X, dtype=float).copy()
    donor = np.arange(len(X)) % 3
    for k in range(3):
        X[donor == k] = change(X[donor == k], np.random.default_rng(k))
    obs = pd.DataFrame({"donor": [f"donor {k}" for k in donor]}, index=reference.obs_names)
    return AnnData(X, obs=obs, var=reference.var)


def test_groups_that_differ_in_gains_ask_for_gains_and_crossfitting_rehearses_them(blood, monkeypatch):
    reference, truth, design, _, v = blood
    differ = grouped(reference, lambda X, rng: X * np.exp(0.4 * rng.standard_normal(GENES)))
    M, pools = with_gains(truth, design, np.exp(0.4 * np.random.default_rng(9).standard_normal(GENES)), v)
    rehearsed = []

    def spy(*args, adapt, **kwargs):
        rehearsed.append(adapt)

    monkeypatch.setattr("unpool.model.crossfit", spy)
    options = {"noise_var": v, "sd": False, "reference_group": "donor"}
    with pytest.warns(UnpoolWarning, match="another gain"):  # the genes' gains are not the reference's
        x = up.decode(pools, differ, **options)
    record = x.uns["unpool"]
    assert record["strengths"]["gain_sd"] > 0
    assert record["gene_gain"].shape == (GENES,)
    scores = record["held_out_pearson_by_strengths"]
    assert len(scores) == 5
    assert max(scores, key=scores.get).endswith("gain_sd 0.1")
    # what crossfit lets its models do is what was chosen, gains included
    model = Model.from_cells(differ, n_members=1)
    adapted = rehearsed[0](model, [(pools.X, design.matrices[0], np.diag(v))])
    assert not np.allclose(adapted.members[0].means, model.members[0].means)
    with pytest.warns(UnpoolWarning, match="another gain"):
        never = up.decode(pools, differ, adapt=False, **options)
    assert rehearsed[1] is None
    assert score(x.X, M) > score(never.X, M)
    with pytest.warns(UnpoolWarning, match="another gain"):
        forced = up.decode(pools, differ, adapt=True, **options)
    assert forced.uns["unpool"]["adapted"]


def test_strengths_that_mislead_are_not_chosen(blood, monkeypatch):
    """A twin among the candidates that trusts one member alone and forgets its prior loses; alone, it does harm."""
    from unpool.model import _select

    reference, _, design, _, v = blood
    X, P, R = np.asarray(reference.X, dtype=float), design.matrices[0], np.diag(v)
    rash = Strengths(prior=0.0, trust=1e3)
    monkeypatch.setattr(_select, "_PRIORS", (rash, Strengths()))
    rehearsal = rehearse(
        X, P, R, lambda X: Model._from_array(X, reference.var_names, n_members=2), groups=np.arange(len(X)) % 4,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    scores = rehearsal.scores(lambda m: m)
    assert scores[rash] < scores[None]
    assert max(scores, key=scores.get) != rash


def test_what_was_chosen_is_recorded(blood):
    reference, _, _, pools, v = blood
    record = up.decode(pools, reference, noise_var=v, sd=False, crossfit=False).uns["unpool"]
    chosen = {k.removeprefix("held_out_pearson_"): v for k, v in record["selection"].items()}
    light = chosen.pop("with_light_tails")
    assert set(chosen) == {"with_extras", "without_extras"}
    assert record["extras"] == (chosen["with_extras"] >= chosen["without_extras"])
    assert record["nu"] == (30.0 if light > max(chosen.values()) else 5.0)
    assert record["adapted"] == (
        record["shift"]["gained_pooled"] > record["shift"]["gained_reference"] + 2.5 * record["shift"]["standard_error"]
    )
    assert "cells of the reference" in record["adapted_because"]
    assert len(record["pool_misfit"]) == 8
    plain = up.decode(pools, reference, noise_var=v, sd=False, crossfit=False, selection=False, adapt=False)
    assert not plain.uns["unpool"]["adapted"]
    assert "selection" not in plain.uns["unpool"]
    with pytest.raises(InputError, match="adapt"):
        up.decode(pools, reference, adapt="perhaps")


def test_fast_is_a_coarser_answer(blood):
    reference, truth, _, pools, v = blood
    options = {"noise_var": v, "sd": False, "crossfit": False}
    full, fast = (score(up.decode(pools, reference, fast=f, **options).X, truth.X) for f in (False, True))
    assert full - 0.03 < fast < full + 0.01
    guess = score(np.asarray(pools.X) @ np.linalg.pinv(pools.varm["design"].T), truth.X)
    assert fast > guess


# what the reference does not explain, and hard inputs


FAILED = {
    "dead": lambda d, rng: np.zeros_like(d),
    "stuck": lambda d, rng: np.full_like(d, d.mean()),
    "noise alone": lambda d, rng: rng.normal(0, 0.2 * d.std(), len(d)),
    "of other cells": lambda d, rng: rng.permutation(d),
    "another gain": lambda d, rng: 3 * d,
}


def named(pools, reference, **options):
    """Warnings about pools, and the pools that are blamed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"sd": False, "crossfit": False, "selection": False, "adapt": False} | options
        x = up.decode(pools, reference, **options)
    told = [str(w.message) for w in caught if "far from what the other pools foretell" in str(w.message)]
    return told, list(x.uns["unpool"]["strange_pools"])


@pytest.mark.parametrize("known", [True, False], ids=["noise given", "noise estimated"])
def test_failed_pools_are_named_and_healthy_ones_are_not(blood, known, monkeypatch):
    reference, _, design, pools, v = blood
    noise = {"noise_var": v if known else None}
    assert named(pools, reference, **noise) == ([], [])
    failed = {}
    for kind, spoil in FAILED.items():
        failed[kind] = pools.copy()
        failed[kind].X[:, 3] = spoil(pools.X[:, 3], np.random.default_rng(0))
        told, blamed = named(failed[kind], reference, **noise)
        assert blamed == ["pool_3"], kind
        assert "pool_3" in told[0]
    # twins: an estimate that may explain a whole pool as noise; pools judged beside the one that spoils them
    if known:
        model = Model.from_cells(reference, n_members=1)
        misfit = model.pool_misfit(failed["another gain"].X, design.matrices[0], np.diag(v))
        assert (misfit > _misfit.STRANGE_POOL).sum() > 1
    else:
        monkeypatch.setattr(_misfit, "_TYPICAL", np.inf)
        assert named(failed["noise alone"], reference, **noise) == ([], [])


def test_two_failed_pools_are_both_named(blood):
    reference, _, _, pools, v = blood
    failed = pools.copy()
    failed.X[:, 3], failed.X[:, 6] = 0.0, np.random.default_rng(0).permutation(failed.X[:, 6])
    assert set(named(failed, reference, noise_var=v)[1]) == {"pool_3", "pool_6"}


def told(pools, reference, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        up.decode(pools, reference, **{"sd": False, "crossfit": False, "selection": False, "adapt": False} | options)
    return " ".join(str(w.message) for w in caught)


def test_other_units_and_noise_that_explains_everything_are_said(blood):
    reference, _, _design, pools, v = blood
    assert told(pools, reference) == told(pools, reference, noise_var=v) == ""
    other = reference.copy()
    other.X = 100 * np.asarray(other.X)
    said = told(pools, other)
    assert "pools are on average 0.01 times" in said
    assert "estimated noise makes up 100% of a pool's variance" in said
    assert "noise makes up" not in told(pools, other, noise_var=v)
    assert "on average" not in told(pools, other, calibrate="gain", noise_var=v)
    negative = pools.copy()
    negative.X = -np.asarray(negative.X)
    assert "on average -" in told(negative, reference)


def test_what_the_reference_cannot_tell_is_said(blood):
    reference, _, design, pools, v = blood
    silent = reference.copy()
    silent.X = np.asarray(silent.X) * (np.arange(GENES) != 2)
    assert f"zero in every cell of the reference: 1 gene ({design.genes[2]})" in told(pools, silent, noise_var=v)
    assert "too few cells" in told(pools, reference[:10], noise_var=v, sd=True, crossfit=True)
    assert "too few" not in told(pools, reference[:30], noise_var=v, sd=True, crossfit=True)
    silent.X = np.zeros_like(silent.X)
    with pytest.raises(InputError, match="zero in every gene"):
        up.decode(pools, silent, noise_var=v)


def test_copies_of_a_cell_are_rehearsed_together():
    """120 cells ten times each: no model may know the cell that it decodes."""
    cells = up.simulate.cell_types(600, GENES, 5, rng=3)
    known, fresh = np.asarray(cells.X, dtype=float)[:120], cells[120:]
    design = up.design.balanced(GENES, 8, pools_per_gene=2, rng=0)
    P = design.matrices[0]
    v = (known @ P).var(axis=0) / 25
    genes = [f"g{j}" for j in range(GENES)]

    def rehearsed(X):
        def fit(Y):
            return Model._from_array(Y, genes, n_members=2)

        return rehearse(X, P, np.diag(v), fit, rng=np.random.default_rng(0))

    D = up.measure(fresh.copy(), design, noise_var=v, rng=0).X
    once, copies = rehearsed(known), rehearsed(np.repeat(known, 10, axis=0))
    torn = rehearsed(np.repeat(known, 10, axis=0) * (1 + 1e-9 * np.arange(1200))[:, None])  # the twin
    honest = once.score(lambda m: m)
    assert abs(copies.score(lambda m: m) - honest) < 0.05
    assert not copies.shift(D).found
    assert torn.score(lambda m: m) > honest + 0.1
    assert torn.shift(D).found


def test_a_dead_pool_that_is_left_out_does_no_harm(blood):
    reference, truth, design, pools, v = blood
    keep = np.arange(8) != 3
    options = {"sd": False, "crossfit": False}
    left = up.pooled(pools.X[:, keep], up.Design(design.matrices[0][:, keep], genes=design.genes))
    without = score(up.decode(left, reference, noise_var=v[keep], **options).X, truth.X)
    dead = pools.copy()
    dead.X[:, 3] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnpoolWarning)
        undeclared = score(up.decode(dead, reference, noise_var=v, **options).X, truth.X)
    assert without > undeclared
    assert without > score(up.decode(pools, reference, noise_var=v, **options).X, truth.X) - 0.15


def test_a_cell_type_that_the_reference_lacks_is_noticed(blood):
    reference, truth, design, pools, v = blood
    M, P = np.asarray(truth.X, dtype=float), design.matrices[0]
    strange = 2 * M[:300][:, np.random.default_rng(0).permutation(GENES)]
    D = np.vstack([strange @ P, pools.X[300:]])
    with pytest.warns(UnpoolWarning) as caught:
        x = up.decode(up.pooled(D, design), reference, noise_var=v, sd=False, crossfit=False)
    assert any("does not explain" in str(w.message) for w in caught)
    misfit = x.obs["unpool_misfit"].to_numpy()
    assert np.isfinite(x.X).all()
    assert np.median(misfit[:300]) > np.quantile(misfit[300:], 0.9)
    known = up.decode(pools, reference, noise_var=v, sd=False, crossfit=False).obs["unpool_misfit"].to_numpy()
    assert np.median(known[:300]) < np.quantile(misfit[300:], 0.9)


def test_a_whole_type_that_the_reference_lacks_is_said(monkeypatch):
    """Where the pools show it: some types are sums of others there, and nothing could tell."""
    cells = up.simulate.cell_types(1200, 24, 5, rng=1)
    kind = cells.obs["cell_type"].astype(str).to_numpy()
    reference, truth = cells[:600].copy(), cells[600:].copy()
    lacking = reference[kind[:600] != sorted(set(kind))[2]].copy()
    pools = up.measure(truth, up.design.balanced(list(cells.var_names), 8, pools_per_gene=2, rng=1), snr=5, rng=1)
    options = {"noise_var": "recorded", "selection": True, "adapt": "auto"}
    assert told(pools, reference, **options) == ""
    said = told(pools, lacking, **options)
    assert "less likely than those of 99 % of the reference's own cells" in said
    monkeypatch.setattr(_doubt, "UNLIKELY_SHARE", 0.5)  # the twin that waits too long
    assert told(pools, lacking, **options) == ""


def test_doublets_are_decoded_as_mixtures(blood, model):
    _, truth, design, _, v = blood
    M, P = np.asarray(truth.X, dtype=float), design.matrices[0]
    doublets = (M[:400] + M[400:800]) / 2
    D = doublets @ P + np.sqrt(v) * np.random.default_rng(0).standard_normal((400, 8))
    answer = model.posterior(D, P, noise_var=v).mean
    plain = model.plain().posterior(D, P, noise_var=v).mean
    assert score(answer, doublets) > 0.5
    assert np.mean((answer - doublets) ** 2) < np.mean((plain - doublets) ** 2)
    assert np.isfinite(answer).all()


@pytest.mark.parametrize("kind", ["ten cells", "duplicated cells", "constant gene", "zero gene"])
def test_hard_references(blood, kind):
    reference, truth, _, pools, v = blood
    X = np.asarray(reference.X, dtype=float).copy()
    X = {"ten cells": X[:10], "duplicated cells": np.repeat(X[:10], 10, axis=0)}.get(kind, X)
    if kind.endswith("gene"):
        X[:, 2] = 4.0 if kind.startswith("constant") else 0.0
    known = AnnData(X, var=reference.var)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnpoolWarning)
        x = up.decode(pools, known, noise_var=v, crossfit=False)
    assert np.isfinite(x.X).all()
    assert np.isfinite(x.layers["sd"]).all()
    others = np.arange(GENES) != 2
    mean = np.mean(
        [np.corrcoef(a, b)[0, 1] for a, b in zip(x.X[:, others].T, np.asarray(truth.X)[:, others].T, strict=True)]
    )
    guess = np.asarray(pools.X) @ np.linalg.pinv(pools.varm["design"].T)
    without = np.mean(
        [np.corrcoef(a, b)[0, 1] for a, b in zip(guess[:, others].T, np.asarray(truth.X)[:, others].T, strict=True)]
    )
    assert mean > without + (0.2 if kind.endswith("gene") else 0.03)


def test_a_directly_measured_gene_is_returned_and_pulls_the_others(blood):
    reference, truth, design, pools, v = blood
    M, P = np.asarray(truth.X, dtype=float), design.matrices[0]
    direct = up.Design(np.column_stack([P, np.eye(GENES)[:, 4]]), genes=design.genes)
    both = up.pooled(np.column_stack([pools.X, M[:, 4]]), direct)
    options = {"sd": False, "crossfit": False}
    x = up.decode(both, reference, noise_var=np.append(v, 0.0), **options).X
    assert np.abs(x[:, 4] - M[:, 4]).max() < 1e-4 * M[:, 4].max()
    y = up.decode(pools, reference, noise_var=v, **options).X
    assert np.abs(y[:, 4] - M[:, 4]).max() > 1e-2 * M[:, 4].max()
    others = np.arange(GENES) != 4
    assert np.mean((x - M)[:, others] ** 2) < np.mean((y - M)[:, others] ** 2)
