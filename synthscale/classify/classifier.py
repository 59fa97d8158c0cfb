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

from synthscale.classify.calibration import Calibration, Logits, fit_calibration
from synthscale.classify.features import FeatureMap, Heads, fit_feature_map
from synthscale.classify.jackknife_refits import RefitJob, Refits, fit_refits
from synthscale.classify.logistic import Fit, fit_views
from synthscale.classify.logistic_loss import FeatureBlock, columns_of
from synthscale.classify.model import Model, OutOfFold, on_cpu, out_of_fold
from synthscale.classify.network import NetworkFit, fit_networks
from synthscale.classify.training import Training, VectorBlock, sample_numbers
from synthscale.config import ClassifierConfig
from synthscale.tables.id_hashes import Keys
from synthscale.tables.schemas import REAL

_MAPPED_ROWS = 8192


Fits = dict[str, Fit] | dict[str, NetworkFit]
AnyHeads = TypeVar("AnyHeads", bound=OutOfFold)


def fit_classifier(training: Training, settings: ClassifierConfig) -> tuple[Model, Fits]:
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
        heads = {name: tuple(on_cpu(mapped.widened(deal)) for deal in fit.heads) for name, fit in fits.items()}
    return Model(feature_map, heads, calibrations, refits=refits), fits


def _fit_heads(training: Training, settings: ClassifierConfig, mapped: "_Mapped") -> Fits:
    if settings.head != "mlp":
        mapped.narrow()
        balanced = settings.class_weight == "balanced"
        return fit_views(training.views, settings.strengths, mapped, balanced=balanced, workers=training.workers)
    return {
        generator: fit_networks(
            [training.views[c] for c in columns],
            columns,
            mapped,
            training.dimensions,
            settings.seed,
            training.workers,
        )
        for generator, columns in columns_of(training.views).items()
    }


def _refits(
    training: Training,
    settings: ClassifierConfig,
    mapped: "_Mapped",
    fits: Fits,
    calibrations: dict[str, Calibration],
) -> dict[str, list[Refits]]:
    """The logistic heads without some rows; a network would take too long to fit 20 times."""
    logistic = {name: fit for name, fit in fits.items() if isinstance(fit, Fit)}
    if not training.is_refitted or len(logistic) < len(fits):
        return {}
    job = RefitJob(
        views=training.views,
        fits=logistic,
        scaled={name for name, calibration in calibrations.items() if calibration.is_used},
        matched=training.matched,
        balanced=settings.class_weight == "balanced",
    )
    found = fit_refits(job, mapped, training.workers)
    return {name: [replace(r, heads=mapped.widened(r.heads)) for r in own] for name, own in found.items()}


def _calibration(
    training: Training, mapped: "_Mapped", generator: str, heads: tuple[OutOfFold, ...]
) -> Calibration:
    columns = columns_of(training.views)[generator]
    folds = max(training.views[c].folds for c in columns)
    logits = mapped.logits(generator, heads, columns)
    return fit_calibration(logits, len(heads), folds, training.workers.reduce_sum)


class _Mapped:
    """A pass over features: held in float32 where they fit, else made anew from the rows of each pass."""

    def __init__(self, training: Training, feature_map: FeatureMap) -> None:
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

    def logits(self, generator: str, heads: tuple[OutOfFold, ...], columns: list[int]) -> Logits:
        """Yield out-of-fold logits of the rows in a generator's view, by class."""
        for name in (REAL, generator):
            for block in self(name):
                for start in range(0, len(block.key), _MAPPED_ROWS):
                    part = slice(start, start + _MAPPED_ROWS)
                    fold = block.fold[part][:, columns].cpu().numpy()
                    yield name != REAL, out_of_fold(heads, block.features[part].double(), fold), fold

    def widened(self, heads: AnyHeads) -> AnyHeads:
        """Return heads over the features that are heads over the span of the rows."""
        if self._basis is None or not isinstance(heads, Heads):
            return heads
        return cast(AnyHeads, Heads(heads.weights @ self._basis.T, heads.intercepts))


def _feature_map(training: Training, settings: ClassifierConfig) -> FeatureMap:
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


def _distinct_real(training: Training) -> Iterator[tuple[torch.Tensor, Keys]]:
    """Yield the distinct real rows, some at a time, with the numbers that samples are drawn by."""
    for block in training.blocks(REAL):
        distinct = np.flatnonzero(~block.is_copy)
        for i in range(0, len(distinct), _MAPPED_ROWS):
            part = distinct[i : i + _MAPPED_ROWS]
            yield torch.from_numpy(block.vectors[part]).double(), sample_numbers(block.key[part])
