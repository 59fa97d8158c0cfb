"""Runs that end after a stage."""

from collections.abc import Callable
from typing import Any

import pytest

from synthscale import Config
from synthscale.pipeline import Options, StageReport, score
from synthscale.storage.run_directory import RunDirectory


class StopAfterStageError(Exception):
    """Ends a run after a stage."""


def run_until(
    config: Config, last: str, *, on_stage: Callable[[StageReport], None] = lambda report: None, **options: Any
) -> RunDirectory:
    """Run the stages up to ``last``; return the run directory."""

    def stop(report: StageReport) -> None:
        on_stage(report)
        if report.stage == last:
            raise StopAfterStageError

    with pytest.raises(StopAfterStageError):
        score(config, Options(on_stage=stop, **options))
    return RunDirectory.existing(config.output, config.storage)
