"""Lists and limits of the posterior's inner loops, by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from unpool.kernels._mixture_loops import _ordered, limit_below


@pytest.mark.parametrize("seed", range(20))
def test_cells_are_listed_once_the_strong_ones_first(seed):
    """Also where the last cells are strong, or all carry weight."""
    rng = np.random.default_rng(seed)
    n = 6
    weight, weak = rng.choice([0.0, 0.1, 0.9] if seed % 2 else [0.1, 0.9], n), np.full(n, 0.5)
    room = np.empty(n + 1, np.int32)
    strong, count = _ordered(weight, weak, room)
    assert list(room[:strong]) == list(np.flatnonzero(weight >= 0.5))
    assert list(room[strong:count]) == list(np.flatnonzero((weight > 0) & (weight < 0.5)))


def test_the_limit_gives_up_no_more_than_its_share():
    weight = np.random.default_rng(0).dirichlet(np.full(200, 0.1), size=50).T
    share = 1e-3
    limit = limit_below(weight, share)

    def lost(limit):
        return np.where(weight < limit, weight, 0).sum(axis=0)

    assert (lost(limit) <= share).all()
    assert (lost(limit) > 0).all()
    assert (lost(4 * limit) > share)[limit < share].all()  # the next limit would be too high
    assert not (lost(np.full(50, share)) <= share).all()  # a limit that is the share itself is one
