"""A part of classify: the one Ray Train run that fits all heads, in this process or over workers.

A worker reads its own shards, holds their features in memory or reads them again in each pass, and adds up with
the others. What an interrupted fit needs to go on lies under ``classifier/`` in the run directory, so that a
worker group or a driver that dies goes on from there, with any number of workers.
"""

import functools
import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchConfig, TorchTrainer

from synthscale import filesystems as fsys
from synthscale.classifier import Fits, Training, VectorBlock, fit_classifier
from synthscale.config import ClassifierConfig
from synthscale.directions import find_directions
from synthscale.features import FOURIER_FEATURES
from synthscale.keys import Keys
from synthscale.model import Model
from synthscale.problem import Resume, Workers
from synthscale.schemas import Shard
from synthscale.stages.context import StageContext
from synthscale.stages.fold_tables import FoldTables, Part
from synthscale.storage import RunDirectory

_log = logging.getLogger(__name__)

_FACT_FOURIER_FEATURES = 128
_KEEP_EVERY_S = 5.0
_RESTARTS = 3
"""Times that a worker group is started again after a death."""
_SCRATCH = "_train"


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Attributes:
        parts: what classifiers see.
        rows: of each set.
        is_cached: whether a worker holds its features.
        device: where it fits.
    """

    tables: FoldTables
    shards: list[Shard]
    settings: ClassifierConfig
    sample: Keys
    rows: dict[str, int]
    parts: tuple[Part, ...]
    is_cached: bool
    device: str = "cpu"


def model_path(run: RunDirectory, part: Part) -> str:
    """Return where a fitted model lies."""
    return run.path("classifier", f"{part}.npz")


def fit(context: StageContext, job: Job) -> dict[str, Any]:
    """Fit all heads; return what each fit says of itself, by part and generator, and how it was carried out."""
    workers, is_cached = _plan(context, job)
    on_gpu = workers > 0 and context.gpus > 0
    job = replace(job, is_cached=is_cached, device="cuda" if on_gpu else "cpu")
    how = "held in memory" if is_cached else "read from storage in each pass"
    where = f"{workers} workers" if workers else "this process"
    _log.info("classify: features are %s, in %s", how, where)
    if not is_cached:
        context.tell(f"features are {how}: they need more than classifier.worker_memory_gib in {where}")
    TorchTrainer(
        functools.partial(_train, job),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": 0.5 if context.is_local else 1},
            placement_strategy="PACK" if context.is_local else "SPREAD",
        ),
        run_config=_run_config(context) if workers else None,
        # Sums of either kind of memory are added.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl") if on_gpu else None,
    ).fit()
    fsys.remove(context.run.path(_SCRATCH), context.run.storage)
    summaries = {part: context.run.read_json(f"classifier/{part}.json") for part in job.parts}
    return {"summaries": summaries, "workers": workers, "cached": is_cached}


def _run_config(context: StageContext) -> ray.train.RunConfig:
    # A worker group checks that all nodes share a folder. Heads go to the run directory by themselves, so what Ray
    # Train keeps there is removed.
    path = context.run.path(_SCRATCH)
    filesystem = PyFileSystem(FSSpecHandler(fsys.filesystem(path, context.run.storage)))
    return ray.train.RunConfig(
        storage_path=path.removeprefix("s3://"),
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=_RESTARTS),
    )


def _plan(context: StageContext, job: Job) -> tuple[int, bool]:
    """Return the number of workers, 0 for this process, and whether their memory holds the features."""
    settings = context.config.classifier
    fourier = FOURIER_FEATURES if settings.head == "kernel" else 0
    # Float32 features, and the vectors that they are made of.
    width = 2 * job.tables.dimensions("embedding") + fourier
    size_bytes, limit_bytes = 4 * width * sum(job.rows.values()), settings.worker_memory_gib * 2**30
    workers = settings.workers
    if workers is None:
        workers = 0 if size_bytes <= limit_bytes else min(math.ceil(size_bytes / limit_bytes), context.cpus // 2)
        if context.gpus:
            # One worker a GPU; a network is what a GPU is worth starting a group for.
            workers = min(max(workers, int(settings.head == "mlp")), context.gpus)
        elif context.is_local and workers == 1:
            # A group of one on the machine of the driver would only cost its start.
            workers = 0
    return workers, size_bytes <= limit_bytes * max(workers, 1)


def _train(job: Job) -> None:
    """What each Ray Train worker does: fit with sums over all workers; rank 0 writes."""
    world = ray.train.get_context()
    rank, size = world.get_world_rank(), world.get_world_size()
    if size > 1:
        # Ray gives a worker one thread; its node's others would idle.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.get_local_world_size()))
    run = job.tables.run
    done = [part for part in job.parts if fsys.exists(run.path("classifier", f"{part}.json"), run.storage)]
    for part in job.parts:
        if part not in done:
            _fit_part(job, part, rank, size)
    if size > 1:
        torch.distributed.barrier()


def _fit_part(job: Job, part: Part, rank: int, size: int) -> None:
    run, shards = job.tables.run, job.shards[rank::size]
    kept = _Kept(run, run.path("classifier", f"{part}.state"), writes=rank == 0)
    settings = job.settings if part == "embedding" else job.settings.model_copy(update={"head": "kernel"})
    training = Training(
        views=job.tables.views,
        dimensions=job.tables.dimensions(part),
        blocks=lambda name: _ahead(job.tables, shards, part, name),
        sample=job.sample,
        rows=job.rows,
        is_cached=job.is_cached,
        workers=Workers(_reducer(size), size > 1, job.device, Resume(kept.load(), kept.offer)),
        fourier_features=FOURIER_FEATURES if part == "embedding" else _FACT_FOURIER_FEATURES,
    )
    model, fits = fit_classifier(training, settings)
    if part == "embedding":
        model = replace(model, directions=find_directions(model, training))
    if rank == 0:
        fsys.write_bytes(model_path(run, part), model.to_bytes(), run.storage)
        # Last: it says that the part is done.
        run.write_json(f"classifier/{part}.json", _summaries(model, fits))
        fsys.remove(kept.path, run.storage)


def _summaries(model: Model, fits: Fits) -> dict[str, Any]:
    shares = {name: found.share.tolist() for name, found in model.directions.items()}
    return {
        name: {
            **fit.summary(),
            "calibrated": model.calibrations[name].summary(),
            "directions": shares.get(name, []),
        }
        for name, fit in fits.items()
    }


def _ahead(tables: FoldTables, shards: list[Shard], part: Part, name: str | None) -> Iterator[VectorBlock]:
    """Yield the blocks of some shards, reading the next shard while one is worked on."""

    def read(shard: Shard) -> list[VectorBlock]:
        return list(tables.blocks(shard, part, name))

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, shard) for shard in shards[:1]]
        for following in [*shards[1:], None]:
            current = waiting.pop().result() if waiting else []
            if following is not None:
                waiting.append(pool.submit(read, following))
            yield from current


def _reducer(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        torch.distributed.all_reduce(tensor)
        return tensor

    return reduce_sum if size > 1 else lambda tensor: tensor


class _Kept:
    """The state of a fit in the run directory; written whole or not at all, every few seconds."""

    def __init__(self, run: RunDirectory, path: str, *, writes: bool) -> None:
        self.path, self._run, self._writes, self._last = path, run, writes, time.monotonic()

    def load(self) -> dict[str, torch.Tensor]:
        """Return what was kept last; nothing at the first start."""
        if not fsys.exists(self.path, self._run.storage):
            return {}
        with np.load(io.BytesIO(fsys.read_bytes(self.path, self._run.storage))) as arrays:
            _log.info("classify: the fit goes on from %s", self.path)
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def offer(self, give: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Keep the state if the last time is long enough ago."""
        if self._writes and time.monotonic() - self._last >= _KEEP_EVERY_S:
            out = io.BytesIO()
            np.savez(out, allow_pickle=False, **{name: tensor.cpu().numpy() for name, tensor in give().items()})
            fsys.write_bytes(self.path, out.getvalue(), self._run.storage)
            self._last = time.monotonic()
