"""The loss of many logistic heads at once over rows in blocks: values, gradients, Hessians and held-out losses.

A head belongs to one view (a generator's rows in one deal to folds), one fold and one L2 strength. It minimises,
over the rows of its view outside its fold,

    sum_i a_i log(1 + exp(-s_i (x_i w + b))) + strength / 2 |w|^2,   sum_i a_i = 1,

so a strength means the same at any number of rows. A row is masked out of the heads of its own fold, and one
matrix product serves all heads: every fold, strength, deal and generator. Real rows are in every view, so what
generators share is read once. Sums are in float64 and go through ``reduce_sum``, which adds over workers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from synthscale.classify.fit_context import ReduceSum
from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import REAL

_CHUNK_ROWS = 2048
"""Rows whose features and margins stay in the processor's cache between the two products."""
_HESSIAN_ROWS = 8192
"""Rows of one product of a Hessian: adding up its squares of D numbers must cost little beside it."""
_SAMPLE_STREAM = 77
_SAMPLE_BYTES = 2**30
"""Memory that a sample may take beside the rows."""


@dataclass(frozen=True)
class FoldView:
    """A generator's rows and the real rows, dealt to ``folds`` folds; a deal is one of ``classifier.repeats``.

    It may leave out a jackknife's block (``without``), or what is not in a matched subsample, or ``reassignment`` folds.
    """

    generator: str
    repeat: int
    folds: int
    without: int = -1
    is_matched: bool = False
    reassignment: int = 0


def view_columns(views: Iterable[FoldView]) -> dict[str, list[int]]:
    """Return where each generator's deals stand among the views: the columns of folds (n, V)."""
    columns: dict[str, list[int]] = {}
    for c, view in enumerate(views):
        columns.setdefault(view.generator, []).append(c)
    return columns


@dataclass(frozen=True)
class FeatureBlock:
    """Rows of one set: its name, features (n, D), fold in each view (n, V; -1: not in it), and keys (n,).

    ``block`` is the row's block in each view (n, V; matched.block_codes), where heads are refitted without some.
    """

    name: str
    features: torch.Tensor
    fold: torch.Tensor
    key: Hashes
    block: torch.Tensor | None = None

    @property
    def sign(self) -> float:
        """1 for synthetic rows, -1 for real ones."""
        return -1.0 if self.name == REAL else 1.0

    def sampled(self, one_in: int) -> "FeatureBlock":
        """Return about one in so many rows, chosen by their keys."""
        return self.rows(np.flatnonzero(mix(self.key, _SAMPLE_STREAM) % np.uint64(one_in) == 0))

    def rows(self, chosen: NDArray[np.int64]) -> "FeatureBlock":
        """Return some rows."""
        index = torch.from_numpy(chosen).to(self.features.device)
        block = None if self.block is None else self.block[index]
        return FeatureBlock(self.name, self.features[index], self.fold[index], self.key[chosen], block)

    def chunks(self, rows: int = _CHUNK_ROWS) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield features, in float64, and folds of some rows at a time."""
        for features, fold in zip(torch.split(self.features, rows), torch.split(self.fold, rows), strict=True):
            yield features.double(), fold


def concatenate_blocks(blocks: list[FeatureBlock]) -> FeatureBlock:
    """Return blocks of one set as one."""
    features, fold = (torch.cat([getattr(block, name) for block in blocks]) for name in ("features", "fold"))
    return FeatureBlock(blocks[0].name, features, fold, np.concatenate([block.key for block in blocks]))


Blocks = Callable[[], Iterable[FeatureBlock]]
"""A pass over this worker's rows."""


@dataclass(frozen=True)
class HeadColumns:
    """The heads, one a column: the view, fold and strength of each, (C,)."""

    views: tuple[FoldView, ...]
    view: torch.Tensor
    fold: torch.Tensor
    strength: torch.Tensor

    @classmethod
    def of(cls, views: Iterable[FoldView], strengths: Mapping[str, Sequence[float]]) -> "HeadColumns":
        """Return a head for each view, strength (of its generator) and fold."""
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
        """Return the generator of some columns of one generator."""
        return self._generators[int(group[0])]

    def within(self, name: str) -> torch.Tensor:
        """Tell which heads see rows of a set: (C,) bool; all see the real ones."""
        return torch.tensor([name in (REAL, generator) for generator in self._generators])

    def alike(self, chosen: torch.Tensor) -> list[torch.Tensor]:
        """Return the chosen columns (indices) in groups of one generator and strength."""
        keys: dict[tuple[str, float], list[int]] = {}
        for c in chosen.tolist():
            keys.setdefault((self._generators[c], float(self.strength[c])), []).append(c)
        return [torch.tensor(columns) for columns in keys.values()]


