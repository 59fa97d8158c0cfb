"""All folds and strengths of an L2-regularised logistic regression in one full-batch L-BFGS.

Each head (a fold at one strength) minimises, over the rows outside its fold,

    sum_i a_i log(1 + exp(-s_i (x_i w + b))) + strength / 2 |w|^2,   sum_i a_i = 1,

so a strength means the same at any number of rows. A row is masked out of its own fold's heads by a weight of 0,
and one matrix product serves all heads. Every head has its own step length and stops by its own gradient, so heads
never influence one another. The problem is solved in the eigenbasis of the features' second moment, scaled by
(eigenvalue / 4 + strength)^-1/2: there the Hessian is close to the identity and few steps are needed.

Sums over rows go through ``reduce_sum``, which adds over workers: the same heads for any number of them. All in
float64. Liu and Nocedal 1989 (L-BFGS); Boehning 1992 (the Hessian's bound).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from synthscale.features import Heads

ReduceSum = Callable[[torch.Tensor], torch.Tensor]

_TOLERANCE = 1e-7
_MAX_STEPS = 400
_MEMORY = 8


@dataclass(frozen=True)
class Rows:
    """This worker's rows of one generator's view: features (n, D) float64, synthetic (n,) bool, fold (n,)."""

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
    finite = [s for s in strengths if math.isfinite(s)]
    basis = _Basis.of(rows, weights, reduce_sum)
    solver = _Solver(basis.rotate(rows.features), rows, weights, finite, basis.eigenvalues, reduce_sum)
    steps = solver.solve() if finite else 0
    d = rows.features.shape[1]
    coefficients = rows.features.new_zeros((len(strengths), folds, d))
    intercepts = prior.expand(len(strengths), folds).clone()
    if finite:
        coefficients[: len(finite)], intercepts[: len(finite)] = basis.restore(*solver.solution())
    # Out of fold, every model answers balanced odds.
    intercepts -= prior
    losses = _out_of_fold_loss(rows, coefficients, intercepts, reduce_sum)
    # Ties go to the stronger regularisation.
    best = min(range(len(strengths)), key=lambda i: (round(losses[i], 10), -strengths[i]))
    return Fit(
        Heads(coefficients[best], intercepts[best]),
        strengths[best],
        dict(zip(strengths, losses, strict=True)),
        steps,
        not bool(solver.active.any()),
    )


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


@dataclass(frozen=True)
class _Basis:
    """Centre and eigenbasis of the features' weighted second moment."""

    centre: torch.Tensor
    vectors: torch.Tensor
    eigenvalues: torch.Tensor

    @classmethod
    def of(cls, rows: Rows, weights: torch.Tensor, reduce_sum: ReduceSum) -> "_Basis":
        mass = weights.mean(1, keepdim=True)
        total = reduce_sum(mass.sum())
        centre = reduce_sum((rows.features * mass).sum(0)) / total
        moment = reduce_sum((rows.features * mass).T @ rows.features) / total - torch.outer(centre, centre)
        eigenvalues, vectors = torch.linalg.eigh(moment)
        return cls(centre, vectors, eigenvalues.clamp_min(0))

    def rotate(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.centre) @ self.vectors

    def restore(self, rotated: torch.Tensor, intercepts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights (S, k, D) and intercepts (S, k) for the features as they were."""
        weights = rotated @ self.vectors.T
        return weights, intercepts - weights @ self.centre


class _Solver:
    """L-BFGS over all heads at once; a column is one head, strengths outermost."""

    def __init__(
        self,
        features: torch.Tensor,
        rows: Rows,
        weights: torch.Tensor,
        strengths: list[float],
        eigenvalues: torch.Tensor,
        reduce_sum: ReduceSum,
    ) -> None:
        folds = weights.shape[1]
        self.shape = (len(strengths), folds)
        columns = len(strengths) * folds
        self.features = torch.cat([features, features.new_ones((len(features), 1))], dim=1)
        self.sign = torch.where(rows.synthetic, 1.0, -1.0).double()[:, None]
        self.weights = weights.repeat(1, len(strengths))
        penalty = torch.tensor(strengths, dtype=torch.float64).repeat_interleave(folds)
        self.scale = torch.ones((features.shape[1] + 1, columns), dtype=torch.float64) * 2.0
        self.scale[:-1] = (eigenvalues[:, None] / 4 + penalty).rsqrt()
        # The penalty in scaled coordinates; the intercept, the last row, bears none.
        self.penalty = self.scale**2 * penalty
        self.penalty[-1] = 0
        self.point = torch.zeros_like(self.scale)
        self.active = torch.ones(columns, dtype=torch.bool)
        self.reduce_sum = reduce_sum

    def solution(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rotated weights (S, k, D) and intercepts (S, k)."""
        solved = (self.point * self.scale).T.reshape(*self.shape, -1)
        return solved[..., :-1], solved[..., -1]

    def solve(self) -> int:
        """Run until every head's gradient is small; return the number of steps."""
        columns = torch.arange(len(self.active))
        margin = self._product(self.point, columns)
        loss, gradient = self._loss(margin, self.point, columns), self._gradient(margin, self.point, columns)
        history: list[tuple[torch.Tensor, torch.Tensor]] = []
        for step in range(_MAX_STEPS):
            moving = gradient.norm(dim=0) > _TOLERANCE
            if not moving.all():
                self.active[columns[~moving]] = False
                columns, margin, loss, gradient = columns[moving], margin[:, moving], loss[moving], gradient[:, moving]
                history = [(s[:, moving], y[:, moving]) for s, y in history]
                if len(columns) == 0:
                    return step
            point = self.point[:, columns]
            direction = _two_loop(gradient, history)
            along = self._product(direction, columns)
            slope = (gradient * direction).sum(0)
            length, loss = self._line_search(point, direction, margin, along, slope, loss, columns)
            change = length * direction
            margin = margin + length * along
            self.point[:, columns] = point + change
            new_gradient = self._gradient(margin, point + change, columns)
            history = [*history[-(_MEMORY - 1) :], (change, new_gradient - gradient)]
            gradient = new_gradient
            # No step left that lowers the loss in float64: as close as arithmetic allows.
            stuck = length == 0
            gradient[:, stuck] = 0
        return _MAX_STEPS

    def _product(self, point: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return self.features @ (point * self.scale[:, columns])

    def _loss(self, margin: torch.Tensor, point: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        data = self.reduce_sum((self.weights[:, columns] * softplus(-self.sign * margin)).sum(0))
        return data + (self.penalty[:, columns] * point.square()).sum(0) / 2

    def _gradient(self, margin: torch.Tensor, point: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        residual = -self.weights[:, columns] * self.sign * torch.sigmoid(-self.sign * margin)
        data = self.reduce_sum(self.features.T @ residual)
        return data * self.scale[:, columns] + self.penalty[:, columns] * point

    def _line_search(
        self,
        point: torch.Tensor,
        direction: torch.Tensor,
        margin: torch.Tensor,
        along: torch.Tensor,
        slope: torch.Tensor,
        loss: torch.Tensor,
        columns: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve each head's step until it lowers the loss enough (Armijo); no matrix product is needed."""
        length = torch.ones_like(loss)
        accepted = torch.zeros_like(loss, dtype=torch.bool)
        new_loss = loss.clone()
        for _ in range(40):
            trial = self._loss(margin + length * along, point + length * direction, columns)
            # Near the optimum differences drown in rounding: a relative slack of 1e-15 lets the last steps through.
            good = trial <= loss + 1e-4 * length * slope + 1e-15 * loss.abs()
            new_loss = torch.where(good & ~accepted, trial, new_loss)
            accepted |= good
            if accepted.all():
                break
            length = torch.where(accepted, length, length / 2)
        return torch.where(accepted, length, 0.0), new_loss


def _two_loop(gradient: torch.Tensor, history: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The L-BFGS direction of every column; the initial Hessian is the identity, as the scaling makes it."""
    direction = -gradient
    used = []
    for change, difference in reversed(history):
        curvature = (change * difference).sum(0)
        inverse = torch.where(curvature > 0, 1 / curvature, 0.0)
        share = inverse * (change * direction).sum(0)
        direction = direction - share * difference
        used.append((inverse, share, change, difference))
    for inverse, share, change, difference in reversed(used):
        direction = direction + (share - inverse * (difference * direction).sum(0)) * change
    return direction


def _out_of_fold_loss(
    rows: Rows, coefficients: torch.Tensor, intercepts: torch.Tensor, reduce_sum: ReduceSum
) -> list[float]:
    """Class-balanced log-loss, in nats, of each strength's out-of-fold answers."""
    index = rows.fold.long()[:, None]
    sign = torch.where(rows.synthetic, 1.0, -1.0).double()
    classes = torch.stack([~rows.synthetic, rows.synthetic]).double()
    counts = reduce_sum(classes.sum(1))
    losses = []
    for weights, intercept in zip(coefficients, intercepts, strict=True):
        logit = (rows.features @ weights.T + intercept).gather(1, index)[:, 0]
        sums = reduce_sum(classes @ softplus(-sign * logit))
        losses.append(float((sums / counts).mean()))
    return losses
