"""Run the stages in order: ingest -> embed -> neighbors -> classify -> reduce -> report.

Reads the images, tables or vectors that the configuration names, and writes the run directory. A stage whose
marker is complete is skipped, so running an interrupted job again continues it. Whatever writes to a run directory
holds its lease, so that a second driver cannot.
"""

import platform
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import synthscale
from synthscale.config import Config, StorageConfig, parse_config
from synthscale.errors import ConfigError
from synthscale.ingest import stage as ingest
from synthscale.ingest.checks import check_metrics, check_places, check_rows
from synthscale.ingest.control import hold_out
from synthscale.ingest.discover import Dataset, discover
from synthscale.result import RunResult
from synthscale.runtime.session import LOCAL, RaySession, ray_errors
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.spelling import did_you_mean
from synthscale.storage import filesystems as fsys
from synthscale.storage.lease import Lease
from synthscale.storage.run_directory import STAGES, Marker, RunDirectory
from synthscale.tables.schemas import SCHEMA_VERSION

_LATER_STAGES = tuple(f"synthscale.{room}.stage" for room in ("classify", "neighbors", "metrics"))
"""Modules that Ray's workers import in advance, while they wait for work."""
_PACKAGES = ("numpy", "pandas", "pillow", "pyarrow", "ray", "scipy", "torch")
"""Packages whose versions ``run.json`` records."""


