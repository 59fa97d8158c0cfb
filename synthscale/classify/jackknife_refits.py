"""Refit the logistic heads for the jackknife: without each block, with other folds and on matched subsamples.

Reads features, folds and jackknife block codes, returns `JackknifeRefits`; their logits give the intervals of
fidelity and representativeness. Both metrics depend on the fit: their variance between data sets is up to 15
times the variance that is estimated with the heads held fixed. So every fold's head is fitted again without each
block of near-duplicate groups, at the chosen strength, and calibrated again. Both metrics also depend on the fold
assignment, so heads are fitted under a few other assignments as well.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.classify.calibration import fit_platt_scaling
from synthscale.classify.features import LinearHeads
from synthscale.classify.fit_context import FitContext
from synthscale.classify.fold_views import FeatureBlock, FoldView, view_columns
from synthscale.classify.logistic import LogisticFit, refit_logistic_heads
from synthscale.statistics.jackknife import reassigned_folds
from synthscale.statistics.size_matching import assignment_block_of, block_of, is_outside
from synthscale.tables.schemas import BLOCKS, REAL, REASSIGNMENTS

_MAX_HEADS = 1000
"""Heads that are fitted together. With more, generators are fitted in batches; the heads of one generator stay
together."""
_LOGIT_ROWS = 8192
"""Rows whose logits are computed at once."""
_FOLD_ROWS = 65536
"""Rows whose folds in all views are in memory at once."""


@dataclass(frozen=True)
class JackknifeRefits:
    """One generator's heads for V views of one kind, each without some rows or with other folds.

    Attributes:
        heads: weights (V x k, D): those of all folds of the first view, of the second, and so on.
        slope: (V, k) calibration of the logits, as in `PlattScaling`.
        offset: (V,).
        without: (V,) the jackknife block that each view leaves out; -1: none.
        reassignment: (V,) number of each view's fold assignment by blocks; 0: the classifier's own assignment.
        is_matched: whether the heads were fitted on the matched subsample alone.
    """

    heads: LinearHeads
    slope: NDArray[np.float64]
    offset: NDArray[np.float64]
    without: NDArray[np.int8]
    reassignment: NDArray[np.int8]
    is_matched: bool

    def folds(self, fold: NDArray[np.int8], block: NDArray[np.int16]) -> NDArray[np.int8]:
        """Return the fold of each row in each view: (n, V) int8; -1 for rows that the view leaves out.

        Args:
            fold: (n,) folds of the classifier's first repeat.
            block: (n,) block codes (`size_matching.block_codes`); -1 for rows outside the generator's view.
        """
        code = np.maximum(block, 0)
        assignments = {0: fold} | {
            r: reassigned_folds(assignment_block_of(code), r, self.slope.shape[1])
            for r in set(self.reassignment.tolist()) - {0}
        }
        result = np.stack([assignments[r] for r in self.reassignment.tolist()], 1)
        result[block_of(code)[:, None] == self.without[None, :]] = -1
        result[(block < 0) | (self.is_matched & is_outside(code))] = -1
        return result

    def uncalibrated_logits(self, features: torch.Tensor, folds: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return the out-of-fold logits of each view's heads, not calibrated: (n, D), (n, V) -> (n, V)."""
        logits = (features @ self.heads.weights.T + self.heads.intercepts).cpu().numpy()
        by_view = logits.reshape(len(logits), *self.slope.shape)
        return np.take_along_axis(by_view, np.maximum(folds, 0)[..., None].astype(np.int64), 2)[..., 0]

    def logits(
        self, features: torch.Tensor, fold: NDArray[np.int8], block: NDArray[np.int16]
    ) -> NDArray[np.float64]:
        """Return the calibrated out-of-fold logits of each view's heads: (n, V); NaN for rows that it leaves out.

        Args:
            features: (n, D).
            fold: (n,) as in `folds`.
            block: (n,) as in `folds`.
        """
        folds = self.folds(fold, block)
        view = np.arange(len(self.without))
        logits = self.slope[view, folds] * self.uncalibrated_logits(features, folds) + self.offset
        return np.where(folds < 0, np.nan, logits)


FeaturePass = Callable[[str | None], Iterable[FeatureBlock]]
"""Starts a pass over this worker's rows, of all sets (None) or of the named one."""


@dataclass(frozen=True)
class RefitRequest:
    """Which heads to refit.

    Attributes:
        views: the views of the first fit, in the order of the columns of the blocks' folds.
        fits: each generator's fit to all rows.
        scaled: generators whose logits are scaled by fitted slopes; those of others only get an offset.
        matched: generators that have a matched subsample.
        balanced: as in `fit_logistic_heads`.
    """

    views: list[FoldView]
    fits: dict[str, LogisticFit]
    scaled: Collection[str]
    matched: Collection[str]
    balanced: bool

    def refit_views(self, generator: str) -> list[FoldView]:
        """Return a generator's views without each block, with other folds, and of the matched subsample if any."""
        folds = self.views[view_columns(self.views)[generator][0]].folds
        views = [FoldView(generator, 0, folds, j) for j in range(BLOCKS)]
        views += [FoldView(generator, 0, min(folds, BLOCKS), reassignment=r) for r in range(1, REASSIGNMENTS + 1)]
        if generator in self.matched:
            views += [FoldView(generator, 0, folds, j, is_matched=True) for j in range(-1, BLOCKS)]
        return views


