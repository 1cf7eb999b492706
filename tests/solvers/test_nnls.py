"""Nonnegative least squares: optimality of every answer, scipy as an independent truth, degenerate problems, bytes."""

from __future__ import annotations

import sys

import numba
import numpy as np
import pytest
from scipy.optimize import nnls as scipy_nnls

from unpool.errors import InputError, UnpoolError
from unpool.kernels import nnls as pivoting
from unpool.kernels._numba import njit, norm
from unpool.solvers import nnls
from unpool.solvers import nnls as public

module = sys.modules["unpool.solvers.nnls"]


def problem(m, r, n=300, seed=0, noise=0.05):
    rng = np.random.default_rng(seed)
    A = (rng.random((m, 4 * m)) < 0.25) @ rng.gamma(0.5, size=(4 * m, r))
    B = rng.gamma(0.5, size=(n, r)) @ A.T
    return A, B + noise * B.std() * rng.standard_normal(B.shape)


def violation(A, B, X):
    """Largest relative violation of the optimality conditions, written from their definition."""
    gradient = (X @ A.T - B) @ A
    size = np.outer(np.linalg.norm(B, axis=1), np.linalg.norm(A, axis=0))
    wrong = np.where(X > 0, np.abs(gradient), np.maximum(-gradient, 0.0))
    worst = np.max(wrong / np.where(size > 0, size, 1.0), initial=0.0)
    return max(worst, -X.min(initial=0.0))


def excess(A, B, X):
    """How much worse than scipy's the objective is, relative to ‖b‖²; the worst row."""
    ours = np.sum((X @ A.T - B) ** 2, axis=1)
    theirs = np.array([scipy_nnls(A, b)[1] ** 2 for b in B])
    return np.max((ours - theirs) / np.maximum(np.sum(B**2, axis=1), 1e-300))


def clipped(A, B):
    """A broken twin: least squares with its negatives cut off."""
    return np.maximum(np.linalg.lstsq(A, B.T, rcond=None)[0].T, 0.0)


@pytest.mark.parametrize(("m", "r"), [(3, 1), (6, 6), (25, 10), (25, 20), (20, 13), (50, 40), (10, 25)])
def test_optimal_and_equal_to_scipy(m, r):
    A, B = problem(m, r)
    X = nnls(A, B)
    assert violation(A, B, X) < 1e-12
    assert abs(excess(A, B, X)) < 1e-12
    if m >= r:
        truth = np.array([scipy_nnls(A, b)[0] for b in B])
        np.testing.assert_allclose(X, truth, atol=1e-8 * truth.max())
        assert np.array_equal(X > 0, truth > 0)


def test_the_checks_catch_a_wrong_answer():
    A, B = problem(25, 10)
    X = nnls(A, B)
    assert violation(A, B, clipped(A, B)) > 1e-4
    assert excess(A, B, clipped(A, B)) > 1e-6
    for broken in (np.where(X > 0, X * (1 + 1e-7), X), -X, np.zeros_like(X)):
        assert violation(A, B, broken) > 1e-9


def ill_conditioned(m, r, condition, seed=1):
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.standard_normal((m, r)))
    right, _ = np.linalg.qr(rng.standard_normal((r, r)))
    A = (left * np.logspace(0, -np.log10(condition), r)) @ right.T
    return A, rng.gamma(0.5, size=(50, r)) @ A.T + 0.01 * rng.standard_normal((50, m))


def degenerate():
    A, B = problem(12, 6, n=60)
    zeros = A.copy()
    zeros[:, [1, 4]] = 0
    scales = np.logspace(-12, 12, 6)
    rows = B * np.logspace(-12, 12, 60)[:, None]
    rows[::7] = 0
    return {
        "zero columns": (zeros, B),
        "nothing but zeros": (0 * A, B),
        "zero rows, scales of B": (A, rows),
        "scales of A": (A * scales, B),
        "scales of A and B": (A * scales[::-1], rows),
        "equal columns": (np.hstack([A, A[:, :3]]), B),
        "equal rows (duplicate pools)": (np.vstack([A[:2], A[:2], A[:1]]), B[:, :5]),
        "rank one": (np.outer(A[:, 0], A[0]), B),
        "one row": (A, B[:1]),
        "constant B": (A, np.ones_like(B)),
        "negative B": (A, -B),
        "float32": (A.astype(np.float32), B.astype(np.float32)),
        "columns that cancel": (np.hstack([A, -A]), B),
        "condition 1e6": ill_conditioned(25, 10, 1e6),
        "condition 1e9": ill_conditioned(25, 10, 1e9),
        "nearly equal columns": (np.hstack([A, A * (1 + 1e-9 * np.sin(np.arange(12)))[:, None]]), B),
    }


