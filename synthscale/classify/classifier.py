"""The k-fold real-vs-synthetic classifier of a run: folds by group, one feature map, heads for every generator.

Pure, and the same for one process, Ray Train workers and ``score_features``: what differs is where the rows come
from and ``reduce_sum``.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np
import torch

from synthscale.classify.calibration import Logits, PlattScaling, fit_platt_scaling
from synthscale.classify.features import FeatureMap, LinearHeads, fit_feature_map
from synthscale.classify.jackknife_refits import JackknifeRefits, RefitRequest, fit_without_blocks
from synthscale.classify.logistic import LogisticFit, fit_logistic_heads
from synthscale.classify.logistic_loss import FeatureBlock, view_columns
from synthscale.classify.model import FittedClassifier, OutOfFoldModel, out_of_fold_logits, to_cpu
from synthscale.classify.network import MlpFit, fit_mlp_heads
from synthscale.classify.training import TrainingData, VectorBlock, sample_sizes
from synthscale.config import ClassifierConfig
from synthscale.tables.id_hashes import Hashes
from synthscale.tables.schemas import REAL

_MAPPED_ROWS = 8192


Fits = dict[str, LogisticFit] | dict[str, MlpFit]
AnyHeads = TypeVar("AnyHeads", bound=OutOfFoldModel)


def fit_classifier(training: TrainingData, settings: ClassifierConfig) -> tuple[FittedClassifier, Fits]:
    """Fit the feature map and every generator's heads."""
    if training.is_cached:
        held = list(training.blocks(None))
        training = replace(training, blocks=lambda name: (b for b in held if name in (None, b.name)))
    feature_map = _feature_map(training, settings)
    mapped = _Mapped(training, feature_map)
    # On a processor the context would only slow every small operation down.
    on_gpu = training.workers.device != "cpu"
    with torch.device(training.workers.device) if on_gpu else contextlib.nullcontext():
        fits = _fit_heads(training, settings, mapped)
        calibrations = {name: _calibration(training, mapped, name, fit.heads) for name, fit in fits.items()}
        refits = _refits(training, settings, mapped, fits, calibrations)
        heads = {name: tuple(to_cpu(mapped.widened(repeat)) for repeat in fit.heads) for name, fit in fits.items()}
    return FittedClassifier(feature_map, heads, calibrations, refits=refits), fits


def _fit_heads(training: TrainingData, settings: ClassifierConfig, mapped: "_Mapped") -> Fits:
    if settings.head != "mlp":
        mapped.narrow()
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
    mapped: "_Mapped",
    fits: Fits,
    calibrations: dict[str, PlattScaling],
) -> dict[str, list[JackknifeRefits]]:
    """The logistic heads without some rows; a network would take too long to fit 20 times."""
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
    found = fit_without_blocks(job, mapped, training.workers)
    return {name: [replace(r, heads=mapped.widened(r.heads)) for r in own] for name, own in found.items()}


def _calibration(
    training: TrainingData, mapped: "_Mapped", generator: str, heads: tuple[OutOfFoldModel, ...]
) -> PlattScaling:
    columns = view_columns(training.views)[generator]
    folds = max(training.views[c].folds for c in columns)
    logits = mapped.logits(generator, heads, columns)
    return fit_platt_scaling(logits, len(heads), folds, training.workers.reduce_sum)


