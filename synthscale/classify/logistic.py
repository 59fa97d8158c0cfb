"""Fit the logistic heads of all folds, strengths and repeats at once, and choose each generator's strength.

Reads blocks of features and folds, returns a `LogisticFit` for each generator; `refit_logistic_heads` fits further
heads at the chosen strength for the jackknife.

Each pass over the rows evaluates all heads that have not converged, each at its own trial point
(`logistic_loss.py`), so a pass is one large matrix product. Few passes are needed: the heads are first fitted to a
sample of a few dozen rows per dimension, which costs next to nothing. L-BFGS (Liu and Nocedal 1989) on all rows
starts at that solution, preconditioned by the inverse of the sample's Hessian (`batched_lbfgs.py`). Heads have
separate histories and step lengths and never influence one another's optimum. The problem is convex and is solved
to the limit of float64, so the result does not depend on the sample, the starting point or the number of workers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from synthscale.classify.batched_lbfgs import BatchedLbfgs
from synthscale.classify.calibration import fit_platt_scaling
from synthscale.classify.features import LinearHeads
from synthscale.classify.fit_context import FitContext, FitState
from synthscale.classify.fold_views import FoldView, HeadColumns
from synthscale.classify.logistic_loss import LOG_2, Blocks, LogisticLoss

_TOLERANCE = 1e-8
"""Limit of the Newton decrement. The error of a probability is then below half of this, times the square root of
n."""
_REFIT_TOLERANCE = 1e-5
"""Limit of the Newton decrement of refitted heads; looser, as only the spread over refits is used."""


@dataclass(frozen=True)
class LogisticFit:
    """A generator's heads at the chosen strength, and how it was chosen.

    Attributes:
        heads: the k heads of each repeat.
        strength: the chosen L2 penalty; ``inf`` is the intercept-only model.
        log_loss: class-balanced out-of-fold log-loss (nats) by strength.
        passes: passes over all rows, of all heads together.
        converged: whether the heads of the chosen strength converged.
        start: starting point of the jackknife's refits: a finite strength and its heads of the first repeat. The
            chosen strength, or the largest finite one if the intercept-only model was chosen; None if no strength
            is finite.
    """

    heads: tuple[LinearHeads, ...]
    strength: float
    log_loss: dict[float, float]
    passes: int
    converged: bool
    start: tuple[float, LinearHeads] | None = None

    def summary(self) -> dict[str, Any]:
        """Return the fit's keys of metrics.json; the intercept-only model's strength is the text ``inf``."""
        return {
            "strength": _json_strength(self.strength),
            "log_loss_by_strength": [[_json_strength(s), loss] for s, loss in self.log_loss.items()],
            "passes": self.passes,
            "converged": self.converged,
        }


def _json_strength(strength: float) -> float | str:
    return "inf" if math.isinf(strength) else strength


def fit_logistic_heads(
    views: list[FoldView], strengths: tuple[float, ...], blocks: Blocks, *, balanced: bool, workers: FitContext
) -> dict[str, LogisticFit]:
    """Fit k heads for each view and strength; keep each generator's strength of least out-of-fold log-loss.

    Args:
        views: the generators' fold assignments; both classes occur outside every fold, over all workers.
        strengths: L2 penalties; ``inf`` is the intercept-only model.
        blocks: starts a pass over this worker's rows; called once for each pass.
        balanced: weigh the classes equally in the loss, else every row equally. The logits are for equal class
            sizes either way: without class weights the log prior is subtracted from the intercepts.
        workers: all-reduce, and state of an interrupted fit.

    Returns:
        Each generator's fit. The log-loss is class-balanced, of calibrated logits, mean over its repeats.
    """
    finite = sorted((s for s in strengths if math.isfinite(s)), reverse=True)
    by_generator = dict.fromkeys((view.generator for view in views), finite or [1.0])
    problem = LogisticLoss(HeadColumns.of(views, by_generator), blocks, balanced, workers.reduce_sum)
    points = torch.zeros((problem.width + 1, len(problem.columns.view)), dtype=torch.float64)
    points[-1] = problem.prior
    descent = BatchedLbfgs(problem, points, workers.resume)
    if finite:
        sample = None
        saved = workers.resume.state.get("points")
        if saved is not None and saved.shape == points.shape:
            descent.points = saved.to(points.device, copy=True)
        else:
            sample = descent.start_on_a_sample()
        descent.solve(_TOLERANCE, sample)
    else:
        descent.converged[:] = True
    return _choose_strengths(problem, descent, strengths)


def refit_logistic_heads(
    views: list[FoldView],
    start: dict[str, tuple[float, LinearHeads]],
    blocks: Blocks,
    *,
    balanced: bool,
    workers: FitContext,
) -> dict[str, LinearHeads]:
    """Fit heads to views that leave out a few rows, at one strength per generator, from the heads of all rows.

    Args:
        views: views of the generators in ``start``.
        start: each generator's strength, and the head of each fold to start from.
        blocks: starts a pass over this worker's rows, with their folds in these views.
        balanced: as in `fit_logistic_heads`.
        workers: all-reduce.

    Returns:
        Each generator's heads, in the order of its views: those of the first view's folds, of the second's, ...
    """
    columns = HeadColumns.of(views, {name: [strength] for name, (strength, _) in start.items()})
    problem = LogisticLoss(columns, blocks, balanced, workers.reduce_sum)
    points = torch.empty((problem.width + 1, len(columns.view)), dtype=torch.float64)
    heads_of = {name: torch.tensor([v.generator == name for v in views])[columns.view] for name in start}
    for name, (_, heads) in start.items():
        at = heads_of[name]
        points[:-1, at] = heads.weights[columns.fold[at]].T
        points[-1, at] = heads.intercepts[columns.fold[at]] + problem.prior[at]
    descent = BatchedLbfgs(problem, points, FitState())
    descent.solve(_REFIT_TOLERANCE)
    return {
        name: LinearHeads(descent.points[:-1, at].T.clone(), descent.points[-1, at] - problem.prior[at])
        for name, at in heads_of.items()
    }


def _choose_strengths(
    problem: LogisticLoss, descent: "BatchedLbfgs", strengths: tuple[float, ...]
) -> dict[str, LogisticFit]:
    """Choose each generator's strength of least log-loss, mean over repeats; ties go to the larger strength."""
    columns, points = problem.columns, descent.points
    fits = {}
    for generator in dict.fromkeys(view.generator for view in columns.views):
        of_generator = torch.tensor([view.generator == generator for view in columns.views])[columns.view]
        losses = _losses(problem, points, generator, strengths)
        best = min(losses, key=lambda strength: (round(losses[strength], 10), -strength))
        repeats = [(v, view.folds) for v, view in enumerate(columns.views) if view.generator == generator]

        def at(strength: float, v: int) -> torch.Tensor:
            return (columns.view == v) & (columns.strength == strength)

        heads = tuple(_heads(problem, points, at(best, v), folds) for v, folds in repeats)
        finite = [strength for strength in strengths if math.isfinite(strength)]
        strongest = best if math.isfinite(best) else max(finite, default=math.inf)
        start = _heads(problem, points, at(strongest, repeats[0][0]), repeats[0][1])
        converged = bool(descent.converged[of_generator & (columns.strength == best)].all())
        fits[generator] = LogisticFit(
            heads, best, losses, descent.passes, converged, (strongest, start) if finite else None
        )
    return fits


