"""All folds, strengths and deals of an L2-regularised logistic regression at once: preconditioned L-BFGS.

Every pass over the rows evaluates every head that has not converged, each at its own trial point (problem.py), so
a pass is one well-fed matrix product. What makes the passes few: the heads are first fitted to a sample of a few
dozen rows a dimension, which is nearly free, and L-BFGS (Liu and Nocedal 1989) on all rows then starts at that
solution, from the inverse of the sample's Hessian there. Heads have histories and step lengths of their own and
never influence one another's optimum. The problem is convex and is solved to the arithmetic's limit, so sample,
start and number of workers leave no trace in the answer.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from synthscale.features import Heads
from synthscale.problem import LOG_2, Blocks, Columns, Problem, View
from synthscale.workers import Resume, Workers

_log = logging.getLogger(__name__)

_TOLERANCE = 1e-8
"""On the Newton decrement: probabilities are then off by less than half of this times the root of n."""
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


@dataclass(frozen=True)
class Fit:
    """A generator's heads at the chosen strength, one ``Heads`` a deal, and what the choice was made by."""

    heads: tuple[Heads, ...]
    strength: float
    log_loss: dict[float, float]
    passes: int
    converged: bool

    def summary(self) -> dict[str, Any]:
        """Return what was chosen and why, for JSON; the intercept-only model's strength is the text ``inf``."""
        return {
            "strength": _json_strength(self.strength),
            "log_loss_by_strength": [[_json_strength(s), loss] for s, loss in self.log_loss.items()],
            "passes": self.passes,
            "converged": self.converged,
        }


def _json_strength(strength: float) -> float | str:
    return "inf" if math.isinf(strength) else strength


def fit_views(
    views: list[View], strengths: tuple[float, ...], blocks: Blocks, *, balanced: bool, workers: Workers
) -> dict[str, Fit]:
    """Fit k heads for each view and strength; keep each generator's of least class-balanced out-of-fold log-loss.

    Args:
        views: the generators' deals; both classes occur outside every fold, over all workers.
        strengths: L2 penalties; ``inf`` is the intercept-only model.
        blocks: gives this worker's rows, as often as asked.
        balanced: weigh the classes equally in the loss, else every row equally.
        workers: how they add up, and where an interrupted fit goes on.

    Logits are balanced either way: without class weights the prior is taken out of the intercepts afterwards.
    """
    finite = sorted((s for s in strengths if math.isfinite(s)), reverse=True)
    problem = Problem(Columns.of(views, finite or [1.0]), blocks, balanced, workers.reduce_sum)
    points = torch.zeros((problem.width + 1, len(problem.columns.view)), dtype=torch.float64)
    points[-1] = problem.prior
    descent = _Descent(problem, points, workers.resume)
    if finite:
        sample = None
        kept = workers.resume.state.get("points")
        if kept is not None and kept.shape == points.shape:
            descent.points = kept.to(points.device, copy=True)
        else:
            sample = descent.start_on_a_sample()
        descent.solve(_TOLERANCE, sample)
    else:
        descent.converged[:] = True
    return _chosen(problem, descent, strengths)


def _chosen(problem: Problem, descent: "_Descent", strengths: tuple[float, ...]) -> dict[str, Fit]:
    """Pick each generator's strength: over its deals, the one with the least log-loss; ties go to the stronger."""
    columns, points = problem.columns, descent.points
    sums = problem.held_out(points) if any(map(math.isfinite, strengths)) else None
    fits = {}
    for generator in dict.fromkeys(view.generator for view in columns.views):
        own = torch.tensor([view.generator == generator for view in columns.views])[columns.view]
        losses = {}
        for strength in sorted(strengths, reverse=True):
            if math.isinf(strength) or sums is None:
                losses[strength] = LOG_2
            else:
                total = sums[:, :, own & (columns.strength == strength)].sum(2)
                losses[strength] = float((total[:, 0] / total[:, 1]).mean())
        best = min(losses, key=lambda strength: (round(losses[strength], 10), -strength))
        heads = []
        for v, view in enumerate(columns.views):
            if view.generator == generator:
                heads.append(_heads(problem, points, (columns.view == v) & (columns.strength == best), view.folds))
        converged = bool(descent.converged[own & (columns.strength == best)].all())
        fits[generator] = Fit(tuple(heads), best, losses, descent.passes, converged)
    return fits


def _heads(problem: Problem, points: torch.Tensor, chosen: torch.Tensor, folds: int) -> Heads:
    if not chosen.any():
        return Heads(points.new_zeros((folds, problem.width)), points.new_zeros(folds))
    # Out of fold, every model answers balanced odds.
    return Heads(points[:-1, chosen].T.clone(), points[-1, chosen] - problem.prior[chosen])


class _Descent:
    """All heads on their way to their optima; a column is one head."""

    def __init__(self, problem: Problem, points: torch.Tensor, resume: Resume) -> None:
        self.problem, self.points, self.resume = problem, points.clone(), resume
        self.converged = torch.zeros(points.shape[1], dtype=torch.bool)
        self.sample_rows = max(_LEAST_SAMPLE, _SAMPLE_A_DIMENSION * problem.width)
        self.passes = 0
        self.length = torch.ones(points.shape[1], dtype=torch.float64)

    def start_on_a_sample(self) -> Problem | None:
        """Move to the solution of a sample and return it, if there are enough rows for one to be worth it."""
        if max(self.problem.rows.values()) < 2 * self.sample_rows:
            return None
        sample = self.problem.sampled(self.sample_rows)
        ahead = _Descent(sample, self.points, Resume())
        ahead.solve(_SAMPLE_TOLERANCE)
        self.points = ahead.points
        return sample

    def solve(self, tolerance: float, sample: Problem | None = None) -> None:
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

    def _curvature(self, groups: list[torch.Tensor], sample: Problem) -> "_Curvature":
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
