"""Heads refitted without each block of the jackknife: how fidelity and representativeness move with the data.

Both figures follow the fit: their variance between data sets is up to 15 times what rows in fixed heads show. So
every fold's head is fitted again without each block of near-duplicate groups, at the strength that was chosen,
and scaled again.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.calibration import fit_calibration
from synthscale.features import Heads
from synthscale.jackknife import BLOCKS
from synthscale.logistic import Fit, refit
from synthscale.matched import OUT
from synthscale.problem import FeatureBlock, View, columns_of
from synthscale.schemas import REAL
from synthscale.workers import Workers

_COLUMNS = 1000
"""Heads that are fitted at once, of one generator at least."""
_ROWS = 8192
_PART_ROWS = 65536


@dataclass(frozen=True)
class Refits:
    """One generator's heads without some rows.

    Attributes:
        heads: weights (V x k, D): those of all folds without the first part, without the second, and so on.
        slope, offset: (V, k), what their logits are scaled by.
        without: (V,) the block that each did not see; -1 saw all.
        is_matched: whether they saw the matched subsample alone.
    """

    heads: Heads
    slope: NDArray[np.float64]
    offset: NDArray[np.float64]
    without: NDArray[np.int8]
    is_matched: bool

    def logits(
        self, features: torch.Tensor, fold: NDArray[np.int8], block: NDArray[np.int8]
    ) -> NDArray[np.float64]:
        """Return out-of-fold logits by each of the heads: (n, V); NaN where a head's view lacks the row.

        Args:
            features: (n, D).
            fold: (n,) in the first deal.
            block: (n,) codes (matched.py).
        """
        logits = self.slope.T[fold] * _raw(self.heads, features, fold, len(self.without)) + self.offset.T[fold]
        logits[_left_out(block, self.without, self.is_matched)] = np.nan
        return logits


def _left_out(block: NDArray[np.int8], without: NDArray[np.int8], is_matched: bool) -> NDArray[np.bool_]:
    """Which rows, by their codes (n,), are left out of which views: (n, V)."""
    out: NDArray[np.bool_] = (block % OUT)[:, None] == without[None, :]
    return out | (block >= OUT)[:, None] if is_matched else out


def _raw(heads: Heads, features: torch.Tensor, fold: NDArray[np.int8], views: int) -> NDArray[np.float64]:
    folds = len(heads.intercepts) // views
    result = np.empty((len(fold), views))
    for f in range(folds):
        own = np.flatnonzero(fold == f)
        part = features[torch.from_numpy(own).to(features.device)]
        result[own] = (part @ heads.weights[f::folds].T + heads.intercepts[f::folds]).cpu().numpy()
    return result


Mapped = Callable[[str | None], Iterable[FeatureBlock]]


@dataclass(frozen=True)
class RefitJob:
    """What is refitted.

    Attributes:
        views: the deals, the columns of the blocks' folds.
        fits: the heads that saw all rows.
        scaled: the generators whose logits are scaled.
        matched: the generators that have a matched subsample.
        balanced: as in `fit_views`.
    """

    views: list[View]
    fits: dict[str, Fit]
    scaled: Collection[str]
    matched: Collection[str]
    balanced: bool

    def left_out(self, generator: str) -> list[View]:
        """Return a generator's views without each block, and those of the matched subsample."""
        folds = self.views[columns_of(self.views)[generator][0]].folds
        found = [View(generator, 0, folds, j) for j in range(BLOCKS)]
        if generator in self.matched:
            found += [View(generator, 0, folds, j, is_matched=True) for j in range(-1, BLOCKS)]
        return found


def fit_refits(job: RefitJob, mapped: Mapped, workers: Workers) -> dict[str, list[Refits]]:
    """Refit every generator's heads of its first deal without each block, and on the matched subsample.

    Args:
        job: what there is to fit.
        mapped: gives this worker's rows, of one set or of all.
        workers: how they add up.
    """
    first = {name: columns[0] for name, columns in columns_of(job.views).items()}
    refits: dict[str, list[Refits]] = {}
    left_out = {name: job.left_out(name) for name in first if job.fits[name].start is not None}
    for names in _batches({name: sum(view.folds for view in views) for name, views in left_out.items()}):
        views = [view for name in names for view in left_out[name]]
        start = {name: own for name in names if (own := job.fits[name].start) is not None}
        blocks = _LeftOut(mapped, views, first)
        found = refit(views, start, blocks, balanced=job.balanced, workers=workers)
        for name, heads in found.items():
            refits[name] = [
                _scaled(job, mapped, workers, (name, first[name]), part) for part in _parts(left_out[name], heads)
            ]
    return refits


def _parts(views: list[View], heads: Heads) -> Iterator[tuple[list[View], Heads]]:
    """Yield the heads without blocks, and those of the matched subsample."""
    for is_matched in (False, True):
        own = [view for view in views if view.is_matched == is_matched]
        if own:
            start = sum(view.folds for view in views if not view.is_matched) if is_matched else 0
            part = slice(start, start + sum(view.folds for view in own))
            yield own, Heads(heads.weights[part], heads.intercepts[part])


def _scaled(
    job: RefitJob, mapped: Mapped, workers: Workers, place: tuple[str, int], part: tuple[list[View], Heads]
) -> Refits:
    (name, column), (views, heads) = place, part
    without = np.array([view.without for view in views], np.int8)
    is_matched, folds = views[0].is_matched, views[0].folds
    slope, offset = np.ones((len(views), folds)), np.zeros((len(views), folds))
    refits = Refits(heads, slope, offset, without, is_matched)
    if name not in job.scaled:
        return refits
    scaling = fit_calibration(_logits(mapped, refits, name, column), len(views), folds, workers.reduce_sum)
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
    views: list[View]
    first: dict[str, int]

    def __call__(self, name: str | None = None) -> Iterator[FeatureBlock]:
        names = {view.generator for view in self.views}
        columns = torch.tensor([self.first[view.generator] for view in self.views])
        without = torch.tensor([view.without for view in self.views], dtype=torch.int8)
        is_matched = torch.tensor([view.is_matched for view in self.views])
        for block in self.mapped(name):
            if block.name != REAL and block.name not in names:
                continue
            assert block.block is not None
            # A part at a time, for there are many views; features are not copied.
            for start in range(0, len(block.key), _PART_ROWS):
                part = slice(start, start + _PART_ROWS)
                code, fold = block.block[part][:, columns], block.fold[part][:, columns]
                is_out = (code % OUT == without.to(code.device)) | ((code >= OUT) & is_matched.to(code.device))
                fold = torch.where(is_out, -1, fold)
                yield FeatureBlock(block.name, block.features[part], fold, block.key[part])


def _logits(
    mapped: Mapped, refits: Refits, generator: str, column: int
) -> Iterator[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]:
    """Yield out-of-fold logits of the rows in a generator's view by each of its heads, by class."""
    for name in (REAL, generator):
        for block in mapped(name):
            assert block.block is not None
            for start in range(0, len(block.key), _ROWS):
                part = slice(start, start + _ROWS)
                fold, code = (own[part, column].cpu().numpy() for own in (block.fold, block.block))
                raw = _raw(refits.heads, block.features[part].double(), fold, len(refits.without))
                out = _left_out(code, refits.without, refits.is_matched)
                yield name != REAL, raw, np.where(out, -1, fold[:, None]).astype(np.int8)
