"""Approximate k-NN and radius search in sets too large for brute force: a FAISS IVF index with a blocked search.

The index is FAISS's ``PCA,IVF,Flat`` with a flat refinement index; ``faiss.read_index`` reads the file that
`CellIndex.write` writes. FAISS's own search scans inverted lists one query at a time. Here one matrix product over
the principal components compares all queries that probe a list with its rows and excludes rows that cannot be
among the k nearest; the full vectors decide the rest. The result is exact within the probed cells, and exact
overall if all cells are probed (to a relative error of 1e-7 of a distance, or 1e-13 absolute, because vectors are
stored in float32, scaled to length 1 if the metric is ``cosine``).
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import (
    UNIT,
    CandidateFilter,
    Places,
    Points,
    as_database,
    as_queries,
    cpu_filter,
)
from synthscale.neighbors.distance import Floats, Rows, divisors, paired_distance, squared_norms
from synthscale.neighbors.probe_order import ProbeOrder
from synthscale.neighbors.projection import Vectors, usual_rows
from synthscale.tables.layout import DistanceMetric

_WIDTH = 64
"""Principal components kept for the candidate filter. They affect the cost, not the result."""
_MOST_CELLS = 16384
"""Upper bound on cells (IVF lists). Every query is compared with every centre, so the cost grows with it."""
_PER_CELL = 40
"""Training rows per cell; the minimum that FAISS recommends is 39."""
_pairwise: Any = faiss.pairwise_indexed_L2sqr  # type: ignore[attr-defined]  # its stubs lack it
"""Squared Euclidean distances of pairs of rows, which are not copied together first."""


def cells_for(n: int) -> int:
    """Return the number of cells for an index of n rows: sqrt(n), at most 16,384."""
    return int(max(1, min(_MOST_CELLS, np.sqrt(n))))


def index_sample_size(n: int) -> int:
    """Return the number of rows to train an index of n rows on."""
    return min(n, _PER_CELL * cells_for(n))


def train_index(sample: Vectors, cells: int, metric: DistanceMetric = "cosine") -> NDArray[np.uint8]:
    """Train principal components and cells on a sample (m, d); return the empty index, serialised by FAISS."""
    scaled = _scaled(sample, metric)
    usual = usual_rows(scaled)
    m, d = sample.shape
    width = min(_WIDTH, d, len(usual))
    index: Any = faiss.index_factory(d, f"PCA{width},IVF{min(cells, m)},Flat,RFlat")
    ivf: Any = faiss.extract_index_ivf(index.base_index)
    ivf.cp.min_points_per_centroid, ivf.cp.max_points_per_centroid = 1, 10**9
    pca: Any = faiss.downcast_VectorTransform(_cast(index.base_index).chain.at(0))
    pca.train(usual)
    _make_orthonormal(pca, d)
    index.train(scaled)
    serialised: NDArray[np.uint8] = faiss.serialize_index(faiss.IndexIDMap(index))
    return serialised


def _make_orthonormal(pca: Any, d: int) -> None:
    """Orthonormalise FAISS's components in position: with fewer rows than dimensions they are not orthonormal.

    The candidate filter is only lossless under an orthogonal projection.
    """
    components = faiss.vector_to_array(pca.A).reshape(-1, d)[: pca.d_out].astype(np.float64)
    repaired = np.ascontiguousarray(np.linalg.qr(components.T)[0].T, dtype=np.float32)
    mean = faiss.vector_to_array(pca.mean)
    faiss.copy_array_to_vector(repaired.ravel(), pca.A)
    faiss.copy_array_to_vector(-repaired @ mean, pca.b)


def _cast(index: Any) -> Any:
    return faiss.downcast_index(index)


def _scaled(vectors: NDArray[np.floating], metric: DistanceMetric) -> Vectors:
    """Return the vectors as they are compared, in float32 and row by row in memory, as FAISS needs them."""
    if metric == "cosine":
        vectors = vectors / divisors(vectors)[:, None]
    return np.ascontiguousarray(vectors, dtype=np.float32)


class CellIndex:
    """IVF index over the distinct rows of one set, or over a part of them that shares the set's cells."""

    def __init__(
        self,
        trained: NDArray[np.uint8] | faiss.Index,
        candidate_filter: CandidateFilter = cpu_filter,
        metric: DistanceMetric = "cosine",
    ) -> None:
        """Wrap a trained index.

        Args:
            trained: serialised empty index from `train_index`, or an index that FAISS has read from a file.
            candidate_filter: CPU or GPU implementation of the candidate filter.
            metric: metric of the sample that it was trained on.
        """
        # The other FAISS objects refer to parts of this one without keeping it alive.
        self._owner = faiss.deserialize_index(trained) if isinstance(trained, np.ndarray) else trained
        self._named: Any = _cast(self._owner)
        self._index: Any = _cast(self._named.index)
        self._candidate_filter, self._metric = candidate_filter, metric
        self._ivf: Any = _cast(faiss.extract_index_ivf(self._index.base_index))
        chain: Any = _cast(self._index.base_index).chain
        self._transform = faiss.downcast_VectorTransform(chain.at(0))
        self._centers = self._ivf.quantizer.reconstruct_n(0, self._ivf.nlist)

    @classmethod
    def read(
        cls, path: str, candidate_filter: CandidateFilter = cpu_filter, metric: DistanceMetric = "cosine"
    ) -> "CellIndex":
        """Read an index from a file that `write` wrote."""
        return cls(faiss.read_index(path), candidate_filter, metric)

    @property
    def cells(self) -> int:
        """Number of cells (IVF lists)."""
        return int(self._ivf.nlist)

    @property
    def rows(self) -> Rows:
        """Row numbers, (n,), in the order in which they were added."""
        rows: Rows = faiss.vector_to_array(self._named.id_map)
        return rows

    def add(self, vectors: Vectors, rows: Rows) -> None:
        """Add rows: vectors (n, d) as stored, none zero if ``cosine``, and their row numbers (n,)."""
        if len(rows):
            self._named.add_with_ids(_scaled(vectors, self._metric), rows)

    def write(self, path: str) -> None:
        """Write the index for ``faiss.read_index``. Its ids are row numbers.

        Its queries need unit length if ``cosine``.
        """
        faiss.write_index(self._named, path)

    def nearest(self, queries: Vectors, query_rows: Rows, k: int, probes: int) -> tuple[Floats, Rows]:
        """Return the k nearest rows of each query among its ``probes`` nearest cells, excluding the query itself.

        Args:
            queries: (m, d) as stored, none zero if ``cosine``.
            query_rows: (m,) row numbers of the queries.
            k: number of neighbours.
            probes: number of cells to probe; the result is exact if it is at least ``cells``.

        Returns:
            Distances and row numbers, (m, k) each, ascending by distance; padded with inf and -1.
        """
        scaled, rows = _scaled(queries, self._metric), self.rows
        best = _RunningNearest(len(scaled), k)
        if len(rows) == 0:
            return best.distance, best.position
        stored = self._stored()
        points, magnitude = self._transform.apply(scaled), self._magnitude(stored)
        left, limit = as_queries(points, 0.0, self._magnitude(scaled)), np.full(len(points), np.inf)
        visits = self._visits(points, probes)
        for cell, query in visits.nearest():
            # Upper bound on the k-th distance: from the k + 1 rows of the nearest cell that are closest as points.
            positions, cell_points = self._list(cell)
            right = as_database(cell_points, 0.0, magnitude[positions])
            nearest = positions[_closest(left[query], right, k + 1)]
            distance = _distance(scaled, np.repeat(query, nearest.shape[1]), stored, nearest.ravel())
            distance = np.where(rows[nearest] == query_rows[query, None], np.inf, distance.reshape(nearest.shape))
            if nearest.shape[1] > k:
                limit[query] = np.partition(distance, k - 1, axis=1)[:, k - 1]
        for cell, query in visits.all():
            positions, cell_points = self._list(cell)
            limited = left[query]
            limited[:, -1] += np.minimum(best.distance[query, -1], limit[query])
            right = as_database(cell_points, 0.0, magnitude[positions])
            candidate_query, position = self._candidate_filter(limited, right)
            query, position = query[candidate_query], positions[position]
            other = rows[position] != query_rows[query]
            query, position = query[other], position[other]
            best.offer(query, position, _distance(scaled, query, stored, position))
        return self._finalize(best, scaled, stored, rows)

    def _finalize(
        self, best: "_RunningNearest", scaled: Vectors, stored: Vectors, rows: Rows
    ) -> tuple[Floats, Rows]:
        """Recompute the k best distances in float64 and sort each row by (distance, row number)."""
        m, k = best.position.shape
        query, column = np.nonzero(best.position >= 0)
        distance, neighbor = np.full((m, k), np.inf), np.full((m, k), -1, np.int64)
        distance[query, column] = paired_distance(scaled, query, stored, best.position[query, column])
        neighbor[query, column] = rows[best.position[query, column]]
        order = np.lexsort((neighbor, distance), axis=1)
        return np.take_along_axis(distance, order, 1), np.take_along_axis(neighbor, order, 1)

    def count_containing(
        self, queries: Vectors, query_rows: Rows, radii: Floats, probes: int, most: int
    ) -> NDArray[np.int32]:
        """Count, for each query, the other rows in the probed cells whose radius (<=) contains it: (m,).

        Args:
            queries: (m, d) as stored, none zero if ``cosine``.
            query_rows: (m,) row numbers of the queries.
            radii: (n,) distances, in the order of ``rows``; -inf where a row has no radius.
            probes: number of cells to probe.
            most: counts below it are exact, larger ones may be too small, but not below it: queries that have
                reached it skip their further cells.
        """
        return self._count(queries, query_rows, radii, probes, most=most)

    def count_within(
        self,
        queries: Vectors,
        query_rows: Rows,
        radii: Floats,
        probes: int,
        counts: NDArray[np.integer],
        most: int,
    ) -> NDArray[np.int32]:
        """Count the rows in the probed cells within (<=) each query's own radius: (m,).

        ``radii``, (m,), belong to the queries. ``counts``, (n,) in the order of ``rows``, is the multiplicity of
        each row: the number of its exact copies, including itself. ``most`` as in `count_containing`.
        """
        return self._count(queries, query_rows, radii, probes, most=most, counts=counts)

    def _count(
        self,
        queries: Vectors,
        query_rows: Rows,
        radii: Floats,
        probes: int,
        *,
        most: int,
        counts: NDArray[np.integer] | None = None,
    ) -> NDArray[np.int32]:
        """Count pairs within the query's radius if ``counts`` is given, else within the database row's radius."""
        by_query = counts is not None
        result = np.zeros(len(queries), np.int32)
        scaled, rows = _scaled(queries, self._metric), self.rows
        if len(rows) == 0:
            return result
        stored = self._stored()
        points, magnitude = self._transform.apply(scaled), self._magnitude(stored)
        left = as_queries(points, radii if by_query else 0.0, self._magnitude(scaled))
        for cell, query in self._visits(points, probes).all():
            query = query[result[query] < most]
            positions, cell_points = self._list(cell)
            right = as_database(cell_points, 0.0 if by_query else radii[positions], magnitude[positions])
            candidate_query, position = self._candidate_filter(left[query], right)
            query, position = query[candidate_query], positions[position]
            other = rows[position] != query_rows[query]
            query, position = query[other], position[other]
            radius = radii[query] if by_query else radii[position]
            close = _are_within(scaled, query, stored, position, radius)
            np.add.at(result, query[close], 1 if counts is None else counts[position[close]])
        return result

    def _magnitude(self, scaled: Vectors) -> Floats:
        """Return the squared norms of scaled vectors, (n,)."""
        return np.full(len(scaled), UNIT) if self._metric == "cosine" else squared_norms(scaled)

    def _visits(self, points: Points, probes: int) -> ProbeOrder:
        distance = np.einsum("ij,ij->i", self._centers, self._centers)[None, :] - 2 * points @ self._centers.T
        return ProbeOrder(distance, min(probes, self.cells))

    def _size(self, cell: int) -> int:
        return int(self._ivf.invlists.list_size(cell))

    def _list(self, cell: int) -> tuple[Places, Points]:
        """Return positions (c,) and points (c, width) of a cell's rows, as views into FAISS's memory."""
        lists, size, width = self._ivf.invlists, self._size(cell), self._ivf.d
        if size == 0:
            return np.empty(0, np.int64), np.empty((0, width), np.float32)
        positions = faiss.rev_swig_ptr(lists.get_ids(cell), size)
        codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * width * 4)
        return positions, codes.view(np.float32).reshape(size, width)

    def _stored(self) -> Vectors:
        flat: Any = _cast(self._index.refine_index)
        stored: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
        return stored


