"""Input and result types of a stage: `StageContext` and `StageOutcome`.

The context reads the facts that earlier stages recorded in the run directory, runs a task on every shard with Ray
Data, and returns task results in shard order.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from synthscale.config import Config
from synthscale.errors import StageError
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.layout import Shard, VectorLayout, VectorSource

_READ_THREADS = 16
"""Shards that `StageContext.read_columns` reads in parallel."""


@dataclass(frozen=True)
class StageOutcome:
    """Result of a stage, stored in its completion marker.

    Attributes:
        counts: verified numbers, such as ``rows`` and ``failed``.
        info: facts that later stages or people need.
    """

    counts: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What a stage needs to run: configuration, run directory and resources; no data in memory.

    Attributes:
        config: configuration of the run.
        run: the run directory, which contains the tables of earlier stages.
        gpus: number of GPUs in the Ray cluster.
        cpus: number of CPUs in the Ray cluster, at least 1.
        is_local: True for a private Ray on this machine, False for a cluster.
        show_progress: show the progress bars of Ray Data.
        on_progress: called with a line of text every few seconds of a long stage.
    """

    config: Config
    run: RunDirectory
    gpus: int = 0
    cpus: int = 1
    is_local: bool = True
    show_progress: bool = False
    on_progress: Callable[[str], None] = lambda text: None

    @property
    def has_only_local_cpus(self) -> bool:
        """Whether Ray is private and has no GPU. The driver then does small work sooner than a new actor would."""
        return self.is_local and not self.gpus

    @cached_property
    def shards(self) -> list[Shard]:
        """Shards of every table, as ingest recorded them."""
        return self.run.shards()

    @cached_property
    def generators(self) -> list[str]:
        """Names of the synthetic sets, in the order of the manifest."""
        return list(self.run.completed("ingest").info["generators"])

    @cached_property
    def vectors(self) -> VectorSource | None:
        """Location of precomputed vectors; None if the input is images."""
        source = self.run.completed("ingest").info["vectors"]
        return None if source is None else VectorSource(**source)

    @cached_property
    def layout(self) -> VectorLayout:
        """Which dimensions the search and the classifier use, as embed recorded it."""
        return self.run.layout()

    def map_shards(self, task: Callable[[pa.Table], pa.Table], stage: str) -> Iterator[dict[str, Any]]:
        """Run a Ray Data task on every shard; yield the result rows in shard order.

        Args:
            task: takes a table with one row, whose column ``shard`` is the shard's index; returns a table with one
                row and a column ``shard``.
            stage: name of the stage, for error messages.

        Yields:
            ``shard`` as int, and the other columns as Arrow scalars, which share the memory of the table.
        """
        # Ray takes seconds to import, and the pipeline imports this module before a stage needs Ray.
        import ray.data

        indices = [{"shard": shard.index} for shard in self.shards]
        items = ray.data.from_items(indices, override_num_blocks=len(indices))
        mapped = items.map_batches(task, batch_size=1, batch_format="pyarrow")
        batches = mapped.iter_batches(batch_size=None, batch_format="pyarrow")
        rows = (
            {name: table.column(name)[i] for name in table.column_names}
            for table in batches
            for i in range(table.num_rows)
        )
        return self.in_shard_order(({**row, "shard": row["shard"].as_py()} for row in rows), stage)

    def in_shard_order(self, results: Iterable[dict[str, Any]], stage: str) -> Iterator[dict[str, Any]]:
        """Sort task results, one per shard, into shard order; yield each as soon as all before it have arrived.

        A fixed order makes float sums independent of which task finishes first. Only results that arrive early are
        held in memory.

        Args:
            results: one dict per shard in any order, with the shard's index as ``shard``.
            stage: name of the stage, for error messages.

        Raises:
            StageError: a shard has two results or none.
        """
        early: dict[int, dict[str, Any]] = {}
        remaining = iter(self.shards)
        next_shard = next(remaining, None)
        for result in results:
            if result["shard"] in early or (next_shard is None or result["shard"] < next_shard.index):
                raise StageError(
                    f"{stage}: shard {result['shard']} was processed twice; rerun with --redo-from {stage}"
                )
            early[result["shard"]] = result
            while next_shard is not None and next_shard.index in early:
                yield early.pop(next_shard.index)
                next_shard = next(remaining, None)
        if next_shard is not None:
            raise StageError(
                f"{stage}: shard {next_shard.index} was not processed; rerun with --redo-from {stage}"
            )

    def read_columns(self, table: str, columns: list[str]) -> pa.Table:
        """Read columns of all shards of a table into one table, in row order."""
        read = partial(self.run.read_shard, table, columns=columns)
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            return pa.concat_tables(pool.map(read, self.shards)).unify_dictionaries()
