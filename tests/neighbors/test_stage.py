"""The neighbors stage over Ray: what cells, parts and pieces find is what a k-d tree finds, also after a crash."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from synthscale import Config
from synthscale.errors import SchemaError, StorageError
from synthscale.neighbors import analysis
from synthscale.neighbors import stage as neighbors
from synthscale.neighbors.ray_backend import RayBackend
from synthscale.neighbors.ray_index_cluster import IndexCluster, IndexProcesses
from synthscale.pipeline import score
from synthscale.plan import status
from synthscale.runtime import task_pool
from synthscale.runtime.session import ray_errors
from synthscale.runtime.stage_context import StageContext
from synthscale.runtime.task_pool import TaskPool
from synthscale.storage.run_directory import RunDirectory
from tests.harm import Harm
from tests.runs import run_until
from tests.two_nodes import last_line

REAL, FAKE, OTHER = 9000, 9000, 300
WIDTH = 8
SMALL = {"actor_memory_gib": 2e-3}
"""Two parts that take turns, and buckets in several pieces."""
VERY_SMALL = {"actor_memory_gib": 2e-4}
"""The same for fewer rows."""


def drawn(seed=0):
    """Clusters with near copies within and across sets, exact copies, and one image repeated with jitter."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(60, WIDTH))
    real = centers[rng.integers(0, 60, REAL)] + 0.3 * rng.normal(size=(REAL, WIDTH))
    fake = centers[rng.integers(0, 60, FAKE)] + 0.3 * rng.normal(size=(FAKE, WIDTH))
    fake[:300] = real[rng.integers(0, REAL, 300)] + 1e-3 * rng.normal(size=(300, WIDTH))
    fake[300:600] = real[5] + 1e-4 * rng.normal(size=(300, WIDTH))
    fake[600:620] = fake[700]
    real[100:120] = real[200]
    other = real[rng.integers(0, REAL, OTHER)] + 1e-3 * rng.normal(size=(OTHER, WIDTH))
    return np.concatenate([real, fake, other]).astype(np.float32)


@dataclass
class Embedded:
    """A run whose vectors are embedded, and those vectors."""

    source: Path
    vectors: np.ndarray

    def config(self, output, **settings):
        # Shards of odd length, so that none lines up with a set.
        return Config(
            manifest=str(self.source), output=str(output), neighbors=settings, storage={"shard_rows": 1111}
        )


@pytest.fixture(scope="module")
def embedded(local_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    vectors = drawn()
    kinds = ["real"] * REAL + ["synthetic"] * (FAKE + OTHER)
    names = [None] * REAL + ["fake"] * FAKE + ["other"] * OTHER
    ids = [f"{i:06d}" for i in range(len(vectors))]
    table = pa.table({"id": ids, "real_or_synthetic": kinds, "generator": names, "embedding": list(vectors)})
    pq.write_table(table, folder / "v.parquet")
    return Embedded(folder / "v.parquet", vectors)


TOLD = []


@pytest.fixture(scope="module")
def found(embedded, tmp_path_factory):
    """The stage's tables with little memory: parts, pieces and buckets; what it told goes into TOLD."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_pool, "_REPORT_EVERY_S", 0.0)
        config = embedded.config(tmp_path_factory.mktemp("found") / "run", **SMALL)
        return run_until(config, "neighbors", on_progress=TOLD.append)


@pytest.fixture(scope="module")
def few_embedded(embedded, tmp_path_factory):
    """A small part of the rows, which is searched in this process."""
    few = [*range(2000), *range(REAL, REAL + 1000), *range(REAL + FAKE, REAL + FAKE + OTHER)]
    path = tmp_path_factory.mktemp("few") / "few.parquet"
    pq.write_table(pq.read_table(embedded.source).take(few), path)
    return Embedded(path, embedded.vectors[few])


@pytest.fixture(scope="module")
def few_found(few_embedded, tmp_path_factory):
    """The stage's tables of the small part."""
    return run_until(few_embedded.config(tmp_path_factory.mktemp("few") / "run", **VERY_SMALL), "neighbors")


def assert_same_tables(run, expected):
    for name in ("neighbors", "nearest", "groups"):
        ours, theirs = (table(own, name) for own in (run, expected))
        keys = [c for c in ("generator", "left", "right", "row") if c in ours]
        ours, theirs = (own.sort_values(keys).reset_index(drop=True) for own in (ours, theirs))
        assert ours.equals(theirs), name


def table(run, name):
    return pq.read_table(run.path(name)).to_pandas()


def components(n, left, right):
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(n, n))
    labels = connected_components(graph, directed=False)[1]
    smallest = np.full(labels.max() + 1, n)
    np.minimum.at(smallest, labels, np.arange(n))
    return smallest[labels]


