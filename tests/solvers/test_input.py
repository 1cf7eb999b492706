"""The gate of the solvers: one clear error for every bad input, and the loop that every iterative solver shares."""

from __future__ import annotations

import numpy as np
import pytest

from unpool.errors import InputError
from unpool.solvers._driver import iterate
from unpool.solvers._input import as_batches, as_matrix

D2, P2 = np.ones((3, 2)), np.ones((4, 2))


def test_one_design_and_several():
    for D, P, n in [(D2, P2, 1), ([D2, D2[:1]], (P2, P2), 2), (np.ones((5, 3, 2)), np.ones((5, 4, 2)), 5)]:
        Ds, Ps = as_batches(D, P)
        assert len(Ds) == len(Ps) == n
        assert all(a.dtype == np.float64 and a.flags.c_contiguous for a in [*Ds, *Ps])
    Ds, _ = as_batches(D2.tolist(), P2.astype(np.float32))  # nested lists are one matrix
    assert len(Ds) == 1


def bad(matrix, value, at):
    matrix = matrix.copy()
    matrix[at] = value
    return matrix


@pytest.mark.parametrize(
    ("D", "P", "words"),
    [
        (bad(D2, np.nan, (2, 1)), P2, ["D holds nan", "cell 2", "pool 1"]),
        ([D2, bad(D2, -np.inf, (0, 1))], [P2, P2], ["D[1] holds -inf", "cell 0", "pool 1"]),
        ([D2, D2], [P2, bad(P2, np.nan, (3, 0))], ["P[1] holds nan", "gene 3", "pool 0"]),
        (D2, np.ones((4, 3)), ["2 pools", "3"]),
        ([D2, D2], [P2, np.ones((5, 2))], ["P[1] has 5 genes"]),
        ([D2, D2], [P2], ["2 in D and 1 in P"]),
        ([], [], ["0 in D"]),
        ([D2], P2, ["D holds several", "P is a single"]),
        (D2, [P2], ["P holds several", "D is a single"]),
        (np.ones((0, 2)), P2, ["at least one cell"]),
        (np.ones(3), P2, ["shape (3,)"]),
        (D2.astype(complex), P2, ["complex128"]),
        (D2.astype(str), P2, ["dtype <U"]),
        ([[1.0, 2.0], [3.0]], P2, ["unequal length"]),
    ],
)
def test_bad_input_names_the_item(D, P, words):
    with pytest.raises(InputError) as caught:
        as_batches(D, P)
    for word in words:
        assert word in str(caught.value)


def test_finite_values_whose_sum_overflows_pass():
    assert as_matrix(np.full((2, 2), 1.7e308), "A").max() == 1.7e308


def test_driver_stops_at_the_tolerance_and_at_the_cap():
    def halve(x):
        return x / 2

    run = iterate(halve, 1.0, tol=0.1, max_iter=50, measure=lambda x: (x * x, x))
    assert (run.state, run.n_iter, run.converged) == (0.0625, 4, True)
    assert np.array_equal(run.trace, [0.25, 0.0625, 0.015625, 0.00390625])
    run = iterate(halve, 1.0, tol=0.1, max_iter=2, measure=lambda x: (x * x, x))
    assert (run.state, run.n_iter, run.converged) == (0.25, 2, False)
    assert "tol=1e-01" in run.status
    assert "max_iter" in run.status


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_driver_returns_the_last_finite_state(value):
    run = iterate(lambda x: x - 1, 3.0, tol=0, max_iter=9, measure=lambda x: (x if x else value, np.inf))
    assert (run.state, run.n_iter, run.converged) == (1.0, 2, False)
    assert "non-finite" in run.status


@pytest.mark.parametrize("wrong", [{"tol": -1.0}, {"tol": np.nan}, {"max_iter": 0}, {"max_iter": 1.5}])
def test_driver_refuses_nonsense(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        iterate(lambda x: x, 1.0, measure=lambda x: (x, x), **{"tol": 0.1, "max_iter": 3} | wrong)
