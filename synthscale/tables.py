"""Between Arrow tables and the arrays that the pure modules compute with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.columns import lists
from synthscale.edges import KINDS, Edges
from synthscale.groups import Groups
from synthscale.jackknife import BLOCKS
from synthscale.metrics.summary import Line
from synthscale.neighbors import Nearest
from synthscale.schemas import DISTINCT_REAL, METRICS
from synthscale.search import Rows


def vectors(table: pa.Table, dimensions: tuple[int, int]) -> NDArray[np.floating]:
    """Return the column ``vector`` as (n, stop - start), the given range of dimensions, in its stored type."""
    column = table.column("vector").combine_chunks()
    width = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    result: NDArray[np.floating] = flat.reshape(-1, width)[:, dimensions[0] : dimensions[1]]
    return result


def metric_lines(lines: Mapping[str, Sequence[Line]]) -> pa.Table:
    """Return the lines of generators as ``metrics.parquet`` has them."""
    rows = [(name, line) for name, own in lines.items() for line in own]
    deviations = [
        np.full(BLOCKS, np.nan) if line.estimate.deviations is None else line.estimate.deviations
        for _, line in rows
    ]
    columns: dict[str, Any] = {"generator": [name for name, _ in rows]}
    for name in ("family", "metric", "slice_by", "slice", "real", "synthetic"):
        columns[name] = [getattr(line, name) for _, line in rows]
    for name in ("value", "low", "high", "unadjusted", "reference", "is_small"):
        columns[name] = [getattr(line.estimate, name) for _, line in rows]
    # As in metrics.json: what is null has a reason.
    columns["reason"] = [line.estimate.metric().get("reason") for _, line in rows]
    columns["deviations"] = lists(np.stack(deviations))
    order = METRICS.names
    return pa.table({name: columns[name] for name in order}, schema=METRICS)


def edges(found: Edges) -> pa.Table:
    """Return edges, one line each."""
    return pa.table(
        {
            "left": found.left,
            "right": found.right,
            "cosine_distance": found.distance,
            "kind": pa.DictionaryArray.from_arrays(pa.array(found.kind, pa.int32()), pa.array(KINDS)).cast(
                pa.string()
            ),
        }
    )


def nearest(generator: str, found: Nearest, copies: Rows) -> pa.Table:
    """Return a view's nearest rows; ``copies`` are the rows that equal one of a smaller id in their own set."""
    n = len(found.row)
    return pa.table(
        {
            "generator": pa.array([generator] * n, pa.string()),
            "row": found.row,
            "nn_row": _known(found.nn_row, found.nn_row >= 0),
            "nn_distance": _known(found.nn_distance, np.isfinite(found.nn_distance)),
            "nearest_real_row": _known(found.nearest_real_row, found.nearest_real_row >= 0),
            "nearest_real_distance": _known(found.nearest_real_distance, np.isfinite(found.nearest_real_distance)),
            DISTINCT_REAL: _known(found.distinct_real_distance, np.isfinite(found.distinct_real_distance)),
            "knn_radius": _known(found.knn_radius, np.isfinite(found.knn_radius)),
            "in_real_manifold": found.in_real_manifold,
            "covered": _known(found.covered, found.is_real),
            "is_copy": np.isin(found.row, copies),
            "exact": found.exact,
            "held": _known(found.held, found.held >= 0),
            "real_balls": _known(found.real_balls, found.real_balls >= 0),
            "in_synthetic_manifold": _known(found.in_synthetic_manifold > 0, found.in_synthetic_manifold >= 0),
        }
    )


def _known(values: NDArray[Any], known: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=~known)


def groups(generator: str, found: Groups, part: slice = slice(None)) -> pa.Table:
    """Return a view's near-duplicate groups, or a range of their lines: one a member row."""
    columns = {name: values[part] for name, values in vars(found).items()}
    return pa.table({"generator": pa.array([generator] * len(columns["row"]), pa.string()), **columns})
