"""All folds and strengths of an L2-regularised logistic regression, full-batch, by preconditioned L-BFGS.

Each head (a fold at one strength) minimises, over the rows outside its fold,

    sum_i a_i log(1 + exp(-s_i (x_i w + b))) + strength / 2 |w|^2,   sum_i a_i = 1,

so a strength means the same at any number of rows. A row is masked out of its own fold's head by a weight of 0,
and one matrix product serves all folds. Strengths are solved from the strongest to the weakest, each starting at
the last one's solution; L-BFGS (Liu and Nocedal 1989) starts from the inverse of the folds' mean Hessian at that
point, or of each fold's own where that does not suffice, so few steps are needed even where the classes separate.
Every head has its own step length, so heads never influence one another's optimum.

Sums over rows go through ``reduce_sum``, which adds over workers: the same heads for any number of them. All in
float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import softplus

from synthscale.features import Heads

ReduceSum = Callable[[torch.Tensor], torch.Tensor]

_TOLERANCE = 1e-8
"""On the Newton decrement: probabilities are then off by less than half of this times the root of n."""
_BOUND = 1e-5
"""On the gradient's norm over the root of the strength, which is never less than the Newton decrement."""
_CLEARLY = 0.02
"""Nats above the least log-loss at which weaker strengths are given up."""
_ROUNDS = 30
_STEPS_A_ROUND = 10
"""Steps after which the Hessian is taken anew."""


@dataclass(frozen=True)
class Rows:
    """A worker's rows of one generator's view: features (n, D) float64, synthetic (n,) bool, fold (n,)."""

    features: torch.Tensor
    synthetic: torch.Tensor
    fold: torch.Tensor


@dataclass(frozen=True)
class Fit:
    """The heads at the chosen strength, and what the choice was made by."""

    heads: Heads
    strength: float
    log_loss: dict[float, float]
    steps: int
    converged: bool

    def summary(self) -> dict[str, Any]:
        """Return what was chosen and why, for JSON; the intercept-only model's strength is the text ``inf``."""
        return {
            "strength": _json_strength(self.strength),
            "log_loss_by_strength": [[_json_strength(s), loss] for s, loss in self.log_loss.items()],
            "steps": self.steps,
            "converged": self.converged,
        }


def _json_strength(strength: float) -> float | str:
    return "inf" if math.isinf(strength) else strength


def fit_folds(
    rows: Rows, folds: int, strengths: tuple[float, ...], balanced: bool, reduce_sum: ReduceSum = lambda t: t
) -> Fit:
    """Fit ``folds`` heads at each strength and keep those with the least class-balanced out-of-fold log-loss.

    Args:
        rows: this worker's rows; both classes occur outside every fold, over all workers.
        folds: k.
        strengths: L2 penalties, ascending; ``inf`` is the intercept-only model.
        balanced: weigh the classes equally in the loss, else every row equally.
        reduce_sum: adds a tensor over workers.

    Logits are balanced either way: without class weights the prior is taken out of the intercepts afterwards.
    """
    weights, prior = _row_weights(rows, folds, balanced, reduce_sum)
    solver = _Solver(rows, weights, reduce_sum)
    heads: dict[float, Heads] = {}
    losses: dict[float, float] = {}
    steps, converged = 0, True
    for strength in sorted(strengths, reverse=True):
        if math.isinf(strength):
            fitted = Heads(rows.features.new_zeros((folds, rows.features.shape[1])), prior)
        else:
            taken, reached = solver.solve(strength)
            fitted = solver.heads()
            steps, converged = steps + taken, converged and reached
        # Out of fold, every model answers balanced odds.
        heads[strength] = Heads(fitted.weights, fitted.intercepts - prior)
        losses[strength] = _out_of_fold_loss(rows, heads[strength], reduce_sum)
        if _is_rising(list(losses.values())):
            break
    # Ties go to the stronger regularisation.
    best = min(losses, key=lambda strength: (round(losses[strength], 10), -strength))
    return Fit(heads[best], best, losses, steps, converged)


