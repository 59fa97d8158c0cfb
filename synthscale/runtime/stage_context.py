"""What a stage is given and what it gives back."""

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

_READERS = 16


@dataclass(frozen=True)
class StageOutcome:
    """What a stage did: counts that were verified, and facts that later stages or people need."""

    counts: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """A stage's view of its run: the configuration, the directory, and nothing that is held in memory."""

    config: Config
    run: RunDirectory
    gpus: int = 0
    cpus: int = 1
    is_local: bool = True
    show_progress: bool = False
    on_progress: Callable[[str], None] = lambda text: None

    @cached_property
    def shards(self) -> list[Shard]:
        """The row ranges that every table is cut into, as ingest decided."""
        return self.run.shards()

    @cached_property
    def generators(self) -> list[str]:
        """The names of the synthetic sets, in the manifest's order."""
        return list(self.run.completed("ingest").info["generators"])

    @cached_property
    def vectors(self) -> VectorSource | None:
        """Where precomputed vectors lie, if they are the input."""
        source = self.run.completed("ingest").info["vectors"]
        return None if source is None else VectorSource(**source)

    @cached_property
    def layout(self) -> VectorLayout:
        """What the dimensions of the vectors are for, as embed recorded it."""
        return self.run.layout()

    def on_every_shard(self, task: Callable[[pa.Table], pa.Table], stage: str) -> Iterator[dict[str, Any]]:
        """Run a task on every shard (its ``shard`` column has the number); yield the answers in shard order."""
        # Stages alone import Ray, and this module is read before it is needed.
        import ray.data

        numbers = [{"shard": shard.index} for shard in self.shards]
        items = ray.data.from_items(numbers, override_num_blocks=len(numbers))
        return self.in_order(items.map_batches(task, batch_size=1, batch_format="pyarrow").iter_rows(), stage)

    def in_order(self, answers: Iterable[dict[str, Any]], stage: str) -> Iterator[dict[str, Any]]:
        """Yield the answers of tasks, one a shard, in the order of the shards; each is there exactly once.

        So that sums of floats do not depend on which task ended first, and few answers are held at a time.
        """
        early: dict[int, dict[str, Any]] = {}
        expected = iter(self.shards)
        following = next(expected, None)
        for answer in answers:
            if answer["shard"] in early or (following is None or answer["shard"] < following.index):
                raise StageError(
                    f"{stage}: shard {answer['shard']} was done twice; rerun with --redo-from {stage}"
                )
            early[answer["shard"]] = answer
            while following is not None and following.index in early:
                yield early.pop(following.index)
                following = next(expected, None)
        if following is not None:
            raise StageError(f"{stage}: shard {following.index} was not done; rerun with --redo-from {stage}")

    def read_all(self, table: str, columns: list[str]) -> pa.Table:
        """Read some columns of all shards of a table, in row order."""
        read = partial(self.run.read_shard, table, columns=columns)
        with ThreadPoolExecutor(_READERS) as pool:
            return pa.concat_tables(pool.map(read, self.shards)).unify_dictionaries()
