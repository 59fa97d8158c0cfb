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

from synthscale.classify.classifier import fit_classifier
from synthscale.classify.directions import find_directions
from synthscale.classify.features import FOURIER_FEATURES
from synthscale.classify.fit_context import FitContext, FitState
from synthscale.classify.ray_fold_tables import ClassifierInput, TrainingReader
from synthscale.classify.training import TrainingData, VectorBlock
from synthscale.config import ClassifierConfig
from synthscale.runtime.stage_context import StageContext
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.id_hashes import Hashes
from synthscale.tables.layout import Shard

_log = logging.getLogger(__name__)

_FACT_FOURIER_FEATURES = 128
_KEEP_EVERY_S = 5.0
_RESTARTS = 3
"""Times that a worker group is started again after a death."""
_SCRATCH = "_train"


@dataclass(frozen=True)
class TrainJob:
    """What is to be fitted.

    Attributes:
        rows: of each set.
        parts: what classifiers see.
    """

    tables: TrainingReader
    shards: list[Shard]
    settings: ClassifierConfig
    sample: Hashes
    rows: dict[str, int]
    parts: tuple[ClassifierInput, ...]


@dataclass(frozen=True)
class WorkerPlacement:
    """How a job is carried out: workers (0: this process), what they hold in memory, and on which device."""

    workers: int
    cached: tuple[ClassifierInput, ...]
    device: str


def model_path(run: RunDirectory, part: ClassifierInput) -> str:
    """Return where a fitted model lies."""
    return run.path("classifier", f"{part}.npz")


def train(context: StageContext, job: TrainJob) -> dict[str, Any]:
    """Fit all heads; return what each fit says of itself, by part and generator, and how it was carried out."""
    placement = _placement(context, job)
    if not all(_is_done(job, part) for part in job.parts):
        _train_all(context, job, placement)
    summaries = {part: context.run.read_json(_summary_name(part)) for part in job.parts}
    return {"summaries": summaries, "workers": placement.workers, "cached": "embedding" in placement.cached}


def _train_all(context: StageContext, job: TrainJob, placement: WorkerPlacement) -> None:
    where = f"{placement.workers} workers" if placement.workers else "this process"
    is_cached = "embedding" in placement.cached
    how = "held in memory" if is_cached else "read from storage in each pass"
    _log.info("classify: features are %s, in %s on %s", how, where, placement.device)
    if not is_cached:
        context.on_progress(f"features are {how}: they need more than classifier.worker_memory_gib in {where}")
    on_gpu = placement.device == "cuda"
    try:
        TorchTrainer(
            functools.partial(_train, job, placement),
            scaling_config=ray.train.ScalingConfig(
                num_workers=placement.workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": 0.5 if context.is_local else 1},
                placement_strategy="PACK" if context.is_local else "SPREAD",
            ),
            run_config=_run_config(context) if placement.workers else None,
            # Sums of either kind of memory are added.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl") if on_gpu else None,
        ).fit()
    finally:
        fsys.remove(context.run.path(_SCRATCH), context.run.storage)


def _summary_name(part: ClassifierInput) -> str:
    return f"classifier/{part}.json"


def _is_done(job: TrainJob, part: ClassifierInput) -> bool:
    run = job.tables.run
    return fsys.exists(run.path(_summary_name(part)), run.storage)


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


def _placement(context: StageContext, job: TrainJob) -> WorkerPlacement:
    settings = context.config.classifier
    limit_bytes = settings.worker_memory_gib * 2**30
    needed = {part: _feature_bytes(job, part) for part in job.parts}
    workers = settings.workers
    if workers is None:
        most = context.gpus if settings.head == "mlp" and context.gpus else context.cpus // 2
        workers = min(math.ceil(needed["embedding"] / limit_bytes), most)
        # A group of one on the machine of the driver would only cost its start, but for a GPU's sake.
        is_alone = workers <= 1 and (context.is_local or needed["embedding"] <= limit_bytes)
        workers = 0 if is_alone and not (settings.head == "mlp" and context.gpus) else max(1, workers)
    # Networks are worth a GPU; logistic heads take a dozen passes, which processors do as fast as they can read.
    device = "cuda" if settings.head == "mlp" and 0 < workers <= context.gpus else "cpu"
    held = tuple(part for part in job.parts if needed[part] <= limit_bytes * max(workers, 1))
    return WorkerPlacement(workers, held, device)


def _feature_bytes(job: TrainJob, part: ClassifierInput) -> int:
    """Float32 features of all rows, and the vectors that they are made of."""
    fourier = _fourier_features(part) if _settings(job, part).head == "kernel" else 0
    return 4 * (2 * job.tables.dimensions(part) + fourier) * sum(job.rows.values())


def _settings(job: TrainJob, part: ClassifierInput) -> ClassifierConfig:
    """File facts are few and their sizes matter in no simple way: for them it is always the kernel head."""
    return job.settings if part == "embedding" else job.settings.model_copy(update={"head": "kernel"})


def _fourier_features(part: ClassifierInput) -> int:
    return FOURIER_FEATURES if part == "embedding" else _FACT_FOURIER_FEATURES


def _train(job: TrainJob, placement: WorkerPlacement) -> None:
    """What each Ray Train worker does: fit with sums over all workers; rank 0 reads what was kept, and writes."""
    world = ray.train.get_context()
    rank, size = world.get_world_rank(), world.get_world_size()
    if placement.workers:
        # Ray gives a worker one thread; its node's others would idle.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.get_local_world_size()))
    for part in job.parts:
        if not _agreed(functools.partial(_is_done, job, part), rank, size):
            _fit_part(job, placement, part, (rank, size))
    if size > 1:
        torch.distributed.barrier()


def _agreed(ask: Callable[[], Any], rank: int, size: int) -> Any:
    """Return what rank 0 finds: storage may show its workers different moments."""
    found = [ask() if rank == 0 else None]
    if size > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def _fit_part(job: TrainJob, placement: WorkerPlacement, part: ClassifierInput, place: tuple[int, int]) -> None:
    rank, size = place
    run, shards = job.tables.run, job.shards[rank::size]
    kept = FitCheckpoint(run, run.path("classifier", f"{part}.state"), writes=rank == 0)
    resume = FitState(_agreed(kept.load, rank, size), kept.offer)
    training = TrainingData(
        views=job.tables.views,
        dimensions=job.tables.dimensions(part),
        blocks=lambda name: _ahead(job.tables, shards, part, name),
        sample=job.sample,
        rows=job.rows,
        is_cached=part in placement.cached,
        workers=FitContext(_reducer(size), size > 1, placement.device if part == "embedding" else "cpu", resume),
        fourier_features=_fourier_features(part),
        is_refitted=part == "embedding",
        matched=frozenset(job.tables.sizes),
    )
    model, fits = fit_classifier(training, _settings(job, part))
    if part == "embedding":
        model = replace(model, directions=find_directions(model, training))
    if rank == 0:
        fsys.write_bytes(model_path(run, part), model.to_bytes(), run.storage)
        # Last: it says that the part is done.
        run.write_json(_summary_name(part), model.summaries(fits))
        fsys.remove(kept.path, run.storage)


def _ahead(
    tables: TrainingReader, shards: list[Shard], part: ClassifierInput, name: str | None
) -> Iterator[VectorBlock]:
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


class FitCheckpoint:
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