def tree_pairs(vectors, radius):
    """All pairs nearer than the radius, by a k-d tree over unit vectors in float64."""
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    pairs = cKDTree(wide).query_pairs(np.sqrt(2 * radius) * (1 + 1e-9), output_type="ndarray")
    distance = ((wide[pairs[:, 0]] - wide[pairs[:, 1]]) ** 2).sum(axis=1) / 2
    assert (np.abs(distance - radius) > 1e-12).all()
    return pairs[distance < radius]


def view_of(vectors, generator):
    start, count = {"fake": (REAL, FAKE), "other": (REAL + FAKE, OTHER)}[generator]
    return np.concatenate([np.arange(REAL), np.arange(start, start + count)])


@pytest.mark.parametrize("generator", ["fake", "other"])
def test_groups_are_those_of_a_tree(found, embedded, generator):
    radius = found.completed("neighbors").info["views"][generator]["radius"]
    rows = view_of(embedded.vectors, generator)
    pairs = tree_pairs(embedded.vectors[rows], radius)
    true = components(len(rows), pairs[:, 0], pairs[:, 1])
    groups = table(found, "groups").query("generator == @generator").set_index("row")
    sizes = Counter(true.tolist())
    expected = {int(rows[i]): int(rows[g]) for i, g in enumerate(true.tolist()) if sizes[g] > 1}
    assert groups["component_id"].to_dict() == expected
    # Synthetic rows of a mixed component that are near no real row are groups of their own.
    is_real = np.arange(len(rows)) < REAL
    near_real = np.zeros(len(rows), bool)
    for one, other in (pairs.T, pairs.T[::-1]):
        near_real[one[is_real[other]]] = True
    is_mixed = np.isin(true, true[is_real])
    rest = is_mixed & ~is_real & ~near_real
    inner = pairs[rest[pairs].all(axis=1)]
    whole = pairs[~rest[pairs].any(axis=1)]
    split = components(len(rows), *np.concatenate([inner, whole]).T)
    # A component's real rows and the rows near them are one group, linked through others or not.
    together = is_mixed & ~rest
    smallest = {part: int(np.flatnonzero(together & (true == part))[0]) for part in set(true[together].tolist())}
    split[together] = [smallest[part] for part in true[together].tolist()]
    members = groups.index.to_numpy()
    at = np.searchsorted(rows, members)
    assert rest[at].any() == (generator == "fake")
    assert groups["near_duplicate_id"].tolist() == rows[split[at]].tolist()
    assert groups["near_real"].tolist() == near_real[at].tolist()
    sizes = Counter(split[at].tolist())
    assert groups["size"].tolist() == [sizes[part] for part in split[at].tolist()]


def test_edges_are_true_and_all_there_but_for_dense_groups(found, embedded):
    radius = found.completed("neighbors").info["views"]["fake"]["radius"]
    rows = view_of(embedded.vectors, "fake")
    true = {(int(rows[i]), int(rows[j])) for i, j in np.sort(tree_pairs(embedded.vectors[rows], radius), axis=1)}
    edges = table(found, "neighbors").query("right < @REAL + @FAKE")
    ours = set(zip(edges.left, edges.right, strict=True))
    assert ours <= true
    # The jittered image of 300 rows, and exact copies, are linked without every pair.
    dense = {*range(100, 120), 200, 5, *range(REAL + 300, REAL + 620), REAL + 700}
    missing = {pair for pair in true - ours if not set(pair) & dense}
    assert not missing or not found.completed("neighbors").info["joins"][0]["all_pairs_listed"]
    kinds = edges.groupby("kind").size()
    assert set(kinds.index) == {"real-real", "real-synthetic", "synthetic-synthetic"}


def test_nearest_distances_are_those_of_a_tree(found, embedded):
    rows = view_of(embedded.vectors, "fake")
    wide = embedded.vectors[rows].astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    euclid, _ = cKDTree(wide).query(wide, k=2)
    nearest = table(found, "nearest").query("generator == 'fake'").sort_values("row")
    np.testing.assert_allclose(nearest.nn_distance, euclid[:, 1] ** 2 / 2, rtol=1e-5, atol=1e-9)
    assert nearest.exact.all()
    to_real, _ = cKDTree(wide[:REAL]).query(wide[REAL:], k=1)
    own = nearest[nearest.row >= REAL]
    np.testing.assert_allclose(own.nearest_real_distance, to_real**2 / 2, rtol=1e-5, atol=1e-9)


