"""The posterior against brute force, and each check against a broken twin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unpool.kernels.mixture import posterior_moments
from unpool.model._mixture import Mixture
from unpool.model._posterior import decode_blocks, see

BROKEN = ["gain without noise", "no variance between components", "weights ignored", "determinant ignored"]


def random_covariance(rng, g, scale=1.0):
    A = rng.standard_normal((g, g + 2))
    return scale * A @ A.T / (g + 2)


def bag(rng, g, K, n_members=1):
    """Members as (weights, means, covariances)."""
    return [
        (
            rng.dirichlet(np.full(K, 2.0)),
            3 + 2 * rng.standard_normal((K, g)),
            [random_covariance(rng, g, 0.3 + k) for k in range(K)],
        )
        for _ in range(n_members)
    ]


def brute_force(members, P, R, D, nu, broken=""):
    """Mean, sd and mean distance of each cell by dense conditioning, one component at a time."""
    m = P.shape[1]
    mean, sd, distance = [], [], []
    for d in D:
        values, spreads, shares, qs = [], [], [], []
        for weights, means, covariances in members:
            log_density = []
            for w, mu, S in zip(weights, means, covariances, strict=True):
                C, r = P.T @ S @ P + R, d - mu @ P
                q = r @ np.linalg.solve(C, r)
                log_det = 0.0 if broken == "determinant ignored" else np.linalg.slogdet(C)[1]
                tail = -q / 2 if np.isinf(nu) else -(nu + m) / 2 * np.log(1 + q / (nu - 2))
                log_density.append((0.0 if broken == "weights ignored" else np.log(w)) - log_det / 2 + tail)
                G = S @ P @ np.linalg.inv(C - R if broken == "gain without noise" else C)
                stretch = 1.0 if np.isinf(nu) else (nu - 2 + q) / (nu - 2 + m)
                values.append(mu + G @ r)
                spreads.append(stretch * np.diag(S - S @ P @ np.linalg.inv(C) @ P.T @ S))
                qs.append(q)
            density = np.exp(np.array(log_density) - max(log_density))
            shares.extend(density / density.sum() / len(members))
        shares, values = np.array(shares), np.array(values)
        y = shares @ values
        between = 0.0 if broken == "no variance between components" else shares @ (values - y) ** 2
        mean.append(y)
        sd.append(np.sqrt(shares @ np.array(spreads) + between))
        distance.append(shares @ qs)
    return np.array(mean), np.array(sd), np.array(distance)


def decoded(members, P, R, D, nu, **options):
    """The package's answer in float64, unclipped, nothing dropped, no jitter."""
    mixtures = [Mixture.of_moments(*member) for member in members]
    seen = see(mixtures, np.full(len(members), 1 / len(members)), nu, P, R, jitter=0.0)
    mean, sd, misfit = np.empty((len(D), len(P))), np.empty((len(D), len(P))), np.empty(len(D))
    decode_blocks(seen, D, mean, sd, misfit, clip=False, **{"dropped": 0.0} | options)
    m = seen.n_coordinates
    return mean, sd, misfit * np.sqrt(2 * m) + m


def agrees(answer, truth, tolerance=1e-10):
    return all(np.abs(a - t).max() <= tolerance * (1 + np.abs(t).max()) for a, t in zip(answer, truth, strict=True))


@pytest.mark.parametrize("nu", [np.inf, 5.0])
@pytest.mark.parametrize(("g", "m", "K", "n_members"), [(3, 2, 2, 1), (6, 4, 5, 3)])
def test_brute_force(nu, g, m, K, n_members):
    rng = np.random.default_rng(3)
    members = bag(rng, g, K, n_members)
    P, R = rng.random((g, m)), random_covariance(rng, m, 0.2)
    D = (3 + 2 * rng.standard_normal((20, g))) @ P
    truth = brute_force(members, P, R, D, nu)
    assert agrees(decoded(members, P, R, D, nu), truth)
    for broken in BROKEN:
        twin = brute_force(members, P, R, D, nu, broken)
        assert not agrees(twin, truth, 1e-3), broken
    assert not agrees(brute_force(members, P, R, D, 7.0), truth, 1e-3)  # other tails


