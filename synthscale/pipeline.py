"""The main job: the stages in order, each skipped when its marker says that it is done.

ingest -> embed -> neighbors -> classify -> reduce -> report
"""

import platform
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import synthscale
from synthscale.config import Config, StorageConfig, parse_config
from synthscale.errors import ConfigError
from synthscale.ingest import stage as ingest
from synthscale.ingest.checks import check_metrics, check_rows
from synthscale.ingest.control import hold_out
from synthscale.ingest.discover import discover
from synthscale.result import RunResult
from synthscale.runtime.session import LOCAL, RaySession, ray_errors
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import STAGES, Marker, RunDirectory
from synthscale.tables.schemas import SCHEMA_VERSION

_LATER_STAGES = tuple(f"synthscale.{room}.stage" for room in ("classify", "neighbors", "metrics"))
_PACKAGES = ("numpy", "pandas", "pillow", "pyarrow", "ray", "scipy", "torch")


@dataclass(frozen=True)
class StageReport:
    """What a person is told when a stage ends: one line."""

    stage: str
    rows: int
    failed: int
    seconds: float
    skipped: bool


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its results.

    Attributes:
        ray_address: ``local`` starts a private Ray; ``auto`` or an address joins a cluster.
        redo_from: repeat this stage and all after it.
        verbose: let Ray's own logs and progress through.
        show_progress: let Ray Data's progress bar show during long stages.
        on_stage: called when a stage ends.
        on_progress: told, every few seconds of a long stage, what is done, at what rate, and the time left.
    """

    ray_address: str = LOCAL
    redo_from: str | None = None
    verbose: bool = False
    show_progress: bool = False
    on_stage: Callable[[StageReport], None] = lambda report: None
    on_progress: Callable[[str], None] = lambda text: None


def score(config: Config, options: Options | None = None) -> RunResult:
    """Run the main job, or what is left of it, and return its result.

    Raises:
        ConfigError, InputError, StorageError: the input or configuration cannot be used.
        TooManyFailures: too many rows could not be used.
        ResumeConflict: the output directory holds another run.
        StageError: a stage could not finish; the same call goes on from there.
    """
    options = options or Options()
    config.check_runnable()
    config = with_absolute_paths(config)
    assert config.output is not None
    run = RunDirectory.open(config.output, config.storage)
    if options.redo_from is not None:
        if options.redo_from not in STAGES:
            raise ConfigError(f"--redo-from {options.redo_from}: no such stage; there are {', '.join(STAGES)}")
        run.remove_from(options.redo_from)
    with RaySession(options.ray_address, verbose=options.verbose, preload=_LATER_STAGES) as session:
        _Run(config, run, options, session).work()
    return RunResult(run)


def rewrite_report(uri: str, storage: StorageConfig, *, shows_images: bool = True) -> RunResult:
    """Write the report of a finished run again; return the run's result.

    Raises:
        StorageError: there is no finished run at ``uri``.
    """
    from synthscale.report import stage as report

    result = RunResult.open(uri, storage)
    config = parse_config(result.run.read_json("run.json")["config"], f"{result.run.uri}/run.json")
    context = StageContext(config.model_copy(update={"storage": storage}), result.run)
    report.run(context, shows_images=shows_images)
    return result


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with local paths made absolute: workers run in other folders."""

    def absolute(uri: str | None) -> str | None:
        return None if uri is None else fsys.absolute(uri)

    encoder = config.encoder.model_copy(update={"weights": absolute(config.encoder.weights)})
    storage = config.storage.model_copy(update={"cache": absolute(config.storage.cache)})
    paths = {name: absolute(getattr(config, name)) for name in ("real", "manifest", "output")}
    synthetic = {name: absolute(uri) for name, uri in config.synthetic.items()}
    return config.model_copy(update={**paths, "synthetic": synthetic, "encoder": encoder, "storage": storage})


