"""Heads refitted without each block of the jackknife: how fidelity and representativeness move with the data.

Both figures follow the fit: their variance between data sets is up to 15 times what rows in fixed heads show. So
every fold's head is fitted again without each block of near-duplicate groups, at the strength that was chosen,
and scaled again. Both also hinge on the deal to folds, so heads are fitted under a few other deals.
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
from synthscale.classify.logistic import LogisticFit, refit_logistic_heads
from synthscale.classify.logistic_loss import FeatureBlock, FoldView, view_columns
from synthscale.statistics.jackknife import reassigned_folds
from synthscale.statistics.size_matching import OUTSIDE
from synthscale.tables.schemas import BLOCKS, REAL, REASSIGNMENTS

_COLUMNS = 1000
"""Heads that are fitted at once, of one generator at least."""
_ROWS = 8192
_PART_ROWS = 65536


@dataclass(frozen=True)
class JackknifeRefits:
    """One generator's heads without some rows, or with other folds.

    Attributes:
        heads: weights (V x k, D): those of all folds of the first view, of the second, and so on.
        slope, offset: (V, k), what their logits are scaled by.
        without: (V,) the block that each view leaves out; -1 is none.
        reassignment: (V,) how each view deals blocks to folds; 0 is as the classifier did.
        is_matched: whether they saw the matched subsample alone.
    """

    heads: LinearHeads
    slope: NDArray[np.float64]
    offset: NDArray[np.float64]
    without: NDArray[np.int8]
    reassignment: NDArray[np.int8]
    is_matched: bool

    def folds(self, fold: NDArray[np.int8], block: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the folds of rows in each view, (n, V), -1 where it leaves the row out.

        Args:
            fold: (n,) in the classifier's first deal.
            block: (n,) codes (matched.py).
        """
        number = np.maximum(block, 0) % OUTSIDE
        repeats = {0: fold} | {
            r: reassigned_folds(number, r, self.slope.shape[1]) for r in set(self.reassignment.tolist()) - {0}
        }
        result = np.stack([repeats[r] for r in self.reassignment.tolist()], 1)
        result[number[:, None] == self.without[None, :]] = -1
        result[(block < 0) | (self.is_matched & (block >= OUTSIDE))] = -1
        return result

    def raw(self, features: torch.Tensor, folds: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return out-of-fold logits by each view's heads, not scaled: (n, D), (n, V) -> (n, V)."""
        logits = (features @ self.heads.weights.T + self.heads.intercepts).cpu().numpy()
        by_view = logits.reshape(len(logits), *self.slope.shape)
        return np.take_along_axis(by_view, np.maximum(folds, 0)[..., None].astype(np.int64), 2)[..., 0]

    def logits(
        self, features: torch.Tensor, fold: NDArray[np.int8], block: NDArray[np.int8]
    ) -> NDArray[np.float64]:
        """Return out-of-fold logits by each view's heads: (n, V); NaN where it leaves the row out; see `folds`."""
        folds = self.folds(fold, block)
        view = np.arange(len(self.without))
        logits = self.slope[view, folds] * self.raw(features, folds) + self.offset[view, folds]
        return np.where(folds < 0, np.nan, logits)


Mapped = Callable[[str | None], Iterable[FeatureBlock]]


@dataclass(frozen=True)
class RefitRequest:
    """What is refitted.

    Attributes:
        views: the deals, the columns of the blocks' folds.
        fits: the heads that saw all rows.
        scaled: the generators whose logits are scaled.
        matched: the generators that have a matched subsample.
        balanced: as in `fit_views`.
    """

    views: list[FoldView]
    fits: dict[str, LogisticFit]
    scaled: Collection[str]
    matched: Collection[str]
    balanced: bool

    def left_out(self, generator: str) -> list[FoldView]:
        """Return a generator's views without each block, and those of the matched subsample."""
        folds = self.views[view_columns(self.views)[generator][0]].folds
        found = [FoldView(generator, 0, folds, j) for j in range(BLOCKS)]
        found += [FoldView(generator, 0, min(folds, BLOCKS), reassignment=r) for r in range(1, REASSIGNMENTS + 1)]
        if generator in self.matched:
            found += [FoldView(generator, 0, folds, j, is_matched=True) for j in range(-1, BLOCKS)]
        return found


def fit_without_blocks(job: RefitRequest, mapped: Mapped, workers: FitContext) -> dict[str, list[JackknifeRefits]]:
    """Refit every generator's heads of its first deal without each block, and on the matched subsample.

    Args:
        job: what there is to fit.
        mapped: gives this worker's rows, of one set or of all.
        workers: how they add up.
    """
    first = {name: columns[0] for name, columns in view_columns(job.views).items()}
    refits: dict[str, list[JackknifeRefits]] = {}
    left_out = {name: job.left_out(name) for name in first if job.fits[name].start is not None}
    for names in _batches({name: sum(view.folds for view in views) for name, views in left_out.items()}):
        views = [view for name in names for view in left_out[name]]
        start = {name: own for name in names if (own := job.fits[name].start) is not None}
        blocks = _LeftOut(mapped, views, first)
        found = refit_logistic_heads(views, start, blocks, balanced=job.balanced, workers=workers)
        for name, heads in found.items():
            refits[name] = [
                _scaled(job, mapped, workers, (name, first[name]), part) for part in _parts(left_out[name], heads)
            ]
    return refits


def _parts(views: list[FoldView], heads: LinearHeads) -> Iterator[tuple[list[FoldView], LinearHeads]]:
    """Yield the heads without blocks, those of other deals, and those of the matched subsample."""
    start = 0
    for _, group in itertools.groupby(views, key=_kind):
        own = list(group)
        part = slice(start, start + sum(view.folds for view in own))
        start = part.stop
        yield own, LinearHeads(heads.weights[part], heads.intercepts[part])


def _kind(view: FoldView) -> tuple[bool, bool]:
    return view.is_matched, view.reassignment > 0


def _refits(views: list[FoldView], heads: LinearHeads) -> JackknifeRefits:
    """Heads of views of one kind, not scaled."""
    shape = (len(views), views[0].folds)
    without, reassignment = (
        np.array([getattr(view, name) for view in views], np.int8) for name in ("without", "reassignment")
    )
    return JackknifeRefits(heads, np.ones(shape), np.zeros(shape), without, reassignment, views[0].is_matched)


def _scaled(
    job: RefitRequest,
    mapped: Mapped,
    workers: FitContext,
    place: tuple[str, int],
    part: tuple[list[FoldView], LinearHeads],
) -> JackknifeRefits:
    name, column = place
    refits = _refits(*part)
    if name not in job.scaled:
        return refits
    views, folds = refits.slope.shape
    scaling = fit_platt_scaling(_logits(mapped, refits, name, column), views, folds, workers.reduce_sum)
    return replace(refits, slope=scaling.slope, offset=scaling.offset)


def _batches(heads: dict[str, int]) -> Iterator[list[str]]:
    batch: list[str] = []
    for name in heads:
        if batch and sum(heads[other] for other in [*batch, name]) > _COLUMNS:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


@dataclass(frozen=True)
class _LeftOut:
    """A pass over rows with their folds in views that leave out a block: -1 for the rows of that block."""

    mapped: Mapped
    views: list[FoldView]
    first: dict[str, int]

    def __call__(self, name: str | None = None) -> Iterator[FeatureBlock]:
        names = list(dict.fromkeys(view.generator for view in self.views))
        nothing = LinearHeads(torch.empty(0), torch.empty(0))
        groups = itertools.groupby(self.views, key=lambda view: (view.generator, _kind(view)))
        kinds = [(self.first[generator], _refits(list(own), nothing)) for (generator, _), own in groups]
        for block in self.mapped(name):
            if block.name not in (REAL, *names):
                continue
            assert block.block is not None
            # A part at a time, for there are many views; features are not copied.
            for start in range(0, len(block.key), _PART_ROWS):
                part = slice(start, start + _PART_ROWS)
                dealt, codes = block.fold[part].cpu().numpy(), block.block[part].cpu().numpy()
                fold = np.concatenate([own.folds(dealt[:, c], codes[:, c]) for c, own in kinds], 1)
                on_device = torch.from_numpy(fold).to(block.fold.device)
                yield FeatureBlock(block.name, block.features[part], on_device, block.key[part])


def _logits(
    mapped: Mapped, refits: JackknifeRefits, generator: str, column: int
) -> Iterator[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]:
    """Yield out-of-fold logits of the rows in a generator's view by each of its heads, by class."""
    for name in (REAL, generator):
        for block in mapped(name):
            assert block.block is not None
            for start in range(0, len(block.key), _ROWS):
                part = slice(start, start + _ROWS)
                fold, code = (own[part, column].cpu().numpy() for own in (block.fold, block.block))
                folds = refits.folds(fold, code)
                yield name != REAL, refits.raw(block.features[part].double(), folds), folds
