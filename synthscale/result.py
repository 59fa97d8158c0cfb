"""What a finished run offers: metrics, per-example scores, failures, and where the report lies."""

from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import FSSpecHandler, PyFileSystem

from synthscale import filesystems as fsys
from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.storage import RunDirectory


class RunResult:
    """A run directory, read on demand."""

    def __init__(self, run: RunDirectory) -> None:
        """Take the directory of a run that has been scored."""
        self.run = run

    @classmethod
    def open(cls, uri: str, storage: StorageConfig | None = None) -> "RunResult":
        """Open a finished run at a local path or ``s3://`` URI; raise StorageError when there is none."""
        run = RunDirectory.existing(uri, storage or StorageConfig())
        run.completed("reduce")
        return cls(run)

    @property
    def metrics(self) -> dict[str, Any]:
        """The contents of ``metrics.json``."""
        document: dict[str, Any] = self.run.read_json("metrics.json")
        return document

    @property
    def generators(self) -> list[str]:
        """The names of the synthetic sets."""
        return list(self.metrics["generators"])

    @property
    def report_path(self) -> str:
        """Where ``report.html`` lies."""
        return self.run.path("report.html")

    @property
    def scores_path(self) -> str:
        """Where the ``scores/`` partitions lie."""
        return self.run.path("scores")

    def scores_dataset(self, generator: str | None = None) -> ds.Dataset:
        """Return ``scores/`` as an Arrow dataset, read lazily; of one generator, or of all (real rows repeat)."""
        if generator is not None and generator not in self.generators:
            raise InputError(
                f"{self.run.uri}: has no generator {generator!r}; there are {', '.join(self.generators)}"
            )
        path = self.scores_path if generator is None else fsys.join(self.scores_path, f"generator={generator}")
        if fsys.is_s3(path):
            filesystem = PyFileSystem(FSSpecHandler(fsys.filesystem(path, self.run.storage)))
            return ds.dataset(
                path.removeprefix("s3://"), format="parquet", partitioning="hive", filesystem=filesystem
            )
        return ds.dataset(path, format="parquet", partitioning="hive", partition_base_dir=self.scores_path)

    def scores(self, generator: str | None = None) -> pd.DataFrame:
        """Return one generator's partition of ``scores/`` (the only one's, when it is not named) as pandas."""
        if generator is None and len(self.generators) == 1:
            generator = self.generators[0]
        if generator is None:
            raise InputError(f"name a generator: {', '.join(self.generators)}")
        table = self.scores_dataset(generator).to_table()
        frame: pd.DataFrame = table.select(
            [name for name in table.column_names if name != "generator"]
        ).to_pandas()
        return frame

    def failures(self) -> pd.DataFrame:
        """Return the rows that could not be used, with the reason of each."""
        shards = sorted(self.run.written_shards("failures"))
        tables = [fsys.read_table(self.run.path("failures", name), self.run.storage) for name in shards]
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return frame
