"""Evaluate the losses of many logistic heads at once: values, gradients, Hessians and out-of-fold logits.

Reads blocks of features and folds, one pass for each evaluation; `batched_lbfgs.py` minimises. A head belongs to
one view (a generator's rows under one fold assignment), one fold and one L2 strength. It minimises, over the rows
of its view outside its fold,

    sum_i a_i log(1 + exp(-s_i (x_i w + b))) + strength / 2 |w|^2,   sum_i a_i = 1,

so a strength means the same at any number of rows. A row is masked out of the heads of its own fold, and one
matrix product serves all heads: every fold, strength, repeat and generator. Real rows are in every view and are
read once for all generators. Sums are in float64 and go through ``reduce_sum``, the all-reduce over workers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from synthscale.classify.fit_context import ReduceSum
from synthscale.classify.fold_views import CHUNK_ROWS, FeatureBlock, HeadColumns, concatenate_blocks
from synthscale.tables.schemas import REAL

_HESSIAN_ROWS = 8192
"""Rows in one matrix product of a Hessian: enough that adding the (D + 1)^2 results costs little beside it."""
_SAMPLE_BYTES = 2**30
"""Memory limit of a sample, in addition to the rows themselves; a larger sample is replaced by all rows."""


Blocks = Callable[[], Iterable[FeatureBlock]]
"""Starts a pass over this worker's rows."""


