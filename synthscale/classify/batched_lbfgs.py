"""Preconditioned L-BFGS for many heads at once, each with a history and a step length of its own.

The heads are first moved to the solution of a sample of the rows, and go on over all rows from the inverse of the
sample's Hessian there.
"""

import logging

import torch

from synthscale.classify.fit_context import FitState
from synthscale.classify.logistic_loss import LogisticLoss

_log = logging.getLogger(__name__)

_SAMPLE_TOLERANCE = 1e-4
_BOUND = 1e3
"""On the gradient's norm over the root of the strength, in tolerances: it is never less than the decrement."""
_STUCK = 2.0**-20
"""A step that was halved down to this lowers the loss no more: as close as the arithmetic allows."""
_ROUNDS = 40
_PASSES_A_ROUND = 10
"""Passes after which the Hessian is taken anew."""
_FACTOR_BYTES = 2 * 2**30
"""Memory for Hessians and their factors."""
_SAMPLE_A_DIMENSION = 32
_LEAST_SAMPLE = 4096
"""Rows of each set in the sample; fewer rows than twice that are not sampled."""


class BatchedLbfgs:
    """All heads on their way to their optima; a column is one head."""

    def __init__(self, problem: LogisticLoss, points: torch.Tensor, resume: FitState) -> None:
        self.problem, self.points, self.resume = problem, points.clone(), resume
        self.converged = torch.zeros(points.shape[1], dtype=torch.bool)
        self.sample_rows = max(_LEAST_SAMPLE, _SAMPLE_A_DIMENSION * problem.width)
        self.passes = 0
        self.length = torch.ones(points.shape[1], dtype=torch.float64)

    def start_on_a_sample(self) -> LogisticLoss | None:
        """Move to the solution of a sample and return it, if there are enough rows for one to be worth it."""
        if max(self.problem.rows.values()) < 2 * self.sample_rows:
            return None
        sample = self.problem.sampled(self.sample_rows)
        ahead = BatchedLbfgs(sample, self.points, FitState())
        ahead.solve(_SAMPLE_TOLERANCE)
        self.points = ahead.points
        return sample

    def solve(self, tolerance: float, sample: LogisticLoss | None = None) -> None:
        """Move every head to its optimum; ``converged`` tells which got there.

        ``sample`` gives the first Hessians, where one was drawn already.
        """
        everyone = torch.arange(self.points.shape[1])
        self.loss, self.gradient = self.problem.loss_and_gradient(self.points, everyone)
        # As many Hessians at once as fit into memory.
        most = max(1, _FACTOR_BYTES // (24 * self.points.shape[0] ** 2))
        for attempt in range(_ROUNDS):
            moving = (~self.converged).nonzero()[:, 0]
            # A strength's folds share a Hessian, unless a fold is unlike the others.
            groups = self.problem.columns.alike(moving) if attempt < 3 else list(moving[:, None])
            sample = sample or self.problem.sampled(self.sample_rows)
            for start in range(0, len(groups), most):
                self._round(self._curvature(groups[start : start + most], sample), tolerance)
            if self.converged.all():
                return
            # A sample serves until it does not; then a larger one, in the end all rows.
            self.sample_rows *= 4
            sample = None
        _log.warning("%d of %d heads did not converge", int((~self.converged).sum()), len(everyone))

    def _curvature(self, groups: list[torch.Tensor], sample: LogisticLoss) -> "_Curvature":
        """Take the Hessians of groups of heads at their present points, over a sample of the rows."""
        at_zero = not self.points[:-1].any()
        # Before the first step a generator's strengths have one Hessian.
        generators = [self.problem.columns.generator_of(group) for group in groups]
        shared = [generators.index(name) if at_zero else g for g, name in enumerate(generators)]
        needed = sorted(set(shared))
        hessians = sample.hessians(self.points, [groups[g] for g in needed])[[needed.index(g) for g in shared]]
        return _Curvature(hessians, [self.problem.penalty(group)[:, 0] for group in groups], groups)

    def _round(self, curvature: "_Curvature", tolerance: float) -> None:
        """Take some L-BFGS steps, each head until it has converged."""
        history: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _ in range(_PASSES_A_ROUND):
            self.converged |= self._arrived(curvature, tolerance) | (self.length < _STUCK)
            chosen = self._moving(curvature)
            if len(chosen) == 0:
                return
            direction = _two_loop(self.gradient, history, curvature, chosen)
            slope = (self.gradient[:, chosen] * direction).sum(0)
            trial = self.points[:, chosen] + self.length[chosen] * direction
            loss, gradient = self.problem.loss_and_gradient(trial, chosen)
            self.passes += 1
            before = self.loss[chosen]
            # Near the optimum differences drown in the sums' rounding: the slack lets the last steps through.
            good = loss <= before + 1e-4 * self.length[chosen] * slope + 1e-14 * before.abs()
            self.length[chosen] = torch.where(good, 1.0, self.length[chosen] / 2)
            step, difference = torch.zeros_like(self.points), torch.zeros_like(self.points)
            moved = chosen[good]
            step[:, moved] = trial[:, good] - self.points[:, moved]
            difference[:, moved] = gradient[:, good] - self.gradient[:, moved]
            history.append((step, difference))
            self.points[:, moved], self.gradient[:, moved] = trial[:, good], gradient[:, good]
            self.loss[moved] = loss[good]
            self.resume.keep(lambda: {"points": self.points})
        self.converged |= self._arrived(curvature, tolerance)

    def _moving(self, curvature: "_Curvature") -> torch.Tensor:
        """Return the heads that have not converged, of those that the Hessians are of."""
        own = torch.zeros_like(self.converged)
        own[list(curvature.group_of)] = True
        return (own & ~self.converged).nonzero()[:, 0]

    def _arrived(self, curvature: "_Curvature", tolerance: float) -> torch.Tensor:
        """Tell which heads have converged, by the Newton decrement and by a bound that needs no Hessian."""
        moving = self._moving(curvature)
        gradient = self.gradient[:, moving]
        decrement = (gradient * curvature.solve(gradient, moving)).sum(0).clamp_min(0).sqrt()
        # Where a head's own Hessian is far below the one it is judged by, the penalty still bounds its decrement.
        bound = gradient[:-1].norm(dim=0) / self.problem.columns.strength[moving].sqrt()
        arrived = torch.zeros_like(self.converged)
        arrived[moving] = (decrement <= tolerance) & (bound <= _BOUND * tolerance)
        return arrived


class _Curvature:
    """Cholesky factors of penalised Hessians, each for a group of columns."""

    def __init__(self, hessians: torch.Tensor, penalties: list[torch.Tensor], groups: list[torch.Tensor]) -> None:
        diagonals = hessians.diagonal(dim1=1, dim2=2)
        # A sliver on the diagonal keeps it positive where all rows are settled, and above float32's rounding.
        diagonals += torch.stack(penalties) + 1e-12 + 1e-6 * diagonals.mean(1, keepdim=True)
        self.factors, failed = torch.linalg.cholesky_ex(hessians)
        sliver = 1e-5 * diagonals.mean(1, keepdim=True)
        while failed.any():
            # Of low rank, and a strength far below float32's rounding.
            diagonals += sliver * (failed > 0)[:, None]
            sliver *= 10
            self.factors, failed = torch.linalg.cholesky_ex(hessians)
        self.group_of = {int(c): g for g, group in enumerate(groups) for c in group}

    def solve(self, gradient: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return the inverse Hessians times columns, (D + 1, c), of the chosen heads."""
        solved = torch.empty_like(gradient)
        own = torch.tensor([self.group_of[c] for c in chosen.tolist()], dtype=torch.int64)
        for g in set(own.tolist()):
            solved[:, own == g] = torch.cholesky_solve(gradient[:, own == g], self.factors[g])
        return solved


def _two_loop(
    gradient: torch.Tensor,
    history: list[tuple[torch.Tensor, torch.Tensor]],
    curvature: _Curvature,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """The L-BFGS direction of the chosen columns; a pass that moved a column not at all leaves it as it was."""
    direction = -gradient[:, chosen]
    used = []
    for step, difference in reversed(history):
        change, bend = step[:, chosen], difference[:, chosen]
        product = (change * bend).sum(0)
        inverse = torch.where(product > 0, 1 / product, 0.0)
        share = inverse * (change * direction).sum(0)
        direction = direction - share * bend
        used.append((inverse, share, change, bend))
    direction = curvature.solve(direction, chosen)
    for inverse, share, change, bend in reversed(used):
        direction = direction + (share - inverse * (bend * direction).sum(0)) * change
    return direction
