"""The k-fold real-vs-synthetic classifier of a run: folds by group, one feature map, heads for every generator.

Pure, and the same for one process, Ray Train workers and ``score_features``: what differs is ``reduce_sum``.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.config import ClassifierConfig
from synthscale.features import BANDWIDTH_ROWS, FeatureMap, fit_feature_map
from synthscale.folds import deal_folds
from synthscale.logistic import Fit, Rows, fit_folds


@dataclass(frozen=True)
class FoldPlan:
    """One generator's view dealt to folds, arrays over its rows, ascending; ``folds`` 0: impossible."""

    row: NDArray[np.int64]
    is_real: NDArray[np.bool_]
    fold: NDArray[np.int8]
    folds: int
    is_copy: NDArray[np.bool_]

    def with_copies(self, is_copy: NDArray[np.bool_]) -> "FoldPlan":
        """Return the plan with each row marked that equals one of a smaller id in its own set."""
        return replace(self, is_copy=is_copy)

    @property
    def training_counts(self) -> list[list[int]]:
        """Real and synthetic rows that each fold's head is trained on: k pairs."""
        outside = [self.fold != f for f in range(self.folds)]
        return [[int((o & self.is_real).sum()), int((o & ~self.is_real).sum())] for o in outside]

    @property
    def log_prior(self) -> NDArray[np.float64]:
        """Log of synthetic over real rows that each row's head is trained on: (n,); 0 without a classifier."""
        return log_prior(self.training_counts, self.fold)


def log_prior(training_counts: list[list[int]], fold: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return log of synthetic over real training rows by fold, for each row's fold (n,)."""
    if not training_counts:
        return np.zeros(len(fold))
    counts = np.array(training_counts, dtype=np.float64)
    result: NDArray[np.float64] = np.log(counts[:, 1] / counts[:, 0])[fold]
    return result


def plan_folds(
    rows: NDArray[np.int64],
    ids: Sequence[str],
    is_real: NDArray[np.bool_],
    groups: tuple[NDArray[np.int64], NDArray[np.int64]],
    settings: ClassifierConfig,
) -> FoldPlan:
    """Deal one generator's view to folds by near-duplicate group.

    Args:
        rows: (n,) row numbers of the view, ascending.
        ids: their ids.
        is_real: (n,) their classes.
        groups: member rows and the group of each.
        settings: folds and seed.
    """
    key = list(ids)
    smallest: dict[int, str] = {}
    at = np.searchsorted(rows, groups[0])
    for position, group in zip(at.tolist(), groups[1].tolist(), strict=True):
        smallest[group] = min(smallest.get(group, ids[position]), ids[position])
    for position, group in zip(at.tolist(), groups[1].tolist(), strict=True):
        key[position] = smallest[group]
    fold = deal_folds(key, is_real, settings.folds, settings.seed)
    none = np.zeros(len(rows), np.bool_)
    if fold is None:
        return FoldPlan(rows, is_real, np.zeros(len(rows), np.int8), 0, none)
    return FoldPlan(rows, is_real, fold, int(fold.max()) + 1, none)


def bandwidth_rows(plan: FoldPlan, ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the distinct real rows, few and chosen by a hash of their ids, that give the bandwidth."""
    chosen = np.flatnonzero(plan.is_real & ~plan.is_copy).tolist()
    chosen.sort(key=lambda i: hashlib.blake2b(ids[i].encode(), digest_size=16).digest())
    return np.sort(plan.row[chosen[:BANDWIDTH_ROWS]])


@dataclass(frozen=True)
class TrainingRows:
    """A worker's rows: numbers (n,), vectors (n, d), fold by generator ((n,), -1: not in its view), and marks."""

    row: NDArray[np.int64]
    vectors: torch.Tensor
    fold: dict[str, NDArray[np.int8]]
    is_real: NDArray[np.bool_]
    is_copy: NDArray[np.bool_]


def fit_generators(
    rows: TrainingRows,
    folds: dict[str, int],
    sample: NDArray[np.int64],
    settings: ClassifierConfig,
    reduce_sum: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> tuple[FeatureMap, dict[str, Fit]]:
    """Fit the feature map and every generator's heads.

    Args:
        rows: this worker's rows.
        folds: k of each generator.
        sample: row numbers, the same on all workers, that give the bandwidth.
        settings: the classifier's settings.
        reduce_sum: adds a float64 tensor over workers.
    """
    feature_map = _feature_map(rows, sample, settings, reduce_sum)
    features = feature_map(rows.vectors)
    fits = {}
    for name, k in folds.items():
        own = torch.from_numpy(rows.fold[name] >= 0)
        view = Rows(
            features[own],
            torch.from_numpy(~rows.is_real)[own],
            torch.from_numpy(rows.fold[name])[own],
        )
        fits[name] = fit_folds(view, k, settings.strengths, settings.class_weight == "balanced", reduce_sum)
    return feature_map, fits


def _feature_map(
    rows: TrainingRows,
    sample: NDArray[np.int64],
    settings: ClassifierConfig,
    reduce_sum: Callable[[torch.Tensor], torch.Tensor],
) -> FeatureMap:
    distinct = rows.vectors[torch.from_numpy(rows.is_real & ~rows.is_copy)].double()
    count = reduce_sum(torch.tensor(float(len(distinct)), dtype=torch.float64))
    mean = reduce_sum(distinct.sum(0)) / count
    # The second pass keeps the precision that one pass of squares would lose.
    deviation = (reduce_sum((distinct - mean).square().sum(0)) / count).sqrt()
    gathered = torch.zeros((len(sample), rows.vectors.shape[1]), dtype=torch.float64)
    if len(rows.row):
        at = np.searchsorted(rows.row, sample).clip(max=len(rows.row) - 1)
        mine = rows.row[at] == sample
        gathered[torch.from_numpy(mine)] = rows.vectors[torch.from_numpy(at[mine])].double()
    return fit_feature_map(mean, deviation, reduce_sum(gathered), settings.head, settings.seed)
