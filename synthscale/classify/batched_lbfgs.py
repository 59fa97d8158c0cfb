"""Minimise the losses of many logistic heads at once by preconditioned L-BFGS.

Takes a `LogisticLoss` and starting points, moves the points to the optima; `logistic.py` reads them afterwards.
Each head has its own L-BFGS history and step length, and all heads share each pass over the rows. The heads are
first solved on a sample of the rows; the iterations on all rows start there and use the inverse of the sample's
Hessian as preconditioner.
"""

import logging

import torch

from synthscale.classify.fit_context import FitState
from synthscale.classify.logistic_loss import LogisticLoss

_log = logging.getLogger(__name__)

_SAMPLE_TOLERANCE = 1e-4
"""Newton decrement at which a fit to the sample counts as converged. It only sets the starting point of the fit to
all rows, so it may be loose."""
_BOUND_FACTOR = 1e3
"""Limit of the gradient's norm over the square root of the strength, as a multiple of the tolerance. That ratio
is an upper bound of the Newton decrement, and usually a loose one."""
_MIN_STEP_LENGTH = 2.0**-20
"""A head whose step was halved below this counts as converged: its loss cannot fall further in float64."""
_MAX_ROUNDS = 40
"""Rounds before a fit gives up. A round evaluates the Hessians and takes up to ``_PASSES_PER_ROUND`` steps."""
_PASSES_PER_ROUND = 10
"""Passes over the rows (one L-BFGS step each) before the Hessians are evaluated again, at the current points."""
_FACTOR_BYTES = 2 * 2**30
"""Memory for Hessians and their Cholesky factors; heads beyond it are solved in turns."""
_SAMPLE_ROWS_PER_DIMENSION = 32
_MIN_SAMPLE_ROWS = 4096
"""The sample has ``_SAMPLE_ROWS_PER_DIMENSION`` rows per dimension of each set, but at least this many. A set with
fewer than twice as many rows is used whole."""


