"""Fit all heads in one Ray Train run, in the driver's process or over workers.

Reads ``embeddings/`` and the folds in ``classifier/``; writes models and fit summaries to ``classifier/``. Each
worker reads its own shards, keeps their features in memory or reads them again in each pass, and sums are
all-reduced. A checkpoint under ``classifier/`` lets a fit resume after the death of a worker or of the driver,
with any number of workers.
"""

import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

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
from synthscale.tables.plain_data import arrays_from_npz, arrays_to_npz

_log = logging.getLogger(__name__)

_METADATA_FOURIER_FEATURES = 128
"""Random Fourier features of the file metadata, which have few dimensions."""
_CHECKPOINT_EVERY_S = 5.0
"""Least time between checkpoints: the work that an interruption loses, against time spent writing."""
_MAX_RESTARTS = 3
"""Restarts of the worker group after the death of a worker, before the stage fails."""
_SCRATCH = "_train"
"""Folder in the run directory for Ray Train's own files; removed after the fit."""


@dataclass(frozen=True)
class TrainJob:
    """Classifiers to fit; picklable.

    Attributes:
        tables: the run's tables.
        shards: all shards; worker r of n reads every n-th one, from r.
        settings: of the classifier.
        sample: sampling hashes of the rows that the bandwidth is computed from (`training.bandwidth_sample`).
        rows: number of rows of each set.
        sources: inputs to fit a classifier on.
    """

    tables: TrainingReader
    shards: list[Shard]
    settings: ClassifierConfig
    sample: Hashes
    rows: dict[str, int]
    sources: tuple[ClassifierInput, ...]


@dataclass(frozen=True)
class WorkerPlacement:
    """Where a job runs.

    Attributes:
        workers: number of Ray Train workers; 0: the driver's process.
        cached: inputs whose features the workers keep in memory.
        device: torch device, ``cpu`` or ``cuda``.
    """

    workers: int
    cached: tuple[ClassifierInput, ...]
    device: str


def model_path(run: RunDirectory, source: ClassifierInput) -> str:
    """Return the path of a fitted model."""
    return run.path("classifier", f"{source}.npz")


def train(context: StageContext, job: TrainJob) -> dict[str, Any]:
    """Fit the classifiers that have no summary file yet.

    Returns:
        ``summaries`` (by input and generator), ``workers`` and ``cached`` (whether the features of the embedding
        were kept in memory).
    """
    placement = _placement(context, job)
    if not all(_is_done(job, source) for source in job.sources):
        _train_all(context, job, placement)
    summaries = {source: context.run.read_json(_summary_name(source)) for source in job.sources}
    return {"summaries": summaries, "workers": placement.workers, "cached": "embedding" in placement.cached}


def _train_all(context: StageContext, job: TrainJob, placement: WorkerPlacement) -> None:
    """Run Ray Train, and remove its files afterwards."""
    where = f"{placement.workers} workers" if placement.workers else "this process"
    is_cached = "embedding" in placement.cached
    how = "kept in memory" if is_cached else "read from storage in each pass"
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
            # Tensors in CPU memory and on the GPU are both all-reduced.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl") if on_gpu else None,
        ).fit()
    finally:
        fsys.remove(context.run.path(_SCRATCH), context.run.storage)


def _summary_name(source: ClassifierInput) -> str:
    return f"classifier/{source}.json"


def _is_done(job: TrainJob, source: ClassifierInput) -> bool:
    """Return True if a classifier has its summary file, which is written last."""
    run = job.tables.run
    return fsys.exists(run.path(_summary_name(source)), run.storage)


def _run_config(context: StageContext) -> ray.train.RunConfig:
    # Ray Train requires a folder that all nodes share. Models are written to the run directory directly, so
    # nothing in that folder is needed after the fit.
    path = context.run.path(_SCRATCH)
    filesystem = PyFileSystem(FSSpecHandler(fsys.filesystem(path, context.run.storage)))
    return ray.train.RunConfig(
        storage_path=path.removeprefix("s3://"),
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=_MAX_RESTARTS),
    )


def _placement(context: StageContext, job: TrainJob) -> WorkerPlacement:
    """Choose the number of workers, the inputs to cache and the device.

    Without ``classifier.workers``, the memory that the features need decides the number of workers.
    """
    settings = context.config.classifier
    limit_bytes = settings.worker_memory_gib * 2**30
    needed = {source: _feature_bytes(job, source) for source in job.sources}
    workers = settings.workers
    if workers is None:
        most = context.gpus if settings.head == "mlp" and context.gpus else context.cpus // 2
        workers = min(math.ceil(needed["embedding"] / limit_bytes), most)
        # One worker on the driver's machine only costs start-up time (about 20 s), unless the fit needs a GPU.
        is_alone = workers <= 1 and (context.is_local or needed["embedding"] <= limit_bytes)
        workers = 0 if is_alone and not (settings.head == "mlp" and context.gpus) else max(1, workers)
    # Networks gain from a GPU. Logistic heads take a dozen passes, which CPUs compute as fast as they read the
    # rows.
    device = "cuda" if settings.head == "mlp" and 0 < workers <= context.gpus else "cpu"
    cached = tuple(source for source in job.sources if needed[source] <= limit_bytes * max(workers, 1))
    return WorkerPlacement(workers, cached, device)


