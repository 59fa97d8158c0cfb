"""Convert results of the neighbors stage from NumPy arrays to Arrow tables, one function per output table.

The column types and their meaning are in tables/schemas.py. A missing value, such as the distance of a row without
a neighbour, becomes null.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import KINDS, Edges
from synthscale.neighbors.groups import Groups
from synthscale.neighbors.view import Nearest
from synthscale.tables.schemas import DISTINCT_REAL, MANIFOLD_REAL, MANIFOLD_REAL_ROW, NEAREST_REAL


def edges(found: Edges) -> pa.Table:
    """Return the near-duplicate pairs as a table, one line per pair."""
    return pa.table(
        {
            "left": found.left,
            "right": found.right,
            "distance": found.distance,
            "kind": pa.DictionaryArray.from_arrays(pa.array(found.kind, pa.int32()), pa.array(KINDS)).cast(
                pa.string()
            ),
        }
    )


def nearest(generator: str, found: Nearest, copies: Rows) -> pa.Table:
    """Return the nearest-neighbour results of a generator's view as a table, one line per row.

    Args:
        generator: name of the generator, written to every line.
        found: results of the view.
        copies: rows that are exact copies of a row with a smaller id in their own set.
    """
    n = len(found.row)
    return pa.table(
        {
            "generator": pa.array([generator] * n, pa.string()),
            "row": found.row,
            "nn_row": _masked(found.nn_row, found.nn_row >= 0),
            "nn_distance": _masked(found.nn_distance, np.isfinite(found.nn_distance)),
            "nearest_real_row": _masked(found.nearest_real_row, found.nearest_real_row >= 0),
            NEAREST_REAL: _masked(found.nearest_real_distance, np.isfinite(found.nearest_real_distance)),
            MANIFOLD_REAL_ROW: _masked(found.manifold_real_row, found.manifold_real_row >= 0),
            MANIFOLD_REAL: _masked(found.manifold_real_distance, np.isfinite(found.manifold_real_distance)),
            DISTINCT_REAL: _masked(found.distinct_real_distance, np.isfinite(found.distinct_real_distance)),
            "knn_radius": _masked(found.knn_radius, np.isfinite(found.knn_radius)),
            "in_real_manifold": found.in_real_manifold,
            "covered": _masked(found.covered, found.is_real),
            "is_copy": np.isin(found.row, copies),
            "exact": found.exact,
            "synthetic_in_radius": _masked(found.synthetic_in_radius, found.synthetic_in_radius >= 0),
            "real_radii_containing": _masked(found.real_radii_containing, found.real_radii_containing >= 0),
            "in_synthetic_manifold": _masked(found.in_synthetic_manifold > 0, found.in_synthetic_manifold >= 0),
        }
    )


def _masked(values: NDArray[Any], is_valid: NDArray[np.bool_]) -> pa.Array:
    """Return an Arrow array that is null where ``is_valid`` is False."""
    return pa.array(values, mask=~is_valid)


def groups(generator: str, found: Groups, part: slice = slice(None)) -> pa.Table:
    """Return the near-duplicate groups of a generator's view as a table, one line per member row.

    Args:
        generator: name of the generator, written to every line.
        found: groups of the view.
        part: range of lines to convert; all by default.
    """
    columns = {name: values[part] for name, values in vars(found).items()}
    return pa.table({"generator": pa.array([generator] * len(columns["row"]), pa.string()), **columns})
