"""Models from moments and from modules, and what they expect."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import unpool as up
from unpool.errors import InputError
from unpool.model import Model, _modules
from unpool.solvers import modules


def test_from_moments_is_the_linear_posterior():
    rng = np.random.default_rng(0)
    A, mu, P = rng.standard_normal((5, 7)), 5 + rng.random(5), rng.random((5, 3))
    S = A @ A.T / 7
    names = list("abcde")
    D = rng.multivariate_normal(mu, S, 50) @ P
    by_hand = mu + (D - mu @ P) @ np.linalg.solve(P.T @ S @ P + 0.1 * np.eye(3), P.T @ S)
    model = Model.from_moments(pd.Series(mu, names), pd.DataFrame(S, names, names).loc[::-1, ::-1])
    answer = model.posterior(D, P, noise_var=0.1)
    np.testing.assert_allclose(answer.mean, np.maximum(by_hand, 0), rtol=1e-5)
    sd = np.sqrt(np.diag(S - S @ P @ np.linalg.solve(P.T @ S @ P + 0.1 * np.eye(3), P.T @ S)))
    np.testing.assert_allclose(answer.sd, np.tile(sd, (50, 1)), rtol=1e-5)
    wrong = Model.from_moments(mu, np.diag(np.diag(S)))
    assert not np.allclose(wrong.posterior(D, P, noise_var=0.1).mean, answer.mean, rtol=1e-3)
    assert wrong.genes == ("gene_0", "gene_1", "gene_2", "gene_3", "gene_4")
    with pytest.raises(InputError, match="positive semidefinite"):
        Model.from_moments(mu, S - 2 * np.eye(5) * S.max())
    with pytest.raises(InputError, match="shape"):
        Model.from_moments(mu, S[:4])


def modules_and_cells(rng, g=12, K=4, n=300):
    U = np.where(rng.random((g, K)) < 0.35, rng.random((g, K)), 0.0)
    U[np.arange(g), rng.integers(K, size=g)] += 0.5
    W = np.where(rng.random((n, K)) < 0.4, rng.gamma(2.0, 3.0, (n, K)), 0.0)
    return U, W @ U.T


def score(X, M):
    return np.mean([np.corrcoef(x, m)[0, 1] for x, m in zip(np.asarray(X).T, M.T, strict=True)])


def test_decoding_with_a_table_of_modules():
    rng = np.random.default_rng(0)
    U, M = modules_and_cells(rng)
    genes = [f"g{j}" for j in range(12)]
    design = up.design.balanced(genes, 6, pools_per_gene=2, rng=0)
    P = design.matrices[0]
    D = M @ P
    D += 0.1 * D.std(axis=0) * rng.standard_normal(D.shape)
    table = pd.DataFrame(U, genes, [f"module {k}" for k in range(4)])
    v = 0.01 * (M @ P).var(axis=0)
    x = up.decode(up.pooled(D, design), table.iloc[::-1], noise_var=v, crossfit=False)
    guess = score(D @ np.linalg.pinv(P), M)
    assert score(x.X, M) > guess + 0.05
    shuffled = table.set_axis(rng.permutation(genes), axis=0)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = up.decode(up.pooled(D, design), shuffled, noise_var=v, crossfit=False)
    assert score(wrong.X, M) < score(x.X, M) - 0.05
    # a table whose columns are the genes is cells x genes
    cells = pd.DataFrame(M, [f"c{i}" for i in range(300)], genes)
    assert up.decode(up.pooled(D, design), cells, noise_var=v, crossfit=False).shape == (300, 12)
    with pytest.raises(InputError, match="modules"):
        Model.from_modules(-table)


def test_a_cell_has_a_little_of_other_modules(monkeypatch):
    rng = np.random.default_rng(0)
    g, K, n = 16, 20, 600
    U = np.where(rng.random((g, K)) < 0.05, rng.random((g, K)), 0.0)
    U[np.arange(K) % g, np.arange(K)] += 1.0
    W = np.where(rng.random((n, K)) < 1 / K, rng.exponential(5.0, (n, K)), 0.0)  # one on average
    W += np.where(rng.random((n, K)) < 0.4, rng.exponential(0.5, (n, K)), 0.0)  # and little of many
    M = W @ U.T
    table = pd.DataFrame(U, [f"g{j}" for j in range(g)])
    pools = up.measure(M, up.design.balanced(list(table.index), 8, pools_per_gene=2, rng=0), snr=10, rng=0)
    published = score(modules(pools.X, pools.varm["design"].T, dictionary=U).X, M)

    def check():
        ours = score(up.decode(pools, table, noise_var="recorded", crossfit=False).X, M)
        assert ours > max(published, 0.95)

    check()
    monkeypatch.setattr(_modules, "_OTHERS", 0.0)
    with pytest.raises(AssertionError):
        check()  # the twin whose cells are one or two modules and nothing else


def test_expected_error_is_that_of_cells_drawn_from_the_model():
    cells = np.asarray(up.simulate.cell_types(300, 10, 3, rng=0).X, dtype=float)
    model = Model._from_array(cells, [f"g{j}" for j in range(10)], n_members=1)
    P = up.design.balanced(10, 5, pools_per_gene=2, rng=0).matrices[0]
    expected = model.expected_error(P, 1.0)
    X = model.sample(4000, rng=9)
    D = X @ P + np.random.default_rng(1).standard_normal((4000, 5))
    real = np.sqrt(np.mean((X - model.posterior(D, P, noise_var=1.0).mean) ** 2, axis=0))
    assert np.allclose(expected, real, rtol=0.25)
    assert list(expected.index) == list(model.genes)
    assert (model.expected_error(P, 1e4) > expected * 1.01).mean() > 0.8