def test_precision_and_coverage_follow_the_distinct_real_rows_radii(found, embedded):
    # In Euclidean space, on the vectors as they are.
    real = np.unique(embedded.vectors[:REAL].astype(np.float64), axis=0)
    fake = embedded.vectors[REAL : REAL + FAKE].astype(np.float64)
    radii = cKDTree(real).query(real, k=6)[0][:, 5]
    tree = cKDTree(fake)
    inside = np.zeros(FAKE, bool)
    for point, radius in zip(real, radii, strict=True):
        inside[tree.query_ball_point(point, radius * (1 + 1e-9))] = True
    own = table(found, "nearest").query("generator == 'fake' and row >= @REAL").sort_values("row")
    assert (own.in_real_manifold.to_numpy() != inside).mean() < 1e-3
    distance, _ = cKDTree(real).query(fake, k=1)
    np.testing.assert_allclose(own.manifold_real_distance, distance**2 / 2, rtol=1e-5, atol=1e-9)
    nearest = embedded.vectors[own.manifold_real_row.to_numpy()].astype(np.float64)
    np.testing.assert_allclose(((nearest - fake) ** 2).sum(axis=1) / 2, distance**2 / 2, rtol=1e-5, atol=1e-9)


def test_little_memory_shards_and_other_machines_change_nothing(found, embedded, tmp_path):
    config = embedded.config(tmp_path / "run")
    config = config.model_copy(update={"storage": config.storage.model_copy(update={"shard_rows": 20_000})})
    whole = run_until(config, "neighbors")
    few, one = (run.completed("neighbors").info for run in (found, whole))
    assert few["index_parts"] > 1
    assert one["index_parts"] == 1
    for generator in ("fake", "other"):
        small, large = few["views"][generator], one["views"][generator]
        assert small["radius"] == pytest.approx(large["radius"], rel=1e-6)
        assert (small["groups"], small["rows_in_groups"]) == (large["groups"], large["rows_in_groups"])
    keys = ["generator", "row"]
    ours, theirs = (table(run, "nearest").sort_values(keys).reset_index() for run in (found, whole))
    np.testing.assert_allclose(ours.nn_distance, theirs.nn_distance, rtol=1e-5, atol=1e-9)
    assert (ours.is_copy == theirs.is_copy).all()


def test_small_sets_are_searched_in_this_process_with_the_result_of_actors(
    few_embedded, few_found, tmp_path, monkeypatch
):
    in_process = []

    def with_actors(*arguments, **options):
        in_process.append(options.pop("in_process"))
        return IndexProcesses(*arguments, **options)

    monkeypatch.setattr(neighbors, "IndexProcesses", with_actors)
    run = run_until(few_embedded.config(tmp_path / "run", **VERY_SMALL), "neighbors")
    # One set of processes holds the indexes of both spaces.
    assert in_process == [True]
    assert run.completed("neighbors").info["index_parts"] > 1
    assert_same_tables(run, few_found)


def test_the_saved_index_answers_with_row_numbers(found, embedded):
    unit = embedded.vectors[:50] / np.linalg.norm(embedded.vectors[:50], axis=1, keepdims=True)
    best = []
    for path in sorted(Path(found.path("index")).glob("*.real.faiss")):
        distance, rows = faiss.read_index(str(path)).search(unit, 1)
        best.append((distance[:, 0], rows[:, 0]))
    distance, rows = (np.stack(values) for values in zip(*best, strict=True))
    # Small sets are inner products, large ones squared distances; here all are large.
    assert (rows[distance.argmin(axis=0), np.arange(50)] == np.arange(50)).all()


def test_probed_neighbours_have_a_measured_recall_and_groups_stay_exact(found, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "is_exact", lambda queries, database: False)
    run = run_until(embedded.config(tmp_path / "run"), "neighbors")
    view = run.completed("neighbors").info["views"]["fake"]
    assert view["nearest"]["exact"] is False
    assert 0.99 <= view["nearest"]["recall"] <= 1
    calibration = view["calibration"]
    true = found.completed("neighbors").info["views"]["fake"]["median_distance"]
    assert calibration["exact"] is False
    assert calibration["queries"] < calibration["rows"]
    assert calibration["low"] <= true <= calibration["high"]
    rows = view_of(embedded.vectors, "fake")
    pairs = tree_pairs(embedded.vectors[rows], view["radius"])
    true_groups = components(len(rows), pairs[:, 0], pairs[:, 1])
    sizes = np.bincount(true_groups, minlength=len(rows))
    assert view["rows_in_groups"] == int((sizes[true_groups] > 1).sum())
    ours, exact = (table(r, "nearest").sort_values(["generator", "row"]) for r in (run, found))
    assert (ours.nn_distance.to_numpy() >= exact.nn_distance.to_numpy() - 1e-9).all()
    assert not ours[ours.generator == "fake"].exact.any()


