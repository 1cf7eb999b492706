"""Sparse modules: planted ones are found, decoding is optimal, and what cannot be used is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

import unpool as up
from unpool.errors import InputError
from unpool.solvers.modules import learn_modules, modules


def planted(n=600, seed=0, n_genes=30, n_modules=6):
    """Cells x genes from sparse modules, each cell with one or two of them."""
    rng = np.random.default_rng(seed)
    V = np.zeros((n_genes, n_modules))
    for k in range(n_modules):
        members = np.union1d(np.arange(k, n_genes, n_modules), rng.choice(n_genes, 4, replace=False))
        V[members, k] = rng.gamma(3.0, 1.0, len(members))
    V /= np.linalg.norm(V, axis=0)
    W = rng.gamma(2.0, 1.0, (n, n_modules)) * (rng.random((n, n_modules)) < 1.5 / n_modules)
    return W @ V.T, V


def pearson(X, Y):
    """Per gene; a gene that no module has counts as 0."""
    return np.array([np.corrcoef(x, y)[0, 1] if x.std() and y.std() else 0.0 for x, y in zip(X.T, Y.T, strict=True)])


def similarity(V, U):
    """Mean cosine of the best one-to-one match of two dictionaries' columns."""
    cosine = (V / np.linalg.norm(V, axis=0)).T @ (U / np.linalg.norm(U, axis=0))
    rows, columns = linear_sum_assignment(-cosine)
    return cosine[rows, columns].sum() / V.shape[1]


@pytest.mark.parametrize("seed", range(3))
def test_planted_modules_are_found(seed):
    X, V = planted(seed=seed)
    U = learn_modules(X, n_modules=6, module_error=0.01, activity_error=0.05, rng=seed)
    assert similarity(V, U) > 0.97
    assert (U >= 0).all()
    _, other = planted(seed=seed + 100)
    assert similarity(V, other) < 0.8  # the twin: another dictionary
    start = learn_modules(X, n_modules=6, module_error=0.9, activity_error=0.05, rng=seed)
    assert similarity(V, start) < 0.97  # the twin: modules that explain a tenth of each gene


def test_units_of_genes_do_not_matter():
    X, _ = planted()
    scale = np.random.default_rng(1).lognormal(0, 2, X.shape[1])
    plain = learn_modules(X, n_modules=8)
    np.testing.assert_allclose(learn_modules(X * scale, n_modules=8), plain * scale[:, None], rtol=1e-6, atol=1e-9)
    rescaled = up.design.balanced(30, 10, rng=0).matrices[0] / scale[:, None]
    D = X @ up.design.balanced(30, 10, rng=0).matrices[0]
    a = modules(D, rescaled, X * scale, n_modules=8, decode_error=0.01, activity_error=0.2).X
    b = modules(D, rescaled * scale[:, None], X, n_modules=8, decode_error=0.01, activity_error=0.2).X
    np.testing.assert_allclose(a, b * scale, rtol=1e-6, atol=1e-9)


def test_decoding_planted_modules():
    X, _ = planted(900)
    P = up.design.balanced(30, 12, rng=0).matrices[0]
    answer = modules(X[600:] @ P, P, X[:600])
    assert (answer.X >= 0).all()
    assert answer.converged
    assert pearson(X[600:], answer.X).mean() > 0.93
    wrong = modules(X[600:] @ P, P[::-1], X[:600])  # the twin: genes in another order
    assert pearson(X[600:], wrong.X).mean() < 0.7
    np.testing.assert_allclose(answer.X, answer.U @ answer.V.T)
    np.testing.assert_allclose(answer.residual, np.linalg.norm(X[600:] @ P - answer.X @ P), rtol=1e-9)
    np.testing.assert_allclose(answer.objective, answer.U.sum())


def test_the_error_is_that_of_the_cells_block():
    X, V = planted(400)
    P = up.design.balanced(30, 12, rng=0).matrices[0]
    D = X @ P + np.random.default_rng(0).normal(0, 0.1, (400, 12))
    answer = modules(D, P, dictionary=V, decode_error=0.05)
    energy = np.square(D).sum(axis=1)
    left = np.square(D - answer.X @ P).sum(axis=1)

    def within(left):
        return all(
            left[block].max() <= 0.05 * energy[block].mean() * (1 + 1e-9)
            for block in np.array_split(np.argsort(energy, kind="stable"), 20)
            if energy[block].min() > 1.0  # dim cells are noise, which no dictionary explains
        )

    assert within(left)
    assert not within(1.5 * left)


def test_a_dictionary_may_be_a_table():
    X, V = planted(50)
    P = up.design.balanced(30, 12, rng=0).matrices[0]
    table = pd.DataFrame(V, index=[f"gene_{j}" for j in range(30)])
    same = [modules(X @ P, P, dictionary=V), modules(X @ P, P, dictionary=table)]
    assert np.array_equal(same[0].X, same[1].X)
    assert same[0].V.shape == (30, 6)


def test_several_designs():
    X, V = planted(900)
    designs = up.design.balanced(30, 12, n_designs=2, rng=0).matrices
    batches = [X[600:750] @ designs[0], X[750:] @ designs[1]]
    together = modules(batches, list(designs), dictionary=V, decode_error=0.01).X
    for b, rows in enumerate((slice(0, 150), slice(150, 300))):
        alone = modules(batches[b], designs[b], dictionary=V, decode_error=0.01).X
        np.testing.assert_allclose(together[rows], alone)
    learned = modules(batches, list(designs), X[:600]).X
    swapped = modules(batches, list(designs)[::-1], X[:600]).X
    assert pearson(X[600:], learned).mean() > 0.9 > pearson(X[600:], swapped).mean()


def test_the_same_input_gives_the_same_bytes():
    X, _ = planted(300)
    P = up.design.balanced(30, 12, rng=0).matrices[0]
    run = [modules(X[200:] @ P, P, X[:200], rng=seed).X.tobytes() for seed in (0, 0, 1)]
    assert run[0] == run[1] != run[2]


@pytest.mark.parametrize("n", [1, 3, 10, 45])
def test_small_references(n):
    X, _ = planted(100)
    X = X[X.any(axis=1)]
    P = up.design.balanced(30, 12, rng=0).matrices[0]
    assert np.isfinite(modules(X[50:] @ P, P, X[:n]).X).all()


def test_a_gene_without_expression_and_a_cell_without_pools():
    X, _ = planted(300)
    X[:, 4] = 0.0
    P = up.design.balanced(30, 12, rng=0).matrices[0]
    D = X[200:] @ P
    D[0] = 0.0
    decoded = modules(D, P, X[:200]).X
    assert not decoded[:, 4].any()
    assert not decoded[0].any()


def test_bad_input_is_refused():
    X, V = planted(60)
    P = up.design.balanced(30, 12, rng=0).matrices[0]
    for options, message in (
        ({}, "neither reference nor dictionary"),
        ({"reference": X[:, :20]}, "20 genes but P has 30"),
        ({"dictionary": V[:20]}, "20 genes but P has 30"),
        ({"reference": X - 1.0}, "expected values >= 0"),
        ({"reference": np.zeros_like(X)}, "zero everywhere"),
        ({"reference": X, "decode_error": 2.0}, "decode_error"),
        ({"reference": X, "noise_covariance": np.eye(3)}, "12 x 12"),
        ({"reference": X, "n_modules": 0}, "n_modules"),
    ):
        with pytest.raises(InputError, match=message):
            modules(X @ P, P, **options)