def spelled_out(weights, means, covariances, pairs, sizes, shares):
    """Weights, means and covariances of all components at all sizes, one by one."""
    parts = [(weights[k], means[k], covariances[k], shares[k]) for k in range(len(weights) - len(pairs))]
    for w, share, (i, j) in zip(weights[len(parts) :], shares[len(parts) :], pairs, strict=True):
        parts.append((w, (means[i] + means[j]) / 2, (covariances[i] + covariances[j]) / 4, share))
    every = [
        (w * x, s * mu, s * s * S) for w, mu, S, share in parts for s, x in zip(sizes, share, strict=True) if x > 0
    ]
    return tuple(list(part) for part in zip(*every, strict=True))


def rich(rng, g, K, T, sizes):
    """Mixture of K clusters at several sizes and the pairs of T types; and the same spelled out."""
    means = 3 + 2 * rng.standard_normal((K + T, g))
    covariances = [random_covariance(rng, g, 0.3 + k / K) for k in range(K + T)]
    pairs = K + np.column_stack(np.triu_indices(T, 1))
    weights = rng.dirichlet(np.full(K + len(pairs), 2.0))
    shares = np.vstack([rng.dirichlet(np.ones(len(sizes)), K), np.tile(np.eye(len(sizes))[0], (len(pairs), 1))])
    mixture = Mixture.of_moments(weights, means, covariances, pairs=pairs, sizes=sizes, shares=shares)
    return mixture, spelled_out(weights, means, covariances, pairs, sizes, shares)


def answers(mixtures, P, R, D, nu, **options):
    """As `decoded`, of given mixtures."""
    seen = see(mixtures, np.full(len(mixtures), 1 / len(mixtures)), nu, P, R, jitter=0.0)
    mean, sd, misfit = np.empty((len(D), len(P))), np.empty((len(D), len(P))), np.empty(len(D))
    decode_blocks(seen, D, mean, sd, misfit, clip=False, **{"dropped": 0.0} | options)
    only_mean = np.empty_like(mean)
    decode_blocks(seen, D, only_mean, None, misfit, clip=False, **{"dropped": 0.0} | options)
    assert agrees([only_mean], [mean], 1e-12 if not options else 1e-6)
    m = seen.n_coordinates
    return mean, sd, misfit * np.sqrt(2 * m) + m


@pytest.mark.parametrize("nu", [np.inf, 5.0, 6.3])
def test_brute_force_with_sizes_and_pairs(nu):
    rng = np.random.default_rng(8)
    g, m, sizes = 5, 3, (1.0, 0.5, 2.0)
    rich_members = [rich(rng, g, 4, 3, sizes) for _ in range(2)]
    P, R = rng.random((g, m)), random_covariance(rng, m, 0.2)
    D = (3 + 2 * rng.standard_normal((30, g))) @ P
    truth = brute_force([spelled for _, spelled in rich_members], P, R, D, nu)
    mixtures = [mixture for mixture, _ in rich_members]
    assert agrees(answers(mixtures, P, R, D, nu), truth)
    for wrong in (
        [replace(mixture, sizes=np.array([1.0, 0.5, 1.9])) for mixture in mixtures],
        [replace(mixture, pairs=mixture.pairs[::-1]) for mixture in mixtures],
        [replace(mixture, size_shares=mixture.size_shares[:, [0, 2, 1]]) for mixture in mixtures],
        [mixture.plain() for mixture in mixtures],
    ):
        assert not agrees(answers(wrong, P, R, D, nu), truth, 1e-3)


