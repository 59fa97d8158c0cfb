"""Nearest neighbours in sets too large for brute force: a FAISS IVF index, searched by blocks.

The index is FAISS's ``PCA,IVF,Flat`` with a flat refinement, and works as such when it is read back. Its own
search scans lists one query at a time; here all queries that probe a list meet it in one matrix product over the
principal components, which rules out what cannot be among the k nearest, and the vectors themselves decide the
rest. Within the probed cells the answer is exact; probing all of them, it is exact altogether (to 1e-7 of a
distance, or 1e-13: vectors are kept scaled to length 1 in float32).
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import (
    CandidateFilter,
    Places,
    Points,
    as_database,
    as_queries,
    cpu_filter,
)
from synthscale.neighbors.distance import Floats, Rows, norms
from synthscale.neighbors.probe_order import ProbeOrder
from synthscale.neighbors.projection import Vectors

_WIDTH = 64
_MOST_CELLS = 16384
_PER_CELL = 40
_ALL = 2.0
"""The largest cosine distance: a limit that lets everything pass."""
_PAIRS = 16384


def cells_for(n: int) -> int:
    """Return how many cells an index of n rows gets."""
    return int(max(1, min(_MOST_CELLS, np.sqrt(n))))


def index_sample_size(n: int) -> int:
    """Return how many of n rows the index wants to be trained on."""
    return min(n, _PER_CELL * cells_for(n))


def train_index(sample: Vectors, cells: int) -> NDArray[np.uint8]:
    """Return an empty index, serialised by FAISS, with principal components and cells of a sample (m, d)."""
    m, d = sample.shape
    width = min(_WIDTH, d, m)
    index: Any = faiss.index_factory(d, f"PCA{width},IVF{min(cells, m)},Flat,RFlat")
    ivf: Any = faiss.extract_index_ivf(index.base_index)
    ivf.cp.min_points_per_centroid, ivf.cp.max_points_per_centroid = 1, 10**9
    scaled = _scaled(sample)
    pca: Any = faiss.downcast_VectorTransform(_cast(index.base_index).chain.at(0))
    pca.train(scaled)
    _make_orthonormal(pca, d)
    index.train(scaled)
    serialised: NDArray[np.uint8] = faiss.serialize_index(faiss.IndexIDMap(index))
    return serialised


def _make_orthonormal(pca: Any, d: int) -> None:
    """Repair FAISS's components of a sample with fewer rows than dimensions: pruning needs a true projection."""
    components = faiss.vector_to_array(pca.A).reshape(-1, d)[: pca.d_out].astype(np.float64)
    repaired = np.ascontiguousarray(np.linalg.qr(components.T)[0].T, dtype=np.float32)
    mean = faiss.vector_to_array(pca.mean)
    faiss.copy_array_to_vector(repaired.ravel(), pca.A)
    faiss.copy_array_to_vector(-repaired @ mean, pca.b)


def _cast(index: Any) -> Any:
    return faiss.downcast_index(index)


def _scaled(vectors: NDArray[np.floating]) -> Vectors:
    scaled: Vectors = (vectors / norms(vectors)[:, None]).astype(np.float32)
    return scaled


