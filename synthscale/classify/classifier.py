"""Fit the k-fold real-vs-synthetic classifier: one feature map, and calibrated heads for every generator.

Reads `TrainingData`, returns a `FittedClassifier` and what each fit chose; writes no files. One process, Ray Train
workers and ``score_features`` run the same code and differ only in the source of the rows and in ``reduce_sum``.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np
import torch

from synthscale.classify.calibration import Logits, PlattScaling, fit_platt_scaling
from synthscale.classify.features import FeatureMap, LinearHeads, fit_feature_map
from synthscale.classify.fold_views import FeatureBlock, view_columns
from synthscale.classify.jackknife_refits import JackknifeRefits, RefitRequest, fit_without_blocks
from synthscale.classify.logistic import LogisticFit, fit_logistic_heads
from synthscale.classify.model import FittedClassifier, OutOfFoldModel, out_of_fold_logits, to_cpu
from synthscale.classify.network import MlpFit, fit_mlp_heads
from synthscale.classify.training import TrainingData, VectorBlock, bandwidth_hashes
from synthscale.config import ClassifierConfig
from synthscale.tables.id_hashes import Hashes
from synthscale.tables.schemas import REAL

_CHUNK_ROWS = 8192
"""Rows that are mapped to features at once; bounds the memory for float64 intermediates."""

Fits = dict[str, LogisticFit] | dict[str, MlpFit]
AnyHeads = TypeVar("AnyHeads", bound=OutOfFoldModel)


def fit_classifier(training: TrainingData, settings: ClassifierConfig) -> tuple[FittedClassifier, Fits]:
    """Fit the feature map, every generator's heads, their calibration and the jackknife's refits.

    Args:
        training: this worker's rows and the all-reduce; all workers call this function together.
        settings: kind of head, strengths, class weights and seed.

    Returns:
        The model, without separating directions, and each generator's fit; the same on all workers.
    """
    if training.is_cached:
        cached = list(training.blocks(None))
        training = replace(training, blocks=lambda name: (b for b in cached if name in (None, b.name)))
    feature_map = _feature_map(training, settings)
    mapped = _FeatureSource(training, feature_map)
    # On a CPU the context manager would only slow down every small operation.
    on_gpu = training.workers.device != "cpu"
    with torch.device(training.workers.device) if on_gpu else contextlib.nullcontext():
        fits = _fit_heads(training, settings, mapped)
        calibrations = {name: _calibration(training, mapped, name, fit.heads) for name, fit in fits.items()}
        refits = _refits(training, settings, mapped, fits, calibrations)
        heads = {
            name: tuple(to_cpu(mapped.to_all_features(repeat)) for repeat in fit.heads)
            for name, fit in fits.items()
        }
    return FittedClassifier(feature_map, heads, calibrations, refits=refits), fits


def _fit_heads(training: TrainingData, settings: ClassifierConfig, mapped: "_FeatureSource") -> Fits:
    if settings.head != "mlp":
        mapped.project_to_row_span()
        balanced = settings.class_weight == "balanced"
        return fit_logistic_heads(
            training.views, settings.strengths, mapped, balanced=balanced, workers=training.workers
        )
    return {
        generator: fit_mlp_heads(
            [training.views[c] for c in columns],
            columns,
            mapped,
            training.dimensions,
            settings.seed,
            training.workers,
        )
        for generator, columns in view_columns(training.views).items()
    }


def _refits(
    training: TrainingData,
    settings: ClassifierConfig,
    mapped: "_FeatureSource",
    fits: Fits,
    calibrations: dict[str, PlattScaling],
) -> dict[str, list[JackknifeRefits]]:
    """Return the jackknife's refits of logistic heads; none for networks, which take too long to fit 20 times."""
    logistic = {name: fit for name, fit in fits.items() if isinstance(fit, LogisticFit)}
    if not training.is_refitted or len(logistic) < len(fits):
        return {}
    job = RefitRequest(
        views=training.views,
        fits=logistic,
        scaled={name for name, calibration in calibrations.items() if calibration.is_used},
        matched=training.matched,
        balanced=settings.class_weight == "balanced",
    )
    by_generator = fit_without_blocks(job, mapped, training.workers)
    return {
        name: [replace(refit, heads=mapped.to_all_features(refit.heads)) for refit in refits]
        for name, refits in by_generator.items()
    }


def _calibration(
    training: TrainingData, mapped: "_FeatureSource", generator: str, heads: tuple[OutOfFoldModel, ...]
) -> PlattScaling:
    columns = view_columns(training.views)[generator]
    folds = max(training.views[c].folds for c in columns)
    logits = mapped.logits(generator, heads, columns)
    return fit_platt_scaling(logits, len(heads), folds, training.workers.reduce_sum)