def test_moments_with_sizes_and_pairs():
    mixture, (weights, means, covariances) = rich(np.random.default_rng(9), 4, 3, 3, (1.0, 0.5, 2.0))
    w, mu, S = np.array(weights), np.array(means), np.array(covariances)
    away = mu - w @ mu
    total = np.einsum("k,kij->ij", w, S) + away.T @ np.diag(w) @ away
    assert np.allclose(mixture.mean, w @ mu)
    assert np.allclose(mixture.covariance(), total)
    assert np.allclose(mixture.within(), np.einsum("k,kij->ij", w, S))
    assert not np.allclose(mixture.plain().covariance(), total, rtol=1e-2)
    draws = mixture.draw(100_000, np.inf, np.random.default_rng(0))
    assert np.allclose(draws.mean(axis=0), mixture.mean, rtol=0.03)
    assert np.allclose(np.cov(draws.T), total, atol=0.05 * np.diag(total).max())
    one = np.array([2, 0])
    assert np.allclose(mixture.subset(one).covariance(), total[np.ix_(one, one)])


@pytest.mark.parametrize("nu", [np.inf, 5.0])
def test_skipping_components_by_their_bound_changes_nothing_that_can_be_seen(nu, monkeypatch):
    """Well separated components: most are skipped, and the answer stays."""
    from unpool.kernels import mixture as kernel

    rng = np.random.default_rng(10)
    K, g, m = 60, 12, 8
    means = 30 * rng.standard_normal((K, g))
    covariances = [random_covariance(rng, g, 0.5) for _ in range(K)]
    mixture = Mixture.of_moments(np.full(K, 1 / K), means, covariances)
    P, R = rng.random((g, m)), 0.01 * np.eye(m)
    D = (means[rng.integers(K, size=300)] + rng.standard_normal((300, g))) @ P
    truth = answers([mixture], P, R, D, nu)
    assert agrees(answers([mixture], P, R, D, nu, dropped=kernel.DROPPED), truth, 1e-7)
    seen = see([mixture], np.ones(1), nu, P, R)
    Z = np.ascontiguousarray(((D - seen.pool_centre) @ seen.T).T)
    looked = kernel._survivors(Z, seen.members[0], nu, kernel.DROPPED, np.empty((K, 300)))[0]
    assert looked < 0.5 * K * 300
    # a "bound" that is above the truth loses components
    exact = kernel.nearest_possible

    def too_far(*arguments):
        bound = exact(*arguments)
        bound[1:] += 1e9
        return bound

    monkeypatch.setattr(kernel, "nearest_possible", too_far)
    assert not agrees(answers([mixture], P, R, D, nu, dropped=kernel.DROPPED), truth, 1e-7)


def test_components_may_come_in_any_order():
    rng = np.random.default_rng(0)
    [(weights, means, covariances)] = bag(rng, 4, 6)
    P, D = rng.random((4, 2)), rng.random((10, 2))
    order = rng.permutation(6)
    permuted = (weights[order], means[order], [covariances[k] for k in order])
    truth = decoded([(weights, means, covariances)], P, np.eye(2), D, 5.0)
    assert agrees(decoded([permuted], P, np.eye(2), D, 5.0), truth)
    assert not agrees(decoded([(weights, means[order], covariances)], P, np.eye(2), D, 5.0), truth, 1e-3)


@pytest.mark.parametrize("nu", [np.inf, 5.0])
def test_dropping_components_changes_nothing_that_can_be_seen(nu):
    rng = np.random.default_rng(1)
    members = bag(rng, 5, 40, 2)
    P, R, D = rng.random((5, 4)), 0.01 * np.eye(4), (3 + 2 * rng.standard_normal((200, 5))) @ rng.random((5, 4))
    truth = decoded(members, P, R, D, nu)
    assert agrees(decoded(members, P, R, D, nu, dropped=1e-8), truth, 1e-7)
    assert not agrees(decoded(members, P, R, D, nu, dropped=0.5), truth, 1e-7)


