"""Search results as arrays of one npz file: results of several pairs of sets, concatenated, with their keys."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.knn_search import KnnResult
from synthscale.neighbors.search_backend import RadiusKey, SetPair
from synthscale.neighbors.view import RadiusCounts

Arrays = Mapping[str, NDArray[Any]]


def pack_knn(results: Mapping[SetPair, KnnResult]) -> dict[str, NDArray[Any]]:
    """Return k-NN results as arrays.

    Returns:
        ``key`` (p, 4): query set, database set, rows m and k of each result; ``row``, ``distance`` and
        ``neighbor``: those of all results, flattened and concatenated.
    """
    key = [(*pair, *own.distance.shape) for pair, own in results.items()]
    return {
        "key": np.array(key, np.int64).reshape(-1, 4),
        "row": _concatenated([own.row for own in results.values()], np.int64),
        "distance": _concatenated([own.distance for own in results.values()], np.float64),
        "neighbor": _concatenated([own.neighbor for own in results.values()], np.int64),
    }


def unpack_knn(arrays: Arrays) -> dict[SetPair, KnnResult]:
    """Return the results that `pack_knn` packed."""
    rows, ks = arrays["key"][:, 2], arrays["key"][:, 3]
    results = {}
    for (query, database, m, k), row, flat in zip(
        arrays["key"].tolist(), _ranges(rows), _ranges(rows * ks), strict=True
    ):
        distance, neighbor = (arrays[name][flat].reshape(m, k) for name in ("distance", "neighbor"))
        results[SetPair(query, database)] = KnnResult(arrays["row"][row], distance, neighbor)
    return results


def pack_counts(counts: Mapping[RadiusKey, RadiusCounts]) -> dict[str, NDArray[Any]]:
    """Return counts of rows within radii as arrays.

    Returns:
        ``key`` (p, 4): query set, database set, whether the radius is the query's, rows m; ``row`` and ``count``:
        those of all results, concatenated.
    """
    key = [(*own, len(count.row)) for own, count in counts.items()]
    return {
        "key": np.array(key, np.int64).reshape(-1, 4),
        "row": _concatenated([own.row for own in counts.values()], np.int64),
        "count": _concatenated([own.count for own in counts.values()], np.int32),
    }


def unpack_counts(arrays: Arrays) -> dict[RadiusKey, RadiusCounts]:
    """Return the counts that `pack_counts` packed."""
    return {
        RadiusKey(query, database, bool(is_query_radius)): RadiusCounts(arrays["row"][part], arrays["count"][part])
        for (query, database, is_query_radius, _), part in zip(
            arrays["key"].tolist(), _ranges(arrays["key"][:, 3]), strict=True
        )
    }


def _concatenated(parts: list[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *(part.astype(kind, copy=False).ravel() for part in parts)])


def _ranges(lengths: NDArray[np.int64]) -> Iterator[slice]:
    stops = np.cumsum(lengths).tolist()
    return (slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True))