# What dies is taken up again.


@dataclass
class Counted:
    """How many tasks of each kind a run of the stage submitted."""

    tasks: Counter

    @classmethod
    def watching(cls, monkeypatch):
        counted, work = cls(Counter()), TaskPool.run

        def watched(self, items, submit, what):
            counted.tasks[what.split(",")[0].split(":")[0]] += len(items)
            yield from work(self, items, submit, what)

        monkeypatch.setattr(TaskPool, "run", watched)
        return counted


def test_a_stage_that_broke_off_repeats_only_what_is_missing(few_found, few_embedded, tmp_path, monkeypatch):
    config = few_embedded.config(tmp_path / "run", **VERY_SMALL)
    with monkeypatch.context() as patch:
        first = Counted.watching(patch)
        patch.setattr(
            neighbors, "write_tables", lambda *arguments: (_ for _ in ()).throw(RuntimeError("power cut"))
        )
        with pytest.raises(RuntimeError, match="power cut"):
            score(config)
    assert first.tasks["rows assigned to cells"] > 0
    kept = Path(config.output) / "_neighbors"
    edges = sorted(kept.glob("near_duplicates/join-*/edges-*.npz"))
    assert len(edges) > 3
    (line,) = (line for line in status(config.output, config) if line.stage == "neighbors")
    assert "finished parts are kept" in line.detail
    edges[1].unlink()
    answers = sorted(kept.glob("*/nearest-*"))
    assert [folder.parent.name for folder in answers] == ["manifold", "near_duplicates"]
    sorted(answers[1].iterdir())[0].unlink()
    # Where an earlier version kept the join's plan, which it unpickled.
    harm = Harm(tmp_path / "harmed")
    for folder in kept.glob("*/join-*"):
        (folder / "plan.pickle").write_bytes(harm.pickled())
    counted = Counted.watching(monkeypatch)
    run = run_until(config, "neighbors")
    assert counted.tasks["near-duplicates"] == 1
    assert counted.tasks["nearest neighbours"] == 1
    assert counted.tasks["rows assigned to cells"] == 0
    assert not kept.exists()
    assert_same_tables(run, few_found)


def test_a_stage_that_broke_off_between_the_spaces_keeps_the_first(few_found, few_embedded, tmp_path, monkeypatch):
    config = few_embedded.config(tmp_path / "run", **VERY_SMALL)
    started, chunks = [], Counter()
    with monkeypatch.context() as patch:

        def only_the_first(processes, space, *arguments):
            started.append(space.name)
            if len(started) == 2:
                raise RuntimeError("power cut")
            chunks["all"] = len(processes.chunks)
            return RayBackend(processes, space, *arguments)

        patch.setattr(neighbors, "RayBackend", only_the_first)
        with pytest.raises(RuntimeError, match="power cut"):
            score(config)
    assert started == ["near_duplicates", "manifold"]
    kept = Path(config.output) / "_neighbors"
    assert [folder.name for folder in kept.iterdir()] == ["near_duplicates"]
    counted = Counted.watching(monkeypatch)
    run = run_until(config, "neighbors")
    # Only the searches of the manifold: one for each chunk and part of the index.
    parts = run.completed("neighbors").info["index_parts"]
    assert counted.tasks["nearest neighbours"] == chunks["all"] * parts
    assert not kept.exists()
    assert_same_tables(run, few_found)


def actors_of_this_ray():
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::IndexActor" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_killed_actor_is_replaced_and_changes_nothing(found, embedded, tmp_path, monkeypatch):
    killed, ask = [], IndexCluster._for_all

    def after_a_kill(self, method, queries, what):
        if method == "radii" and not killed:
            for pid in actors_of_this_ray():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        ask(self, method, queries, what)

    monkeypatch.setattr(IndexCluster, "_for_all", after_a_kill)
    run = run_until(embedded.config(tmp_path / "run", **SMALL), "neighbors")
    assert killed
    keys = ["generator", "row"]
    ours, undisturbed = (table(r, "nearest").sort_values(keys).reset_index(drop=True) for r in (run, found))
    assert ours.equals(undisturbed)


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(found, embedded, tmp_path):
    config = embedded.config(tmp_path / "run", **SMALL)
    code = "import sys; from synthscale import Config, score; score(Config.model_validate_json(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json()], env=environment)
    answers = Path(config.output) / "_neighbors"
    deadline = time.monotonic() + 120
    while not list(answers.glob("*/nearest-*/*.npz")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in answers.glob("*/nearest-*/*.npz")}
    assert before
    kept = {}

    def on_progress(text):
        kept.update({path: path.stat().st_mtime_ns for path in before if path.exists()})

    run = run_until(config, "neighbors", on_progress=on_progress)
    assert all(before[path] == changed for path, changed in kept.items())
    ours, undisturbed = (
        table(r, "groups").sort_values(["generator", "row"]).reset_index(drop=True) for r in (run, found)
    )
    assert ours.equals(undisturbed)


