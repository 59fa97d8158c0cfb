"""Classify: ``embeddings/`` and ``groups/`` -> ``classifier/`` (folds, fitted heads) and ``predictions/``.

One Ray Train run fits every fold of every generator: in this process for small inputs, where a worker group would
cost more than the fit, else over workers that each read their own shards. Ray Data then answers out of fold.
"""

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import torch
import torch.distributed
from numpy.typing import NDArray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchTrainer

from synthscale import filesystems as fsys
from synthscale import tables
from synthscale.classifier import FoldPlan, TrainingRows, bandwidth_rows, fit_generators, plan_folds
from synthscale.config import ClassifierConfig
from synthscale.errors import StageError
from synthscale.features import FOURIER_FEATURES, load_model, save_model
from synthscale.schemas import FOLDS, PREDICTIONS, Layout, Shard
from synthscale.stages.context import Outcome, StageContext
from synthscale.storage import RunDirectory

_IN_PROCESS_BYTES = 4 * 2**30
"""A fit that needs up to this much memory runs in the driver's process."""
_COPIES = 5
"""How many times the feature matrix a fit holds: whole, by view, centred, in half precision, and products."""

MODEL = "classifier/model.npz"
_SCRATCH = "_train"


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what the predictions depend on."""
    return {
        "input": context.run.completed("neighbors").digest,
        "settings": context.config.result_settings("classifier"),
        "versions": {"algorithm": 1},
    }


def run(context: StageContext) -> Outcome:
    """Deal the folds, fit all heads, predict every row by the head that did not see it."""
    ids = context.read_all("manifest", ["id"]).column("id").to_pylist()
    plans = _deal(context, ids)
    _write_folds(context, plans)
    fitted: dict[str, Any] = {}
    usable = {name: plan.folds for name, plan in plans.items() if plan.folds}
    if usable:
        _fit(context, plans, usable, ids)
        fitted = context.run.read_json("classifier/fit.json")
    rows = _predict(context, sorted(usable))
    expected = {name: len(plans[name].row) for name in usable}
    if rows != expected:
        raise StageError(f"classify: rows predicted {rows}, expected {expected}; rerun with --redo-from classify")
    info = {
        name: {"folds": plan.folds, "training": plan.training_counts, **fitted.get(name, {})}
        for name, plan in plans.items()
    }
    return Outcome({"rows": sum(rows.values())}, {"generators": info})


# Folds.


def _deal(context: StageContext, ids: list[str]) -> dict[str, FoldPlan]:
    groups = context.read_all("groups", ["generator", "row", "near_duplicate_id"])
    nearest = context.read_all("nearest", ["generator", "row", "is_copy"])
    generator = context.read_all("manifest", ["generator"]).column("generator").to_pylist()
    is_real = np.array([name is None for name in generator])
    settings = context.config.classifier
    plans = {}
    for name in context.generators:
        view, grouped = _only(nearest, name), _only(groups, name)
        rows = view.column("row").to_numpy()
        plans[name] = plan_folds(
            rows,
            [ids[row] for row in rows.tolist()],
            is_real[rows],
            (grouped.column("row").to_numpy(), grouped.column("near_duplicate_id").to_numpy()),
            settings,
        )
        plans[name] = plans[name].with_copies(view.column("is_copy").to_numpy(zero_copy_only=False))
    return plans


def _only(table: pa.Table, generator: str) -> pa.Table:
    return table.filter(pa.compute.equal(table.column("generator"), generator))


def _write_folds(context: StageContext, plans: dict[str, FoldPlan]) -> None:
    for shard in context.shards:
        pieces = []
        for name, plan in plans.items():
            low, high = np.searchsorted(plan.row, [shard.start, shard.stop])
            part = slice(low, high)
            pieces.append(
                pa.table(
                    {
                        "generator": pa.array([name] * (high - low), pa.string()),
                        "row": plan.row[part],
                        "fold": pa.array(plan.fold[part], mask=np.full(high - low, plan.folds == 0)),
                        "is_real": plan.is_real[part],
                        "is_copy": plan.is_copy[part],
                    }
                )
            )
        context.run.write_shard("classifier", shard, pa.concat_tables(pieces), FOLDS)


# The fit.


def _fit(context: StageContext, plans: dict[str, FoldPlan], usable: dict[str, int], ids: list[str]) -> None:
    first = next(iter(plans.values()))
    sample = bandwidth_rows(first, [ids[row] for row in first.row.tolist()])
    task = functools.partial(
        _train, context.run, context.shards, context.layout, context.config.classifier, usable, sample
    )
    workers = _workers(context)
    TorchTrainer(
        lambda: task(),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
        run_config=_run_config(context) if workers else None,
    ).fit()
    fsys.remove(context.run.path(_SCRATCH), context.run.storage)


def _run_config(context: StageContext) -> ray.train.RunConfig:
    # A worker group checks that all nodes share a folder. Heads go to the run directory by themselves, so what Ray
    # Train keeps there is removed.
    path = context.run.path(_SCRATCH)
    filesystem = PyFileSystem(FSSpecHandler(fsys.filesystem(path, context.run.storage)))
    return ray.train.RunConfig(storage_path=path.removeprefix("s3://"), storage_filesystem=filesystem)


def _workers(context: StageContext) -> int:
    if context.config.classifier.workers is not None:
        return int(context.config.classifier.workers)
    width = context.layout.classify[1] - context.layout.classify[0] + FOURIER_FEATURES
    size_bytes = _COPIES * 8 * width * int(context.run.completed("embed").counts["ok"])
    if size_bytes <= _IN_PROCESS_BYTES:
        return 0
    return max(1, min(math.ceil(size_bytes / _IN_PROCESS_BYTES), context.cpus // 2))


def _train(
    run: RunDirectory,
    shards: list[Shard],
    layout: Layout,
    settings: ClassifierConfig,
    usable: dict[str, int],
    sample: NDArray[np.int64],
) -> None:
    """What each Ray Train worker does: read its shards, fit with sums over all workers, rank 0 writes."""
    world = ray.train.get_context()
    rank, size = world.get_world_rank(), world.get_world_size()
    if size > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    rows = _training_rows(run, shards[rank::size], layout, list(usable))
    feature_map, fits = fit_generators(rows, usable, sample, settings, _reducer(size))
    if rank == 0:
        heads = {name: fit.heads for name, fit in fits.items()}
        fsys.write_bytes(run.path(MODEL), save_model(feature_map, heads), run.storage)
        run.write_json("classifier/fit.json", {name: fit.summary() for name, fit in fits.items()})
    if size > 1:
        torch.distributed.barrier()


def _reducer(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    return reduce_sum if size > 1 else lambda tensor: tensor


def _training_rows(run: RunDirectory, shards: list[Shard], layout: Layout, names: list[str]) -> TrainingRows:
    # A worker may have no shard at all; what it has is then empty, and of the right width.
    width = layout.classify[1] - layout.classify[0]
    rows, vectors = [np.empty(0, np.int64)], [np.empty((0, width), np.float32)]
    is_real, is_copy = [np.empty(0, np.bool_)], [np.empty(0, np.bool_)]
    folds: dict[str, list[NDArray[np.int8]]] = {name: [np.empty(0, np.int8)] for name in names}
    for shard in shards:
        row, vector, fold, real, copy = _read_training(run, shard, layout, names)
        rows.append(row)
        vectors.append(vector)
        is_real.append(real)
        is_copy.append(copy)
        for name in names:
            folds[name].append(fold[name])
    return TrainingRows(
        np.concatenate(rows),
        torch.from_numpy(np.concatenate(vectors)),
        {name: np.concatenate(parts) for name, parts in folds.items()},
        np.concatenate(is_real),
        np.concatenate(is_copy),
    )


def _read_training(
    run: RunDirectory, shard: Shard, layout: Layout, names: list[str]
) -> tuple[
    NDArray[np.int64], NDArray[np.float32], dict[str, NDArray[np.int8]], NDArray[np.bool_], NDArray[np.bool_]
]:
    """A shard's rows, vectors, fold by generator (-1: not in its view), and whether real and whether a copy."""
    table = run.read_shard("embeddings", shard, ["row", "vector"])
    row = table.column("row").to_numpy()
    dealt = run.read_shard("classifier", shard)
    fold, is_real, is_copy = {}, np.zeros(len(row), np.bool_), np.zeros(len(row), np.bool_)
    for name in names:
        own = _only(dealt, name)
        at = np.searchsorted(row, own.column("row").to_numpy())
        fold[name] = np.full(len(row), -1, np.int8)
        fold[name][at] = own.column("fold").to_numpy()
        is_real[at] = own.column("is_real").to_numpy(zero_copy_only=False)
        is_copy[at] = own.column("is_copy").to_numpy(zero_copy_only=False)
    return row, tables.vectors(table, layout.classify).astype(np.float32, copy=False), fold, is_real, is_copy


