"""Heads refitted without each block of the jackknife: how fidelity and representativeness move with the data.

Both figures follow the fit: their variance between data sets is up to 15 times what rows in fixed heads show. So
every fold's head is fitted again without each block of near-duplicate groups, at the strength that was chosen,
and scaled again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.calibration import fit_calibration
from synthscale.features import Heads
from synthscale.jackknife import BLOCKS
from synthscale.logistic import Fit, refit
from synthscale.problem import FeatureBlock, View, columns_of
from synthscale.schemas import REAL
from synthscale.workers import Workers

_COLUMNS = 1000
"""Heads that are fitted at once, of one generator at least."""
_ROWS = 8192


@dataclass(frozen=True)
class Refits:
    """One generator's heads without each block.

    Attributes:
        heads: weights (BLOCKS x k, D), block after block.
        slope, offset: (BLOCKS, k), what their logits are scaled by.
    """

    heads: Heads
    slope: NDArray[np.float64]
    offset: NDArray[np.float64]

    def logits(
        self, features: torch.Tensor, fold: NDArray[np.int8], block: NDArray[np.int8]
    ) -> NDArray[np.float64]:
        """Return out-of-fold logits without each block: (n, BLOCKS); NaN without the row's own block.

        Args:
            features: (n, D).
            fold: (n,) in the first deal.
            block: (n,).
        """
        logits = _raw(self.heads, features, fold)
        logits = self.slope.T[fold] * logits + self.offset.T[fold]
        logits[np.arange(len(fold)), block] = np.nan
        return logits


def _raw(heads: Heads, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
    folds = len(heads.intercepts) // BLOCKS
    result = np.empty((len(fold), BLOCKS))
    for f in range(folds):
        own = np.flatnonzero(fold == f)
        part = features[torch.from_numpy(own).to(features.device)]
        result[own] = (part @ heads.weights[f::folds].T + heads.intercepts[f::folds]).cpu().numpy()
    return result


Mapped = Callable[[str | None], Iterable[FeatureBlock]]


def fit_refits(
    views: list[View], fits: dict[str, Fit], scaled: set[str], mapped: Mapped, *, balanced: bool, workers: Workers
) -> dict[str, Refits]:
    """Refit every generator's heads of its first deal without each block, and scale them.

    Args:
        views: the deals, the columns of the blocks' folds.
        fits: the heads that saw all blocks.
        scaled: the generators whose logits are scaled.
        mapped: gives this worker's rows, of one set or of all.
        balanced: as in `fit_views`.
        workers: how they add up.
    """
    first = {name: columns[0] for name, columns in columns_of(views).items()}
    folds = {name: views[c].folds for name, c in first.items()}
    refits: dict[str, Refits] = {}
    for names in _batches({name: k for name, k in folds.items() if fits[name].start is not None}):
        left_out = [View(name, 0, folds[name], j) for name in names for j in range(BLOCKS)]
        start = {name: own for name in names if (own := fits[name].start) is not None}
        blocks = _LeftOut(mapped, left_out, first)
        for name, heads in refit(left_out, start, blocks, balanced=balanced, workers=workers).items():
            slope, offset = np.ones((BLOCKS, folds[name])), np.zeros((BLOCKS, folds[name]))
            if name in scaled:
                logits = _logits(mapped, name, heads, first[name])
                scaling = fit_calibration(logits, BLOCKS, folds[name], workers.reduce_sum)
                slope, offset = scaling.slope, scaling.offset
            refits[name] = Refits(heads, slope, offset)
    return refits


def _batches(folds: dict[str, int]) -> Iterator[list[str]]:
    batch: list[str] = []
    for name in folds:
        if batch and BLOCKS * sum(folds[other] for other in [*batch, name]) > _COLUMNS:
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
        without = torch.tensor([view.without for view in self.views])
        for block in self.mapped(name):
            if block.name != REAL and block.name not in names:
                continue
            assert block.block is not None
            is_out = block.block[:, columns] == without.to(block.block.device)
            yield replace(block, fold=torch.where(is_out, -1, block.fold[:, columns]))


def _logits(
    mapped: Mapped, generator: str, heads: Heads, column: int
) -> Iterator[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]:
    """Yield out-of-fold logits of the rows in a generator's view without each block, by class."""
    for name in (REAL, generator):
        for block in mapped(name):
            for start in range(0, len(block.key), _ROWS):
                part = slice(start, start + _ROWS)
                fold = block.fold[part, column].cpu().numpy()
                assert block.block is not None
                without = block.block[part, column].cpu().numpy()[:, None] == np.arange(BLOCKS)
                raw = _raw(heads, block.features[part].double(), fold)
                yield name != REAL, raw, np.where(without, -1, fold[:, None]).astype(np.int8)