def _closest(left: Points, right: Points, count: int) -> Places:
    """Return positions of the ``count`` nearest points of each query, (m, count), unordered; all if fewer."""
    count = min(count, len(right))
    if count == 0:
        return np.empty((len(left), 0), np.int64)
    product = left @ right.T
    return np.argpartition(product, len(right) - count, axis=1)[:, len(right) - count :]


def _distance(x: Vectors, query: Places, y: Vectors, position: Places) -> Floats:
    """Return the distance of each pair of scaled rows, computed in float32: the relative error is at most 1e-6."""
    squared = np.empty(len(query), np.float32)
    arrays = (x, np.ascontiguousarray(query), y, np.ascontiguousarray(position), squared)
    _pairwise(x.shape[1], len(query), *(faiss.swig_ptr(array) for array in arrays))
    return squared.astype(np.float64) / 2.0


def _are_within(x: Vectors, query: Places, y: Vectors, position: Places, radii: Floats) -> NDArray[np.bool_]:
    """Return whether the distance of each pair is <= its radius; recomputed in float64 near the radius."""
    distance = _distance(x, query, y, position)
    ambiguous = np.flatnonzero(np.abs(distance - radii) <= 1e-5 * radii + 1e-12)
    distance[ambiguous] = paired_distance(x, query[ambiguous], y, position[ambiguous])
    within: NDArray[np.bool_] = distance <= radii
    return within


class _RunningNearest:
    """Running k nearest of m queries: distances (m, k) ascending, and positions in the index (m, k)."""

    def __init__(self, m: int, k: int) -> None:
        self.distance = np.full((m, k), np.inf)
        self.position = np.full((m, k), -1, np.int64)

    def offer(self, query: Places, position: Places, distance: Floats) -> None:
        """Merge candidates into the k nearest; a pair of query and position may be offered only once."""
        k = self.position.shape[1]
        closer = distance < self.distance[query, -1]
        query, position, distance = query[closer], position[closer], distance[closer]
        if len(query) == 0:
            return
        updated = np.unique(query)
        query = np.concatenate([query, np.repeat(updated, k)])
        position = np.concatenate([position, self.position[updated].ravel()])
        distance = np.concatenate([distance, self.distance[updated].ravel()])
        order = np.lexsort((distance, query))
        query, position, distance = query[order], position[order], distance[order]
        starts = np.searchsorted(query, updated)
        chosen = starts[:, None] + np.arange(k)
        self.distance[updated], self.position[updated] = distance[chosen], position[chosen]