class LogisticLoss:
    """Losses of all heads as functions of their points: (D + 1, C), each column a head, the intercept last.

    Attributes:
        columns: the heads.
        rows: rows of each set, over all workers.
        width: D, the number of features.
        weight: (C,) for each set, the weight a_i of one of its rows in each head's loss; 0 for heads without the
            set.
        prior: (C,) log of synthetic over real weight; 0 if the classes are balanced.
        uses: (C,) bool for each set, the heads that use its rows.
    """

    def __init__(
        self,
        columns: HeadColumns,
        blocks: Blocks,
        balanced: bool,
        reduce_sum: ReduceSum,
        population: dict[str, int] | None = None,
    ) -> None:
        """Count the rows in one pass, and compute their weights.

        Args:
            columns: the heads.
            blocks: starts a pass over this worker's rows; called once for each pass.
            balanced: weigh the classes equally, else every row equally.
            reduce_sum: all-reduce over workers.
            population: rows of each set that the blocks are a sample of; None: the blocks have all rows.
        """
        self.columns, self.blocks, self.balanced, self.reduce_sum = columns, blocks, balanced, reduce_sum
        self.uses: dict[str, torch.Tensor] = {
            name: columns.using_set(name) for name in [REAL, *dict.fromkeys(v.generator for v in columns.views)]
        }
        self.rows, outside, self.width = self._count()
        self._population = population or self.rows
        self._weigh(outside, {name: self._population[name] / max(rows, 1) for name, rows in self.rows.items()})

    def _count(self) -> tuple[dict[str, int], dict[str, torch.Tensor], int]:
        """Return, over all workers, the rows of each set, those outside each head's fold (C,), and D."""
        names = list(self.uses)
        counts = torch.zeros((len(names), len(self.columns.view) + 1), dtype=torch.float64)
        width = torch.zeros(1, dtype=torch.float64)
        for block in self.blocks():
            at = names.index(block.name)
            seen = self.uses[block.name].nonzero()[:, 0]
            for fold in torch.split(block.fold, CHUNK_ROWS):
                counts[at, seen] += self._outside(fold, seen).sum(1)
                counts[at, -1] += len(fold)
            width = torch.tensor([float(block.features.shape[1])], dtype=torch.float64)
        share = torch.cat([width, (width > 0).double()])
        total, sizes = self.reduce_sum(counts), self.reduce_sum(share)
        rows = {name: int(total[i, -1]) for i, name in enumerate(names)}
        return rows, {name: total[i, :-1] for i, name in enumerate(names)}, int(sizes[0] / sizes[1])

    def _outside(self, fold: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return 1.0 where a row is in a chosen head's view and outside its fold, else 0.0: (c, n)."""
        in_view = fold.T[self.columns.view[chosen]]
        return ((in_view != self.columns.fold[chosen][:, None]) & (in_view >= 0)).double()

    def _weigh(self, outside: dict[str, torch.Tensor], scale: dict[str, float]) -> None:
        """Set ``weight`` and ``prior``.

        Args:
            outside: (C,) for each set, its rows outside each head's fold.
            scale: rows of the population that a row of each set represents.
        """
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
        self.weight = {name: by_class[name != REAL] * scale[name] * uses for name, uses in self.uses.items()}

    def sampled(self, rows: int) -> "LogisticLoss":
        """Return the losses on a sample of about ``rows`` rows of each set, held in memory.

        Returns the object itself if no set has twice as many rows, or if the sample would need too much memory.
        """
        one_in = {name: max(1, total // rows) for name, total in self.rows.items()}
        sample_bytes = 4 * self.width * sum(total / one_in[name] for name, total in self.rows.items())
        if all(step == 1 for step in one_in.values()) or sample_bytes > _SAMPLE_BYTES:
            return self
        drawn: dict[str, list[FeatureBlock]] = {name: [] for name in self.rows}
        for block in self.blocks():
            drawn[block.name].append(block.sampled(one_in[block.name]))
        # One block per set, as small matrix products are slow.
        merged = [concatenate_blocks(blocks) for blocks in drawn.values() if blocks]
        return LogisticLoss(self.columns, lambda: merged, self.balanced, self.reduce_sum, self._population)

    def loss_and_gradient(self, points: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses (c,) and gradients (D + 1, c) of the chosen heads (c,), in one pass.

        Args:
            points: (D + 1, c), one column for each chosen head.
            chosen: (c,) indices of heads.
        """
        sums = torch.zeros((self.width + 2, len(chosen)), dtype=torch.float64)
        for block in self.blocks():
            seen = self.uses[block.name][chosen].nonzero()[:, 0]
            if len(seen) == 0:
                continue
            # With a few dozen heads both products are twice as fast if heads are rows and not columns.
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
        """Return the L2 penalty of the chosen heads' coefficients: (D + 1, c); 0 for the intercepts."""
        penalty = self.columns.strength[chosen].expand(self.width + 1, -1).clone()
        penalty[-1] = 0
        return penalty

    def hessians(self, points: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean Hessian of each group of heads, without penalty: (g, D + 1, D + 1).

        Products are in float32, which is twice as fast; the Hessian is only a preconditioner and does not affect
        the solution.

        Args:
            points: (D + 1, C).
            groups: indices of heads, each group of one generator.
        """
        total = torch.zeros((len(groups), self.width + 1, self.width + 1), dtype=torch.float64)
        for block in self.blocks():
            uses = self.uses[block.name]
            for features, fold in block.chunks(_HESSIAN_ROWS):
                narrow = torch.cat([features, features.new_ones((len(features), 1))], 1).float()
                for g, group in enumerate(groups):
                    if not uses[group].all():
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
        """Yield blocks of this worker's rows of one generator's views: is synthetic, out-of-fold logits, folds.

        Args:
            points: (D + 1, C).
            generator: its name.
            pairs: view index and strength of each of the p columns.

        Yields:
            The class, logits (n, p) for equal class sizes (the prior is subtracted), and folds (n, p).
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
                pair_fold = fold.cpu().numpy()[:, [v for v, _ in pairs]]
                at = starts[None, :] + np.maximum(pair_fold, 0)
                yield block.name != REAL, logit.T[np.arange(len(pair_fold))[:, None], at], pair_fold


LOG_2 = math.log(2)
"""Log-loss (nats) of the intercept-only model with balanced classes."""
