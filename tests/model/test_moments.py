"""Shrunk covariances and mixtures against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from unpool.model import Model
from unpool.model._cluster import SCALES, cluster, n_clusters
from unpool.model._mixture import Mixture
from unpool.model._moments import shrunk_mixture


def three_groups(seed=0, g=6):
    rng = np.random.default_rng(seed)
    labels = np.repeat([2, 0, 1], [40, 9, 1])
    return rng.gamma(2.0, rng.gamma(1.0, 2.0, size=(3, g))[labels]), labels


def covariances_by_hand(X, labels, broken=""):
    """The recipe, cell by cell and cluster by cluster."""
    n, g = X.shape
    K = labels.max() + 1
    count = np.array([np.sum(labels == k) for k in range(K)])
    mu = np.array([X[labels == k].mean(axis=0) for k in range(K)])
    E = X - mu[labels]
    W = (E**2).sum(axis=0) / (n - K)
    v = np.array([(E[labels == k] ** 2).mean(axis=0) for k in range(K)])
    level = mu + 0.05 * X.mean(axis=0)
    points = [(j, np.log(level[k, j]), np.log(v[k, j]), count[k]) for k in range(K) if count[k] >= 5 for j in range(g)]
    A = np.array([[x * (jj == j) for jj in range(g)] for j, _, _, x in points], dtype=float)
    gene, x, y, w = (np.array(c) for c in zip(*points, strict=True))
    design = np.column_stack([x, *(gene == j for j in range(g))])
    p = np.linalg.lstsq(design * np.sqrt(w)[:, None], y * np.sqrt(w), rcond=None)[0][0]
    assert A.shape[1] == g
    p = 0.0 if broken == "no trend" else np.clip(p, 0, 2)
    t = W * level**p / (count @ level**p / n)
    d = (count[:, None] * v + 20 * t) / (count[:, None] + 20) + 1e-3 * X.var(axis=0)
    z = E / np.sqrt(t + 1e-3 * X.var(axis=0))[labels]
    C = z.T @ z
    C = C / np.sqrt(np.outer(np.diag(C), np.diag(C)))
    if broken == "no correlation":
        C = np.eye(g)
    a, b = 0.6 * g, 60 + g
    answer = []
    for k in range(K):
        own = E[labels == k].T @ E[labels == k]
        if broken == "mean for sum":
            own = own / count[k]
        answer.append((own + b * C * np.sqrt(np.outer(d[k], d[k])) + a * np.diag(d[k])) / (count[k] + a + b))
    return np.array(answer)


def test_shrunk_covariances():
    X, labels = three_groups()
    mixture = shrunk_mixture(X, labels)
    covariances = mixture.times(np.eye(6))
    assert np.allclose(covariances, covariances_by_hand(X, labels))
    for broken in ("no trend", "no correlation", "mean for sum"):
        assert not np.allclose(covariances, covariances_by_hand(X, labels, broken), rtol=1e-3)
    assert np.allclose(mixture.weights, [9 / 50, 1 / 50, 40 / 50])
    assert np.allclose(mixture.means[2], X[labels == 2].mean(axis=0))


def test_parts_of_a_mixture_agree():
    X, labels = three_groups(1)
    mixture = shrunk_mixture(X, labels)
    covariances = mixture.times(np.eye(6))
    P = np.random.default_rng(0).random((6, 3))
    assert np.allclose(mixture.times(P), covariances @ P)
    assert np.allclose(mixture.variances(), np.diagonal(covariances, axis1=1, axis2=2))
    away = mixture.means - mixture.mean
    total = np.einsum("k,kij->ij", mixture.weights, covariances) + away.T @ np.diag(mixture.weights) @ away
    assert np.allclose(mixture.covariance(), total)
    assert not np.allclose(mixture.covariance(), np.einsum("k,kij->ij", mixture.weights, covariances), rtol=1e-3)
    same = Mixture.of_moments(mixture.weights, mixture.means, covariances)
    assert np.allclose(same.times(P), mixture.times(P))
    one = np.array([4, 1])
    assert np.allclose(mixture.subset(one).times(np.eye(2)), covariances[:, one][:, :, one])


@pytest.mark.parametrize("nu", [np.inf, 9.0])
def test_draws_have_the_moments(nu):
    X, labels = three_groups(2)
    mixture = shrunk_mixture(X, labels)
    draws = mixture.draw(60_000, nu, np.random.default_rng(0))
    assert np.allclose(draws.mean(axis=0), mixture.mean, rtol=0.03)
    assert np.allclose(np.cov(draws.T), mixture.covariance(), atol=0.06 * np.diag(mixture.covariance()).max())
    kurtosis = np.mean(((draws - draws.mean(axis=0)) / draws.std(axis=0)) ** 4)
    gaussian = np.mean(
        ((g := mixture.draw(60_000, np.inf, np.random.default_rng(1))) - g.mean(axis=0)) ** 4 / g.var(axis=0) ** 2
    )
    assert (kurtosis > 1.05 * gaussian) == np.isfinite(nu)


def test_few_rows_for_large_clusters():
    """A cluster with more cells than genes keeps at most as many rows as genes, and the same covariance."""
    X, labels = three_groups(3)
    mixture = shrunk_mixture(X, labels)
    assert np.diff(mixture.starts).tolist() == [6, 0, 6]


@pytest.mark.parametrize("scale", SCALES)
def test_clusters_find_separate_groups(scale):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 20)
    X = rng.gamma(50.0, 0.02, size=(80, 8)) * np.kron(np.eye(4), [10.0, 10.0])[labels]
    found = cluster(X, scale, np.random.default_rng(0))
    assert found.min() == 0
    assert len(np.unique(found)) == found.max() + 1 == 5
    purity = np.mean([np.bincount(labels[found == k]).max() for k in range(5)]) * 5 / 80
    assert purity > 0.95
    assert np.array_equal(found, cluster(X, scale, np.random.default_rng(0)))


def test_number_of_clusters():
    assert [n_clusters(n) for n in (1, 2, 7, 60, 150, 4000, 10**6)] == [1, 1, 3, 4, 10, 266, 400]


def test_few_genes_get_more_members_and_pairs_up_to_the_sum_of_two_types():
    """Where a component costs little; beyond 32 genes the plain extent."""
    rng = np.random.default_rng(0)
    X = rng.gamma(2.0, size=(150, 33)) * rng.integers(1, 4, size=(150, 1))
    few, many = (Model._from_array(X[:, :g], [f"g{j}" for j in range(g)]) for g in (32, 33))
    assert (len(few.members), len(many.members)) == (6, 4)
    n_pairs = len(few.members[0].pairs)
    assert n_pairs > 0
    shares = few.members[0].size_shares[-n_pairs:]
    sums, between = (shares[:, np.isin(few.members[0].sizes, s)] for s in (2.0, (0.7, 1.4)))
    assert (sums > 0).all()
    assert not between.any()
    np.testing.assert_allclose(shares @ few.members[0].sizes, 1)  # the mean stays
    assert not many.members[0].size_shares[-len(many.members[0].pairs) :, 1:].any()
    assert len(Model._from_array(X[:, :32], few.genes, n_members=2).members) == 2
