"""Between Arrow tables and the arrays that the pure modules compute with."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.neighbors import View
from synthscale.search import Pairs, Rows


def vectors(table: pa.Table, dimensions: tuple[int, int]) -> NDArray[np.float32]:
    """Return the column ``vector`` as (n, stop - start), the given range of dimensions."""
    column = table.column("vector").combine_chunks()
    width = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    result: NDArray[np.float32] = flat.reshape(-1, width)[:, dimensions[0] : dimensions[1]]
    return result


def edges(parts: dict[str, Pairs]) -> pa.Table:
    """Return the edges of all kinds; keys end in ``real-real``, ``real-synthetic`` or ``synthetic-synthetic``."""
    return pa.concat_tables(
        pa.table(
            {
                "left": pairs.left,
                "right": pairs.right,
                "cosine_distance": pairs.distance,
                "kind": pa.array([name.rpartition(":")[2]] * len(pairs.left), pa.string()),
            }
        )
        for name, pairs in parts.items()
    )


def nearest(view: View, copies: Rows) -> pa.Table:
    """Return a view's nearest rows; ``copies`` are the rows that equal one of a smaller id in their own set."""
    found = view.nearest
    n = len(found.row)
    is_real = np.arange(n) < view.real_rows
    return pa.table(
        {
            "generator": pa.array([view.generator] * n, pa.string()),
            "row": found.row,
            "nn_row": _known(found.nn_row, found.nn_row >= 0),
            "nn_distance": _known(found.nn_distance, np.isfinite(found.nn_distance)),
            "nearest_real_row": _known(found.nearest_real_row, found.nearest_real_row >= 0),
            "nearest_real_distance": _known(found.nearest_real_distance, np.isfinite(found.nearest_real_distance)),
            "knn_radius": _known(found.knn_radius, np.isfinite(found.knn_radius)),
            "in_real_manifold": found.in_real_manifold,
            "covered": _known(found.covered, is_real),
            "is_copy": np.isin(found.row, copies),
            "exact": np.ones(n, np.bool_),
        }
    )


def _known(values: NDArray[Any], known: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=~known)


def groups(view: View) -> pa.Table:
    """Return a view's near-duplicate groups, one line a member row."""
    found = view.groups
    return pa.table({"generator": pa.array([view.generator] * len(found.row), pa.string()), **vars(found)})