class _Mapped:
    """A pass over features: held in float32 where they fit, else made anew from the rows of each pass."""

    def __init__(self, training: TrainingData, feature_map: FeatureMap) -> None:
        self._training, self._map, self._device = training, feature_map, training.workers.device
        self._held = self._merged() if training.is_cached else None
        self._basis: torch.Tensor | None = None

    def __call__(self, name: str | None = None) -> Iterable[FeatureBlock]:
        if self._held is None:
            return self._blocks(name)
        return [block for block in self._held if name in (None, block.name)]

    def _blocks(self, name: str | None) -> Iterator[FeatureBlock]:
        for block in self._training.blocks(name):
            if len(block.key):
                features, fold = torch.cat(list(self._features(block))), torch.from_numpy(block.fold)
                own = None if block.block is None else torch.from_numpy(block.block).to(self._device)
                yield FeatureBlock(block.name, features.to(self._device), fold.to(self._device), block.key, own)

    def _merged(self) -> list[FeatureBlock]:
        """Return all rows, one block a set: larger products, and batches drawn from all of a set's rows."""
        held = []
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
                own = torch.from_numpy(np.concatenate(parts)).to(self._device) if parts else None
                held.append(FeatureBlock(name, features, fold.to(self._device), key, own))
        return held

    def _features(self, block: VectorBlock) -> Iterator[torch.Tensor]:
        for i in range(0, len(block.key), _MAPPED_ROWS):
            # A copy: torch warns of arrays that may not be written.
            yield self._map(torch.from_numpy(block.vectors[i : i + _MAPPED_ROWS].copy())).float()

    def narrow(self) -> None:
        """With fewer rows than dimensions, look at the span of the rows alone: the heads lie in it."""
        rows = sum(len(block.key) for block in self._held or [])
        if self._held and not self._training.workers.are_several and rows < self._map.dimensions:
            self._basis = torch.linalg.qr(torch.cat([block.features for block in self._held]).double().T).Q
            self._held = [replace(block, features=block.features.double() @ self._basis) for block in self._held]

    def logits(self, generator: str, heads: tuple[OutOfFoldModel, ...], columns: list[int]) -> Logits:
        """Yield out-of-fold logits of the rows in a generator's view, by class."""
        for name in (REAL, generator):
            for block in self(name):
                for start in range(0, len(block.key), _MAPPED_ROWS):
                    part = slice(start, start + _MAPPED_ROWS)
                    fold = block.fold[part][:, columns].cpu().numpy()
                    yield name != REAL, out_of_fold_logits(heads, block.features[part].double(), fold), fold

    def widened(self, heads: AnyHeads) -> AnyHeads:
        """Return heads over the features that are heads over the span of the rows."""
        if self._basis is None or not isinstance(heads, LinearHeads):
            return heads
        return cast(AnyHeads, LinearHeads(heads.weights @ self._basis.T, heads.intercepts))


def _feature_map(training: TrainingData, settings: ClassifierConfig) -> FeatureMap:
    """Build the map from the distinct real rows of all workers: two passes."""
    d = training.dimensions
    sums, gathered = torch.zeros(d + 1, dtype=torch.float64), torch.zeros((len(training.sample), d)).double()
    for rows, number in _distinct_real(training):
        sums[:-1] += rows.sum(0)
        sums[-1] += len(rows)
        at = np.searchsorted(training.sample, number).clip(max=len(training.sample) - 1)
        mine = training.sample[at] == number
        gathered[torch.from_numpy(at[mine])] = rows[torch.from_numpy(mine)]
    sums = training.workers.reduce_sum(sums)
    mean = sums[:-1] / sums[-1]
    # The second pass keeps the precision that one pass of squares would lose.
    squares = torch.zeros(d, dtype=torch.float64)
    for rows, _ in _distinct_real(training):
        squares += (rows - mean).square().sum(0)
    deviation = (training.workers.reduce_sum(squares) / sums[-1]).sqrt()
    fourier = training.fourier_features if settings.head == "kernel" else 0
    return fit_feature_map(mean, deviation, training.workers.reduce_sum(gathered), fourier, settings.seed)


def _distinct_real(training: TrainingData) -> Iterator[tuple[torch.Tensor, Hashes]]:
    """Yield the distinct real rows, some at a time, with the numbers that samples are drawn by."""
    for block in training.blocks(REAL):
        distinct = np.flatnonzero(~block.is_copy)
        for i in range(0, len(distinct), _MAPPED_ROWS):
            part = distinct[i : i + _MAPPED_ROWS]
            yield torch.from_numpy(block.vectors[part]).double(), sample_sizes(block.key[part])