class BatchedLbfgs:
    """Solver state of all heads.

    Attributes:
        points: (D + 1, C) current coefficients; each column is one head, the intercept last.
        converged: (C,) bool.
        passes: number of passes over all rows.
        step_length: (C,) factor of each head's next step, 1 or halved.
    """

    def __init__(self, problem: LogisticLoss, points: torch.Tensor, resume: FitState) -> None:
        self.problem, self.points, self.resume = problem, points.clone(), resume
        self.converged = torch.zeros(points.shape[1], dtype=torch.bool)
        self.sample_rows = max(_MIN_SAMPLE_ROWS, _SAMPLE_ROWS_PER_DIMENSION * problem.width)
        self.passes = 0
        self.step_length = torch.ones(points.shape[1], dtype=torch.float64)

    def start_on_a_sample(self) -> LogisticLoss | None:
        """Move the points to the optima on a sample of the rows. Return the sample; None if no set is sampled."""
        if max(self.problem.rows.values()) < 2 * self.sample_rows:
            return None
        sample = self.problem.sampled(self.sample_rows)
        on_sample = BatchedLbfgs(sample, self.points, FitState())
        on_sample.solve(_SAMPLE_TOLERANCE)
        self.points = on_sample.points
        return sample

    def solve(self, tolerance: float, sample: LogisticLoss | None = None) -> None:
        """Move every head to its optimum and set ``converged``.

        Args:
            tolerance: on the Newton decrement.
            sample: rows for the first Hessians, if already drawn.
        """
        all_heads = torch.arange(self.points.shape[1])
        self.loss, self.gradient = self.problem.loss_and_gradient(self.points, all_heads)
        hessians_at_once = max(1, _FACTOR_BYTES // (24 * self.points.shape[0] ** 2))
        for attempt in range(_MAX_ROUNDS):
            remaining = (~self.converged).nonzero()[:, 0]
            # The folds of a strength share a Hessian; heads that do not converge with it get one each.
            groups = self.problem.columns.group_by_strength(remaining) if attempt < 3 else list(remaining[:, None])
            sample = sample or self.problem.sampled(self.sample_rows)
            for start in range(0, len(groups), hessians_at_once):
                self._run_round(self._factors(groups[start : start + hessians_at_once], sample), tolerance)
            if self.converged.all():
                return
            # A larger sample is a better preconditioner; in the end it has all rows.
            self.sample_rows *= 4
            sample = None
        _log.warning("classify: %d of %d heads did not converge", int((~self.converged).sum()), len(all_heads))

    def _factors(self, groups: list[torch.Tensor], sample: LogisticLoss) -> "_HessianFactors":
        """Return the factored Hessians of groups of heads at their current points, over a sample of the rows."""
        at_zero = not self.points[:-1].any()
        # While all weights are zero, the Hessians of a generator's strengths are equal and evaluated once.
        generators = [self.problem.columns.generator_of(group) for group in groups]
        shared = [generators.index(name) if at_zero else g for g, name in enumerate(generators)]
        needed = sorted(set(shared))
        hessians = sample.hessians(self.points, [groups[g] for g in needed])[[needed.index(g) for g in shared]]
        return _HessianFactors(hessians, [self.problem.penalty(group)[:, 0] for group in groups], groups)

    def _run_round(self, factors: "_HessianFactors", tolerance: float) -> None:
        """Take up to ``_PASSES_PER_ROUND`` L-BFGS steps with each of the factors' heads."""
        history: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _ in range(_PASSES_PER_ROUND):
            self.converged |= self._test_convergence(factors, tolerance) | (self.step_length < _MIN_STEP_LENGTH)
            chosen = self._unconverged(factors)
            if len(chosen) == 0:
                return
            direction = _two_loop(self.gradient, history, factors, chosen)
            slope = (self.gradient[:, chosen] * direction).sum(0)
            trial = self.points[:, chosen] + self.step_length[chosen] * direction
            loss, gradient = self.problem.loss_and_gradient(trial, chosen)
            self.passes += 1
            before = self.loss[chosen]
            # Armijo condition; near the optimum the difference is below the sums' rounding, hence the slack.
            good = loss <= before + 1e-4 * self.step_length[chosen] * slope + 1e-14 * before.abs()
            self.step_length[chosen] = torch.where(good, 1.0, self.step_length[chosen] / 2)
            step, difference = torch.zeros_like(self.points), torch.zeros_like(self.points)
            moved = chosen[good]
            step[:, moved] = trial[:, good] - self.points[:, moved]
            difference[:, moved] = gradient[:, good] - self.gradient[:, moved]
            history.append((step, difference))
            self.points[:, moved], self.gradient[:, moved] = trial[:, good], gradient[:, good]
            self.loss[moved] = loss[good]
            self.resume.save(lambda: {"points": self.points})
        self.converged |= self._test_convergence(factors, tolerance)

    def _unconverged(self, factors: "_HessianFactors") -> torch.Tensor:
        """Return the indices of the factors' heads that have not converged."""
        in_groups = torch.zeros_like(self.converged)
        in_groups[list(factors.group_of)] = True
        return (in_groups & ~self.converged).nonzero()[:, 0]

    def _test_convergence(self, factors: "_HessianFactors", tolerance: float) -> torch.Tensor:
        """Return which heads converged, (C,) bool, by the Newton decrement and a bound without a Hessian."""
        tested = self._unconverged(factors)
        gradient = self.gradient[:, tested]
        decrement = (gradient * factors.solve(gradient, tested)).sum(0).clamp_min(0).sqrt()
        # A shared Hessian may be far larger than a head's own; the penalty alone still bounds the decrement.
        bound = gradient[:-1].norm(dim=0) / self.problem.columns.strength[tested].sqrt()
        converged = torch.zeros_like(self.converged)
        converged[tested] = (decrement <= tolerance) & (bound <= _BOUND_FACTOR * tolerance)
        return converged


class _HessianFactors:
    """Cholesky factors of penalised Hessians, one for each group of heads."""

    def __init__(self, hessians: torch.Tensor, penalties: list[torch.Tensor], groups: list[torch.Tensor]) -> None:
        diagonals = hessians.diagonal(dim1=1, dim2=2)
        # Keeps the Hessian positive definite where every p (1 - p) vanishes, and above float32's rounding.
        diagonals += torch.stack(penalties) + 1e-12 + 1e-6 * diagonals.mean(1, keepdim=True)
        self.factors, failed = torch.linalg.cholesky_ex(hessians)
        jitter = 1e-5 * diagonals.mean(1, keepdim=True)
        while failed.any():
            # The Hessian has low rank and the strength is far below float32's rounding.
            diagonals += jitter * (failed > 0)[:, None]
            jitter *= 10
            self.factors, failed = torch.linalg.cholesky_ex(hessians)
        self.group_of = {int(c): g for g, group in enumerate(groups) for c in group}

    def solve(self, gradient: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return each chosen head's inverse Hessian times its column of ``gradient``: (D + 1, c)."""
        solved = torch.empty_like(gradient)
        group = torch.tensor([self.group_of[c] for c in chosen.tolist()], dtype=torch.int64)
        for g in set(group.tolist()):
            solved[:, group == g] = torch.cholesky_solve(gradient[:, group == g], self.factors[g])
        return solved


def _two_loop(
    gradient: torch.Tensor,
    history: list[tuple[torch.Tensor, torch.Tensor]],
    factors: _HessianFactors,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """Return the L-BFGS directions of the chosen heads, (D + 1, c), by the two-loop recursion.

    A history entry in which a head did not move has no effect on that head.
    """
    direction = -gradient[:, chosen]
    used = []
    for step, difference in reversed(history):
        # In Nocedal's notation: s, y, rho = 1 / (s y) and alpha.
        s, y = step[:, chosen], difference[:, chosen]
        product = (s * y).sum(0)
        rho = torch.where(product > 0, 1 / product, 0.0)
        alpha = rho * (s * direction).sum(0)
        direction = direction - alpha * y
        used.append((rho, alpha, s, y))
    direction = factors.solve(direction, chosen)
    for rho, alpha, s, y in reversed(used):
        direction = direction + (alpha - rho * (y * direction).sum(0)) * s
    return direction
