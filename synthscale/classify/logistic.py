"""All folds, strengths and deals of an L2-regularised logistic regression at once: preconditioned L-BFGS.

Every pass over the rows evaluates every head that has not converged, each at its own trial point (problem.py), so
a pass is one well-fed matrix product. What makes the passes few: the heads are first fitted to a sample of a few
dozen rows a dimension, which is nearly free, and L-BFGS (Liu and Nocedal 1989) on all rows then starts at that
solution, from the inverse of the sample's Hessian there. Heads have histories and step lengths of their own and
never influence one another's optimum. The problem is convex and is solved to the arithmetic's limit, so sample,
start and number of workers leave no trace in the answer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from synthscale.classify.batched_lbfgs import BatchedLbfgs
from synthscale.classify.calibration import fit_platt_scaling
from synthscale.classify.features import LinearHeads
from synthscale.classify.fit_context import FitContext, FitState
from synthscale.classify.logistic_loss import LOG_2, Blocks, FoldView, HeadColumns, LogisticLoss

_TOLERANCE = 1e-8
"""On the Newton decrement: probabilities are then off by less than half of this times the root of n."""
_REFIT_TOLERANCE = 1e-5
"""Refitted heads only say how far figures spread."""


@dataclass(frozen=True)
class LogisticFit:
    """A generator's heads at the chosen strength, one ``Heads`` a deal, and what the choice was made by.

    ``start`` is a finite strength with its heads of the first deal, where heads without some rows are fitted
    from: the chosen one, or the strongest where the intercept-only model was chosen.
    """

    heads: tuple[LinearHeads, ...]
    strength: float
    log_loss: dict[float, float]
    passes: int
    converged: bool
    start: tuple[float, LinearHeads] | None = None

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


def fit_logistic_heads(
    views: list[FoldView], strengths: tuple[float, ...], blocks: Blocks, *, balanced: bool, workers: FitContext
) -> dict[str, LogisticFit]:
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
    each = dict.fromkeys((view.generator for view in views), finite or [1.0])
    problem = LogisticLoss(HeadColumns.of(views, each), blocks, balanced, workers.reduce_sum)
    points = torch.zeros((problem.width + 1, len(problem.columns.view)), dtype=torch.float64)
    points[-1] = problem.prior
    descent = BatchedLbfgs(problem, points, workers.resume)
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


def refit_logistic_heads(
    views: list[FoldView],
    start: dict[str, tuple[float, LinearHeads]],
    blocks: Blocks,
    *,
    balanced: bool,
    workers: FitContext,
) -> dict[str, LinearHeads]:
    """Fit heads at one strength a generator to views that leave out a few rows, from heads that saw them.

    Args:
        views: each generator's, all of as many folds.
        start: the strength, and the heads of each fold.
        blocks: gives this worker's rows, with their folds in these views.
        balanced: as in `fit_views`.
        workers: how they add up.

    Returns:
        Each generator's heads: view after view, k each.
    """
    columns = HeadColumns.of(views, {name: [strength] for name, (strength, _) in start.items()})
    problem = LogisticLoss(columns, blocks, balanced, workers.reduce_sum)
    points = torch.empty((problem.width + 1, len(columns.view)), dtype=torch.float64)
    own = {name: torch.tensor([v.generator == name for v in views])[columns.view] for name in start}
    for name, (_, heads) in start.items():
        points[:-1, own[name]] = heads.weights[columns.fold[own[name]]].T
        points[-1, own[name]] = heads.intercepts[columns.fold[own[name]]] + problem.prior[own[name]]
    descent = BatchedLbfgs(problem, points, FitState())
    descent.solve(_REFIT_TOLERANCE)
    return {
        name: LinearHeads(descent.points[:-1, at].T.clone(), descent.points[-1, at] - problem.prior[at])
        for name, at in own.items()
    }


def _chosen(
    problem: LogisticLoss, descent: "BatchedLbfgs", strengths: tuple[float, ...]
) -> dict[str, LogisticFit]:
    """Pick each generator's strength: over its deals, the one with the least log-loss; ties go to the stronger."""
    columns, points = problem.columns, descent.points
    fits = {}
    for generator in dict.fromkeys(view.generator for view in columns.views):
        own = torch.tensor([view.generator == generator for view in columns.views])[columns.view]
        losses = _losses(problem, points, generator, strengths)
        best = min(losses, key=lambda strength: (round(losses[strength], 10), -strength))
        repeats = [(v, view.folds) for v, view in enumerate(columns.views) if view.generator == generator]

        def at(strength: float, v: int) -> torch.Tensor:
            return (columns.view == v) & (columns.strength == strength)

        heads = tuple(_heads(problem, points, at(best, v), folds) for v, folds in repeats)
        finite = [strength for strength in strengths if math.isfinite(strength)]
        strongest = best if math.isfinite(best) else max(finite, default=math.inf)
        start = _heads(problem, points, at(strongest, repeats[0][0]), repeats[0][1])
        converged = bool(descent.converged[own & (columns.strength == best)].all())
        fits[generator] = LogisticFit(
            heads, best, losses, descent.passes, converged, (strongest, start) if finite else None
        )
    return fits


def _losses(
    problem: LogisticLoss, points: torch.Tensor, generator: str, strengths: tuple[float, ...]
) -> dict[float, float]:
    """Return the class-balanced out-of-fold log-loss of a generator's heads at each strength, logits scaled.

    A strength that is a little too strong is then no worse for it, and the choice does not jump: unscaled, the
    intercept-only model was often chosen where the sets can be told apart a little.
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
    by_strength = scaling.by_deal.reshape(len(finite), len(repeats)).mean(1)
    return losses | dict(zip(finite, by_strength.tolist(), strict=True))


def _heads(problem: LogisticLoss, points: torch.Tensor, chosen: torch.Tensor, folds: int) -> LinearHeads:
    if not chosen.any():
        return LinearHeads(points.new_zeros((folds, problem.width)), points.new_zeros(folds))
    # Out of fold, every model answers balanced odds.
    return LinearHeads(points[:-1, chosen].T.clone(), points[-1, chosen] - problem.prior[chosen])