# Out-of-fold predictions.


def _predict(context: StageContext, names: list[str]) -> dict[str, int]:
    """Write ``predictions/`` and return the rows written for each generator."""
    items = ray.data.from_items(
        [{"shard": shard.index} for shard in context.shards], override_num_blocks=len(context.shards)
    )
    task = _PredictTask(context.run, context.shards, context.layout, names)
    counted = items.map_batches(task, batch_size=1, batch_format="pyarrow")
    totals = dict.fromkeys(names, 0)
    seen = set()
    for answer in counted.iter_rows():
        if answer["shard"] in seen:
            raise StageError(f"classify: shard {answer['shard']} was predicted twice")
        seen.add(answer["shard"])
        for name, count in json.loads(answer["counts"]).items():
            totals[name] += count
    return totals


class _PredictTask:
    """Shard number -> its rows of ``predictions/``; gives the rows written for each generator."""

    def __init__(self, run: RunDirectory, shards: list[Shard], layout: Layout, names: list[str]) -> None:
        self._run, self._shards, self._layout, self._names = run, shards, layout, names

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self._shards[batch.column("shard")[0].as_py()]
        pieces = [PREDICTIONS.empty_table()]
        counts = dict.fromkeys(self._names, 0)
        if self._names:
            feature_map, heads = _model(self._run)
            row, vectors, folds, _, _ = _read_training(self._run, shard, self._layout, self._names)
            features = feature_map(torch.from_numpy(vectors.copy()))
            for name in self._names:
                own = folds[name] >= 0
                logit = heads[name].out_of_fold_logits(features[torch.from_numpy(own)], folds[name][own])
                counts[name] = int(own.sum())
                columns = [pa.array([name] * counts[name], pa.string()), row[own], folds[name][own], logit]
                pieces.append(pa.table(columns, names=PREDICTIONS.names).cast(PREDICTIONS))
        self._run.write_shard("predictions", shard, pa.concat_tables(pieces), PREDICTIONS)
        return pa.table({"shard": [shard.index], "counts": [json.dumps(counts)]})


@functools.lru_cache(maxsize=1)
def _model(run: RunDirectory) -> Any:
    # One task process predicts many shards.
    return load_model(fsys.read_bytes(run.path(MODEL), run.storage))
