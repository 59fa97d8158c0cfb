"""What a classifier is fitted on: views dealt to folds, rows in blocks, and how workers pass over them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthscale.classify.features import BANDWIDTH_ROWS, FOURIER_FEATURES
from synthscale.classify.fit_context import FitContext
from synthscale.classify.folds import assign_folds
from synthscale.classify.logistic_loss import FoldView
from synthscale.config import ClassifierConfig
from synthscale.statistics.size_matching import matched_block_codes
from synthscale.tables.id_hashes import Hashes, hash_groups, mix

_BANDWIDTH_STREAM = 11


@dataclass(frozen=True)
class FoldPlan:
    """One generator's view dealt to folds, arrays over its rows, ascending.

    Attributes:
        row: (n,) row numbers.
        is_real: (n,).
        key: (n,) the rows' own keys.
        group: (n,) the keys of their near-duplicate groups.
        fold: (n, deals); no column where no deal leaves both classes in every training part.
        is_copy: (n,) equal to a row of a smaller id in its own set.
    """

    row: NDArray[np.int64]
    is_real: NDArray[np.bool_]
    key: Hashes
    group: Hashes
    fold: NDArray[np.int8]
    is_copy: NDArray[np.bool_]

    def block(self, size: int | None) -> NDArray[np.int8]:
        """Return the code of each row's block, (n,), where the matched subsample has so many rows (matched.py)."""
        return matched_block_codes(self.group, self.is_real, int((~self.is_real).sum()), size)

    def views(self, generator: str) -> list[FoldView]:
        """Return a view for each deal; none where no classifier can be fitted."""
        return [FoldView(generator, i, int(self.fold[:, i].max()) + 1) for i in range(self.fold.shape[1])]

    @property
    def log_prior(self) -> NDArray[np.float64]:
        """Log of synthetic over real rows that each row's heads are trained on, mean over deals: (n,)."""
        prior = np.zeros(len(self.row))
        for fold in self.fold.T:
            inside = [
                np.bincount(fold[own], minlength=int(fold.max()) + 1) for own in (self.is_real, ~self.is_real)
            ]
            real, synthetic = (count.sum() - count for count in inside)
            prior += np.log(synthetic / real)[fold] / self.fold.shape[1]
        return prior


def plan_folds(
    rows: NDArray[np.int64],
    keys: Hashes,
    is_real: NDArray[np.bool_],
    is_copy: NDArray[np.bool_],
    groups: tuple[NDArray[np.int64], NDArray[np.int64]],
    settings: ClassifierConfig,
) -> FoldPlan:
    """Deal one generator's view to folds by near-duplicate group, as often as ``settings.repeats`` says.

    Args:
        rows: (n,) row numbers of the view, ascending.
        keys: (n,) their keys.
        is_real: (n,) their classes.
        is_copy: (n,) which equal a row of a smaller id in their own set.
        groups: member rows and the group of each.
        settings: folds, repeats and seed.
    """
    group = hash_groups(keys, rows, groups)
    repeats = [
        assign_folds(group, is_real, settings.folds, seed)
        for seed in range(settings.seed, settings.seed + settings.repeats)
    ]
    possible = [repeat for repeat in repeats if repeat is not None]
    fold = np.stack(possible, 1) if len(possible) == len(repeats) else np.zeros((len(rows), 0), np.int8)
    return FoldPlan(rows, is_real, keys, group, fold, is_copy)


def bandwidth_sample(plan: FoldPlan) -> Hashes:
    """Return the numbers, ascending, of the few distinct real rows that give the bandwidth."""
    return np.sort(sample_sizes(plan.key[plan.is_real & ~plan.is_copy]))[:BANDWIDTH_ROWS]


def sample_sizes(keys: Hashes) -> Hashes:
    """Return the number of each row by which the bandwidth's sample is drawn."""
    return mix(keys, _BANDWIDTH_STREAM)


@dataclass(frozen=True)
class VectorBlock:
    """Rows of one set: name, vectors (n, d), fold in each view (n, V; -1: not in it), keys (n,), copies (n,).

    ``block`` is the code of the row's block in each view (n, V; matched.py); without it nothing is refitted.
    """

    name: str
    vectors: NDArray[np.floating]
    fold: NDArray[np.int8]
    key: Hashes
    is_copy: NDArray[np.bool_]
    block: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class TrainingData:
    """What heads are fitted on.

    Attributes:
        views: every deal of every generator; the columns of the blocks' folds.
        dimensions: d of the vectors.
        blocks: a pass over this worker's rows, or those of the set that is named.
        sample: what `bandwidth_sample` gives, the same on all workers.
        rows: the number of rows of each set, over all workers.
        is_cached: keep the features in memory; else every pass asks for the rows again.
        workers: how they add up, and where an interrupted fit goes on.
        fourier_features: beside the embedding, for the kernel head.
        is_refitted: also fit heads without each block of the jackknife, whose blocks the rows then have.
        matched: the generators that are also fitted on their matched subsamples.
    """

    views: list[FoldView]
    dimensions: int
    blocks: Callable[[str | None], Iterable[VectorBlock]]
    sample: Hashes
    rows: dict[str, int]
    is_cached: bool = True
    workers: FitContext = field(default_factory=FitContext)
    fourier_features: int = FOURIER_FEATURES
    is_refitted: bool = False
    matched: frozenset[str] = frozenset()
