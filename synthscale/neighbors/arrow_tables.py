"""Between Arrow tables and the arrays that the pure modules compute with."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import KINDS, Edges
from synthscale.neighbors.groups import Groups
from synthscale.neighbors.view import Nearest
from synthscale.tables.schemas import DISTINCT_REAL


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
            "synthetic_in_radius": _known(found.synthetic_in_radius, found.synthetic_in_radius >= 0),
            "real_radii_containing": _known(found.real_radii_containing, found.real_radii_containing >= 0),
            "in_synthetic_manifold": _known(found.in_synthetic_manifold > 0, found.in_synthetic_manifold >= 0),
        }
    )


def _known(values: NDArray[Any], known: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=~known)


def groups(generator: str, found: Groups, part: slice = slice(None)) -> pa.Table:
    """Return a view's near-duplicate groups, or a range of their lines: one a member row."""
    columns = {name: values[part] for name, values in vars(found).items()}
    return pa.table({"generator": pa.array([generator] * len(columns["row"]), pa.string()), **columns})
