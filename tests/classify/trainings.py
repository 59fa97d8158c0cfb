"""Shared helpers: fit classifiers to sets of vectors as a run does, on one worker or several."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from synthscale.classify.classifier import fit_classifier
from synthscale.classify.fit_context import FitContext, ReduceSum
from synthscale.classify.model import FittedClassifier
from synthscale.classify.training import (
    FoldPlan,
    NearDuplicates,
    TrainingData,
    VectorBlock,
    bandwidth_sample,
    plan_folds,
)
from synthscale.config import ClassifierConfig
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.schemas import REAL

Vectors = NDArray[np.float64]
Rows = NDArray[np.int64]
NO_GROUPS = (np.empty(0, np.int64), np.empty(0, np.int64))
Result = TypeVar("Result")


def on_workers(count: int, work: Callable[[int, ReduceSum], Result]) -> list[Result]:
    """Run ``work(rank, reduce_sum)`` in ``count`` threads that share an all-reduce, as in torch.distributed."""
    barrier = threading.Barrier(count, timeout=60)
    shelf: list[torch.Tensor] = [torch.empty(0)] * count
    results: dict[int, Result] = {}

    def worker(rank: int) -> None:
        def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
            shelf[rank] = tensor
            barrier.wait()
            total = torch.stack(shelf).sum(0)
            barrier.wait()
            return total

        try:
            results[rank] = work(rank, reduce_sum)
        finally:
            if rank not in results:
                barrier.abort()

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return [results[rank] for rank in range(count)]


def normal(seed: int, n: int, d: int = 16, mean: float = 0.0, variance: float = 1.0) -> Vectors:
    return mean + variance**0.5 * np.random.default_rng(seed).normal(size=(n, d))


@dataclass(frozen=True)
class Sets:
    """Vectors of the real set and of each generator, with folds assigned by the ids SET/0, SET/1, ..."""

    vectors: dict[str, Vectors]
    plans: dict[str, FoldPlan]

    def training(
        self, order: int | None = None, *, is_refitted: bool = False, matched: dict[str, int] | None = None
    ) -> TrainingData:
        """All rows, one block a set; in an order of their own for every number ``order``.

        Where heads are refitted, rows have the block codes of their views; -1 in others. ``matched`` has the
        subsample size of generators whose heads are also fitted on one.
        """
        sizes = matched or {}
        views = [view for name, plan in self.plans.items() for view in plan.views(name)]
        blocks = []
        for name, x in self.vectors.items():
            fold, left_out = (np.full((len(x), len(views)), -1, kind) for kind in (np.int8, np.int16))
            for c, view in enumerate(views):
                plan = self.plans[view.generator]
                if name in (REAL, view.generator):
                    own = plan.is_real == (name == REAL)
                    code = plan.block(sizes.get(view.generator))
                    fold[:, c], left_out[:, c] = plan.fold[own, view.repeat], code[own]
            key = hash_ids(f"{name}/{i}" for i in range(len(x)))
            block = VectorBlock(
                name,
                x.astype(np.float32),
                fold,
                key,
                np.zeros(len(x), np.bool_),
                left_out if is_refitted else None,
            )
            rows = np.arange(len(x)) if order is None else np.random.default_rng(order).permutation(len(x))
            blocks.append(take_rows(block, rows))
        first = next(iter(self.plans.values()))
        rows_of = {name: len(x) for name, x in self.vectors.items()}
        return TrainingData(
            views,
            blocks[0].vectors.shape[1],
            blocks_of(blocks),
            bandwidth_sample(first),
            rows_of,
            is_refitted=is_refitted,
            matched=frozenset(sizes),
        )

    def logits(self, model: FittedClassifier, generator: str = "fake") -> NDArray[np.float64]:
        """Calibrated out-of-fold logits of the real rows and then the generator's, mean over repeats: (n,)."""
        x = torch.from_numpy(np.vstack([self.vectors[REAL], self.vectors[generator]]).astype(np.float32))
        return model.logits(generator, model.feature_map(x), self.plans[generator].fold).mean(1)

    def probabilities(self, model: FittedClassifier, generator: str = "fake") -> NDArray[np.float64]:
        return expit(self.logits(model, generator))

    def is_real(self, generator: str = "fake") -> NDArray[np.bool_]:
        return self.plans[generator].is_real

    def fidelity(self, model: FittedClassifier, generator: str = "fake") -> float:
        """1 - mean q over the generator's rows."""
        return 1 - float(self.probabilities(model, generator)[~self.is_real(generator)].mean())


def assign_sets(
    settings: ClassifierConfig, groups: tuple[Rows, Rows] | NearDuplicates = NO_GROUPS, **vectors: Vectors
) -> Sets:
    """Assign folds to sets, given by name; groups number the rows of a view, real ones first."""
    found = groups if isinstance(groups, NearDuplicates) else one_cluster_each(*groups)
    real = vectors[REAL]
    plans = {}
    for name, x in vectors.items():
        if name != REAL:
            keys = hash_ids([f"{REAL}/{i}" for i in range(len(real))] + [f"{name}/{i}" for i in range(len(x))])
            n = len(keys)
            is_real = np.arange(n) < len(real)
            none = np.zeros(n, np.bool_)
            plans[name] = plan_folds(np.arange(n), keys, is_real, none, found, settings)
    return Sets(vectors, plans)


def one_cluster_each(rows: Rows, groups: Rows) -> NearDuplicates:
    """Near-duplicates whose components, numbered by ``groups``, are one cluster each."""
    return NearDuplicates(rows, groups, groups)


def take_rows(block: VectorBlock, rows: NDArray[np.int64]) -> VectorBlock:
    left_out = None if block.block is None else block.block[rows]
    return VectorBlock(
        block.name, block.vectors[rows], block.fold[rows], block.key[rows], block.is_copy[rows], left_out
    )


def blocks_of(blocks: list[VectorBlock]) -> Callable[[str | None], list[VectorBlock]]:
    return lambda name: [block for block in blocks if name in (None, block.name)]


def cut(training: TrainingData, pieces: int) -> TrainingData:
    """Return training data with the same rows, each set in ``pieces`` blocks of unequal sizes."""
    blocks = []
    for block in training.blocks(None):
        stops = (np.linspace(0, 1, pieces + 1)[1:-1] ** 1.5 * len(block.key)).astype(int)
        blocks += [take_rows(block, rows) for rows in np.split(np.arange(len(block.key)), stops)]
    return replace(training, blocks=blocks_of(blocks))


def shard_rows(training: TrainingData, workers: int) -> list[list[VectorBlock]]:
    """Return the rows of each worker: unequal shards; with more than two workers the last has no real rows."""
    shares: list[list[VectorBlock]] = [[] for _ in range(workers)]
    for block in training.blocks(None):
        holders = workers - 1 if block.name == REAL and workers > 2 else workers
        owner = np.floor(holders * np.linspace(0, 1, len(block.key), endpoint=False) ** 1.3).astype(int)
        for rank in range(holders):
            shares[rank].append(take_rows(block, np.flatnonzero(owner == rank)))
    return shares


def fit_on_workers(
    training: TrainingData,
    settings: ClassifierConfig,
    workers: int,
    then: Callable[[FittedClassifier, TrainingData], Result],
) -> list[Result]:
    """Fit on several workers; return each one's result of ``then(model, training)``."""
    shares = shard_rows(training, workers)

    def work(rank: int, reduce_sum: ReduceSum) -> Result:
        own = replace(training, blocks=blocks_of(shares[rank]), workers=FitContext(reduce_sum, workers > 1))
        return then(fit_classifier(own, settings)[0], own)

    return on_workers(workers, work)
