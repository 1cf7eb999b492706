"""The front door: slots, names, methods, and the symmetries that every decoder owes its user."""

import hashlib
import os
import subprocess
import sys
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unpool as up
from unpool import io
from unpool.errors import InputError, NotIdentifiableError, UnpoolWarning


def close(a, b, tol=1e-6):
    """Equal up to `tol` of the largest value."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0.0) <= tol * np.abs(a).max(initial=1e-300))


@pytest.fixture(scope="module")
def decoded(small):
    return up.decode(small.pools, small.reference, noise_var="recorded")


def pearson(X, M):
    return np.mean([np.corrcoef(X[:, j], M[:, j])[0, 1] for j in range(M.shape[1])])


def test_slots(small, decoded):
    assert decoded.shape == (200, 12)
    assert decoded.X.dtype == np.float32
    assert decoded.layers["sd"].dtype == np.float32
    assert (decoded.layers["sd"] >= 0).all()
    assert list(decoded.var_names) == list(small.design.genes)
    assert list(decoded.obs_names) == list(small.pools.obs_names)
    assert decoded.obs["unpool_misfit"].notna().all()
    assert decoded.var["resolution"].between(0, 1).all()
    np.testing.assert_array_equal(decoded.varm["design"], small.design.matrices[0])
    record = decoded.uns["unpool"]
    assert record["method"] == "mixture"
    assert record["design_digest"] == small.design.digest
    assert "sd" not in up.decode(small.pools, small.reference, noise_var="recorded", sd=False).layers


def test_it_beats_knowing_nothing(small, decoded):
    truth = np.asarray(small.truth.X)
    best_guess = up.decode(small.pools, method="minimum_norm")
    assert pearson(decoded.X, truth) > pearson(best_guess.X, truth) + 0.05


def test_annotation_is_carried_through(tmp_path, small):
    pools = small.pools.copy()
    pools.obsm["spatial"] = np.arange(400.0).reshape(200, 2)
    pools.obsp["graph"] = np.eye(200)
    pools.uns["note"] = {"plate": 3}
    pools.obs["batch"] = "b"
    x = up.decode(pools, small.reference)
    np.testing.assert_array_equal(x.obsm["spatial"], pools.obsm["spatial"])
    np.testing.assert_array_equal(x.obsp["graph"], pools.obsp["graph"])
    assert x.uns["note"] == {"plate": 3}
    pd.testing.assert_frame_equal(x.obs[pools.obs.columns], pools.obs)
    assert "unpool_misfit" not in pools.obs
    io.write_h5ad(x, tmp_path / "x.h5ad")
    back = io.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(back.layers["sd"], x.layers["sd"])
    assert ad.concat([back[:50], back[50:]], merge="same", uns_merge="same").varm["design"].shape == (12, 6)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_permutations_permute_the_answer(small, decoded, seed):
    rng = np.random.default_rng(seed)
    cells, genes, pools = (rng.permutation(k) for k in (200, 12, 6))
    mixed = small.pools[cells][:, pools].copy()
    x = up.decode(
        mixed, small.reference[:, genes].copy(), noise_var=small.pools.uns["unpool"]["simulated"]["noise_var"][pools]
    )
    assert close(decoded.X[cells], x.X)
    assert close(decoded.layers["sd"][cells], x.layers["sd"], 1e-5)
    assert not close(decoded.X, x.X)  # the twin that forgets to permute


def test_the_order_of_the_design_is_only_an_order(small, decoded):
    order = np.random.default_rng(1).permutation(12)
    genes = [small.design.genes[j] for j in order]
    pools = up.measure(small.truth, small.design.select_genes(genes), snr=5, rng=0)
    np.testing.assert_allclose(pools.X, small.pools.X, rtol=1e-4, atol=1e-4)
    x = up.decode(pools, small.reference, noise_var="recorded")
    assert list(x.var_names) == genes
    assert close(decoded[:, genes].X, x.X, 2e-2)  # clusterings see the genes in another order
    assert not close(decoded.X, x.X, 2e-2)  # the twin that forgets the names


@settings(max_examples=5, deadline=None)
@given(st.floats(-8, 8))
def test_scaling_scales(small, decoded, exponent):
    c = 10.0**exponent
    reference, pools = small.reference.copy(), small.pools.copy()
    reference.X, pools.X = np.asarray(reference.X, dtype=np.float64) * c, np.asarray(pools.X, dtype=np.float64) * c
    v = pools.uns["unpool"]["simulated"]["noise_var"] * c**2
    x = up.decode(pools, reference, noise_var=v)
    assert close(decoded.X.astype(float) * c, x.X, 1e-4)
    assert close(decoded.layers["sd"].astype(float) * c, x.layers["sd"], 1e-4)
    assert close(decoded.obs["unpool_misfit"], x.obs["unpool_misfit"], 1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnpoolWarning)  # of noise that is wrong
        unscaled = up.decode(pools, reference, noise_var=v / c**2)
    assert abs(exponent) < 0.1 or not close(x.X, unscaled.X, 1e-4)  # the twin that scales no noise


def test_storage_chunks_change_nothing(tmp_path, small, decoded):
    for i, chunks in enumerate([(1, 6), (200, 1), (37, 5)]):
        path = tmp_path / f"{i}.h5ad"
        io.write_h5ad(small.pools, path)
        with h5py.File(path, "r+") as f:
            X, attributes = f["X"][()], dict(f["X"].attrs)
            del f["X"]
            f.create_dataset("X", data=X, chunks=chunks).attrs.update(attributes)
        assert up.decode(io.read_h5ad(path), small.reference, noise_var="recorded").X.tobytes() == decoded.X.tobytes()


def test_threads_change_nothing():
    """More than one block, so that threads have something to share; across processes as well as within one."""
    cells = up.simulate.cell_types(9500, 15, 4, rng=0)
    design = up.design.balanced(15, 6, pools_per_gene=2, rng=0)
    pools = up.measure(cells[300:].copy(), design, snr=5, rng=0)
    one, two = (up.decode(pools, cells[:300].copy(), noise_var="recorded", n_threads=k) for k in (1, 2))
    assert one.X.tobytes() == two.X.tobytes()
    assert one.layers["sd"].tobytes() == two.layers["sd"].tobytes()
    assert one.X.tobytes() != up.decode(pools, cells[:301].copy(), noise_var="recorded").X.tobytes()
    head, all_ = (
        up.decode(some, cells[:300].copy(), noise_var="recorded", adapt=False) for some in (pools[:4096].copy(), pools)
    )
    assert head.X.tobytes() == all_.X[:4096].tobytes()
    code = (
        "import unpool as up, hashlib; c = up.simulate.cell_types(9500, 15, 4, rng=0);"
        "d = up.design.balanced(15, 6, pools_per_gene=2, rng=0);"
        "p = up.measure(c[300:].copy(), d, snr=5, rng=0);"
        "print(hashlib.sha256(up.decode(p, c[:300].copy(), noise_var='recorded').X.tobytes()).hexdigest())"
    )
    for threads in ("1", "2"):
        env = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env, check=True
        )
        assert run.stdout.strip() == hashlib.sha256(one.X.tobytes()).hexdigest()


def test_identity_and_no_noise_give_the_truth_back(small):
    design = up.Design(np.eye(12), genes=small.design.genes)
    pools = up.measure(small.truth, design)
    x = up.decode(pools, small.reference, noise_var=0.0)
    assert close(small.truth.X, x.X, 1e-4)
    assert np.abs(x.layers["sd"]).max() < 1e-2 * small.truth.X.std()
    assert (x.var["resolution"] > 0.999).all()
    noisy = up.decode(pools, small.reference, noise_var=100.0)
    assert not close(small.truth.X, noisy.X, 1e-4)


def test_several_designs_with_a_reference(small):
    design = up.design.balanced(list(small.design.genes), 6, pools_per_gene=2, n_designs=3, rng=0)
    pools = up.measure(small.truth, design, snr=5, rng=0)
    x = up.decode(pools, small.reference, noise_var="recorded", adapt=False, selection=False)
    assert pearson(x.X, np.asarray(small.truth.X)) > 0.6
    # each cell as if its design were the only one
    for b in range(3):
        mine = (pools.obs["design"] == design.names[b]).to_numpy()
        alone = up.pooled(pools.X[mine], up.Design(design.matrices[b], genes=design.genes))
        v = pools.uns["unpool"]["simulated"]["noise_var"][b]
        by_itself = up.decode(alone, small.reference, noise_var=v, adapt=False, selection=False)
        assert close(x.X[mine], by_itself.X, 1e-5)
        wrong = up.pooled(pools.X[mine], up.Design(design.matrices[(b + 1) % 3], genes=design.genes))
        with pytest.warns(UnpoolWarning, match="does not explain|foretell"):
            other = up.decode(wrong, small.reference, noise_var=v)
        assert not close(x.X[mine], other.X, 1e-2)
    names = [f"design_{b}" for b in range(3)]
    assert all(name in x.varm for name in names)


def test_minimum_norm_is_the_pseudo_inverse(small):
    P = small.design.matrices[0]
    x = up.decode(small.pools, method="minimum_norm")
    np.testing.assert_allclose(x.X, small.pools.X @ np.linalg.pinv(P), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(x.var["resolution"], np.diag(P @ np.linalg.pinv(P)), atol=1e-9)
    assert "sd" not in x.layers


def test_without_a_reference_auto_says_what_would_do(small):
    with pytest.raises(NotIdentifiableError, match=r"12 genes.*minimum_norm") as caught:
        up.decode(small.pools)
    assert "reference=" in str(caught.value)
    with pytest.raises(InputError, match="needs a reference"):
        up.decode(small.pools, method="mixture")


def test_noise_unknown_is_nearly_as_good(small, decoded):
    truth = np.asarray(small.truth.X)
    estimated = up.decode(small.pools, small.reference)
    assert pearson(estimated.X, truth) > pearson(decoded.X, truth) - 0.02
    absurd = up.decode(small.pools, small.reference, noise_var=1e6)
    assert pearson(absurd.X, truth) < pearson(decoded.X, truth) - 0.02


def test_noise_before_pooling(small):
    pools = up.measure(small.truth, small.design, snr=2, noise_stage="expression", rng=0)
    x = up.decode(pools, small.reference, noise_var="recorded")
    P, v = small.design.matrices[0], pools.uns["unpool"]["simulated"]["noise_var"]
    same = up.decode(pools, small.reference, noise_var=float(v) * P.T @ P)
    assert close(x.X, same.X, 1e-5)
    by_gene = up.decode(pools, small.reference, noise_var=np.full(12, float(v)), noise_stage="expression")
    assert close(x.X, by_gene.X, 1e-5)
    with pytest.warns(UnpoolWarning, match="reference's own cells"):  # so little noise makes the cells strange
        wrong = up.decode(pools, small.reference, noise_var=float(v))
    assert not close(x.X, wrong.X, 1e-3)


def test_a_model_is_a_reference(small):
    """A model holds no cells to choose by: the same as cells without choices."""
    model = up.Model.from_cells(small.reference, rng=0)
    x = up.decode(small.pools, model, noise_var="recorded")
    settings = {"noise_var": "recorded", "sd": False, "crossfit": False}
    assert close(up.decode(small.pools, small.reference, selection=False, **settings).X, x.X, 1e-5)
    assert not close(up.decode(small.pools, small.reference, selection=False, adapt=False, **settings).X, x.X, 1e-5)


def test_gaussian_is_the_linear_answer(small):
    x = up.decode(small.pools, small.reference, method="gaussian", noise_var="recorded")
    P, truth = small.design.matrices[0], np.asarray(small.truth.X)
    M, R = np.asarray(small.reference.X, dtype=float), np.diag(small.pools.uns["unpool"]["simulated"]["noise_var"])
    S = np.cov(M.T)
    by_hand = M.mean(axis=0) + (small.pools.X - M.mean(axis=0) @ P) @ np.linalg.solve(P.T @ S @ P + R, P.T @ S)
    assert pearson(x.X, truth) == pytest.approx(pearson(by_hand, truth), abs=0.02)
    assert x.uns["unpool"]["method"] == "gaussian"


@pytest.mark.filterwarnings("ignore:.*(foretell|does not explain)")
def test_misfit_finds_the_strange_cells(small):
    pools = small.pools.copy()
    pools.X[:5] = pools.X[:5] + 20 * small.pools.X.std(axis=0) * np.array([1, -1, 1, -1, 1, -1])
    x = up.decode(pools, small.reference, noise_var="recorded")
    assert x.obs["unpool_misfit"][:5].min() > x.obs["unpool_misfit"][5:].quantile(0.99)
    assert abs(x.obs["unpool_misfit"][5:].mean()) < 1.0


def test_plain_arrays_of_a_reference_are_refused_by_name(small):
    with pytest.raises(InputError, match="reference"):
        up.decode(small.pools, np.ones((5, 3)))


@pytest.fixture(scope="module")
def exact():
    """Low-rank cells in noise-free pools of one and of several designs."""
    rng = np.random.default_rng(0)
    truth = ad.AnnData(rng.gamma(1.0, 5.0, (60, 2)) @ rng.gamma(1.0, 5.0, (2, 20)))
    truth.var_names = [f"gene_{j}" for j in range(20)]
    one = up.design.bernoulli(20, 8, p=0.4, rng=0)
    several = up.design.bernoulli(20, 8, p=0.4, n_designs=4, rng=0)
    return truth, up.measure(truth, one), up.measure(truth, several)


@pytest.mark.parametrize(("method", "options"), [("nuclear_norm", {}), ("als", {"rank": 2})])
def test_methods_without_a_reference_fit_the_pools_and_say_what_is_determined(exact, method, options):
    truth, one, several = exact
    with pytest.warns(UserWarning, match=r"nothing beyond the pools' span.*determine 40%.*least: gene_"):
        x = up.decode(one, method=method, **options)
    P = up.measure(truth, up.Design(one.varm["design"].T)).varm["design"].T
    assert close(one.X, x.X @ P, 1e-3)
    assert not close(truth.X, x.X, 1e-3)  # that it is the truth is just what nobody can know from one design
    assert x.uns["unpool"]["converged"]
    assert (x.X >= 0).all()
    np.testing.assert_allclose(x.var["resolution"], np.diag(P @ np.linalg.pinv(P)), atol=1e-9)
    with pytest.warns(UserWarning, match="designs determine together"):
        y = up.decode(several, method=method, **options)
    if method == "als":  # four designs of eight pools do determine rank 2
        assert close(truth.X, y.X, 1e-2)
    mixed = np.random.default_rng(0).permutation(60)
    with pytest.warns(UserWarning, match="designs determine together"):
        z = up.decode(several[mixed].copy(), method=method, **options)
    assert close(y.X[mixed], z.X, 1e-2)


def test_a_solver_that_stops_early_is_never_silent(exact, monkeypatch, tmp_path):
    from click.testing import CliRunner

    from unpool import solvers
    from unpool.cli import main
    from unpool.errors import NotConvergedWarning

    _, one, _ = exact
    whole = solvers.als
    monkeypatch.setattr(solvers, "als", lambda *a, **k: whole(*a, **k, max_iter=2))
    with (
        pytest.warns(NotConvergedWarning, match=r"not converged.*max_iter"),
        pytest.warns(UserWarning, match="als without"),
    ):
        x = up.decode(one, method="als", rank=2)
    assert not x.uns["unpool"]["converged"]
    io.write_h5ad(one, tmp_path / "p.h5ad")
    args = ["decode", str(tmp_path / "p.h5ad"), "--method", "als", "--rank", "2", "-o", str(tmp_path / "x.h5ad")]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 3
    assert "not converged" in result.stderr
    assert (tmp_path / "x.h5ad").exists()
    assert CliRunner().invoke(main, [*args, "--allow-unconverged"]).exit_code == 0
    monkeypatch.setattr(solvers, "als", whole)
    assert CliRunner().invoke(main, args).exit_code == 0


def test_als_asks_for_its_rank(exact):
    with pytest.raises(InputError, match="needs rank="):
        up.decode(exact[1], method="als")


def test_the_radius_of_nuclear_norm_follows_the_noise():
    truth = up.simulate.cell_types(80, 20, 3, rng=0)
    pools = up.measure(truth, up.design.balanced(20, 8, rng=0), snr=5, rng=0)
    with pytest.warns(UserWarning, match="span"):
        x = up.decode(pools, method="nuclear_norm", noise_var="recorded")
    noise = np.sqrt(80 * pools.uns["unpool"]["simulated"]["noise_var"].sum())
    assert 0.8 * noise < x.uns["unpool"]["residual"] < 1.3 * noise
    assert x.uns["unpool"]["gap"] < 1e-5
