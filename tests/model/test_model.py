"""Model: invariances, hard inputs, files."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from threadpoolctl import threadpool_limits

import unpool as up
from unpool.errors import FileError, InputError
from unpool.kernels.blocks import map_blocks, spawn
from unpool.model import Model
from unpool.model._mixture import Mixture


def cells(n, g=12, seed=0):
    X = up.simulate.cell_types(n, g, 4, rng=seed).X
    return np.asarray(X, dtype=float), [f"gene {j}" for j in range(g)]


def close(a, b, tolerance=1e-6):
    return bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


@pytest.fixture(scope="module")
def setup():
    X, genes = cells(700)
    P = up.design.balanced(12, 6, pools_per_gene=2, rng=0).matrices[0]
    D = X[400:] @ P
    v = D.var(axis=0) / 25
    D = D + np.sqrt(v) * np.random.default_rng(1).standard_normal(D.shape)
    return Model._from_array(X[:400], genes), X, D, P, v


def test_decodes_better_than_the_gene_means(setup):
    model, X, D, P, v = setup
    error = np.mean((model.posterior(D, P, noise_var=v).mean - X[400:]) ** 2)
    assert error < 0.6 * np.mean((model.mean - X[400:]) ** 2)


def test_permuting_cells_genes_and_pools_permutes_the_answer(setup):
    model, X, D, P, v = setup
    rng = np.random.default_rng(0)
    i, j, k = (rng.permutation(size) for size in (len(D), 12, 6))
    x = model.posterior(D, P, noise_var=v)
    assert close(model.posterior(D[i], P, noise_var=v).mean, x.mean[i])
    assert not close(model.posterior(D[i], P, noise_var=v).mean, x.mean)
    genes = [model.genes[a] for a in j]
    y = model.subset(genes).posterior(D, P[j], noise_var=v)
    assert close(y.mean, x.mean[:, j])
    assert close(y.sd, x.sd[:, j])
    assert not close(y.mean, x.mean)
    fitted_so = Model._from_array(X[:400][:, j], genes).posterior(D, P[j], noise_var=v)
    assert close(fitted_so.mean, x.mean[:, j])
    z = model.posterior(D[:, k], P[:, k], noise_var=v[k])
    assert close(z.mean, x.mean)
    assert close(z.sd, x.sd)
    assert not close(model.posterior(D, P[:, k], noise_var=v[k]).mean, x.mean)


@pytest.mark.parametrize("c", [1e-12, 0.3, 1e12])
def test_scaling_all_scales_the_answer(setup, c):
    model, X, D, P, v = setup
    x = model.posterior(D, P, noise_var=v)
    scaled = Model._from_array(c * X[:400], model.genes)
    y = scaled.posterior(c * D, P, noise_var=c**2 * v)
    assert close(y.mean / c, x.mean, 1e-5)
    assert close(y.sd / c, x.sd, 1e-5)
    assert close(y.misfit, x.misfit, 1e-4)
    assert not close(scaled.posterior(c * D, P, noise_var=2 * c**2 * v).mean / c, x.mean, 1e-5)
    assert close(scaled.estimate_noise(c * D, P) / c**2, model.estimate_noise(D, P), 1e-4)


def test_marginal_of_the_gene_subset(setup):
    model, _, D, P, v = setup
    some = model.genes[3:9]
    x = model.subset(some).posterior(D, P[3:9], noise_var=v)
    masked = np.where(np.isin(np.arange(12), np.arange(3, 9))[:, None], P, 0.0)
    assert close(x.mean, model.posterior(D, masked, noise_var=v).mean[:, 3:9])
    assert np.allclose(model.subset(some).covariance(), model.covariance()[3:9, 3:9])
    with pytest.raises(InputError, match="gene 99"):
        model.subset(["gene 1", "gene 99"])


def test_moments_are_those_of_the_reference(setup):
    model, X, *_ = setup
    assert np.allclose(model.mean, X[:400].mean(axis=0))
    assert np.allclose(np.diag(model.plain().covariance()), X[:400].var(axis=0), rtol=0.1)
    wider = np.diag(model.covariance()) / X[:400].var(axis=0)
    assert (wider > 1).all()  # by the sizes that the reference need not show
    assert (wider < 1.25).all()
    draws = model.sample(20_000, rng=0)
    assert draws.min() == 0
    assert np.allclose(draws.mean(axis=0), model.mean, rtol=0.2)
    assert np.array_equal(draws, model.sample(20_000, rng=0))


def test_number_of_threads_changes_no_byte():
    X, genes = cells(9000, 10)
    P = up.design.balanced(10, 5, pools_per_gene=2, rng=0).matrices[0]
    D = X @ P
    answers = []
    for n_threads in (1, 2, 3):
        model = Model._from_array(X[:300], genes, n_threads=n_threads)
        answers.append(model.posterior(D, P, noise_var=1.0, n_threads=n_threads))
    for other in answers[1:]:
        assert other.mean.tobytes() == answers[0].mean.tobytes()
        assert other.sd.tobytes() == answers[0].sd.tobytes()
        assert other.misfit.tobytes() == answers[0].misfit.tobytes()
    other_seed = Model._from_array(X[:300], genes, rng=1).posterior(D, P, noise_var=1.0)
    assert other_seed.mean.tobytes() != answers[0].mean.tobytes()


def test_threads_of_the_linear_algebra_change_no_byte():
    rng = np.random.default_rng(0)
    X = rng.gamma(1.0, rng.gamma(1.0, 1.0, size=(3, 300))[rng.integers(3, size=900)])
    P = rng.random((300, 40))
    D = X[600:] @ P  # once: this product may itself depend on the number of threads
    answers, products = [], []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, user_api="blas"):
            products.append((X.T @ X).tobytes())
            for make in (Model._from_array, Model._gaussian):
                model = make(X[:600], [f"g{j}" for j in range(300)])
                x = model.posterior(D, P, noise_var=1.0)
                more = [model.estimate_noise(D, P), model.covariance(), model.sample(50, rng=0)]
                answers.append(b"".join(a.tobytes() for a in [x.mean, x.sd, *more]))
    assert answers[:2] == answers[2:]
    if products[0] == products[1]:
        pytest.skip("the BLAS here gives the same bytes on any number of threads, so this shows nothing")


def test_blocks_are_cut_and_seeded_alike():
    n = 10_000
    names = set()

    def draw(rows):
        names.add(threading.current_thread().name)
        return (rows.start, rows.stop)

    assert map_blocks(draw, n, 2) == map_blocks(draw, n, 1) == [(0, 4096), (4096, 8192), (8192, 10_000)]
    assert len(names) > 1
    first = [g.random() for g in spawn(np.random.default_rng(0), n)]
    assert first == [g.random() for g in spawn(np.random.default_rng(0), n)]
    assert len(set(first)) == 3


def test_storage_of_the_pools_does_not_matter(setup):
    model, _, D, P, v = setup
    D = D.astype(np.float32)
    x = model.posterior(D, P, noise_var=v)
    for other in (D.astype(np.float64), np.asfortranarray(D), sparse.csr_matrix(D), sparse.csc_matrix(D)):
        y = model.posterior(other, sparse.csr_matrix(P), noise_var=v)
        assert y.mean.tobytes() == x.mean.tobytes()
    assert x.mean.dtype == x.sd.dtype == np.float32
    mine = np.empty((len(D), 12))
    assert model.posterior(D, P, noise_var=v, sd=False, out=mine).mean is mine
    assert close(mine, x.mean)
    assert model.posterior(D, P, noise_var=v, sd=False).sd is None
    with pytest.raises(InputError, match="out has shape"):
        model.posterior(D, P, noise_var=v, out=mine[1:])


def test_identity_design_without_noise_gives_the_cells_back(setup):
    model, X, *_ = setup
    x = model.posterior(X[400:], np.eye(12), noise_var=0.0)
    assert close(x.mean, X[400:], 1e-5)
    assert x.sd.max() < 1e-3 * X.std(axis=0).max()
    assert not close(model.posterior(X[400:], np.eye(12), noise_var=1.0).mean, X[400:], 1e-5)


def test_noise_free_single_gene_pool_returns_the_gene(setup):
    model, X, D, P, v = setup
    P = np.column_stack([P, 3 * np.eye(12)[:, 4]])
    D = np.column_stack([D, 3 * X[400:, 4]])
    x = model.posterior(D, P, noise_var=np.append(v, 0.0))
    assert close(x.mean[:, 4], X[400:, 4], 1e-5)
    assert not close(model.posterior(D, P, noise_var=np.append(v, v[0])).mean[:, 4], X[400:, 4], 1e-5)


def hard_references():
    X, _ = cells(60)
    zero, constant, constants = X.copy(), X.copy(), np.tile(X.mean(axis=0), (60, 1))
    zero[:, [0, 5]] = 0.0
    constant[:, 3] = 7.0
    huge, tiny = 1e15 * X, 1e-15 * X
    rare = X.copy()
    rare[1:, 2] = 0.0
    return {
        "one cell": X[:1], "two cells": X[:2], "five cells": X[:5], "zero genes": zero, "constant gene": constant,
        "constant cells": constants, "all zero": np.zeros((20, 12)), "duplicated cells": np.repeat(X[:4], 15, axis=0),
        "huge": huge, "tiny": tiny, "gene in one cell": rare, "one gene twice": X[:, [0, 0, *range(2, 12)]],
    }  # fmt: skip


@pytest.mark.parametrize("kind", hard_references())
@pytest.mark.parametrize("noise", [0.0, 0.1, None])
def test_hard_references_give_finite_answers(kind, noise):
    X, genes = hard_references()[kind], cells(1)[1]
    P = up.design.balanced(12, 6, pools_per_gene=2, rng=0).matrices[0]
    P = np.column_stack([P, P[:, 0], np.zeros(12)])
    D = cells(50, seed=5)[0] @ P * {"huge": 1e15, "tiny": 1e-15}.get(kind, 1.0)
    for model in (Model._from_array(X, genes), Model._gaussian(X, genes)):
        x = model.posterior(D, P, noise_var=None if noise is None else noise * D.var(axis=0))
        assert np.isfinite(x.mean).all()
        assert np.isfinite(x.sd).all()
        assert np.isfinite(x.misfit).all()
        assert x.mean.min() >= 0
        assert x.sd.min() >= 0


def test_what_single_gene_pools_say_of_a_gene_that_the_reference_lacks():
    X, genes = cells(300)
    X[:, 2] = 0.0
    D = np.random.default_rng(0).gamma(2.0, size=(50, 12)) * (X.mean() + 1)
    x = Model._from_array(X, genes).posterior(D, np.eye(12), noise_var=0.0)
    assert close(x.mean[:, 2], D[:, 2], 1e-3)


def test_no_information_leaves_the_prior(setup):
    model, *_ = setup
    x = model.posterior(np.zeros((3, 2)), np.zeros((12, 2)), noise_var=1.0)
    assert np.allclose(x.mean, model.mean, rtol=1e-5)
    assert np.allclose(x.sd**2, np.diag(model.covariance()), rtol=1e-4)
    assert np.isfinite(x.misfit).all()


def test_one_cell_to_decode(setup):
    model, _, D, P, v = setup
    all_of_them = model.posterior(D, P, noise_var=v).mean
    assert close(model.posterior(D[:1], P, noise_var=v).mean, all_of_them[:1])
    assert np.isfinite(model.posterior(D[:1], P).mean).all()


def test_misfit_is_near_zero_where_the_model_fits_and_large_where_not(setup):
    model, _, D, P, v = setup
    strange = D + 30 * D.std(axis=0) * np.array([1, -1, 1, -1, 1, -1])
    assert abs(np.median(model.posterior(D, P, noise_var=v).misfit)) < 1.5
    assert np.median(model.posterior(strange, P, noise_var=v).misfit) > 20


def test_resolution_is_a_share_that_grows_with_what_is_measured(setup):
    model, _, _, P, v = setup
    noise = np.diag(v)
    share = model.resolution(P, noise)
    assert share.min() >= 0
    assert share.max() <= 1
    assert np.array_equal(share, model.resolution(P, noise))
    assert (model.resolution(P, 100 * noise) < share + 0.02).all()
    assert model.resolution(np.eye(12), np.zeros((12, 12))).min() > 0.999
    assert model.resolution(np.zeros((12, 1)), np.zeros((1, 1))).max() < 1e-6


def test_resolution_of_one_gaussian_is_its_closed_form():
    rng = np.random.default_rng(0)
    A, P = rng.standard_normal((5, 5)), rng.random((5, 3))
    S, R = A @ A.T, 0.5 * np.eye(3)
    model = Model(list("abcde"), [Mixture.of_moments([1.0], np.full(5, 100.0), [S])], nu=np.inf)
    by_hand = [np.diag(S @ P @ np.linalg.solve(P.T @ S @ P + k * R, P.T @ S)) / np.diag(S) for k in (1, 4)]
    assert np.allclose(model.resolution(P, R), by_hand[0], atol=0.03)
    assert not np.allclose(model.resolution(P, R), by_hand[1], atol=0.03)


def test_gaussian_is_the_linear_posterior():
    X, genes = cells(3000)
    P = up.design.balanced(12, 6, pools_per_gene=2, rng=0).matrices[0]
    model = Model.gaussian(pd.DataFrame(X, columns=genes))
    S, mu = model.covariance(), X.mean(axis=0)
    by_hand = np.maximum(mu + (X @ P - mu @ P) @ np.linalg.solve(P.T @ S @ P + np.eye(6), P.T @ S), 0)
    assert close(model.posterior(X @ P, P, noise_var=1.0).mean, by_hand, 1e-5)
    assert not close(model.posterior(X @ P, P, noise_var=4.0).mean, by_hand, 1e-5)
    assert np.allclose(S, np.cov(X.T), atol=0.1 * np.abs(S).max())


def test_from_cells_takes_frames_and_sparse_and_refuses_the_rest():
    X, genes = cells(100)
    frame = pd.DataFrame(X, columns=genes)
    model = Model.from_cells(frame, n_members=2)
    assert model.genes == tuple(genes)
    assert np.array_equal(model.mean, Model.from_cells(sparse.csr_matrix(X), n_members=2).mean)
    assert "12 genes" in repr(model)
    with pytest.raises(InputError, match="gene 3"):
        Model.from_cells(frame.assign(**{"gene 3": -1.0}))
    with pytest.raises(InputError, match="n_members"):
        Model.from_cells(frame, n_members=0)


def test_bad_pools_are_named(setup):
    model, _, D, P, v = setup
    bad = D.copy()
    bad[7, 2] = np.nan
    with pytest.raises(InputError, match="pool 2 of cell 7"):
        model.posterior(bad, P, noise_var=v)
    with pytest.raises(InputError, match="6 pools, P has 5"):
        model.posterior(D, P[:, :5], noise_var=1.0)
    with pytest.raises(InputError, match="the model 12 genes"):
        model.posterior(D, P[:5], noise_var=1.0)
    with pytest.raises(InputError, match="noise_stage"):
        model.posterior(D, P, noise_var=1.0, noise_stage="before")
    with pytest.raises(InputError, match="at least one of each"):
        model.posterior(D[:0], P, noise_var=1.0)


def test_save_and_load(setup, tmp_path):
    model, _, D, P, v = setup
    path = tmp_path / "model.npz"
    model.save(path)
    again = Model.load(path)
    assert again.genes == model.genes
    assert again.posterior(D, P, noise_var=v).mean.tobytes() == model.posterior(D, P, noise_var=v).mean.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    before = path.read_bytes()
    with pytest.raises(FileError):
        model.save(tmp_path / "model.npz" / "below")
    assert path.read_bytes() == before
    (tmp_path / "cut.npz").write_bytes(before[: len(before) // 2])
    (tmp_path / "text.npz").write_text("not a model")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("cut", "text", "other", "missing"):
        with pytest.raises(FileError, match=name):
            Model.load(tmp_path / f"{name}.npz")


def test_light_tails_become_gaussian():
    """Also where most components are skipped: what is not looked at must not spoil the misfit."""
    cells = up.simulate.cell_types(1500, 20, 12, rng=0)
    X, P = np.asarray(cells.X, dtype=float), up.design.balanced(20, 10, pools_per_gene=2, rng=0).matrices[0]
    model = Model._from_array(X[:1300], list(cells.var_names), n_members=1)
    light, gaussian, heavy = (
        model.with_tails(nu).posterior(X[1300:] @ P, P, noise_var=1e-3) for nu in (1e9, np.inf, 5.0)
    )
    assert np.allclose(light.misfit, gaussian.misfit, atol=1e-3)
    assert not np.allclose(heavy.misfit, gaussian.misfit, atol=1e-3)
