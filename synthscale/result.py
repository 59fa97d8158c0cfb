"""What a finished run offers: metrics, per-example scores, failures, and where the report lies."""

import html
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_datasets import group_rows, scores_dataset
from synthscale.storage.run_directory import RunDirectory

_WORST: dict[str, tuple[str, Any, str, bool]] = {
    "fidelity": ("synthetic", None, "label_quality_score", False),
    "representativeness": ("real", None, "label_quality_score", False),
    "diversity": ("synthetic", None, "distance_to_nearest_neighbor", True),
    "freshness": ("synthetic", None, "distance_to_nearest_real", True),
    "precision": ("synthetic", ~ds.field("in_real_manifold"), "distance_to_nearest_real", False),
    "coverage": ("real", ~ds.field("covered"), "label_quality_score", False),
}
"""By metric: the class whose rows count, which of them, and the column that orders them, ascending or not."""


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

    def local_report(self) -> Path:
        """Return a local path of the report: on S3 it is fetched to a temporary folder."""
        if not fsys.is_s3(self.report_path):
            return Path(self.report_path)
        path = Path(tempfile.mkdtemp(prefix="synthscale-report-")) / "report.html"
        path.write_bytes(fsys.read_bytes(self.report_path, self.run.storage))
        return path

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
        return scores_dataset(self.run, generator)

    def scores(self, generator: str | None = None) -> pd.DataFrame:
        """Return one generator's partition of ``scores/`` (the only one's, when it is not named) as pandas."""
        table = self.scores_dataset(self._one(generator)).to_table()
        frame: pd.DataFrame = table.drop_columns(["generator"]).to_pandas()
        return frame

    def worst(self, metric: str, n: int = 20, generator: str | None = None) -> pd.DataFrame:
        """Return the ``n`` rows of ``scores/`` that cost a generator most of a core metric, the worst first.

        For ``fidelity`` and ``precision`` those are synthetic images, for ``representativeness`` and ``coverage``
        real ones, for ``diversity`` and ``freshness`` synthetic images that repeat another, or a real one.
        """
        if metric not in _WORST:
            raise InputError(f"worst: there is no metric {metric!r}; there are {', '.join(_WORST)}")
        name = self._one(generator)
        kind, counted, column, ascending = _WORST[metric]
        if metric in {"diversity", "freshness"}:
            groups = self.groups(name)
            costly = groups[groups.has_synthetic & (groups.has_real == (metric == "freshness"))]
            counted = ds.field("near_duplicate_id").isin(costly.near_duplicate_id.tolist())
        own = ds.field("real_or_synthetic") == kind
        own = own & ds.field(column).is_valid()
        table = self.scores_dataset(name).to_table(filter=own if counted is None else own & counted)
        order = [(column, "ascending" if ascending else "descending"), ("id", "ascending")]
        chosen = pc.select_k_unstable(table, k=min(n, len(table)), sort_keys=order)
        frame: pd.DataFrame = table.take(chosen).drop_columns(["generator"]).to_pandas()
        return frame

    def groups(self, generator: str | None = None) -> pd.DataFrame:
        """Return a generator's near-duplicate groups, one a line, the largest first.

        Columns: ``near_duplicate_id``, ``size``, ``has_real``, ``has_synthetic``, ``diameter`` (the largest cosine
        distance between two members) and ``is_chain``. ``scores()`` has the members.
        """
        table = self.group_rows(self._one(generator)).to_table()
        frame: pd.DataFrame = table.to_pandas().drop_duplicates("near_duplicate_id")
        return frame.sort_values(["size", "near_duplicate_id"], ascending=[False, True], ignore_index=True)

    def group_rows(self, generator: str) -> ds.Scanner:
        """Return a line for each member of a generator's near-duplicate groups, read lazily."""
        return group_rows(self.run, generator)

    def show(self) -> Any:
        """Show the report: in a notebook, in its output; elsewhere, in the browser."""
        path = self.local_report()
        try:
            from IPython import get_ipython
            from IPython.display import HTML
        except ImportError:
            get_ipython = None
        # A terminal's IPython has no place to show it in.
        if get_ipython is None or not hasattr(get_ipython(), "kernel"):
            return webbrowser.open(path.as_uri())
        page = html.escape(path.read_text("utf-8"), quote=True)
        return HTML(f'<iframe srcdoc="{page}" width="100%" height="800" style="border:0"></iframe>')

    def plot_projection(self, n: int = 2000) -> Any:
        """Return a matplotlib figure of a sample of the images in two dimensions, by set (extra ``notebook``)."""
        from synthscale.report.plot import figure_of
        from synthscale.report.sample_reader import sample_embeddings

        return figure_of(*sample_embeddings(self.run, n))

    def _one(self, generator: str | None) -> str:
        """Return the name of a generator: the only one's, when it is not named."""
        if generator is None and len(self.generators) == 1:
            return self.generators[0]
        if generator is None:
            raise InputError(f"name a generator: {', '.join(self.generators)}")
        return generator

    def failures(self) -> pd.DataFrame:
        """Return the rows that could not be used, with the reason of each."""
        shards = sorted(self.run.written_shards("failures"))
        tables = [fsys.read_table(self.run.path("failures", name), self.run.storage) for name in shards]
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return frame
