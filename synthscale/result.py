"""A finished run in Python: metrics, per-example scores, near-duplicate groups, failures and the report.

Reads the run directory, on a local disk or S3, when a property or method is used; writes nothing to it.
"""

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
from synthscale.spelling import did_you_mean
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_datasets import group_rows, scores_dataset
from synthscale.storage.run_directory import RunDirectory

_WORST: dict[str, tuple[str, Any, str, bool]] = {
    "fidelity": ("synthetic", None, "label_quality_score", False),
    "representativeness": ("real", None, "label_quality_score", False),
    "diversity": ("synthetic", None, "distance_to_nearest_neighbor", True),
    "unique_share": ("synthetic", None, "distance_to_nearest_neighbor", True),
    "freshness": ("synthetic", None, "distance_to_nearest_real", True),
    "precision": ("synthetic", ~ds.field("in_real_manifold"), "distance_to_nearest_real", False),
    "coverage": ("real", ~ds.field("covered"), "label_quality_score", False),
}
"""Rows that lower a core metric most: (class, row filter, column to sort by, whether ascending), by metric."""


class RunResult:
    """A scored run.

    Attributes:
        run: its run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        """Wrap the directory of a run whose stage reduce is complete."""
        self.run = run

    @classmethod
    def open(cls, uri: str, storage: StorageConfig | None = None) -> "RunResult":
        """Open a finished run.

        Args:
            uri: the run directory, a local path or ``s3://`` URI.
            storage: S3 settings; None for the defaults.

        Raises:
            StorageError: there is no run at ``uri``, or it is not finished.
            ResumeConflict: the run has another schema version.
        """
        run = RunDirectory.existing(uri, storage or StorageConfig())
        run.completed("reduce")
        return cls(run)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        document: dict[str, Any] = self.run.read_json("metrics.json")
        return document

    @property
    def generators(self) -> list[str]:
        """The names of the synthetic sets."""
        return list(self.metrics["generators"])

    @property
    def report_path(self) -> str:
        """Path or URI of ``report.html``."""
        return self.run.path("report.html")

    def local_report(self) -> Path:
        """Return a local path of the report; a report on S3 is downloaded to a temporary folder."""
        if not fsys.is_s3(self.report_path):
            return Path(self.report_path)
        path = Path(tempfile.mkdtemp(prefix="synthscale-report-")) / "report.html"
        path.write_bytes(fsys.read_bytes(self.report_path, self.run.storage))
        return path

    @property
    def scores_path(self) -> str:
        """Path or URI of the ``scores/`` partitions."""
        return self.run.path("scores")

    def scores_dataset(self, generator: str | None = None) -> ds.Dataset:
        """Return ``scores/`` as a lazily read Arrow dataset.

        Args:
            generator: read only this generator's partition; None reads all, so real rows occur once in each.

        Raises:
            InputError: there is no such generator.
        """
        if generator is not None and generator not in self.generators:
            raise InputError(
                f"{self.run.uri}: has no generator {generator!r}; choose from {', '.join(self.generators)}"
                f"{did_you_mean(generator, self.generators)}"
            )
        return scores_dataset(self.run, generator)

    def scores(self, generator: str | None = None) -> pd.DataFrame:
        """Return one generator's partition of ``scores/`` as a pandas frame: a row per image.

        Args:
            generator: name of the generator; may be omitted if the run has only one.
        """
        table = self.scores_dataset(self._generator_name(generator)).to_table()
        frame: pd.DataFrame = table.drop_columns(["generator"]).to_pandas()
        return frame

    def worst(self, metric: str, n: int = 20, generator: str | None = None) -> pd.DataFrame:
        """Return the rows of ``scores/`` that lower a core metric most, the worst first.

        These are synthetic images for ``fidelity`` and ``precision``, real images for ``representativeness`` and
        ``coverage``, synthetic images that repeat one another for ``diversity``, those that repeat a real one for
        ``freshness``, and both for ``unique_share``.

        Args:
            metric: a core metric.
            n: maximum number of rows.
            generator: name of the generator; may be omitted if the run has only one.

        Raises:
            InputError: there is no such metric or generator.
        """
        if metric not in _WORST:
            raise InputError(
                f"worst: no metric {metric!r}; choose from {', '.join(_WORST)}{did_you_mean(metric, _WORST)}"
            )
        name = self._generator_name(generator)
        kind, row_filter, column, ascending = _WORST[metric]
        if metric in {"diversity", "unique_share", "freshness"}:
            groups = self.groups(name)
            repeats = groups[groups.has_synthetic]
            if metric != "unique_share":
                repeats = repeats[repeats.has_real == (metric == "freshness")]
            row_filter = ds.field("near_duplicate_id").isin(repeats.near_duplicate_id.tolist())
        of_class = (ds.field("real_or_synthetic") == kind) & ds.field(column).is_valid()
        table = self.scores_dataset(name).to_table(
            filter=of_class if row_filter is None else of_class & row_filter
        )
        order = [(column, "ascending" if ascending else "descending"), ("id", "ascending")]
        chosen = pc.select_k_unstable(table, k=min(n, len(table)), sort_keys=order)
        frame: pd.DataFrame = table.take(chosen).drop_columns(["generator"]).to_pandas()
        return frame

    def groups(self, generator: str | None = None) -> pd.DataFrame:
        """Return a generator's near-duplicate groups as a pandas frame: a row per group, the largest first.

        Args:
            generator: name of the generator; may be omitted if the run has only one.

        Returns:
            Columns ``near_duplicate_id``, ``component_id`` (connected component that it is part of), ``size``,
            ``has_real``, ``has_synthetic``, ``diameter`` (largest distance between two members) and ``is_chain``.
            The members are the rows of ``scores()`` with the same ``near_duplicate_id``.
        """
        table = self.group_rows(self._generator_name(generator)).to_table()
        frame: pd.DataFrame = table.to_pandas().drop_duplicates("near_duplicate_id")
        return frame.sort_values(["size", "near_duplicate_id"], ascending=[False, True], ignore_index=True)

    def group_rows(self, generator: str) -> ds.Scanner:
        """Return a lazy scanner of ``groups/``: a row for each member of the generator's near-duplicate groups."""
        return group_rows(self.run, generator)

    def show(self) -> Any:
        """Show the report: in the cell's output in a notebook, otherwise in the browser."""
        path = self.local_report()
        try:
            from IPython import get_ipython
            from IPython.display import HTML
        except ImportError:
            get_ipython = None
        # IPython in a terminal cannot display HTML, so only a kernel counts as a notebook.
        if get_ipython is None or not hasattr(get_ipython(), "kernel"):
            return webbrowser.open(path.as_uri())
        page = html.escape(path.read_text("utf-8"), quote=True)
        return HTML(f'<iframe srcdoc="{page}" width="100%" height="800" style="border:0"></iframe>')

    def plot_projection(self, n: int = 2000) -> Any:
        """Return a matplotlib figure: the PCA of a sample of embeddings, coloured by set (extra ``notebook``).

        Args:
            n: approximate number of rows in the sample.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        from synthscale.report.plot import projection_figure
        from synthscale.report.sample_reader import sample_embeddings

        return projection_figure(*sample_embeddings(self.run, n))

    def _generator_name(self, generator: str | None) -> str:
        """Return ``generator``, or the run's only generator if it is None."""
        if generator is None and len(self.generators) == 1:
            return self.generators[0]
        if generator is None:
            raise InputError(f"the run has several generators; choose from {', '.join(self.generators)}")
        return generator

    def failures(self) -> pd.DataFrame:
        """Return a pandas frame of the rows that could not be read, with the reason of each."""
        names = sorted(self.run.written_shards("failures"))
        tables = [fsys.read_table(self.run.path("failures", name), self.run.storage) for name in names]
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return frame
