"""Input of a classifier fit: fold assignments of each generator's rows, blocks of vectors, and the training data.

`plan_folds` reads rows, classes and near-duplicate groups, and returns a `FoldPlan`; `TrainingData` is the
argument of `classifier.fit_classifier`. Nothing is written.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthscale.classify.features import BANDWIDTH_ROWS, FOURIER_FEATURES
from synthscale.classify.fit_context import FitContext
from synthscale.classify.fold_views import FoldView
from synthscale.classify.folds import assign_folds
from synthscale.config import ClassifierConfig
from synthscale.statistics.size_matching import RowHashes, block_codes
from synthscale.tables.id_hashes import Hashes, hash_groups, mix

_BANDWIDTH_STREAM = 11
"""Hash stream that draws the bandwidth's sample."""


@dataclass(frozen=True)
class FoldPlan:
    """Fold assignments of one generator's rows and the real rows.

    Attributes:
        row: (n,) row numbers, ascending.
        is_real: (n,) classes.
        hashes: of the rows' ids, components and clusters.
        fold: (n, repeats); no columns if no assignment leaves both classes in every training part.
        is_by_row: whether rows were assigned and not components, because components are too few.
        is_copy: (n,) whether the row equals one with a smaller id in its own set.
    """

    row: NDArray[np.int64]
    is_real: NDArray[np.bool_]
    hashes: RowHashes
    fold: NDArray[np.int8]
    is_copy: NDArray[np.bool_]
    is_by_row: bool = False

    @property
    def key(self) -> Hashes:
        """Hashes of the ids, (n,)."""
        return self.hashes.key

    def block(self, size: int | None) -> NDArray[np.int16]:
        """Return the block code of each row (`size_matching.block_codes`): (n,) int16.

        Args:
            size: synthetic rows of the matched subsample; None without one.
        """
        return block_codes(self.hashes, self.is_real, int((~self.is_real).sum()), size)

    def views(self, generator: str) -> list[FoldView]:
        """Return the view of each repeat; an empty list if no classifier can be fitted."""
        return [FoldView(generator, i, int(self.fold[:, i].max()) + 1) for i in range(self.fold.shape[1])]

    @property
    def log_prior(self) -> NDArray[np.float64]:
        """Log of synthetic over real rows outside each row's fold, mean over repeats: (n,)."""
        prior = np.zeros(len(self.row))
        for fold in self.fold.T:
            inside = [
                np.bincount(fold[of_class], minlength=int(fold.max()) + 1)
                for of_class in (self.is_real, ~self.is_real)
            ]
            real, synthetic = (count.sum() - count for count in inside)
            prior += np.log(synthetic / real)[fold] / self.fold.shape[1]
        return prior


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates of a view, as columns of ``groups/``: m rows that have any.

    Attributes:
        row: (m,) row numbers.
        component: (m,) number of each row's component.
        cluster: (m,) number of each row's cluster.
    """

    row: NDArray[np.int64]
    component: NDArray[np.int64]
    cluster: NDArray[np.int64]


def plan_folds(
    rows: NDArray[np.int64],
    keys: Hashes,
    is_real: NDArray[np.bool_],
    is_copy: NDArray[np.bool_],
    found: NearDuplicates,
    settings: ClassifierConfig,
) -> FoldPlan:
    """Assign one generator's rows and the real rows to folds by component, ``settings.repeats`` times.

    Where no assignment of whole components leaves both classes in every training part, because nearly all rows are
    one component, the rows are assigned instead: their scores then come from heads that may know a near-duplicate.

    Args:
        rows: (n,) row numbers, ascending.
        keys: (n,) hashes of their ids.
        is_real: (n,) their classes.
        is_copy: (n,) whether they equal a row with a smaller id in their own set.
        found: near-duplicates among the rows.
        settings: number of folds and repeats, and the seed; repeat i has seed + i.
    """
    parts = (found.component, found.cluster)
    component, cluster = (hash_groups(keys, rows, (found.row, part)) for part in parts)
    fold, is_by_row = _assign(component, is_real, settings), False
    if not fold.shape[1]:
        component, is_by_row = keys, True
        fold = _assign(keys, is_real, settings)
    return FoldPlan(rows, is_real, RowHashes(keys, component, cluster), fold, is_copy, is_by_row)


def _assign(group: Hashes, is_real: NDArray[np.bool_], settings: ClassifierConfig) -> NDArray[np.int8]:
    """Return the folds of each repeat, (n, repeats); no columns if any repeat has no assignment."""
    seeds = range(settings.seed, settings.seed + settings.repeats)
    repeats = [assign_folds(group, is_real, settings.folds, seed) for seed in seeds]
    possible = [repeat for repeat in repeats if repeat is not None]
    return np.stack(possible, 1) if len(possible) == len(repeats) else np.zeros((len(group), 0), np.int8)


def bandwidth_sample(plan: FoldPlan) -> Hashes:
    """Draw the distinct real rows that the bandwidth is computed from; return their sampling hashes, ascending."""
    return np.sort(bandwidth_hashes(plan.key[plan.is_real & ~plan.is_copy]))[:BANDWIDTH_ROWS]


def bandwidth_hashes(keys: Hashes) -> Hashes:
    """Return the sampling hash of each row, (n,); the rows with the smallest ones are the bandwidth's sample."""
    return mix(keys, _BANDWIDTH_STREAM)


@dataclass(frozen=True)
class VectorBlock:
    """Some rows of one set.

    Attributes:
        name: the set: `REAL` or a generator.
        vectors: (n, d).
        fold: (n, V) fold in each view; -1 for rows outside the view.
        key: (n,) hashes of the ids.
        is_copy: (n,) whether the row equals one with a smaller id in its own set.
        block: (n, V) jackknife block code in each view (`size_matching.block_codes`); None if no heads are
            refitted.
    """

    name: str
    vectors: NDArray[np.floating]
    fold: NDArray[np.int8]
    key: Hashes
    is_copy: NDArray[np.bool_]
    block: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class TrainingData:
    """Rows and options of a classifier fit.

    Attributes:
        views: one for each repeat of each generator, in the order of the columns of the blocks' folds.
        dimensions: d of the vectors.
        blocks: starts a pass over this worker's rows, of all sets (None) or of the named one.
        sample: sampling hashes from `bandwidth_sample`, the same on all workers.
        rows: number of rows of each set, over all workers.
        is_cached: keep the features in memory; else each pass calls ``blocks`` and computes them again.
        workers: all-reduce, device, and state of an interrupted fit.
        fourier_features: number of random Fourier features of the kernel head.
        is_refitted: also fit heads without each block of the jackknife; blocks then need ``block``.
        matched: generators whose heads are also fitted on a matched subsample.
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