@pytest.mark.parametrize("name", degenerate())
def test_degenerate_problems_are_solved_too(name):
    A, B = degenerate()[name]
    X = nnls(A, B)
    assert X.dtype == np.float64
    assert X.shape == (len(B), A.shape[1])
    A, B = A.astype(float), B.astype(float)
    unit = A / np.where(A.any(axis=0), np.linalg.norm(A, axis=0), 1.0)  # scipy's tolerances know one scale
    lengths = np.linalg.norm(B, axis=1)
    unit_B = B / np.where(lengths > 0, lengths, 1.0)[:, None]
    assert violation(A, B, X) < 1e-9
    assert not X[lengths == 0].any()
    assert not X[:, ~A.any(axis=0)].any()
    ours = np.linalg.norm(X @ A.T - B, axis=1) / np.where(lengths > 0, lengths, 1.0)
    for i, b in enumerate(unit_B):
        try:
            assert ours[i] ** 2 - scipy_nnls(unit, b)[1] ** 2 < 1e-10
        except RuntimeError:  # scipy gives up on some ill-conditioned rows
            continue
    if name not in ("nothing but zeros", "negative B", "rank one"):
        assert violation(A, B, clipped(A, B)) > 1e-9


@pytest.mark.parametrize("condition", [1e2, 1e4, 3e4])
def test_both_methods_agree(condition, monkeypatch):
    A, B = ill_conditioned(25, 15, condition)
    fast = nnls(A, B)
    monkeypatch.setattr(module, "CONDITION", 0.0)
    careful = nnls(A, B)
    assert not np.array_equal(fast, careful)  # the switch works
    assert violation(A, B, fast) < 1e-9
    assert violation(A, B, careful) < 1e-9
    np.testing.assert_allclose(fast, careful, atol=1e-6 * careful.max())


def test_rows_that_fail_the_check_are_solved_again(monkeypatch):
    A, B = problem(25, 10)
    right = nnls(A, B)
    solve = pivoting.solve_rows

    def broken(*arguments):
        solve(*arguments)
        X, found = arguments[-2:]
        X[3], found[3] = np.nan, np.inf
        X[9], found[9] = 7.0, 1e-8

    monkeypatch.setattr(pivoting, "solve_rows", broken)
    np.testing.assert_allclose(nnls(A, B), right, atol=1e-10)
    monkeypatch.setattr(module.lawson_hanson, "solve_rows", lambda *arguments: None)
    with pytest.raises(UnpoolError, match="row 3 of B"):
        nnls(A, B)


def kernel_violation(A, B, wrong):
    """The kernel's own verdict on each row, and the truth, when one of its matrices is wrong."""
    A = np.ascontiguousarray(A / np.linalg.norm(A, axis=0))
    r = A.shape[1]
    system = module._system(A, *np.linalg.svd(A, full_matrices=False), np.ones(r))
    X, found = np.empty((len(B), r)), np.empty(len(B))
    pivoting.solve_rows(B, 0, len(B), system._replace(pinv=wrong(system.pinv)), X, found)
    return found, [violation(A, B[i : i + 1], X[i : i + 1]) for i in range(len(B))]


def test_the_kernel_sees_its_own_mistakes():
    A, B = problem(25, 10)
    found, truth = kernel_violation(A, B, lambda right: right)
    assert found.max() < 1e-12
    found, truth = kernel_violation(A, B, lambda right: right * (1 + 1e-6))
    assert np.all(found >= 0.99 * np.array(truth))
    assert found.max() > 1e-9
    found, _ = kernel_violation(A, B, lambda right: right * np.nan)
    assert np.all(found == np.inf)


