"""Inputs of the logistic loss: views under fold assignments, feature blocks, and which heads see which rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import REAL

CHUNK_ROWS = 2048
"""Rows in one pair of matrix products: features and margins must stay in the CPU's cache between the two."""


_SAMPLE_STREAM = 77
"""Hash stream that draws the sample."""


@dataclass(frozen=True)
class FoldView:
    """One generator's rows and the real rows, under one fold assignment.

    Attributes:
        generator: its name.
        repeat: which of the ``classifier.repeats`` fold assignments, from 0.
        folds: k.
        without: the jackknife block that is left out; -1: none.
        is_matched: whether only the rows of the matched subsample are used.
        reassignment: number of the fold assignment by blocks (`jackknife.reassigned_folds`) that replaces the one
            of ``repeat``; 0: not replaced.
    """

    generator: str
    repeat: int
    folds: int
    without: int = -1
    is_matched: bool = False
    reassignment: int = 0


def view_columns(views: Iterable[FoldView]) -> dict[str, list[int]]:
    """Return the indices of each generator's views, which are its columns in arrays of folds (n, V)."""
    columns: dict[str, list[int]] = {}
    for c, view in enumerate(views):
        columns.setdefault(view.generator, []).append(c)
    return columns


@dataclass(frozen=True)
class FeatureBlock:
    """Some rows of one set.

    Attributes:
        name: the set: `REAL` or a generator.
        features: (n, D).
        fold: (n, V) fold in each view; -1 for rows outside the view.
        key: (n,) hashes of the ids.
        block: (n, V) jackknife block code in each view (`size_matching.block_codes`); None if no heads are
            refitted.
    """

    name: str
    features: torch.Tensor
    fold: torch.Tensor
    key: Hashes
    block: torch.Tensor | None = None

    @property
    def sign(self) -> float:
        """Class of the rows as a sign: 1 synthetic, -1 real."""
        return -1.0 if self.name == REAL else 1.0

    def sampled(self, one_in: int) -> "FeatureBlock":
        """Return a sample of about one in ``one_in`` rows, drawn by hash."""
        return self.rows(np.flatnonzero(mix(self.key, _SAMPLE_STREAM) % np.uint64(one_in) == 0))

    def rows(self, chosen: NDArray[np.int64]) -> "FeatureBlock":
        """Return the rows at the given indices."""
        index = torch.from_numpy(chosen).to(self.features.device)
        block = None if self.block is None else self.block[index]
        return FeatureBlock(self.name, self.features[index], self.fold[index], self.key[chosen], block)

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield float64 features and folds of consecutive rows, at most ``rows`` at a time."""
        for features, fold in zip(torch.split(self.features, rows), torch.split(self.fold, rows), strict=True):
            yield features.double(), fold


def concatenate_blocks(blocks: list[FeatureBlock]) -> FeatureBlock:
    """Concatenate blocks of one set; jackknife block codes are dropped."""
    features, fold = (torch.cat([getattr(block, name) for block in blocks]) for name in ("features", "fold"))
    return FeatureBlock(blocks[0].name, features, fold, np.concatenate([block.key for block in blocks]))


@dataclass(frozen=True)
class HeadColumns:
    """Index of the C heads, each a column of the solver's arrays.

    Attributes:
        views: the views that heads belong to.
        view: (C,) index of each head's view.
        fold: (C,) fold that each head leaves out.
        strength: (C,) L2 penalty of each head.
    """

    views: tuple[FoldView, ...]
    view: torch.Tensor
    fold: torch.Tensor
    strength: torch.Tensor

    @classmethod
    def of(cls, views: Iterable[FoldView], strengths: Mapping[str, Sequence[float]]) -> "HeadColumns":
        """Create one head for each view, strength of its generator, and fold."""
        listed = tuple(views)
        heads = [
            (v, f, s)
            for v, view in enumerate(listed)
            for s in strengths[view.generator]
            for f in range(view.folds)
        ]
        view, fold, strength = zip(*heads, strict=True)
        return cls(listed, torch.tensor(view), torch.tensor(fold), torch.tensor(strength, dtype=torch.float64))

    @cached_property
    def _generators(self) -> list[str]:
        return [self.views[v].generator for v in self.view.tolist()]

    def generator_of(self, group: torch.Tensor) -> str:
        """Return the generator of a group of heads, which all have the same."""
        return self._generators[int(group[0])]

    def using_set(self, name: str) -> torch.Tensor:
        """Return which heads have a set in their views: (C,) bool; all of them for the real set."""
        return torch.tensor([name in (REAL, generator) for generator in self._generators])

    def group_by_strength(self, chosen: torch.Tensor) -> list[torch.Tensor]:
        """Group heads, given by their indices, by generator and strength."""
        groups: dict[tuple[str, float], list[int]] = {}
        for c in chosen.tolist():
            groups.setdefault((self._generators[c], float(self.strength[c])), []).append(c)
        return [torch.tensor(columns) for columns in groups.values()]