def _feature_bytes(job: TrainJob, source: ClassifierInput) -> int:
    """Return the memory of all rows' float32 features and the vectors they are computed from, in bytes."""
    fourier = _fourier_features(source) if _settings(job, source).head == "kernel" else 0
    return 4 * (2 * job.tables.dimensions(source) + fourier) * sum(job.rows.values())


def _settings(job: TrainJob, source: ClassifierInput) -> ClassifierConfig:
    """Return the classifier settings of an input.

    File metadata always gets the kernel head, because its few dimensions act non-linearly.
    """
    return job.settings if source == "embedding" else job.settings.model_copy(update={"head": "kernel"})


def _fourier_features(source: ClassifierInput) -> int:
    return FOURIER_FEATURES if source == "embedding" else _METADATA_FOURIER_FEATURES


def _train(job: TrainJob, placement: WorkerPlacement) -> None:
    """Fit the classifiers that are not done, in each Ray Train worker; rank 0 loads and writes all files."""
    world = ray.train.get_context()
    rank, size = world.get_world_rank(), world.get_world_size()
    if placement.workers:
        # Ray sets one thread per worker; divide the node's cores among its workers instead.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.get_local_world_size()))
    for source in job.sources:
        if not _from_rank_0(functools.partial(_is_done, job, source), rank, size):
            _fit_source(job, placement, source, (rank, size))
    if size > 1:
        torch.distributed.barrier()


def _from_rank_0(read: Callable[[], Any], rank: int, size: int) -> Any:
    """Broadcast what rank 0 reads, as workers could read different states of the storage."""
    result = [read() if rank == 0 else None]
    if size > 1:
        torch.distributed.broadcast_object_list(result)
    return result[0]


def _fit_source(
    job: TrainJob, placement: WorkerPlacement, source: ClassifierInput, rank_and_size: tuple[int, int]
) -> None:
    """Fit the classifier of one input over all workers; rank 0 writes model and summary, drops the checkpoint."""
    rank, size = rank_and_size
    run, shards = job.tables.run, job.shards[rank::size]
    checkpoint = FitCheckpoint(run, run.path("classifier", f"{source}.state"), writes=rank == 0)
    resume = FitState(_from_rank_0(checkpoint.load, rank, size), checkpoint.save_if_due)
    training = TrainingData(
        views=job.tables.views,
        dimensions=job.tables.dimensions(source),
        blocks=lambda name: _prefetch(job.tables, shards, source, name),
        sample=job.sample,
        rows=job.rows,
        is_cached=source in placement.cached,
        workers=FitContext(
            _all_reduce(size), size > 1, placement.device if source == "embedding" else "cpu", resume
        ),
        fourier_features=_fourier_features(source),
        is_refitted=source == "embedding",
        matched=frozenset(job.tables.sizes),
    )
    model, fits = fit_classifier(training, _settings(job, source))
    if source == "embedding":
        model = replace(model, directions=find_directions(model, training))
    if rank == 0:
        fsys.write_bytes(model_path(run, source), model.to_bytes(), run.storage)
        # The summary is written after the model, because its presence marks the fit as done.
        run.write_json(_summary_name(source), model.summaries(fits))
        fsys.remove(checkpoint.path, run.storage)


def _prefetch(
    tables: TrainingReader, shards: list[Shard], source: ClassifierInput, name: str | None
) -> Iterator[VectorBlock]:
    """Yield the blocks of some shards; a thread reads the next shard while the current one is processed."""

    def read(shard: Shard) -> list[VectorBlock]:
        return list(tables.blocks(shard, source, name))

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, shard) for shard in shards[:1]]
        for following in [*shards[1:], None]:
            current = waiting.pop().result() if waiting else []
            if following is not None:
                waiting.append(pool.submit(read, following))
            yield from current


def _all_reduce(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return torch.distributed's all-reduce by sum, which adds in place; the identity for one worker."""

    def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        torch.distributed.all_reduce(tensor)
        return tensor

    return reduce_sum if size > 1 else lambda tensor: tensor


class FitCheckpoint:
    """Checkpoint file of a fit in the run directory, replaced atomically every few seconds.

    Attributes:
        path: of the ``.npz`` file.
    """

    def __init__(self, run: RunDirectory, path: str, *, writes: bool) -> None:
        self.path, self._run, self._writes, self._last = path, run, writes, time.monotonic()

    def load(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the last checkpoint; an empty dict if there is none."""
        if not fsys.exists(self.path, self._run.storage):
            return {}
        arrays = arrays_from_npz(fsys.read_bytes(self.path, self._run.storage), self.path)
        _log.info("classify: resuming the fit from %s", self.path)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def save_if_due(self, get_state: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Write a checkpoint if the last one is at least ``_CHECKPOINT_EVERY_S`` old; only rank 0 writes."""
        if self._writes and time.monotonic() - self._last >= _CHECKPOINT_EVERY_S:
            state = arrays_to_npz({name: tensor.cpu().numpy() for name, tensor in get_state().items()})
            fsys.write_bytes(self.path, state, self._run.storage)
            self._last = time.monotonic()