@dataclass(frozen=True)
class StageReport:
    """Outcome of a stage, for progress output.

    Attributes:
        stage: name of the stage.
        rows: number of rows that were processed.
        failed: number of rows that could not be read.
        failed_sets: for each set with rows that could not be read: rows in all, and failures by reason.
        seconds: duration; that of the earlier run if the stage was skipped.
        skipped: whether the stage was complete already.
    """

    stage: str
    rows: int
    failed: int
    seconds: float
    skipped: bool
    failed_sets: Mapping[str, tuple[int, Mapping[str, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How a run is executed. No option changes its results.

    Attributes:
        ray_address: ``local`` starts a private Ray; ``auto`` or an address joins a cluster.
        redo_from: name of a stage; it and all later ones are repeated.
        retry_failed: try the rows in ``failures/`` again; recompute what depends on those that can be read now.
        verbose: show Ray's own logs and progress.
        show_progress: show Ray Data's progress bar during long stages.
        on_input: called before the first stage with a line for each set and for everything that was passed over.
        on_stage: called with the outcome of each stage when it ends.
        on_progress: called every few seconds during a long stage with a line of text: work done, rate, time left.
    """

    ray_address: str = LOCAL
    redo_from: str | None = None
    retry_failed: bool = False
    verbose: bool = False
    show_progress: bool = False
    on_input: Callable[[list[str]], None] = lambda lines: None
    on_stage: Callable[[StageReport], None] = lambda report: None
    on_progress: Callable[[str], None] = lambda text: None


def score(config: Config, options: Options | None = None) -> RunResult:
    """Run the main job and return its result; stages that are complete in the output directory are skipped.

    Args:
        config: what to score and how; ``output`` is required.
        options: how to execute the run; None for the defaults.

    Raises:
        ConfigError, InputError, StorageError: the configuration or the input cannot be used.
        StorageUnavailable, StorageFull: storage cannot be read or written at the moment; the same call continues.
        TooManyFailures: more rows are unusable than ``max_failure_fraction`` allows.
        ResumeConflict: the output directory contains another run, or this run with other settings.
        StageError: a stage could not finish, or another driver is writing this run; the same call continues it.
    """
    options = options or Options()
    config.check_runnable()
    config = with_absolute_paths(config)
    assert config.output is not None
    if options.redo_from not in (None, *STAGES):
        raise ConfigError(
            f"--redo-from {options.redo_from}: no such stage; choose from {', '.join(STAGES)}"
            f"{did_you_mean(options.redo_from, STAGES)}"
        )
    check_places(config)
    run = RunDirectory.open(config.output, config.storage)
    lease = Lease(run)
    # Listing a large input takes long, so a second driver is refused before it.
    lease.check_free()
    dataset = _checked_dataset(config, is_resumed=run.is_started())
    options.on_input(dataset.lines())
    with lease:
        if options.redo_from is not None:
            run.remove_from(options.redo_from)
        with RaySession(options.ray_address, verbose=options.verbose, preload=_LATER_STAGES) as session:
            _StageRunner(config, run, options, session, lease).run_all(dataset)
    return RunResult(run)


def _checked_dataset(config: Config, *, is_resumed: bool) -> Dataset:
    """List the input and check it; raise ConfigError, InputError or StorageError if it cannot be used."""
    dataset = discover(config, is_resumed=is_resumed)
    check_rows(dataset.rows)
    if config.control:
        dataset = replace(dataset, rows=hold_out(dataset.rows))
    check_metrics(config, dataset.rows)
    return dataset


def check_resumable(config: Config, dataset: Dataset) -> None:
    """Check that `score` would continue the run in the output directory, if there is one; write nothing.

    Args:
        config: the configuration of the run.
        dataset: its input, as it is now.

    Raises:
        ResumeConflict: the run there has another input or other settings.
    """
    assert config.output is not None
    run = RunDirectory.open(config.output, config.storage)
    if not run.is_started():
        return
    context = StageContext(with_absolute_paths(config), run)

    def is_complete(stage: str, fingerprint: dict[str, Any]) -> bool:
        marker = run.matching_marker(stage, fingerprint)
        return marker is not None and marker.complete

    if not is_complete("ingest", ingest.fingerprint(context, dataset)):
        return
    if dataset.is_table:
        ingest.check_unchanged(context, dataset)
    from synthscale.classify import stage as classify
    from synthscale.embed import stage as embed
    from synthscale.embed.encoder_reader import encoder_spec
    from synthscale.metrics import stage as reduce
    from synthscale.neighbors import stage as neighbors

    if not is_complete("embed", embed.fingerprint(context, encoder_spec(context.config, context.vectors))):
        return
    for name, stage in {"neighbors": neighbors, "classify": classify, "reduce": reduce}.items():
        # The fingerprint of the next one needs a complete marker.
        if not is_complete(name, stage.fingerprint(context)):
            return


def rewrite_report(uri: str, storage: StorageConfig, *, shows_images: bool = True) -> RunResult:
    """Write ``report.html`` of a finished run again and return the run's result.

    Args:
        uri: the run directory, a local path or ``s3://`` URI.
        storage: S3 settings.
        shows_images: whether the report contains pictures; without them no image is read.

    Raises:
        StorageError: there is no finished run at ``uri``.
        ResumeConflict: the run has another schema version.
        StageError: a driver is writing this run.
    """
    from synthscale.report import stage as report

    result = RunResult.open(uri, storage)
    config = parse_config(result.run.read_json("run.json")["config"], f"{result.run.uri}/run.json")
    context = StageContext(config.model_copy(update={"storage": storage}), result.run)
    with Lease(result.run):
        report.run(context, shows_images=shows_images)
    return result


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute local paths, since Ray's workers run in other folders."""

    def absolute(uri: str | None) -> str | None:
        return None if uri is None else fsys.absolute(uri)

    encoder = config.encoder.model_copy(update={"weights": absolute(config.encoder.weights)})
    storage = config.storage.model_copy(update={"cache": absolute(config.storage.cache)})
    paths = {name: absolute(getattr(config, name)) for name in ("real", "manifest", "output")}
    synthetic = {name: absolute(uri) for name, uri in config.synthetic.items()}
    return config.model_copy(update={**paths, "synthetic": synthetic, "encoder": encoder, "storage": storage})


def _failed_sets(marker: Marker) -> dict[str, tuple[int, dict[str, int]]]:
    """Return the rows of each set with failures, and these by reason, as the stage counted them."""
    sets = marker.counts.get("sets", {})
    # Runs of earlier releases have no reasons by set.
    return {
        name: (tally["ok"] + tally["failed"], tally.get("reasons", {"": tally["failed"]}))
        for name, tally in sets.items()
        if tally["failed"]
    }


class _StageRunner:
    """Runs the stages of one call of ``score`` in a run directory, whose lease the caller holds."""

    def __init__(
        self, config: Config, run: RunDirectory, options: Options, session: RaySession, lease: Lease
    ) -> None:
        self.config, self.run, self.options, self.session, self.lease = config, run, options, session, lease
        self.is_resumed = run.is_started()

    def run_all(self, dataset: Dataset) -> None:
        self._write_run_info()
        context = StageContext(self.config, self.run, on_progress=self._on_progress)
        retry_failed = self.options.retry_failed
        found = ingest.fingerprint(context, dataset, except_failed=retry_failed)
        skipped = self._stage("ingest", found, lambda: ingest.run(context, dataset))
        if skipped and dataset.is_table:
            ingest.check_unchanged(context, dataset, except_failed=retry_failed)
        if not self._is_reduced():
            self.session.start()
        # Ray takes seconds to start in the background; these imports load torch meanwhile.
        from synthscale.classify import stage as classify
        from synthscale.embed import stage as embed
        from synthscale.embed.encoder_reader import encoder_spec
        from synthscale.metrics import stage as reduce
        from synthscale.neighbors import stage as neighbors
        from synthscale.report import stage as report

        encoder = encoder_spec(self.config, context.vectors)
        embedding = embed.fingerprint(context, encoder)
        self.lease.renew()
        retries = retry_failed and embed.reopen(context, embedding)
        self._stage("embed", embedding, lambda: embed.run(self._ray_context(), encoder, retry_failed=retries))
        self._stage("neighbors", neighbors.fingerprint(context), lambda: neighbors.run(self._ray_context()))
        self._stage("classify", classify.fingerprint(context), lambda: classify.run(self._ray_context()))
        self._stage("reduce", reduce.fingerprint(context), lambda: reduce.run(self._ray_context()))
        self.lease.renew()
        # The report shows the gates. It only shows results, so an old one is replaced and not a conflict.
        if reduce.decide_gates(context) or report.is_outdated(context):
            self.run.remove_from("report")
        self._stage("report", report.fingerprint(context), lambda: report.run(context))
        self._write_finished_run_info()

    def _stage(self, name: str, fingerprint: dict[str, Any], work: Callable[[], StageOutcome]) -> bool:
        """Run a stage unless its marker is complete. Return True if it was skipped.

        The marker is written before the work, as incomplete, and again after it. A marker with another
        fingerprint raises ResumeConflict. Working files go after the complete marker is written, so that a stage
        that fails at its very end need not repeat its work. The lease is renewed before anything is written or
        deleted: a driver that was paused and replaced meanwhile raises StageError.
        """
        self.lease.renew()
        marker = self.run.matching_marker(name, fingerprint)
        skipped = marker is not None and marker.complete
        if marker is None or not marker.complete:
            if marker is None and self.is_resumed:
                # A --redo-from that was killed may have left tables without a marker.
                self.run.remove_output(name)
            self.run.write_marker(Marker(name, False, fingerprint))
            start = time.perf_counter()
            with ray_errors(name):
                outcome = work()
            seconds = time.perf_counter() - start
            marker = Marker(name, True, fingerprint, outcome.counts, outcome.info, seconds)
            self.lease.renew()
            self.run.write_marker(marker)
        # Also those of an earlier run that was killed between its marker and this line.
        self.run.remove_working_files(name)
        rows, failed = marker.counts.get("rows", 0), marker.counts.get("failed", 0)
        self.options.on_stage(StageReport(name, rows, failed, marker.seconds, skipped, _failed_sets(marker)))
        return skipped

    def _on_progress(self, text: str) -> None:
        """Pass a line of progress on; raise StageError if another driver has taken over the run."""
        self.lease.check_held()
        self.options.on_progress(text)

    def _ray_context(self) -> StageContext:
        """Wait until Ray is up and return a stage context with the cluster's resources."""
        resources = self.session.wait_until_ready()
        return StageContext(
            self.config,
            self.run,
            gpus=int(resources.get("GPU", 0)),
            cpus=max(1, int(resources.get("CPU", 1))),
            is_local=self.options.ray_address == LOCAL,
            show_progress=self.options.show_progress,
            on_progress=self._on_progress,
        )

    def _is_reduced(self) -> bool:
        marker = self.run.marker("reduce")
        return marker is not None and marker.complete

    def _write_run_info(self) -> None:
        """Write ``run.json`` with a new run id, unless the run was started before."""
        if not self.is_resumed:
            self.run.write_json(
                "run.json", {"schema_version": SCHEMA_VERSION, "run_id": uuid.uuid4().hex[:12], **self._run_info()}
            )

    def _write_finished_run_info(self) -> None:
        """Write ``run.json`` again, with the duration and rate of each stage."""
        stages = {}
        for name in STAGES:
            marker = self.run.completed(name)
            rows = marker.counts.get("rows")
            rate = rows / marker.seconds if rows and marker.seconds else None
            stages[name] = {"seconds": marker.seconds, "rows": rows, "rows_per_s": rate}
        self.lease.renew()
        self.run.write_json(
            "run.json",
            {
                "schema_version": SCHEMA_VERSION,
                "run_id": self.run.read_json("run.json")["run_id"],
                "finished": True,
                **self._run_info(),
                "stages": stages,
                "sets": self.run.completed("ingest").info["sets"],
                "notes": self.run.completed("ingest").info["notes"],
            },
        )

    def _run_info(self) -> dict[str, Any]:
        """Return the configuration and the versions of synthscale, Python and the main packages."""
        versions = {"synthscale": synthscale.__version__, "python": platform.python_version()}
        versions |= {name: version(name) for name in _PACKAGES}
        return {"config": self.config.model_dump(mode="json", exclude_none=True), "versions": versions}