class _Run:
    """One call of ``score``: carries the context from stage to stage."""

    def __init__(self, config: Config, run: RunDirectory, options: Options, session: RaySession) -> None:
        self.config, self.run, self.options, self.session = config, run, options, session

    def work(self) -> None:
        dataset = discover(self.config)
        check_rows(dataset.rows)
        if self.config.control:
            dataset = replace(dataset, rows=hold_out(dataset.rows))
        check_metrics(self.config, dataset.rows)
        self._begin()
        context = StageContext(self.config, self.run)
        again = self._stage("ingest", ingest.fingerprint(context, dataset), lambda: ingest.run(context, dataset))
        if again and dataset.is_table:
            ingest.refuse_changed(context, dataset)
        if not self._is_reduced():
            self.session.start()
        # Ray takes seconds to start; meanwhile these load torch.
        from synthscale.classify import stage as classify
        from synthscale.embed import stage as embed
        from synthscale.embed.encoder_reader import encoder_spec
        from synthscale.metrics import stage as reduce
        from synthscale.neighbors import stage as neighbors
        from synthscale.report import stage as report

        encoder = encoder_spec(self.config, context.vectors)
        self._stage("embed", embed.fingerprint(context, encoder), lambda: embed.run(self._on_ray(), encoder))
        self._stage("neighbors", neighbors.fingerprint(context), lambda: neighbors.run(self._on_ray()))
        self._stage("classify", classify.fingerprint(context), lambda: classify.run(self._on_ray()))
        self._stage("reduce", reduce.fingerprint(context), lambda: reduce.run(self._on_ray()))
        if reduce.decide_gates(context):
            # It shows them.
            self.run.remove_from("report")
        self._stage("report", report.fingerprint(context), lambda: report.run(context))
        self._record()

    def _stage(self, name: str, fingerprint: dict[str, Any], work: Callable[[], StageOutcome]) -> bool:
        """Do one stage, its marker around it, unless that says that it is done before; tell whether it was."""
        marker = self.run.matching_marker(name, fingerprint)
        skipped = marker is not None and marker.complete
        if marker is None or not marker.complete:
            self.run.write_marker(Marker(name, False, fingerprint))
            start = time.perf_counter()
            with ray_errors(name):
                outcome = work()
            seconds = time.perf_counter() - start
            marker = Marker(name, True, fingerprint, outcome.counts, outcome.info, seconds)
            self.run.write_marker(marker)
        rows, failed = marker.counts.get("rows", 0), marker.counts.get("failed", 0)
        self.options.on_stage(StageReport(name, rows, failed, marker.seconds, skipped))
        return skipped

    def _on_ray(self) -> StageContext:
        """Return the context with the cluster's resources, waiting until Ray is up."""
        resources = self.session.wait_until_ready()
        return StageContext(
            self.config,
            self.run,
            gpus=int(resources.get("GPU", 0)),
            cpus=max(1, int(resources.get("CPU", 1))),
            is_local=self.options.ray_address == LOCAL,
            show_progress=self.options.show_progress,
            on_progress=self.options.on_progress,
        )

    def _is_reduced(self) -> bool:
        marker = self.run.marker("reduce")
        return marker is not None and marker.complete

    def _begin(self) -> None:
        if not self.run.is_started():
            self.run.write_json(
                "run.json", {"schema_version": SCHEMA_VERSION, "run_id": uuid.uuid4().hex[:12], **self._about()}
            )

    def _record(self) -> None:
        stages = {}
        for name in STAGES:
            marker = self.run.completed(name)
            rows = marker.counts.get("rows")
            rate = rows / marker.seconds if rows and marker.seconds else None
            stages[name] = {"seconds": marker.seconds, "rows": rows, "rows_per_s": rate}
        self.run.write_json(
            "run.json",
            {
                "schema_version": SCHEMA_VERSION,
                "run_id": self.run.read_json("run.json")["run_id"],
                "finished": True,
                **self._about(),
                "stages": stages,
                "notes": self.run.completed("ingest").info["notes"],
            },
        )

    def _about(self) -> dict[str, Any]:
        """What the run is made with: its configuration and versions."""
        packages = {name: version(name) for name in _PACKAGES}
        own = {"synthscale": synthscale.__version__, "python": platform.python_version()}
        return {"config": self.config.model_dump(mode="json", exclude_none=True), "versions": own | packages}
