"""The neighbors stage on Ray writes what the analysis in memory finds, table by table, in one space and in two."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale import Config
from synthscale.config import NeighborsConfig
from synthscale.in_memory.neighbors import Analysis, MemoryRows, analyse_rows
from synthscale.neighbors import arrow_tables
from synthscale.neighbors import stage as neighbors
from synthscale.neighbors.copies import copies_from_pairs, equal_pairs, vector_keys
from synthscale.neighbors.ray_index_cluster import IndexProcesses
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.layout import VectorLayout
from synthscale.tables.schemas import GROUPS, NEAREST, NEIGHBORS, conform
from tests.runs import run_until

REAL, SETS = 900, {"fake": 700, "other": 200}
WIDTH = 6
DENSE = slice(REAL + 199, REAL + 520)
"""One row in so many jittered copies that only some of the pairs are listed."""


def rows_of(seed: int = 0) -> np.ndarray:
    """Clusters with near copies, exact copies, a chain, one row in many jittered copies, and units that differ."""
    rng = np.random.default_rng(seed)
    n = REAL + sum(SETS.values())
    x = rng.normal(size=(30, WIDTH))[rng.integers(0, 30, n)] + 0.3 * rng.normal(size=(n, WIDTH))
    x[REAL : REAL + 80] = x[rng.integers(0, REAL, 80)] + 1e-3 * rng.normal(size=(80, WIDTH))
    x[REAL + 80 : REAL + 90] = x[:10]
    x[REAL + 100 : REAL + 130] = x[20] + 0.06 * np.arange(1, 31)[:, None] * np.eye(WIDTH)[0]
    # A row near a real one, and behind it a row that is near no other.
    x[REAL + 140 : REAL + 142] = x[25] + np.array([[0.11], [0.21]]) * np.eye(WIDTH)[1]
    x[DENSE] = x[DENSE.start] + 1e-4 * rng.normal(size=(321, WIDTH))
    x[REAL + 600 : REAL + 605] = x[REAL + 610]
    x[100:110] = x[120]
    x[REAL + 700 : REAL + 750] = x[rng.integers(0, REAL, 50)] + 1e-3 * rng.normal(size=(50, WIDTH))
    return x.astype(np.float32)


@dataclass
class Case:
    """Rows of a run and how they are compared."""

    name: str
    vectors: np.ndarray
    layout: VectorLayout
    settings: dict[str, Any]

    @property
    def kinds(self) -> list[str]:
        return ["real"] * REAL + ["synthetic"] * sum(SETS.values())

    @property
    def generators(self) -> list[str | None]:
        return [None] * REAL + [name for name, count in SETS.items() for _ in range(count)]

    @property
    def ids(self) -> list[str]:
        # Rows in the order of the file, and ids in another.
        return [f"{i * 7919 % 10_007:05d}" for i in range(len(self.vectors))]

    def write(self, path: str) -> None:
        facts = {"id": self.ids, "real_or_synthetic": self.kinds, "generator": self.generators}
        if self.layout.columns:
            values = {f"column_{i}": self.vectors[:, i] for i in range(WIDTH)}
        else:
            values = {"embedding": list(self.vectors)}
        pq.write_table(pa.table({**facts, **values}), path)


def case_of(name: str) -> Case:
    layout = VectorLayout(WIDTH, (0, WIDTH), (0, WIDTH))
    columns = VectorLayout(WIDTH, (0, WIDTH), (0, WIDTH), scaled=True, columns=True)
    x = rows_of()
    # Columns of different units, one of them constant among the real rows.
    table = x * np.float32([1, 1000, 0.01, 1, 1, 1]) + np.float32([0, 5000, 0, 0, 0, 0])
    table[:, 4] = 3
    table[REAL + 650 : REAL + 660, 4] = 4
    with_zeros = table.copy()
    with_zeros[[50, REAL + 640]] = 0
    return {
        "embedding": Case(name, x, layout, {}),
        "euclidean embedding": Case(name, x, layout, {"metric": "euclidean"}),
        "columns": Case(name, with_zeros, columns, {}),
        "columns by direction": Case(name, table, columns, {"metric": "cosine"}),
        "datalab": Case(name, x, layout, {"mode": "datalab"}),
    }[name]


def in_memory(case: Case) -> dict[str, pd.DataFrame]:
    """The three tables as `analyse_rows` finds them."""
    names = np.array([name or "real" for name in case.generators])
    sets = {name: np.flatnonzero(names == name) for name in ("real", *SETS)}
    keys = (equal_pairs(vector_keys(case.vectors[rows], name), rows) for name, rows in sets.items())
    copies = copies_from_pairs(keys)
    data = MemoryRows(case.vectors, sets, copies, hash_ids(case.ids))
    analysis: Analysis = analyse_rows(data, NeighborsConfig(**case.settings), case.layout, counts=True)
    redundant = copies.redundant_rows(dict(enumerate(case.ids)))
    nearest = [arrow_tables.nearest(name, found, redundant) for name, found in analysis.nearest.items()]
    groups = [arrow_tables.groups(view.generator, view.groups) for view in analysis.views]
    tables = {
        "neighbors": conform(arrow_tables.edges(analysis.edges), NEIGHBORS, "neighbors"),
        "nearest": conform(pa.concat_tables(nearest), NEAREST, "nearest"),
        "groups": conform(pa.concat_tables(groups), GROUPS, "groups"),
    }
    return {name: sorted_frame(table.to_pandas()) for name, table in tables.items()}


def sorted_frame(frame: pd.DataFrame) -> pd.DataFrame:
    keys = [name for name in ("generator", "left", "right", "row") if name in frame]
    frame = frame.astype({name: str for name in ("generator", "kind") if name in frame})
    return frame.sort_values(keys).reset_index(drop=True)


def sparse(edges: pd.DataFrame) -> pd.DataFrame:
    """Edges without an end in the dense rows: which of the others are listed depends on how rows are divided."""
    is_dense = [edges[end].between(DENSE.start, DENSE.stop - 1) for end in ("left", "right")]
    return edges[~(is_dense[0] | is_dense[1])].reset_index(drop=True)


def on_ray(run: RunDirectory) -> dict[str, pd.DataFrame]:
    return {
        name: sorted_frame(pq.read_table(run.path(name)).to_pandas())
        for name in ("neighbors", "nearest", "groups")
    }


@pytest.mark.parametrize("with_actors", [False, True])
@pytest.mark.parametrize(
    "name", ["embedding", "euclidean embedding", "columns", "columns by direction", "datalab"]
)
def test_a_run_writes_what_the_analysis_in_memory_finds(name, with_actors, local_ray, tmp_path, monkeypatch):
    if with_actors:
        if name not in ("embedding", "columns"):
            pytest.skip("actors are the same for all settings")
        started = lambda *arguments, in_process: IndexProcesses(*arguments)  # noqa: E731 (only a switch)
        monkeypatch.setattr(neighbors, "IndexProcesses", started)
    case = case_of(name)
    case.write(f"{tmp_path}/rows.parquet")
    config = Config(
        manifest=f"{tmp_path}/rows.parquet",
        output=f"{tmp_path}/run",
        neighbors={**case.settings, "actor_memory_gib": 2e-4},
        metrics={"families": ["manifold"]},
        storage={"shard_rows": 333},
    )
    run = run_until(config, "neighbors")
    found, expected = on_ray(run), in_memory(case)
    for table, frame in expected.items():
        assert len(frame) > 100
        ours, theirs = (sparse(own) if table == "neighbors" else own for own in (found[table], frame))
        if table == "neighbors":
            # A join past its budget lists spanning edges alone; which pairs come first depends on the pieces.
            both = ours.merge(theirs, on=["left", "right", "kind"], validate="1:1")
            assert len(both) >= 0.9 * max(len(ours), len(theirs)) > 0
            ours, theirs = both["distance_x"].rename("distance"), both["distance_y"].rename("distance")
            pd.testing.assert_series_equal(ours, theirs, rtol=1e-5, atol=1e-12)
            continue
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5, atol=1e-12, obj=table)
    is_one_space = name in ("columns", "euclidean embedding")
    views = run.completed("neighbors").info["views"]
    for view in views.values():
        assert (view["space"] == view["manifold_space"]) == is_one_space
        if case.layout.columns:
            assert view["manifold_space"]["constant_dimensions"] == (0 if name == "columns" else 1)
    if name in ("embedding", "columns"):
        groups = found["groups"]
        # The cases are not trivial: mixed components are split, and clusters are smaller than components.
        assert (groups["near_duplicate_id"] != groups["component_id"]).any()
        assert (groups["cluster_rows"] < groups["component_rows"]).any()
        assert (groups["size"] == 1).any()
