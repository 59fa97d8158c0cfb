"""Builds ``metrics.parquet``: one row per generator, metric and slice."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from synthscale.metrics.summary import MetricRow
from synthscale.tables.columns import from_matrix
from synthscale.tables.schemas import BLOCKS, METRICS


def metric_lines(lines: Mapping[str, Sequence[MetricRow]], generators: Mapping[str, dict[str, Any]]) -> pa.Table:
    """Return the metrics of all generators as a table with the schema of ``metrics.parquet``.

    Args:
        lines: metrics of each generator, by its name.
        generators: the generators' blocks of metrics.json, which have the control's values as references.
    """
    rows = [(name, line) for name, generator_lines in lines.items() for line in generator_lines]
    deviations = [
        np.full(BLOCKS, np.nan) if line.estimate.deviations is None else line.estimate.deviations
        for _, line in rows
    ]
    columns: dict[str, Any] = {"generator": [name for name, _ in rows]}
    for name in ("family", "metric", "slice_by", "slice", "real", "synthetic"):
        columns[name] = [getattr(line, name) for _, line in rows]
    for name in ("value", "low", "high", "unadjusted", "is_small"):
        columns[name] = [getattr(line.estimate, name) for _, line in rows]
    columns["reference"] = [_in_block(generators[name], line).get("reference") for name, line in rows]
    # As in metrics.json, every null value or interval has a reason.
    columns["reason"] = [line.estimate.to_json().get("reason") for _, line in rows]
    columns["deviations"] = from_matrix(np.stack(deviations))
    return pa.table({name: columns[name] for name in METRICS.names}, schema=METRICS)


def _in_block(block: dict[str, Any], line: MetricRow) -> dict[str, Any]:
    """Return the metric of a row of ``metrics.parquet`` in the generator's block of metrics.json."""
    if line.slice_by:
        slices = block["by_label"] if line.slice_by == "label" else block["by"][line.slice_by]
        metrics = slices[line.slice]
    elif line.family in ("core", "matched"):
        metrics = block["metrics"] if line.family == "core" else block["matched"]["metrics"]
    elif line.family == "confounders":
        metrics = {line.metric: block["confounders"]["auc"]}
    else:
        metrics = block["classifier"] if line.family == "classifier" else block["families"][line.family]
    result: dict[str, Any] = metrics[line.metric]
    return result