@pytest.mark.parametrize("patience", [3, 0, -1])
def test_pivoting_ends_with_any_patience(patience, monkeypatch):
    """At -1 every flip but the first is a single one; run as plain Python, where constants can be changed."""
    A, B = problem(12, 8, n=40)
    A /= np.linalg.norm(A, axis=0)
    system = module._system(A, *np.linalg.svd(A, full_matrices=False), np.ones(8))
    monkeypatch.setattr(pivoting, "PATIENCE", patience)
    x = np.empty((40, 8))
    guess = np.random.default_rng(0).random((40, 8)) < 0.5  # a bad one, so that there is something to do
    pivoting.pivot.py_func(B @ system.pinv, system.Q, system.padded_Q, guess, x)
    assert violation(A, B, x) < 1e-12
    pivoting.pivot.py_func(B @ system.pinv, 2 * system.Q, system.padded_Q, guess, x)
    assert violation(A, B, x) > 1e-6


def test_scaling_by_powers_of_two_is_exact():
    A, B = problem(25, 10)
    assert np.array_equal(nnls(A * 2.0**30, B * 2.0**-20) * 2.0**50, nnls(A, B))
    assert not np.array_equal(nnls(A * 3.0, B) * 3.0, nnls(A, B))  # equality of bytes is a sharp test


def test_permuted_rows_and_columns():
    A, B = problem(25, 20)
    rng = np.random.default_rng(3)
    rows, columns, pools = rng.permutation(len(B)), rng.permutation(20), rng.permutation(25)
    X, Y = nnls(A, B), nnls(A[pools][:, columns], B[rows][:, pools])
    np.testing.assert_allclose(Y, X[rows][:, columns], atol=1e-10 * X.max())
    assert np.abs(Y - X).max() > 1e-3


def test_one_row_does_not_depend_on_its_block():
    A, B = problem(25, 20, n=1500)
    X = nnls(A, B)
    for i in (0, 700, 1400):
        np.testing.assert_allclose(nnls(A, B[i : i + 1])[0], X[i], atol=1e-10 * X.max())


@pytest.mark.parametrize(("m", "r"), [(25, 10), (25, 20), (10, 25)])
def test_same_bytes_for_any_number_of_threads(m, r, monkeypatch):
    A, B = problem(m, r, n=20_000)
    answers = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)
        answers.append(nnls(A, B).tobytes())
    assert answers[0] == answers[1] == answers[2]
    monkeypatch.setattr(pivoting, "solve_rows", lambda *_: None)
    monkeypatch.setattr(module.lawson_hanson, "solve_rows", lambda *_: None)
    assert nnls(A, B).tobytes() != answers[0]


def test_no_rows():
    assert public(np.eye(3), np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("A", "B", "words"),
    [
        ([[1.0, np.nan]], [[1.0]], ["A holds nan", "row 0", "column 1"]),
        (np.eye(2), [[1.0, 1.0], [np.inf, 1.0]], ["B holds inf", "row 1", "column 0"]),
        (np.eye(2), np.ones((4, 3)), ["B has 3 columns", "A has 2 rows"]),
        (np.ones(3), np.ones((4, 3)), ["A", "shape (3,)"]),
        (np.ones((3, 0)), np.ones((4, 3)), ["A", "shape (3, 0)"]),
    ],
)
def test_bad_input(A, B, words):
    with pytest.raises(InputError) as caught:
        nnls(A, B)
    for word in words:
        assert word in str(caught.value)


def test_norm_at_all_scales():
    for scale in (1.0, 1e-200, 1e200, 0.0):
        assert norm(scale * np.array([3.0, 4.0])) == pytest.approx(5 * scale, rel=1e-14, abs=0)
    with np.errstate(over="ignore"):
        assert not np.isfinite(np.sqrt(np.sum((1e200 * np.array([3.0, 4.0])) ** 2)))


def test_kernels_compile_where_nothing_can_be_cached():
    space = {}
    exec(compile("def add(a, b): return a + b", "/nowhere/add.py", "exec"), space)
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(space["add"])
    assert njit()(space["add"])(1, 2) == 3


def test_other_errors_of_the_compiler_pass(monkeypatch):
    def refuse(**options):
        raise RuntimeError("something else")

    monkeypatch.setattr(numba, "njit", refuse)
    with pytest.raises(RuntimeError, match="something else"):
        njit()(lambda x: x)