def test_dependent_pools_add_nothing():
    """Noise-free pools that repeat others, hold no gene or are more than the genes: as if they were not there."""
    rng = np.random.default_rng(2)
    members = bag(rng, 4, 3)
    P, X = rng.random((4, 3)), 3 + rng.standard_normal((15, 4))
    wide = np.column_stack([P, 2 * P[:, 0], np.zeros(4), P[:, 1] + P[:, 2]])
    truth = decoded(members, P, np.zeros((3, 3)), X @ P, 5.0)
    assert agrees(decoded(members, wide, np.zeros((6, 6)), X @ wide, 5.0), truth, 1e-8)
    assert not agrees(decoded(members, wide, 0.1 * np.eye(6), X @ wide, 5.0), truth, 1e-3)


@pytest.mark.parametrize("nu", [np.inf, 9.0])
def test_law_of_total_variance(nu):
    """Over cells drawn from the mixture the mean squared error is the mean variance."""
    rng = np.random.default_rng(4)
    [member] = bag(rng, 3, 3)
    P, n = np.array([[1.0, 0.2], [1.0, 0.0], [0.0, 1.0]]), 60_000
    R = 1e-6 * np.eye(2)
    X = Mixture.of_moments(*member).draw(n, nu, rng)
    mean, sd, _ = decoded([member], P, R, X @ P, nu)
    error = np.mean((X - mean) ** 2, axis=0)
    assert np.allclose(np.mean(sd**2, axis=0)[:2], error[:2], rtol=0.04)
    within = brute_force([member], P, R, (X @ P)[:2000], nu, "no variance between components")[1]
    assert not np.allclose(np.mean(within**2, axis=0)[:2], error[:2], rtol=0.04)


def test_tiles_do_not_matter():
    """More cells than a tile: each is answered as if alone."""
    rng = np.random.default_rng(5)
    members = bag(rng, 4, 3)
    P = rng.random((4, 2))
    D = (3 + rng.standard_normal((2500, 4))) @ P
    mean, sd, misfit = decoded(members, P, np.eye(2), D, 5.0)
    some = [0, 1023, 1024, 2499]
    alone = [decoded(members, P, np.eye(2), D[i : i + 1], 5.0) for i in some]
    assert agrees([mean[some], sd[some], misfit[some]], [np.concatenate(a) for a in zip(*alone, strict=True)])
    assert not agrees([mean[some], sd[some], misfit[some]], [np.roll(x[some], 1, axis=0) for x in (mean, sd, misfit)])


def test_responsibilities_sum_to_one():
    rng = np.random.default_rng(6)
    members = bag(rng, 3, 4, 2)
    P = rng.random((3, 2))
    seen = see([Mixture.of_moments(*member) for member in members], np.full(2, 0.5), 5.0, P, np.eye(2))
    D = (3 + rng.standard_normal((30, 3))) @ P
    r = [np.empty((30, 4)), np.empty((30, 4))]
    posterior_moments((D - seen.pool_centre) @ seen.T, seen.members, seen.shares, 5.0, responsibilities=r)
    for one, (weights, means, covariances) in zip(r, members, strict=True):
        assert np.allclose(one.sum(axis=1), 1)
        by_hand = np.stack(
            [
                w * np.linalg.det(C) ** -0.5 * (1 + q / 3) ** -3.5
                for w, C, q in (
                    (w, C, np.einsum("ip,pr,ir->i", D - mu @ P, np.linalg.inv(C), D - mu @ P))
                    for w, mu, C in zip(weights, means, (P.T @ S @ P + np.eye(2) for S in covariances), strict=True)
                )
            ],
            axis=1,
        )
        assert np.allclose(one, by_hand / by_hand.sum(axis=1, keepdims=True), atol=1e-7)
        assert not np.allclose(one, weights, atol=1e-3)