class _FeatureSource:
    """Starts passes over this worker's features, which are cached in float32 or computed again in each pass."""

    def __init__(self, training: TrainingData, feature_map: FeatureMap) -> None:
        self._training, self._map, self._device = training, feature_map, training.workers.device
        self._cached = self._load_all() if training.is_cached else None
        self._basis: torch.Tensor | None = None

    def __call__(self, name: str | None = None) -> Iterable[FeatureBlock]:
        """Return the blocks of all sets (None) or of the named one."""
        if self._cached is None:
            return self._blocks(name)
        return [block for block in self._cached if name in (None, block.name)]

    def _blocks(self, name: str | None) -> Iterator[FeatureBlock]:
        for block in self._training.blocks(name):
            if len(block.key):
                features, fold = torch.cat(list(self._features(block))), torch.from_numpy(block.fold)
                codes = None if block.block is None else torch.from_numpy(block.block).to(self._device)
                yield FeatureBlock(block.name, features.to(self._device), fold.to(self._device), block.key, codes)

    def _load_all(self) -> list[FeatureBlock]:
        """Return all rows as one block per set, for larger matrix products and batches from the whole set."""
        cached = []
        for name in self._training.rows:
            blocks = list(self._training.blocks(name))
            n = sum(len(block.key) for block in blocks)
            features = torch.empty((n, self._map.dimensions), dtype=torch.float32, device=self._device)
            start = 0
            for block in blocks:
                for part in self._features(block):
                    features[start : start + len(part)] = part
                    start += len(part)
            if n:
                fold = torch.from_numpy(np.concatenate([block.fold for block in blocks]))
                key = np.concatenate([block.key for block in blocks])
                parts = [block.block for block in blocks if block.block is not None]
                codes = torch.from_numpy(np.concatenate(parts)).to(self._device) if parts else None
                cached.append(FeatureBlock(name, features, fold.to(self._device), key, codes))
        return cached

    def _features(self, block: VectorBlock) -> Iterator[torch.Tensor]:
        for i in range(0, len(block.key), _CHUNK_ROWS):
            # A copy, because torch warns about read-only arrays.
            yield self._map(torch.from_numpy(block.vectors[i : i + _CHUNK_ROWS].copy())).float()

    def project_to_row_span(self) -> None:
        """Project the cached features onto the span of the rows if rows are fewer than features.

        The optimal heads lie in that span, so the solution is the same and the solver has fewer dimensions.
        """
        rows = sum(len(block.key) for block in self._cached or [])
        if self._cached and not self._training.workers.is_distributed and rows < self._map.dimensions:
            self._basis = torch.linalg.qr(torch.cat([block.features for block in self._cached]).double().T).Q
            self._cached = [
                replace(block, features=block.features.double() @ self._basis) for block in self._cached
            ]

    def logits(self, generator: str, heads: tuple[OutOfFoldModel, ...], columns: list[int]) -> Logits:
        """Yield blocks of one generator's rows and the real rows: is synthetic, out-of-fold logits, folds."""
        for name in (REAL, generator):
            for block in self(name):
                for start in range(0, len(block.key), _CHUNK_ROWS):
                    part = slice(start, start + _CHUNK_ROWS)
                    fold = block.fold[part][:, columns].cpu().numpy()
                    yield name != REAL, out_of_fold_logits(heads, block.features[part].double(), fold), fold

    def to_all_features(self, heads: AnyHeads) -> AnyHeads:
        """Convert linear heads on projected features back to heads on all features; others are unchanged."""
        if self._basis is None or not isinstance(heads, LinearHeads):
            return heads
        return cast(AnyHeads, LinearHeads(heads.weights @ self._basis.T, heads.intercepts))


def _feature_map(training: TrainingData, settings: ClassifierConfig) -> FeatureMap:
    """Fit the feature map to the distinct real rows of all workers, in two passes."""
    d = training.dimensions
    sums, sample = torch.zeros(d + 1, dtype=torch.float64), torch.zeros((len(training.sample), d)).double()
    for rows, hashes in _distinct_real(training):
        sums[:-1] += rows.sum(0)
        sums[-1] += len(rows)
        at = np.searchsorted(training.sample, hashes).clip(max=len(training.sample) - 1)
        is_sampled = training.sample[at] == hashes
        sample[torch.from_numpy(at[is_sampled])] = rows[torch.from_numpy(is_sampled)]
    sums = training.workers.reduce_sum(sums)
    mean = sums[:-1] / sums[-1]
    # A second pass for the variance, as the mean square less the squared mean would lose precision.
    squares = torch.zeros(d, dtype=torch.float64)
    for rows, _ in _distinct_real(training):
        squares += (rows - mean).square().sum(0)
    deviation = (training.workers.reduce_sum(squares) / sums[-1]).sqrt()
    fourier = training.fourier_features if settings.head == "kernel" else 0
    return fit_feature_map(mean, deviation, training.workers.reduce_sum(sample), fourier, settings.seed)


def _distinct_real(training: TrainingData) -> Iterator[tuple[torch.Tensor, Hashes]]:
    """Yield this worker's distinct real rows, (m, d) float64, and their sampling hashes, (m,), in chunks."""
    for block in training.blocks(REAL):
        distinct = np.flatnonzero(~block.is_copy)
        for i in range(0, len(distinct), _CHUNK_ROWS):
            part = distinct[i : i + _CHUNK_ROWS]
            yield torch.from_numpy(block.vectors[part]).double(), bandwidth_hashes(block.key[part])