# Bad input, and what a person sees.


def neighbors_alone(config, run):
    """Run the stage by itself on a run that is embedded."""
    context = StageContext(config, run, cpus=2)
    with ray_errors("neighbors"):
        neighbors.run(context)


@pytest.fixture(scope="module")
def embedded_run(embedded, tmp_path_factory):
    config = embedded.config(tmp_path_factory.mktemp("embedded") / "run")
    return config, run_until(config, "embed")


@pytest.fixture
def only_embedded(embedded_run, tmp_path):
    config, run = embedded_run
    shutil.copytree(run.uri, tmp_path / "run")
    config = config.model_copy(update={"output": str(tmp_path / "run")})
    return config, RunDirectory.existing(config.output, config.storage)


def test_a_missing_or_truncated_shard_is_named(only_embedded):
    config, run = only_embedded
    shard = Path(run.path("embeddings", "part-000003.parquet"))
    whole = shard.read_bytes()
    for spoil in (lambda: shard.write_bytes(whole[: len(whole) // 2]), shard.unlink):
        spoil()
        with pytest.raises(StorageError, match=r"part-000003\.parquet") as error:
            neighbors_alone(config, run)
        assert error.value.exit_code == 2


def test_vectors_of_another_width_are_named(only_embedded):
    config, run = only_embedded
    shard = Path(run.path("embeddings", "part-000002.parquet"))
    rows = pq.read_table(shard)
    narrow = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(rows.num_rows * 3, np.float32)), 3)
    pq.write_table(rows.set_column(rows.column_names.index("vector"), "vector", narrow), shard)
    with pytest.raises(SchemaError, match=r"part-000002\.parquet: vectors of 3 dimensions") as error:
        neighbors_alone(config, run)
    assert error.value.exit_code == 2


def test_progress_tells_what_is_done_the_rate_and_the_time_left(found):
    cells = [text for text in TOLD if "cells" in text and "near-duplicates" in text]
    assert cells
    assert all(" of " in text and "a second" in text and "s left" in text for text in TOLD)


@pytest.mark.slow
def test_a_radius_at_which_everything_is_one_group_ends_with_few_edges(embedded, tmp_path):
    run = run_until(embedded.config(tmp_path / "run", radius=1.9), "neighbors")
    for view in run.completed("neighbors").info["views"].values():
        assert view["share_in_largest"] > 0.99
        assert view["groups"] == 1
    assert len(table(run, "neighbors")) < 70 * len(embedded.vectors)


# Nodes of a cluster.

_TWO_NODES = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from synthscale import Config
from synthscale.pipeline import Options, score
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
cluster.add_node(num_cpus=4)
nodes = set()
class Done(Exception): pass
def on_stage(report):
    if report.stage == "neighbors": raise Done
from synthscale.neighbors.ray_index_cluster import IndexProcesses
close = IndexProcesses.close
def watched(self):
    where = lambda actor: ray.get_runtime_context().get_node_id()
    nodes.update(ray.get([actor.__ray_call__.remote(where) for actor in self._actors]))
    close(self)
IndexProcesses.close = watched
try: score(Config.model_validate_json(sys.argv[1]), Options(ray_address=cluster.address, on_stage=on_stage))
except Done: pass
print(json.dumps(sorted(nodes)))
"""


@pytest.mark.slow
def test_the_index_is_spread_over_the_nodes_of_a_cluster(found, embedded, tmp_path):
    config = embedded.config(tmp_path / "run", actor_memory_gib=2e-3)
    assert len(json.loads(last_line(_TWO_NODES, config))) == 2
    run = RunDirectory.existing(config.output, config.storage)
    ours, undisturbed = (
        table(r, "groups").sort_values(["generator", "row"]).reset_index(drop=True) for r in (run, found)
    )
    assert ours.equals(undisturbed)