def _losses(
    problem: LogisticLoss, points: torch.Tensor, generator: str, strengths: tuple[float, ...]
) -> dict[float, float]:
    """Return the class-balanced out-of-fold log-loss of a generator's calibrated logits at each strength.

    Calibration undoes the shrinkage of a strength that is a little too strong. With unscaled logits the
    intercept-only model was often chosen although the sets are slightly separable.
    """
    finite = sorted({s for s in strengths if math.isfinite(s)}, reverse=True)
    losses = {strength: LOG_2 for strength in strengths if math.isinf(strength)}
    if not finite:
        return losses
    columns = problem.columns
    repeats = [v for v, view in enumerate(columns.views) if view.generator == generator]
    k = max(columns.views[v].folds for v in repeats)
    pairs = [(v, strength) for strength in finite for v in repeats]
    scaling = fit_platt_scaling(problem.out_of_fold(points, generator, pairs), len(pairs), k, problem.reduce_sum)
    by_strength = scaling.log_loss_by_repeat.reshape(len(finite), len(repeats)).mean(1)
    return losses | dict(zip(finite, by_strength.tolist(), strict=True))


def _heads(problem: LogisticLoss, points: torch.Tensor, chosen: torch.Tensor, folds: int) -> LinearHeads:
    """Return the heads of the chosen columns; zero heads (the intercept-only model) if there are none."""
    if not chosen.any():
        return LinearHeads(points.new_zeros((folds, problem.width)), points.new_zeros(folds))
    # Without the prior, the odds are those of equal class sizes.
    return LinearHeads(points[:-1, chosen].T.clone(), points[-1, chosen] - problem.prior[chosen])
