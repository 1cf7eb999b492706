"""nuclear_norm: the nonnegative matrix of least nuclear norm that fits the pools, with a proof of optimality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from unpool.errors import InputError
from unpool.kernels.blocks import one_blas_thread
from unpool.solvers._driver import iterate
from unpool.solvers._input import as_batches
from unpool.solvers._nuclear_admm import Iterate, admm_step, start_at
from unpool.solvers._nuclear_core import Full, Point
from unpool.solvers._nuclear_problem import Answer, NormalForm, Program, normal_form
from unpool.solvers._nuclear_search import solve_one_design
from unpool.solvers._solution import Array, Solution

__all__ = ["noise_radius", "nuclear_norm"]

QUANTILE = 0.95  # the true expression lies within the radius from `noise_var` with this probability
CHECK_EVERY = 20  # steps of alternating directions between two tests of the answer


def nuclear_norm(
    D: ArrayLike | Sequence[ArrayLike],
    P: ArrayLike | Sequence[ArrayLike],
    *,
    radius: float | None = None,
    noise_var: ArrayLike | Sequence[ArrayLike] | None = None,
    nonneg: bool = True,
    tol: float = 1e-6,
    max_iter: int = 20_000,
) -> Solution:
    """Minimise ‖X‖_* subject to ‖A(X) - D‖_F <= radius and X >= 0, A(X) = {X_b P_b}, with a certificate.

    Parameters
    ----------
    D, P
        Cells x pools and genes x pools, linear scale; or equally long sequences of them, one entry a design. The
        nuclear norm is that of all cells stacked.
    radius
        Bound on the Frobenius norm of all residuals together, in the units of D. If no X >= 0 reaches it, the answer is
        not converged and the status gives the smallest residual that one reaches. None: from `noise_var`; without
        that, 0 if some X >= 0 fits D exactly, else 1.01 times the smallest reachable residual, as the status then says.
    noise_var
        Variance of the noise in the pools: a number, a vector (one value a pool) or a pools x pools covariance; for
        several designs also a sequence with one of these for each. The radius is the 95 % quantile of the norm of such
        noise, see `noise_radius`.
    nonneg
        Whether X >= 0 is asked for.
    tol
        Largest relative duality gap of a converged answer.
    max_iter
        Cap on the number of steps of the slow method, to which problems fall back that the fast one does not solve.

    Returns
    -------
    Solution
        `.X` cells x genes, designs stacked in order, >= 0 exactly; `.objective` ‖X‖_*; `.residual` ‖A(X) - D‖_F;
        `.dual` = (Y, Z), Y with one array a design (cells x pools), Z cells x genes; `.gap` =
        `duality_gap(X, D, P, radius, Y, Z)`, which holds for the stated radius. Converged means |gap| <= tol and
        residual <= radius + 1e-8 ‖D‖ (1e-6 ‖D‖ when the radius is 0).

    Notes
    -----
    With one design and radius 0, D P⁺ is the answer wherever it is nonnegative. Memory: a few times cells x genes.
    When it fails: noise without `noise_var`, where the answer at 1.01 times the smallest reachable residual is
    ill-conditioned; state the noise. With one design nothing beyond the span of the pools is determined.

    References
    ----------
    Sun, Toh, Yang, A convergent 3-block semi-proximal alternating direction method of multipliers for conic programming
    with 4-type constraints, SIAM J. Optim. 25 (2015). Jiang, Sun, Toh, A partial proximal point algorithm for nuclear
    norm regularized matrix least squares problems, Math. Prog. Comp. 6 (2014).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.gamma(0.5, size=(30, 3)) @ rng.gamma(0.5, size=(3, 20))
    >>> P = (rng.random((20, 6)) < 0.25) * 1.0
    >>> answer = nuclear_norm(truth @ P, P)
    >>> answer.converged, bool(answer.gap <= 1e-6), bool(answer.X.min() >= 0)
    (True, True, True)
    """
    Ds, Ps = as_batches(D, P)
    if radius is not None and not (np.isfinite(radius) and radius >= 0):
        raise InputError(f"radius={radius!r}: expected a finite number >= 0, or None to choose it")
    if not (np.isfinite(tol) and tol > 0):
        raise InputError(f"tol={tol!r}: expected a finite number > 0")
    if max_iter != int(max_iter) or max_iter < 1:
        raise InputError(f"max_iter={max_iter!r}: expected a whole number >= 1")
    note = ""
    chosen = radius
    if chosen is None:
        chosen = 0.0
        if noise_var is not None:
            chosen = noise_radius(noise_var, [d.shape for d in Ds])
            note = f"; radius {chosen:.4g} from noise_var"
    elif noise_var is not None:
        raise InputError("both radius and noise_var were given: pass the one that is known")

    with one_blas_thread():
        program = Program(Ds, Ps, float(chosen), nonneg, tol)
        solution = _solve(program, int(max_iter), note, explicit=radius is not None or noise_var is not None)
    return solution


def noise_radius(noise_var: ArrayLike | Sequence[ArrayLike], shapes: Sequence[tuple[int, int]]) -> float:
    """95 % quantile of the Frobenius norm of Gaussian noise in the pools.

    Parameters
    ----------
    noise_var
        A number, a vector (one value a pool) or a pools x pools covariance, the same for every design; or a list with
        one of these for each of several designs.
    shapes
        (cells, pools) of each design.

    Notes
    -----
    ‖E‖² is a weighted sum of chi-squares with mean a = Σ_b n_b tr R_b and variance 2 b, b = Σ_b n_b tr R_b²; it is
    approximated by (b/a) chi² with a²/b degrees of freedom, which is exact when all variances are the same.

    Examples
    --------
    >>> float(round(noise_radius(1.0, [(1, 1)]), 4))  # 95 % of |N(0, 1)|
    1.96
    """
    each: Sequence[ArrayLike] = [noise_var] * len(shapes)  # type: ignore[list-item]
    if len(shapes) > 1 and isinstance(noise_var, (list, tuple)):
        if len(noise_var) != len(shapes):
            raise InputError(f"noise_var has {len(noise_var)} entries for {len(shapes)} designs: pass one for each")
        each = noise_var
    first = second = 0.0
    for values, (n, m) in zip(each, shapes, strict=True):
        R = np.asarray(values, dtype=float)
        R = R * np.eye(m) if R.ndim == 0 else np.diag(R) if R.ndim == 1 else R
        if R.shape != (m, m):
            raise InputError(
                f"noise_var of shape {np.shape(values)} does not fit {m} pools: pass a number, one variance a pool, or "
                "a pools x pools covariance; for several designs also a list with one of these for each"
            )
        if not np.all(np.isfinite(R)) or np.any(np.diag(R) < 0):
            raise InputError("noise_var holds a negative or non-finite variance; variances are finite and >= 0")
        first += n * float(np.trace(R))
        second += n * float(np.sum(R * R))
    if first == 0:
        return 0.0
    return float(np.sqrt(second / first * chi2.ppf(QUANTILE, first**2 / second)))


def _solve(program: Program, max_iter: int, note: str, *, explicit: bool) -> Solution:
    """Trivial and closed forms, then the fast method, then feasibility, then the slow method."""
    if program.size <= program.radius + (program.slack if program.size == 0 else 0.0):
        zero = np.zeros((sum(map(len, program.D)), program.P[0].shape[0]))
        answer = program.judge(zero, [np.zeros_like(d) for d in program.D], zero)
        return _solution(answer, True, f"solved: X = 0 lies within the radius{note}")
    problem = normal_form(program.D, program.P, program.radius, 1e-10 if program.radius == 0 else 1e-7)
    closed = _closed_form(program, problem)
    if closed is not None:
        return _solution(closed, True, f"solved in closed form: D P⁺{note}")

    fast = _fast(program, problem, note)
    if fast is not None:
        return fast

    smallest = program.residual(program.nearest)
    if smallest > program.radius + program.slack:
        if explicit:
            return _infeasible(program, smallest, note)
        program = replace(program, radius=1.01 * smallest)
        note = (
            f"; no X >= 0 fits D exactly: radius {program.radius:.4g}, 1.01 times the smallest reachable residual "
            f"{smallest:.4g}"
        )
        if program.size <= program.radius:
            return _solve(program, max_iter, note, explicit=True)
        problem = normal_form(program.D, program.P, program.radius, 1e-7)
    return _slow(program, problem, max_iter, note)


def _closed_form(program: Program, problem: NormalForm) -> Answer | None:
    """D P⁺ for one design, where it is nonnegative up to rounding or need not be; dual U Vᵀ of D R / p.

    It is optimal at radius 0, and within the tolerance at a radius that hardly matters: a radius r lowers the bound by
    r ‖Y‖_F.
    """
    if len(problem.T) > 1 or program.radius > 1e-4 * program.size:
        return None
    T, Q = problem.T[0], problem.Q[0]
    X = T @ Q.T
    if program.nonneg and X.min() < -1e-12 * X.max():
        return None
    left, s, right = np.linalg.svd(T, full_matrices=False)
    k = int(np.sum(s > max(T.shape) * np.finfo(float).eps * s[0]))
    Y = problem.pool_dual([left[:, :k] @ right[:k]])
    if program.radius * np.linalg.norm(Y[0]) > program.tol * s.sum():
        return None
    answer = program.judge(X, Y, np.zeros_like(X))
    return answer if answer.error <= program.tol else None


def _fast(program: Program, problem: NormalForm, note: str) -> Solution | None:
    """Newton's method, for one design."""
    if len(problem.T) > 1 or problem.radius < program.radius * 1e-3:
        return None
    full = Full.of(problem.T[0], problem.Q[0], problem.p[0], problem.radius)
    answers: list[Answer] = []

    def accept(at: Point) -> bool:
        if at.error > program.tol:
            return False
        answers[:] = [program.judge(at.X, problem.pool_dual([at.Y]), at.Z())]
        return answers[0].error <= program.tol

    at = solve_one_design(full, program.nonneg, accept)
    if at is None or not answers or answers[0].error > program.tol:
        return None
    return _solution(answers[0], True, "solved" + note, at.steps)