def _is_rising(losses: list[float]) -> bool:
    """Tell whether the last two strengths each made it clearly worse: weaker ones then only overfit more."""
    return len(losses) > 2 and losses[-1] > losses[-2] > losses[-3] and losses[-1] > min(losses) + _CLEARLY


def _row_weights(
    rows: Rows, folds: int, balanced: bool, reduce_sum: ReduceSum
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss weights (n, k), summing to 1 over the rows outside a fold, and each head's prior log-odds (k,)."""
    outside = (rows.fold[:, None] != torch.arange(folds)).double()
    synthetic = rows.synthetic[:, None].double()
    counts = reduce_sum(torch.stack([(outside * (1 - synthetic)).sum(0), (outside * synthetic).sum(0)]))
    if balanced:
        per_class = 0.5 / counts
        return outside * (per_class[0] * (1 - synthetic) + per_class[1] * synthetic), counts.new_zeros(folds)
    return outside / counts.sum(0), torch.log(counts[1] / counts[0])


class _Solver:
    """The heads of all folds at one strength after another; a column is one fold."""

    def __init__(self, rows: Rows, weights: torch.Tensor, reduce_sum: ReduceSum) -> None:
        self.weights, self.reduce_sum = weights, reduce_sum
        mass = weights.mean(1, keepdim=True)
        # Centred, so that the intercept and the weights hardly depend on one another.
        self.centre = reduce_sum((rows.features * mass).sum(0)) / reduce_sum(mass.sum())
        ones = rows.features.new_ones((len(rows.features), 1))
        self.features = torch.cat([rows.features - self.centre, ones], dim=1)
        # The Hessian only preconditions: half the precision is twice the speed, and moves no solution.
        self.narrow = self.features.float()
        self.sign = torch.where(rows.synthetic, 1.0, -1.0).double()[:, None]
        self.point = rows.features.new_zeros((self.features.shape[1], weights.shape[1]))
        self.penalty = rows.features.new_zeros(())

    def heads(self) -> Heads:
        """Return the heads at the current point, for features that are not centred."""
        weights, intercepts = self.point[:-1].T.clone(), self.point[-1].clone()
        return Heads(weights, intercepts - weights @ self.centre)

    def solve(self, strength: float) -> tuple[int, bool]:
        """Move to the solution at this strength; return the steps taken and whether every fold converged."""
        self.penalty = torch.full((len(self.point), 1), strength, dtype=torch.float64)
        self.penalty[-1] = 0  # the intercept bears none
        steps = 0
        for attempt in range(_ROUNDS):
            # The folds' mean Hessian serves them all, unless a fold is unlike the others.
            taken, converged = self._round(self._factors(per_fold=attempt > 2))
            steps += taken
            if converged:
                return steps, True
        return steps, False

    def _round(self, factors: torch.Tensor) -> tuple[int, bool]:
        """Take some L-BFGS steps from the inverse of the Hessian that ``factors`` stand for."""
        margin = self._margin(self.point)
        loss, gradient = self._loss(margin, self.point), self._gradient(margin, self.point)
        history: list[tuple[torch.Tensor, torch.Tensor]] = []
        for step in range(_STEPS_A_ROUND):
            moving = self._is_moving(gradient, factors)
            if not moving.any():
                return step, True
            direction = torch.where(moving, _two_loop(gradient, history, factors), 0.0)
            along = self._margin(direction)
            length, loss = self._line_search(direction, margin, along, (gradient * direction).sum(0), loss)
            change = length * direction
            if not change.any():
                # No step lowers the loss in float64 any more: as close as the arithmetic allows.
                return step, True
            margin = margin + length * along
            self.point = self.point + change
            new_gradient = self._gradient(margin, self.point)
            history.append((change, new_gradient - gradient))
            gradient = new_gradient
        return _STEPS_A_ROUND, False

    def _is_moving(self, gradient: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Tell which folds have not converged, by the Newton decrement and by a bound that needs no Hessian."""
        decrement = (gradient * _solve(gradient, factors)).sum(0).clamp_min(0).sqrt()
        # Where a fold's own Hessian is far below the mean, the penalty still bounds its decrement.
        bound = gradient[:-1].norm(dim=0) / self.penalty[0].sqrt()
        moving: torch.Tensor = (decrement > _TOLERANCE) | (bound > _BOUND)
        return moving

    def _factors(self, *, per_fold: bool) -> torch.Tensor:
        """Cholesky factors of every fold's Hessian at the current point, or of their mean: (k or 1, D, D)."""
        p = torch.sigmoid(self._margin(self.point))
        curvature = self.weights * p * (1 - p)
        if not per_fold:
            curvature = curvature.mean(1, keepdim=True)
        hessians = self.reduce_sum(
            torch.stack([((self.narrow * c[:, None].float()).T @ self.narrow).double() for c in curvature.T])
        )
        diagonals = hessians.diagonal(dim1=1, dim2=2)
        # A sliver on the diagonal keeps it positive where all rows are settled, and above float32's rounding.
        diagonals += self.penalty[:, 0] + 1e-12 + 1e-6 * diagonals.mean(1, keepdim=True)
        factors: torch.Tensor = torch.linalg.cholesky(hessians)
        return factors

    def _margin(self, point: torch.Tensor) -> torch.Tensor:
        # This order of the product is about twice as fast for a few columns.
        return (point.T @ self.features.T).T

    def _loss(self, margin: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
        data = self.reduce_sum((self.weights * softplus(-self.sign * margin)).sum(0))
        return data + (self.penalty * point.square()).sum(0) / 2

    def _gradient(self, margin: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
        residual = -self.weights * self.sign * torch.sigmoid(-self.sign * margin)
        return self.reduce_sum((residual.T @ self.features).T.contiguous()) + self.penalty * point

    def _line_search(
        self,
        direction: torch.Tensor,
        margin: torch.Tensor,
        along: torch.Tensor,
        slope: torch.Tensor,
        loss: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve each fold's step until it lowers the loss enough (Armijo); no matrix product is needed."""
        length = torch.ones_like(loss)
        accepted = torch.zeros_like(loss, dtype=torch.bool)
        new_loss = loss.clone()
        for _ in range(40):
            trial = self._loss(margin + length * along, self.point + length * direction)
            # Near the optimum differences drown in rounding: the slack lets the last steps through.
            good = trial <= loss + 1e-4 * length * slope + 1e-15 * loss.abs()
            new_loss = torch.where(good & ~accepted, trial, new_loss)
            accepted |= good
            if accepted.all():
                break
            length = torch.where(accepted, length, length / 2)
        return torch.where(accepted, length, 0.0), new_loss


def _solve(gradient: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Inverse Hessian times gradient, (D, k), with one factor for all columns or one for each."""
    if len(factors) == 1:
        return torch.cholesky_solve(gradient, factors[0])
    solved: torch.Tensor = torch.cholesky_solve(gradient.T[:, :, None], factors)
    return solved[:, :, 0].T


def _two_loop(
    gradient: torch.Tensor, history: list[tuple[torch.Tensor, torch.Tensor]], factors: torch.Tensor
) -> torch.Tensor:
    """The L-BFGS direction of every column, from the inverse Hessian that ``factors`` stand for."""
    direction = -gradient
    used = []
    for change, difference in reversed(history):
        curvature = (change * difference).sum(0)
        inverse = torch.where(curvature > 0, 1 / curvature, 0.0)
        share = inverse * (change * direction).sum(0)
        direction = direction - share * difference
        used.append((inverse, share, change, difference))
    direction = _solve(direction, factors)
    for inverse, share, change, difference in reversed(used):
        direction = direction + (share - inverse * (difference * direction).sum(0)) * change
    return direction


def _out_of_fold_loss(rows: Rows, heads: Heads, reduce_sum: ReduceSum) -> float:
    """Class-balanced log-loss, in nats, of the out-of-fold answers."""
    sign = torch.where(rows.synthetic, 1.0, -1.0).double()
    logits = rows.features @ heads.weights.T + heads.intercepts
    own = logits.gather(1, rows.fold.long()[:, None])[:, 0]
    classes = torch.stack([~rows.synthetic, rows.synthetic]).double()
    sums = reduce_sum(torch.stack([classes @ softplus(-sign * own), classes.sum(1)]))
    return float((sums[0] / sums[1]).mean())