def fit_without_blocks(
    job: RefitRequest, mapped: FeaturePass, workers: FitContext
) -> dict[str, list[JackknifeRefits]]:
    """Refit every generator's heads of its first repeat, in the views of `RefitRequest.refit_views`.

    Args:
        job: which heads to refit.
        mapped: starts a pass over this worker's features.
        workers: all-reduce.

    Returns:
        Each generator's refits: without each block, with other folds, and on the matched subsample if it has one.
        Generators without a finite strength are left out.
    """
    first = {name: columns[0] for name, columns in view_columns(job.views).items()}
    refits: dict[str, list[JackknifeRefits]] = {}
    views_of = {name: job.refit_views(name) for name in first if job.fits[name].start is not None}
    for names in _batches({name: sum(view.folds for view in views) for name, views in views_of.items()}):
        views = [view for name in names for view in views_of[name]]
        start = {name: point for name in names if (point := job.fits[name].start) is not None}
        blocks = _RefitBlocks(mapped, views, first)
        refitted = refit_logistic_heads(views, start, blocks, balanced=job.balanced, workers=workers)
        for name, heads in refitted.items():
            refits[name] = [
                _calibrated(job, mapped, workers, (name, first[name]), part)
                for part in _split_by_kind(views_of[name], heads)
            ]
    return refits


def _split_by_kind(views: list[FoldView], heads: LinearHeads) -> Iterator[tuple[list[FoldView], LinearHeads]]:
    """Yield the views of each kind and their heads: a block left out, other folds, the matched subsample."""
    start = 0
    for _, group in itertools.groupby(views, key=_kind):
        of_kind = list(group)
        part = slice(start, start + sum(view.folds for view in of_kind))
        start = part.stop
        yield of_kind, LinearHeads(heads.weights[part], heads.intercepts[part])


def _kind(view: FoldView) -> tuple[bool, bool]:
    """Return a key that differs between the three kinds of `_split_by_kind`."""
    return view.is_matched, view.reassignment > 0


def _uncalibrated(views: list[FoldView], heads: LinearHeads) -> JackknifeRefits:
    """Return the refits of views of one kind, with slope 1 and offset 0."""
    shape = (len(views), views[0].folds)
    without, reassignment = (
        np.array([getattr(view, name) for view in views], np.int8) for name in ("without", "reassignment")
    )
    return JackknifeRefits(heads, np.ones(shape), np.zeros(len(views)), without, reassignment, views[0].is_matched)


def _calibrated(
    job: RefitRequest,
    mapped: FeaturePass,
    workers: FitContext,
    name_and_column: tuple[str, int],
    part: tuple[list[FoldView], LinearHeads],
) -> JackknifeRefits:
    """Return the refits of views of one kind, calibrated as the generator's first fit was."""
    name, column = name_and_column
    refits = _uncalibrated(*part)
    views, folds = refits.slope.shape
    scaling = fit_platt_scaling(_logits(mapped, refits, name, column), views, folds, workers.reduce_sum)
    slope, offset = scaling.coefficients(is_scaled=name in job.scaled)
    return replace(refits, slope=slope, offset=offset)


def _batches(heads: dict[str, int]) -> Iterator[list[str]]:
    """Yield batches of generators with at most ``_MAX_HEADS`` heads, given the number of heads of each."""
    batch: list[str] = []
    for name in heads:
        if batch and sum(heads[other] for other in [*batch, name]) > _MAX_HEADS:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


@dataclass(frozen=True)
class _RefitBlocks:
    """Starts passes over rows whose folds are those of the refits' views: -1 for the rows that a view leaves out.

    Attributes:
        mapped: starts a pass over this worker's features.
        views: the refits' views.
        first: column of each generator's first repeat in the folds of ``mapped``.
    """

    mapped: FeaturePass
    views: list[FoldView]
    first: dict[str, int]

    def __call__(self, name: str | None = None) -> Iterator[FeatureBlock]:
        names = list(dict.fromkeys(view.generator for view in self.views))
        no_heads = LinearHeads(torch.empty(0), torch.empty(0))
        groups = itertools.groupby(self.views, key=lambda view: (view.generator, _kind(view)))
        kinds = [(self.first[generator], _uncalibrated(list(views), no_heads)) for (generator, _), views in groups]
        for block in self.mapped(name):
            if block.name not in (REAL, *names):
                continue
            assert block.block is not None
            # In parts, as there are about 100 folds a row and generator; features are views, not copies.
            for start in range(0, len(block.key), _FOLD_ROWS):
                part = slice(start, start + _FOLD_ROWS)
                first_folds, codes = block.fold[part].cpu().numpy(), block.block[part].cpu().numpy()
                fold = np.concatenate([refits.folds(first_folds[:, c], codes[:, c]) for c, refits in kinds], 1)
                on_device = torch.from_numpy(fold).to(block.fold.device)
                yield FeatureBlock(block.name, block.features[part], on_device, block.key[part])


def _logits(
    mapped: FeaturePass, refits: JackknifeRefits, generator: str, column: int
) -> Iterator[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]:
    """Yield blocks of one generator's rows and the real rows.

    Yields:
        Whether the rows are synthetic, uncalibrated out-of-fold logits (n, V) and folds (n, V).
    """
    for name in (REAL, generator):
        for block in mapped(name):
            assert block.block is not None
            for start in range(0, len(block.key), _LOGIT_ROWS):
                part = slice(start, start + _LOGIT_ROWS)
                fold, code = (values[part, column].cpu().numpy() for values in (block.fold, block.block))
                folds = refits.folds(fold, code)
                yield name != REAL, refits.uncalibrated_logits(block.features[part].double(), folds), folds
