"""Find the directions of the embedding that separate a generator's images from the real ones.

Reads a fitted classifier and the training rows, returns `SeparatingDirections`. The logit's gradient at an image
points towards "more synthetic". The eigenvectors of the gradients' mean outer product (the active subspace,
Constantine 2015) are the directions along which the logit changes most, and each eigenvalue, over the trace, is
the share of that change. Unlike mean weights they also show differences of spread, where gradients point both
ways. Coordinates are in standard deviations of the real images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from synthscale.classify.fold_views import view_columns
from synthscale.classify.model import FittedClassifier, SeparatingDirections
from synthscale.classify.training import TrainingData, VectorBlock
from synthscale.tables.id_hashes import mix
from synthscale.tables.schemas import DIRECTIONS, REAL

_SAMPLE_ROWS = 4096
"""Rows of each set, about, whose gradients are averaged; cost and precision grow with it."""
_STREAM = 23
"""Hash stream that draws the sample."""


@dataclass
class _Sums:
    """Sums by class (0 real, 1 synthetic) over the sampled rows.

    Attributes:
        outer: (2, d, d) outer products of the logit's gradients.
        row: (2, d) standardised rows.
        count: (2,) rows.
    """

    outer: torch.Tensor
    row: torch.Tensor
    count: torch.Tensor


def find_directions(model: FittedClassifier, training: TrainingData) -> dict[str, SeparatingDirections]:
    """Return the separating directions of each generator; an empty set if its logits are the same for all rows."""
    d = training.dimensions
    names = list(model.heads)
    sums = {
        name: _Sums(*(torch.zeros(shape, dtype=torch.float64) for shape in ((2, d, d), (2, d), (2,))))
        for name in names
    }
    for block in _sampled(training):
        for name in names:
            if block.name in (REAL, name):
                _add(sums[name], model, training, name, block)
    return {name: _directions(sums[name], training) for name in names}


def _sampled(training: TrainingData) -> Iterator[VectorBlock]:
    """Yield the sampled rows of each block, drawn by hash."""
    for block in training.blocks(None):
        one_in = max(1, training.rows[block.name] // _SAMPLE_ROWS)
        keep = np.flatnonzero(mix(block.key, _STREAM) % np.uint64(one_in) == 0)
        if len(keep):
            yield VectorBlock(
                block.name, block.vectors[keep], block.fold[keep], block.key[keep], block.is_copy[keep]
            )


def _add(sums: _Sums, model: FittedClassifier, training: TrainingData, name: str, block: VectorBlock) -> None:
    """Add a block's gradients of the calibrated logits, mean over repeats, to a generator's sums."""
    vectors = torch.from_numpy(block.vectors)
    features = model.feature_map(vectors)
    fold = block.fold[:, view_columns(training.views)[name]]
    slope = torch.from_numpy(model.calibrations[name].slopes(fold))
    repeats = [h.gradients(features, fold[:, i]) * slope[:, i, None] for i, h in enumerate(model.heads[name])]
    gradient = model.feature_map.embedding_gradient(vectors, torch.stack(repeats).mean(0))
    at = int(block.name != REAL)
    sums.outer[at] += gradient.T @ gradient
    sums.row[at] += model.feature_map.standardise(vectors).sum(0)
    sums.count[at] += len(vectors)


def _directions(sums: _Sums, training: TrainingData) -> SeparatingDirections:
    """Return the leading eigenvectors of the class-balanced mean outer product, summed over all workers."""
    reduce_sum = training.workers.reduce_sum
    outer, row, count = reduce_sum(sums.outer), reduce_sum(sums.row), reduce_sum(sums.count)
    mean = (outer / count[:, None, None]).mean(0)
    total = float(mean.trace())
    if not total > 0:
        return SeparatingDirections(mean.new_zeros((0, len(mean))), mean.new_zeros(0))
    values, vectors = torch.linalg.eigh(mean)
    kept = min(DIRECTIONS, len(values))
    axes = vectors.T.flip(0)[:kept]
    # The sign of an eigenvector is arbitrary: let the mean of the synthetic rows be at the positive end.
    mean_difference = axes @ (row[1] / count[1] - row[0] / count[0])
    axes = torch.where(mean_difference[:, None] < 0, -axes, axes)
    return SeparatingDirections(axes, values.flip(0)[:kept].clamp_min(0) / total)