class LogisticLoss:
    """The heads' losses over rows in blocks, as functions of points: (D + 1, C), the intercepts last."""

    def __init__(
        self,
        columns: HeadColumns,
        blocks: Blocks,
        balanced: bool,
        reduce_sum: ReduceSum,
        stands_for: dict[str, int] | None = None,
    ) -> None:
        """Count the rows: one pass.

        Args:
            columns: the heads.
            blocks: gives this worker's rows, as often as asked.
            balanced: weigh the classes equally, else every row equally.
            reduce_sum: adds a float64 tensor over workers.
            stands_for: rows of each set that these are a sample of.
        """
        self.columns, self.blocks, self.balanced, self.reduce_sum = columns, blocks, balanced, reduce_sum
        self.within: dict[str, torch.Tensor] = {
            name: columns.within(name) for name in [REAL, *dict.fromkeys(v.generator for v in columns.views)]
        }
        self.rows, outside, self.width = self._count()
        self._whole = stands_for or self.rows
        self._weigh(outside, {name: self._whole[name] / max(rows, 1) for name, rows in self.rows.items()})

    def _count(self) -> tuple[dict[str, int], dict[str, torch.Tensor], int]:
        """Rows of each set, those of each set outside each head's fold (C,), and D; over all workers."""
        names = list(self.within)
        counts = torch.zeros((len(names), len(self.columns.view) + 1), dtype=torch.float64)
        width = torch.zeros(1, dtype=torch.float64)
        for block in self.blocks():
            at = names.index(block.name)
            seen = self.within[block.name].nonzero()[:, 0]
            for fold in torch.split(block.fold, _CHUNK_ROWS):
                counts[at, seen] += self._outside(fold, seen).sum(1)
                counts[at, -1] += len(fold)
            width = torch.tensor([float(block.features.shape[1])], dtype=torch.float64)
        share = torch.cat([width, (width > 0).double()])
        total, sizes = self.reduce_sum(counts), self.reduce_sum(share)
        rows = {name: int(total[i, -1]) for i, name in enumerate(names)}
        return rows, {name: total[i, :-1] for i, name in enumerate(names)}, int(sizes[0] / sizes[1])

    def _outside(self, fold: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """1 where a row of a head's view is outside the head's fold, else 0: (c, n), for the chosen heads."""
        own = fold.T[self.columns.view[chosen]]
        return ((own != self.columns.fold[chosen][:, None]) & (own >= 0)).double()

    def _weigh(self, outside: dict[str, torch.Tensor], scale: dict[str, float]) -> None:
        """Set each set's row weight for each head, (C,), and the log of synthetic over real weight, (C,)."""
        real = outside[REAL] * scale[REAL]
        synthetic = torch.stack([outside[name] * scale[name] for name in scale if name != REAL]).sum(0)

        def inverse(total: torch.Tensor) -> torch.Tensor:
            return torch.where(total > 0, 1 / total, 0.0)

        if self.balanced:
            by_class, self.prior = (inverse(real) / 2, inverse(synthetic) / 2), torch.zeros_like(real)
        else:
            both = inverse(real + synthetic)
            by_class = both, both
            self.prior = torch.where((real > 0) & (synthetic > 0), torch.log(synthetic / real), 0.0)
        self.weight = {name: by_class[name != REAL] * scale[name] * within for name, within in self.within.items()}

    def sampled(self, rows: int) -> "LogisticLoss":
        """Return the problem on about so many rows of each set, held in memory.

        Itself where there are no more rows, or where the sample would need too much memory.
        """
        one_in = {name: max(1, total // rows) for name, total in self.rows.items()}
        held_bytes = 4 * self.width * sum(total / one_in[name] for name, total in self.rows.items())
        if all(step == 1 for step in one_in.values()) or held_bytes > _SAMPLE_BYTES:
            return self
        drawn: dict[str, list[FeatureBlock]] = {name: [] for name in self.rows}
        for block in self.blocks():
            drawn[block.name].append(block.sampled(one_in[block.name]))
        # One block a set: small products are slow ones.
        held = [concatenate_blocks(blocks) for blocks in drawn.values() if blocks]
        return LogisticLoss(self.columns, lambda: held, self.balanced, self.reduce_sum, self._whole)

    def loss_and_gradient(self, points: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the chosen heads' losses (c,) and gradients (D + 1, c) at their points (D + 1, c): one pass."""
        sums = torch.zeros((self.width + 2, len(chosen)), dtype=torch.float64)
        for block in self.blocks():
            seen = self.within[block.name][chosen].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            # Heads as rows: for a few dozen heads both products are twice as fast in this order.
            weights, intercepts = points[:-1, seen].T.contiguous(), points[-1, seen][:, None]
            part = torch.zeros((len(seen), self.width + 2), dtype=torch.float64)
            for features, fold in block.chunks():
                signed = block.sign * torch.addmm(intercepts, weights, features.T)
                outside = self._outside(fold, chosen[seen])
                part[:, -1] += (softplus(-signed) * outside).sum(1)
                residual = torch.sigmoid(-signed) * outside
                part[:, :-2] += residual @ features
                part[:, -2] += residual.sum(1)
            part[:, :-1] *= -block.sign
            sums[:, seen] += part.T * self.weight[block.name][chosen[seen]]
        sums = self.reduce_sum(sums)
        penalty = self.penalty(chosen)
        loss = sums[-1] + (penalty * points.square()).sum(0) / 2
        return loss, sums[:-1] + penalty * points

    def penalty(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the L2 penalty of each coefficient: (D + 1, c); the intercepts bear none."""
        penalty = self.columns.strength[chosen].expand(self.width + 1, -1).clone()
        penalty[-1] = 0
        return penalty

    def hessians(self, points: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean Hessian of each group of heads, without penalty: (g, D + 1, D + 1).

        In float32, which is twice as fast: it only preconditions, and so moves no solution.
        """
        total = torch.zeros((len(groups), self.width + 1, self.width + 1), dtype=torch.float64)
        for block in self.blocks():
            within = self.within[block.name]
            for features, fold in block.chunks(_HESSIAN_ROWS):
                narrow = torch.cat([features, features.new_ones((len(features), 1))], 1).float()
                for g, group in enumerate(groups):
                    if not within[group].all():
                        continue
                    margin = torch.addmm(points[-1, group][:, None], points[:-1, group].T, features.T)
                    p = torch.sigmoid(margin)
                    curvature = p * (1 - p) * self._outside(fold, group)
                    weight = (self.weight[block.name][group] @ curvature / len(group)).float()[:, None]
                    total[g] += ((narrow * weight).T @ narrow).double()
        return self.reduce_sum(total)

    def out_of_fold(
        self, points: torch.Tensor, generator: str, pairs: Sequence[tuple[int, float]]
    ) -> Iterator[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]:
        """Yield this worker's out-of-fold logits and folds by class: (n, p) each, for p views and strengths.

        The prior is taken out of the odds: out of fold, every model answers balanced odds.
        """
        view, strength = self.columns.view, self.columns.strength
        places = [((view == v) & (strength == s)).nonzero()[:, 0] for v, s in pairs]
        chosen = torch.cat(places)
        weights, intercepts = points[:-1, chosen].T.contiguous(), (points[-1] - self.prior)[chosen][:, None]
        starts = np.cumsum([0, *map(len, places)])[:-1]
        for block in self.blocks():
            if block.name not in (REAL, generator):
                continue
            for features, fold in block.chunks():
                logit = torch.addmm(intercepts, weights, features.T).cpu().numpy()
                dealt = fold.cpu().numpy()[:, [v for v, _ in pairs]]
                at = starts[None, :] + np.maximum(dealt, 0)
                yield block.name != REAL, logit.T[np.arange(len(dealt))[:, None], at], dealt


LOG_2 = math.log(2)
"""The log-loss of the intercept-only model under balanced odds."""
