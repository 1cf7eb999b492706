"""The forward model and the pooled AnnData."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import unpool as up
from unpool import io
from unpool.errors import InputError
from unpool.measure import recorded_design, recorded_noise


@pytest.fixture(scope="module")
def truth():
    return up.simulate.cell_types(5000, 12, 4, rng=0)


@pytest.fixture(scope="module")
def design(truth):
    return up.design.balanced(list(truth.var_names), 6, pools_per_gene=2, rng=0)


def test_without_noise_it_is_the_product(truth, design):
    D = up.measure(truth, design).X
    np.testing.assert_allclose(D, truth.X @ design.matrices[0], rtol=1e-6)


def test_genes_are_matched_by_name(truth, design):
    shuffled = truth[:, ::-1].copy()
    assert np.array_equal(up.measure(shuffled, design).X, up.measure(truth, design).X)
    extra = ad.concat([truth, truth[:, :2].to_memory()[:, []].copy()], axis=1, merge="same")
    assert up.measure(extra, design).shape == (5000, 6)
    # an array has no names: the same columns reversed give something else
    assert not np.array_equal(up.measure(np.asarray(shuffled.X), design).X, up.measure(truth, design).X)
    with pytest.raises(InputError, match="not in the truth: 'gene_3'"):
        up.measure(truth[:, truth.var_names != "gene_3"].copy(), design)


@given(st.floats(0.1, 10), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_linear(c, seed):
    rng = np.random.default_rng(seed)
    A, B = rng.gamma(1, 50, (7, 5)), rng.gamma(1, 50, (7, 5))
    d = up.design.bernoulli(5, 3, p=0.5, rng=seed)

    def linear(f):
        return np.allclose(f(A + c * B), f(A) + c * f(B))

    assert linear(lambda M: up.measure(M, d).X)
    assert not linear(lambda M: np.log1p(up.measure(M, d).X))


def noise_of(truth, design, **options):
    return up.measure(truth, design, rng=5, **options).X - up.measure(truth, design).X


def test_snr_in_the_pools(truth, design):
    clean = up.measure(truth, design).X.std(axis=0)

    def has_snr(E, snr):
        return np.allclose(clean / E.std(axis=0), snr, rtol=0.05)

    E = noise_of(truth, design, snr=5)
    assert has_snr(E, 5)
    assert not has_snr(E * 1.2, 5)
    assert abs(np.corrcoef(E.T) - np.eye(6)).max() < 0.06
    np.testing.assert_allclose(recorded_noise(up.measure(truth, design, snr=5))[0], (clean / 5) ** 2, rtol=1e-5)


def test_snr_before_pooling(truth, design):
    P = design.matrices[0]
    v = np.mean(truth.X.astype(float) ** 2) / 3**2
    E = noise_of(truth, design, snr=3, noise_stage="expression")
    assert np.abs(np.cov(E.T) - v * P.T @ P).max() < 0.1 * v * (P.T @ P).max()
    assert np.abs(np.cov(E.T) - v * np.eye(6)).max() > 0.5 * v  # the twin: noise in the pools
    assert recorded_noise(up.measure(truth, design, snr=3, noise_stage="expression")) == (
        pytest.approx(v),
        "expression",
    )


def test_noise_var_shapes(truth, design):
    v = np.arange(1.0, 7.0)
    assert np.allclose(noise_of(truth, design, noise_var=v).var(axis=0), v, rtol=0.1)
    C = 4 * np.eye(6) + 2
    assert np.allclose(np.cov(noise_of(truth, design, noise_var=C).T), C, atol=0.5)
    assert np.allclose(noise_of(truth, design, noise_var=9.0).var(axis=0), 9.0, rtol=0.1)
    for bad, says in [(v[:3], "one per pool"), (-1.0, ">= 0"), (np.nan, "finite"), (C - 7, "no covariance")]:
        with pytest.raises(InputError, match=says):
            up.measure(truth, design, noise_var=bad)
    with pytest.raises(InputError, match="give one of them"):
        up.measure(truth, design, snr=5, noise_var=1.0)
    with pytest.raises(InputError, match="did you mean 'pool'"):
        up.measure(truth, design, snr=5, noise_stage="pools")


def test_shot_noise_and_saturation(truth, design):
    clean = up.measure(truth, design).X
    counted = up.measure(truth, design, shot=True, rng=0).X
    assert np.array_equal(counted, np.rint(counted))
    z = (counted - clean)[clean > 5] / np.sqrt(clean[clean > 5])
    assert abs(z.std() - 1) < 0.03
    assert up.measure(truth, design, saturation=20).X.max() == 20


def test_same_seed_same_bytes(truth, design):
    a, b = (up.measure(truth, design, snr=5, rng=1).X for _ in range(2))
    assert a.tobytes() == b.tobytes()
    assert a.tobytes() != up.measure(truth, design, snr=5, rng=2).X.tobytes()


def test_several_designs(truth):
    d = up.design.bernoulli(list(truth.var_names), 6, n_designs=3, rng=0)
    index = np.random.default_rng(0).integers(3, size=truth.n_obs)
    by_number = up.measure(truth, d, design_index=index)
    for b in range(3):
        np.testing.assert_allclose(by_number.X[index == b], truth.X[index == b] @ d.matrices[b], rtol=1e-6)
    named = truth.copy()
    named.obs["section"] = np.array(d.names)[index]
    assert np.array_equal(up.measure(named, d, design_index="section").X, by_number.X)
    back, where = recorded_design(by_number)
    assert back == d
    assert np.array_equal(where, index)
    assert (up.measure(truth, d).obs["design"].value_counts() >= truth.n_obs // 3).all()
    with pytest.raises(InputError, match="has design 7"):
        up.measure(truth, d, design_index=np.full(truth.n_obs, 7))
    with pytest.raises(InputError, match="no column"):
        up.measure(truth, d, design_index="plate")


@pytest.mark.parametrize("n_designs", [1, 2])
def test_the_pooled_object_survives_its_life(tmp_path, truth, n_designs):
    sc = pytest.importorskip("scanpy")
    d = up.design.bernoulli(list(truth.var_names), 6, n_designs=n_designs, rng=0)
    small = truth[:300].copy()
    small.obsm["spatial"] = np.arange(600.0).reshape(300, 2)
    p = up.measure(small, d, snr=5, rng=0)
    assert "spatial" in p.obsm
    io.write_h5ad(p, tmp_path / "p.h5ad")
    read = io.read_h5ad(tmp_path / "p.h5ad")
    joined = ad.concat([p[:100].copy(), p[100:].copy()], merge="same", uns_merge="same")
    for q in (p, read, joined, p[5:50], p[5:50].copy(), p[::-1].copy()):
        back, index = recorded_design(q)
        assert back == d
        np.testing.assert_allclose(np.asarray(q.X), np.stack([p[name].X[0] for name in q.obs_names]))
        if n_designs > 1:
            assert np.array_equal(index, [d.names.index(x) for x in q.obs["design"]])
    part, _ = recorded_design(p[:, [4, 1, 0, 2, 3]])
    np.testing.assert_array_equal(part.matrices[0], d.matrices[0][:, [4, 1, 0, 2, 3]])
    work = p.copy()
    work.X = np.maximum(work.X, 0)
    sc.pp.normalize_total(work)
    sc.pp.log1p(work)
    sc.pp.pca(work, n_comps=3)
    assert recorded_design(work)[0] == d
    with pytest.raises(InputError, match="log1p"):
        up.pooled(work, d)


def test_lost_design_says_how_to_keep_it(truth, design):
    p = up.measure(truth, design)
    with pytest.raises(InputError, match="uns_merge"):
        recorded_design(ad.concat([p[:100].copy(), p[100:].copy()]))
    with pytest.raises(InputError, match="unpool.pooled"):
        recorded_design(truth)
    with pytest.raises(InputError, match="merge"):
        recorded_design(ad.concat([p[:100].copy(), p[100:].copy()], uns_merge="same"))


def test_pooled_wraps_what_people_have(design):
    rng = np.random.default_rng(0)
    D = rng.normal(20, 10, (9, 6))
    frame = pd.DataFrame(D, columns=list(design.pools), index=[f"c{i}" for i in range(9)])
    for given_as in (D, D.astype(np.float32), sparse.csr_matrix(D), sparse.csc_array(D), frame, frame.iloc[:, ::-1]):
        p = up.pooled(given_as, design)
        X = p.X.toarray() if sparse.issparse(p.X) else p.X
        np.testing.assert_allclose(X, D, rtol=1e-6)
        assert recorded_design(p)[0] == design
    assert list(up.pooled(frame, design).obs_names) == list(frame.index)
    obs = pd.DataFrame({"x": range(9)}, index=frame.index)
    assert list(up.pooled(D, design, obs=obs).obs["x"]) == list(range(9))
    assert up.pooled(np.arange(54).reshape(9, 6), design).X.dtype.kind == "f"
    for bad, says in [
        (D[:, :5], "5 columns"),
        (frame.rename(columns={"pool_1": "Pool_1"}), "closest name there is 'Pool_1'"),
        (frame.assign(extra=1.0), "'extra'"),
        (np.where(D == D[3, 2], np.nan, D), "pool 'pool_2' is nan in cell 'cell_3'"),
        (D[0], "two dimensions"),
        (D[:0], "no cells"),
        (np.array([["a"] * 6]), "real numbers"),
    ]:
        with pytest.raises(InputError, match=says):
            up.pooled(bad, design)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float32, np.float64])
def test_dtypes_of_the_truth(design, dtype):
    M = np.random.default_rng(0).integers(0, 2, (20, 12)).astype(dtype)
    np.testing.assert_allclose(up.measure(M, design).X, M.astype(float) @ design.matrices[0])
