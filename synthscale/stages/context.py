"""What a stage is given and what it gives back."""

from dataclasses import dataclass, field
from typing import Any

from synthscale.config import Config
from synthscale.schemas import Layout, Shard
from synthscale.storage import RunDirectory
from synthscale.vectors import VectorSource


@dataclass(frozen=True)
class Outcome:
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

    @property
    def shards(self) -> list[Shard]:
        """The row ranges that every table is cut into, as ingest decided."""
        stops = self.run.completed("ingest").info["shard_stops"]
        starts = [0, *stops[:-1]]
        return [Shard(i, start, stop) for i, (start, stop) in enumerate(zip(starts, stops, strict=True))]

    @property
    def generators(self) -> list[str]:
        """The names of the synthetic sets, in the manifest's order."""
        return list(self.run.completed("ingest").info["generators"])

    @property
    def vectors(self) -> VectorSource | None:
        """Where precomputed vectors lie, if they are the input."""
        source = self.run.completed("ingest").info["vectors"]
        return None if source is None else VectorSource(**source)

    @property
    def layout(self) -> Layout:
        """What the dimensions of the vectors are for, as embed recorded it."""
        info = self.run.completed("embed").info
        return Layout(info["dimensions"], tuple(info["search"]), tuple(info["classify"]))
