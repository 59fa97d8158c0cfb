"""Builds ``metrics.parquet``: one row per generator, metric and slice."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from synthscale.metrics.summary import MetricRow
from synthscale.tables.columns import from_matrix
from synthscale.tables.schemas import BLOCKS, METRICS


def metric_lines(lines: Mapping[str, Sequence[MetricRow]]) -> pa.Table:
    """Return the metrics of all generators as a table with the schema of ``metrics.parquet``.

    Args:
        lines: metrics of each generator, by its name.
    """
    rows = [(name, line) for name, generator_lines in lines.items() for line in generator_lines]
    deviations = [
        np.full(BLOCKS, np.nan) if line.estimate.deviations is None else line.estimate.deviations
        for _, line in rows
    ]
    columns: dict[str, Any] = {"generator": [name for name, _ in rows]}
    for name in ("family", "metric", "slice_by", "slice", "real", "synthetic"):
        columns[name] = [getattr(line, name) for _, line in rows]
    for name in ("value", "low", "high", "unadjusted", "reference", "is_small"):
        columns[name] = [getattr(line.estimate, name) for _, line in rows]
    # As in metrics.json, every null value or interval has a reason.
    columns["reason"] = [line.estimate.to_json().get("reason") for _, line in rows]
    columns["deviations"] = from_matrix(np.stack(deviations))
    return pa.table({name: columns[name] for name in METRICS.names}, schema=METRICS)