class CellIndex:
    """Distinct rows of one set, or of a part of it, in the cells of that set."""

    def __init__(self, trained: NDArray[np.uint8] | faiss.Index, shortlist: CandidateFilter = cpu_filter) -> None:
        """Take what ``train_index`` gave (rows are added in blocks), or an index that ``write`` wrote."""
        # Every other object here is a view of parts of this one, and does not keep it alive.
        self._owner = faiss.deserialize_index(trained) if isinstance(trained, np.ndarray) else trained
        self._named: Any = _cast(self._owner)
        self._index: Any = _cast(self._named.index)
        self._shortlist = shortlist
        self._ivf: Any = _cast(faiss.extract_index_ivf(self._index.base_index))
        chain: Any = _cast(self._index.base_index).chain
        self._transform = faiss.downcast_VectorTransform(chain.at(0))
        self._centers = self._ivf.quantizer.reconstruct_n(0, self._ivf.nlist)

    @classmethod
    def read(cls, path: str, shortlist: CandidateFilter = cpu_filter) -> "CellIndex":
        """Read an index that ``write`` wrote."""
        return cls(faiss.read_index(path), shortlist)

    @property
    def cells(self) -> int:
        """How many cells there are to probe."""
        return int(self._ivf.nlist)

    @property
    def rows(self) -> Rows:
        """The row numbers, in the order in which they were added."""
        rows: Rows = faiss.vector_to_array(self._named.id_map)
        return rows

    def add(self, vectors: Vectors, rows: Rows) -> None:
        """Add rows: vectors (n, d) as stored, none zero, and their numbers."""
        if len(rows):
            self._named.add_with_ids(_scaled(vectors), rows)

    def write(self, path: str) -> None:
        """Write the index for ``faiss.read_index``; its ids are row numbers, its queries scaled to length 1."""
        faiss.write_index(self._named, path)

    def nearest(self, queries: Vectors, query_rows: Rows, k: int, probes: int) -> tuple[Floats, Rows]:
        """Return the k nearest rows of each query in its ``probes`` nearest cells, itself left out.

        Args:
            queries: (m, d) as stored, none zero.
            query_rows: (m,) their row numbers.
            k: neighbours.
            probes: cells; ``cells`` makes the answer exact.

        Returns:
            distances and rows, (m, k) each, ascending; inf and -1 where there are fewer.
        """
        scaled, rows = _scaled(queries), self.rows
        best = _Best(len(scaled), k)
        if len(rows) == 0:
            return best.distance, best.place
        stored = self._stored()
        points = self._transform.apply(scaled)
        left, limit = as_queries(points), np.full(len(points), _ALL)
        visits = self._visits(points, probes)
        for cell, who in visits.nearest():
            # A first bound: the k-th distance among the points that look nearest in the nearest cell.
            places, cell_points = self._list(cell)
            found = places[_closest(left[who], as_database(cell_points), k + 1)]
            distance = _distance(scaled, np.repeat(who, found.shape[1]), stored, found.ravel())
            distance = np.where(rows[found] == query_rows[who, None], np.inf, distance.reshape(found.shape))
            if found.shape[1] > k:
                limit[who] = np.partition(distance, k - 1, axis=1)[:, k - 1]
        for cell, who in visits.all():
            places, cell_points = self._list(cell)
            limited = left[who]
            limited[:, -1] += np.minimum(best.distance[who, -1], limit[who])
            at, found = self._shortlist(limited, as_database(cell_points))
            who, found = who[at], places[found]
            other = rows[found] != query_rows[who]
            who, found = who[other], found[other]
            best.offer(who, found, _distance(scaled, who, stored, found))
        return self._decided(best, scaled, stored, rows)

    def _decided(self, best: "_Best", scaled: Vectors, stored: Vectors, rows: Rows) -> tuple[Floats, Rows]:
        """Return distances by the formula in float64, ascending, ties to the smaller row."""
        m, k = best.place.shape
        who, column = np.nonzero(best.place >= 0)
        distance, found = np.full((m, k), np.inf), np.full((m, k), -1, np.int64)
        distance[who, column] = _distance(scaled, who, stored, best.place[who, column], np.float64)
        found[who, column] = rows[best.place[who, column]]
        order = np.lexsort((found, distance), axis=1)
        return np.take_along_axis(distance, order, 1), np.take_along_axis(found, order, 1)

    def is_inside(self, queries: Vectors, query_rows: Rows, radii: Floats, probes: int) -> NDArray[np.bool_]:
        """Tell which queries lie within (<=) the radius of some row other than themselves in the probed cells.

        Args:
            queries: (m, d) as stored, none zero.
            query_rows: (m,) their row numbers.
            radii: (n,) cosine distances, in the order of ``rows``; -inf where there is none.
            probes: cells.
        """
        return self.count_containing(queries, query_rows, radii, probes, most=1) > 0

    def count_containing(
        self, queries: Vectors, query_rows: Rows, radii: Floats, probes: int, most: int
    ) -> NDArray[np.int32]:
        """Return how many rows' radii hold each query, as `inside`: (m,), right up to ``most``."""
        return self._count(queries, query_rows, radii, probes, most=most)

    def count_within(
        self, queries: Vectors, query_rows: Rows, radii: Floats, probes: int, counts: NDArray[np.integer]
    ) -> NDArray[np.int32]:
        """Return how many rows in the probed cells lie within (<=) each query's own radius: (m,).

        ``counts``, (n,) in the order of ``rows``, are what each row counts for: its exact copies.
        """
        return self._count(queries, query_rows, radii, probes, counts=counts)

    def _count(
        self,
        queries: Vectors,
        query_rows: Rows,
        radii: Floats,
        probes: int,
        *,
        most: int = 2**30,
        counts: NDArray[np.integer] | None = None,
    ) -> NDArray[np.int32]:
        """Count pairs within the radius of the row, or, with what rows count for, of the query."""
        by_query = counts is not None
        result = np.zeros(len(queries), np.int32)
        scaled, rows = _scaled(queries), self.rows
        if len(rows) == 0:
            return result
        stored, limits = self._stored(), np.maximum(radii, -_ALL)
        points = self._transform.apply(scaled)
        left = as_queries(points, limits if by_query else 0.0)
        for cell, who in self._visits(points, probes).all():
            who = who[result[who] < most]
            places, cell_points = self._list(cell)
            right = as_database(cell_points, 0.0 if by_query else limits[places])
            at, found = self._shortlist(left[who], right)
            who, found = who[at], places[found]
            other = rows[found] != query_rows[who]
            who, found = who[other], found[other]
            radius = radii[who] if by_query else radii[found]
            close = _is_within(scaled, who, stored, found, radius)
            np.add.at(result, who[close], 1 if counts is None else counts[found[close]])
        return result

    def _visits(self, points: Points, probes: int) -> ProbeOrder:
        distance = np.einsum("ij,ij->i", self._centers, self._centers)[None, :] - 2 * points @ self._centers.T
        return ProbeOrder(distance, min(probes, self.cells))

    def _size(self, cell: int) -> int:
        return int(self._ivf.invlists.list_size(cell))

    def _list(self, cell: int) -> tuple[Places, Points]:
        """Return the places of a cell's rows, and their points, as views of what FAISS holds."""
        lists, size, width = self._ivf.invlists, self._size(cell), self._ivf.d
        if size == 0:
            return np.empty(0, np.int64), np.empty((0, width), np.float32)
        places = faiss.rev_swig_ptr(lists.get_ids(cell), size)
        codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * width * 4)
        return places, codes.view(np.float32).reshape(size, width)

    def _stored(self) -> Vectors:
        flat: Any = _cast(self._index.refine_index)
        stored: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
        return stored