def _slow(program: Program, problem: NormalForm, max_iter: int, note: str) -> Solution:
    """Alternating directions until certified, from the minimum-norm X; the best answer seen is returned."""
    best: list[Answer] = []

    def measure(at: Iterate) -> tuple[float, float]:
        if at.step % CHECK_EVERY and at.step < max_iter:
            return at.objective, float("inf")
        answer = program.judge(at.X, problem.pool_dual(at.Y), at.Z, repair=True)
        if not best or (answer.error, answer.residual) < (best[0].error, best[0].residual):
            best[:] = [answer]
        return at.objective, answer.error

    run = iterate(
        lambda at: admm_step(problem, at, program.nonneg),
        start_at(problem, problem.adjoint(problem.T)),
        tol=program.tol,
        max_iter=max_iter,
        measure=measure,
    )
    if not best:
        best = [program.judge(run.state.X, problem.pool_dual(run.state.Y), run.state.Z)]
    status = run.status
    if not run.converged:
        status = (
            f"not converged after {run.n_iter} steps: gap {best[0].gap:.1e} (tol {program.tol:.0e}), residual "
            f"{best[0].residual:.6g} for radius {program.radius:.6g}; raise max_iter, or accept it with a larger tol"
        )
    return _solution(best[0], run.converged, status + note, run.n_iter, run.trace)


def _infeasible(program: Program, smallest: float, note: str) -> Solution:
    """The nearest X there is, not converged."""
    wish = "X >= 0" if program.nonneg else "X"
    return Solution(
        dense=program.nearest,
        objective=float(np.linalg.norm(program.nearest, "nuc")),
        residual=smallest,
        converged=False,
        status=f"infeasible: no {wish} has a residual within radius {program.radius:.6g}; the smallest reachable one is "
        f"{smallest:.6g} (returned): raise the radius above it{note}",
    )


def _solution(answer: Answer, converged: bool, status: str, n_iter: int = 0, trace: Array | None = None) -> Solution:
    inside = np.isfinite(answer.objective)
    objective = answer.objective if inside else float(np.linalg.norm(answer.X, "nuc"))
    return Solution(
        dense=answer.X,
        objective=objective,
        residual=answer.residual,
        gap=answer.gap,
        dual=(answer.Y, answer.Z),
        converged=converged,
        status=status,
        n_iter=n_iter,
        trace=np.array([objective]) if trace is None else trace,
    )