def _closest(left: Points, right: Points, count: int) -> Places:
    """Return the ``count`` nearest points of each query, (m, count), or all where there are fewer."""
    count = min(count, len(right))
    if count == 0:
        return np.empty((len(left), 0), np.int64)
    product = left @ right.T
    return np.argpartition(product, len(right) - count, axis=1)[:, len(right) - count :]


def _distance(x: Vectors, who: Places, y: Vectors, which: Places, number: type = np.float32) -> Floats:
    """Distance of x[who[i]] and y[which[i]]; by float32 differences it is right to 1e-6 of itself."""
    out = np.empty(len(who))
    for start in range(0, len(who), _PAIRS):
        part = slice(start, start + _PAIRS)
        difference = x[who[part]].astype(number, copy=False) - y[which[part]]
        out[part] = np.einsum("ij,ij->i", difference, difference) / 2.0
    return out


def _is_within(x: Vectors, who: Places, y: Vectors, which: Places, radii: Floats) -> NDArray[np.bool_]:
    """Tell which distances are <= their radius: by float64 where float32 cannot."""
    distance = _distance(x, who, y, which)
    unsure = np.flatnonzero(np.abs(distance - radii) <= 1e-5 * radii + 1e-12)
    distance[unsure] = _distance(x, who[unsure], y, which[unsure], np.float64)
    within: NDArray[np.bool_] = distance <= radii
    return within


class _Best:
    """The k nearest so far of each of m queries: distances (m, k) ascending, and places."""

    def __init__(self, m: int, k: int) -> None:
        self.distance = np.full((m, k), np.inf)
        self.place = np.full((m, k), -1, np.int64)

    def offer(self, who: Places, place: Places, distance: Floats) -> None:
        """Take candidates in: pairs of a query and a place that it has not seen."""
        k = self.place.shape[1]
        good = distance < self.distance[who, -1]
        who, place, distance = who[good], place[good], distance[good]
        if len(who) == 0:
            return
        asked = np.unique(who)
        who = np.concatenate([who, np.repeat(asked, k)])
        place = np.concatenate([place, self.place[asked].ravel()])
        distance = np.concatenate([distance, self.distance[asked].ravel()])
        order = np.lexsort((distance, who))
        who, place, distance = who[order], place[order], distance[order]
        starts = np.searchsorted(who, asked)
        chosen = starts[:, None] + np.arange(k)
        self.distance[asked], self.place[asked] = distance[chosen], place[chosen]
