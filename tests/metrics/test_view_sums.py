"""Sums over a view's rows: from its tables, sliced by columns and folds, merged over shards."""

import functools
import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import hypergeom

from synthscale.metrics.core import FIELDS, view_references
from synthscale.metrics.evidence import RowEvidence
from synthscale.metrics.scores import ViewRows, score_rows
from synthscale.metrics.slices import Slicing, choose_slices, count_values
from synthscale.metrics.view_sums import FOLD, ViewSums, _in_a_set_of, sum_view
from synthscale.statistics.jackknife import jackknife_blocks
from synthscale.statistics.size_matching import RowHashes
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.schemas import BLOCKS, DIRECTIONS, SCORES
from tests.examples import examples

REAL_ROWS = 40
ROWS = 100
COLUMNS = ("label", "prompt", "seed")


GROUP_COLUMNS = (
    "row",
    "near_duplicate_id",
    "size",
    "has_real",
    "near_real",
    "component_rows",
    "cluster_rows",
)


@dataclass(frozen=True)
class World:
    """View of 40 real and 60 synthetic rows with gaps in the row numbers; the first 60 are in groups of 2 to 4."""

    view: ViewRows
    evidence: RowEvidence
    real_ids: pa.Table

    def scores(self) -> pa.Table:
        return score_rows(self.view, self.real_ids, 0.1)

    def slicings(self) -> list[Slicing]:
        return [choose_slices(name, count_values(self.view.manifest.column(name))) for name in COLUMNS]

    def sums(self, slicings: list[Slicing]) -> ViewSums:
        return sum_view(self.view, self.scores(), self.evidence, slicings)

    def take(self, chosen: NDArray[np.int64]) -> "World":
        """Return the rows at ascending positions, as a shard of the view."""
        index, rows = pa.array(chosen), self.view.manifest.column("row").to_numpy()[chosen]
        kept = np.isin(self.view.groups.column("row").to_numpy(), rows)
        view = ViewRows(
            self.view.manifest.take(index),
            self.view.nearest.take(index),
            self.view.groups.filter(pa.array(kept)),
            self.view.logit[chosen],
        )
        whole = vars(self.evidence)
        hashes = RowHashes(*(part[chosen] for part in vars(self.evidence.hashes).values()))
        parts = {
            name: part[chosen] if isinstance(part, np.ndarray) and len(part) else part
            for name, part in whole.items()
        }
        return World(view, RowEvidence(**(parts | {"hashes": hashes})), self.real_ids)


def world(seed: int = 0, *, classified: bool = True) -> World:
    rng = np.random.default_rng(seed)
    row = np.sort(rng.choice(1000, ROWS, replace=False))
    is_real = np.arange(ROWS) < REAL_ROWS
    manifest = pa.table(
        {
            "row": row,
            "id": [f"id-{i}" for i in row],
            "uri": pa.nulls(ROWS, pa.string()),
            "real_or_synthetic": pa.array(
                ["real" if real else "synthetic" for real in is_real]
            ).dictionary_encode(),
            "label": pa.array(rng.choice(["cat", "dog", None], ROWS).tolist(), pa.string()),
            "image_filename": pa.nulls(ROWS, pa.string()),
            "prompt": pa.array(rng.choice(["a", "b", "c"], ROWS).tolist()).dictionary_encode(),
            "seed": pa.array(rng.normal(size=ROWS)),
        }
    )
    nearest_real = np.where(rng.random(ROWS) < 0.1, -1, row[rng.integers(0, REAL_ROWS, ROWS)])
    nearest = pa.table(
        {
            "row": row,
            "nn_distance": pa.array(rng.random(ROWS), pa.float32()),
            "nearest_real_row": pa.array(nearest_real, mask=nearest_real < 0),
            "nearest_real_distance": pa.array(rng.random(ROWS), pa.float32()),
            "manifold_real_row": pa.array(nearest_real, mask=nearest_real < 0),
            "manifold_real_distance": pa.array(rng.random(ROWS), pa.float32()),
            "in_real_manifold": rng.random(ROWS) < 0.6,
            "covered": pa.array(rng.random(ROWS) < 0.5, mask=~is_real),
            "is_copy": rng.random(ROWS) < 0.1,
        }
    )
    sizes = rng.integers(2, 5, 15)
    member = rng.choice(60, int(sizes.sum()), replace=False) if sizes.sum() <= 60 else rng.permutation(60)
    sizes = np.minimum(sizes, np.maximum(len(member) - np.r_[0, np.cumsum(sizes)[:-1]], 0))
    lines: dict[str, list[Any]] = {name: [] for name in GROUP_COLUMNS}
    ids = hash_ids(manifest.column("id").to_pylist())
    key, cluster = ids.copy(), ids.copy()
    for places in np.split(member, np.cumsum(sizes)[:-1]):
        if len(places):
            # The first two rows of a component are a cluster; the others have one of their own.
            key[places], cluster[places[:2]] = ids[places].min(), ids[places[:2]].min()
            for place in sorted(places.tolist()):
                lines["row"].append(row[place])
                lines["near_duplicate_id"].append(row[places].min())
                lines["size"].append(len(places))
                lines["has_real"].append(bool(is_real[places].any()))
                own = places[is_real[places] == is_real[place]]
                lines["near_real"].append(bool(np.any(is_real[places[places != place]])))
                lines["component_rows"].append(len(own))
                beside = [other for other in places[:2].tolist() if is_real[other] == is_real[place]]
                lines["cluster_rows"].append(len(beside) if place in places[:2] else 1)
    groups = pa.table(lines).sort_by("row")
    logit = rng.normal(size=ROWS) if classified else np.full(ROWS, np.nan)
    without = logit[:, None] + 0.1 * rng.normal(size=(ROWS, BLOCKS))
    without[np.arange(ROWS), jackknife_blocks(cluster)] = np.nan
    evidence = RowEvidence(
        log_prior=rng.normal(size=ROWS),
        hashes=RowHashes(ids, key, cluster),
        logit_file_facts=np.full(ROWS, np.nan),
        bytes_per_pixel=np.full(ROWS, np.nan),
        direction_coordinates=rng.normal(size=(ROWS, DIRECTIONS)),
        fold=rng.integers(0, 3, ROWS).astype(np.int8) if classified else np.empty(0, np.int8),
        logit_without=without if classified else None,
        sizes=(REAL_ROWS, ROWS - REAL_ROWS),
    )
    real_ids = manifest.slice(0, REAL_ROWS).select(["row", "id"])
    return World(ViewRows(manifest, nearest, groups, logit), evidence, real_ids)


def by_row(own: World, place: int) -> dict[str, NDArray[np.float64]]:
    """Return what one row adds to each sum, by block."""
    sums: dict[str, NDArray[np.float64]] = {}
    block = int(jackknife_blocks(own.evidence.hashes.cluster)[place])

    def add(name: str, value: float, at: int = block) -> None:
        sums.setdefault(name, np.zeros(BLOCKS))[at] += value

    (line,) = own.view.manifest.slice(place, 1).to_pylist()
    (near,) = own.view.nearest.slice(place, 1).to_pylist()
    groups = [group for group in own.view.groups.to_pylist() if group["row"] == line["row"]]
    kind = line["real_or_synthetic"]
    sign = -1 if kind == "real" else 1
    add(kind, 1)
    add(f"clusters_{kind}", 1 / (groups[0]["cluster_rows"] if groups else 1))
    rows = groups[0]["component_rows"] if groups else 1
    logit = own.view.logit[place]
    if not np.isnan(logit):
        add("scored", 1)
        add(f"quality_{kind}", expit(sign * logit))
        add(f"unadjusted_{kind}", expit(sign * (logit + own.evidence.log_prior[place])))
    if own.evidence.logit_without is not None:
        for at, other in enumerate(own.evidence.logit_without[place].tolist()):
            add(f"without_{kind}", 0.0 if np.isnan(other) else expit(sign * other), at)
    if kind == "synthetic":
        add("repeats", bool(groups) and not groups[0]["has_real"])
        add("copies", bool(groups) and groups[0]["has_real"])
        add("components", 1 / rows)
        add("inside", near["in_real_manifold"])
    else:
        near_real = bool(groups) and groups[0]["near_real"]
        drawn = min(REAL_ROWS, ROWS - REAL_ROWS)
        add("real_near", near_real)
        # A row that only synthetic ones connect with other real rows is alone among these.
        alike = rows if near_real else 1
        add("real_repeats", 1 - hypergeom.pmf(0, REAL_ROWS - 1, alike - 1, drawn - 1))
        add("real_components", (1 - hypergeom.pmf(0, REAL_ROWS, alike, drawn)) * REAL_ROWS / drawn / alike)
        add("covered", near["covered"])
        add("real_inside", near["in_real_manifold"])
    return sums


def added(own: World, places: list[int]) -> dict[str, NDArray[np.float64]]:
    total: dict[str, NDArray[np.float64]] = {}
    for place in places:
        for name, values in by_row(own, place).items():
            total[name] = total.get(name, np.zeros(BLOCKS)) + values
    return total


def assert_sums(found: Any, expected: dict[str, NDArray[np.float64]]) -> None:
    assert set(expected) <= set(FIELDS)
    for name, values in expected.items():
        np.testing.assert_allclose(found.by_block(name), values, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classified", [True, False])
def test_the_sums_over_all_rows_are_those_of_a_loop(seed: int, classified: bool) -> None:
    own = world(seed, classified=classified)
    found = own.sums([])
    assert_sums(found.overall, added(own, list(range(ROWS))))
    is_copy = own.view.nearest.column("is_copy").to_numpy()
    assert found.distinct_real == int((~is_copy[:REAL_ROWS]).sum())
    assert (found.overall["scored"] == ROWS) == classified
    assert (found.overall["without_real"] > 0) == classified


@pytest.mark.parametrize("seed", range(3))
def test_slices_are_those_of_a_loop_over_the_rows_of_each_value_and_fold(seed: int) -> None:
    own = world(seed)
    slicings = own.slicings()
    found = own.sums(slicings).slices
    names = {"label": {"cat", "dog"}, "prompt": {"a", "b", "c"}, "seed": set(slicings[2].names)}
    assert len(names["seed"]) == 10
    assert {column for column, _ in found} == {*COLUMNS, FOLD}
    for column, expected in names.items():
        assert {name for own_column, name in found if own_column == column} == expected
    for column in ("label", "prompt"):
        values = own.view.manifest.column(column).to_pylist()
        for name in names[column]:
            places = [i for i, value in enumerate(values) if value == name]
            assert_sums(found[column, name], added(own, places))
    place = slicings[2].of(own.view.manifest.column("seed"))
    for i, name in enumerate(slicings[2].names):
        assert_sums(found["seed", name], added(own, np.flatnonzero(place == i).tolist()))
    for fold in range(3):
        places = np.flatnonzero(own.evidence.fold == fold).tolist()
        assert_sums(found[FOLD, str(fold)], added(own, places))


def test_without_a_classifier_there_are_no_folds() -> None:
    own = world(classified=False)
    assert {column for column, _ in own.sums(own.slicings()).slices} == set(COLUMNS)


@given(st.integers(0, 50), st.lists(st.integers(0, ROWS), max_size=4), st.booleans())
@examples(12)
def test_sums_merge_over_any_shards(seed: int, cuts: list[int], scattered: bool) -> None:
    own = world(seed)
    slicings = own.slicings()
    order = np.random.default_rng(seed).permutation(ROWS) if scattered else np.arange(ROWS)
    shards = [np.sort(part) for part in np.split(order, sorted(cuts))]
    parts = [own.take(part).sums(slicings) for part in shards]
    merged, whole = functools.reduce(operator.add, parts, ViewSums()), own.sums(slicings)
    np.testing.assert_allclose(merged.overall.values, whole.overall.values, atol=1e-9)
    assert merged.slices.keys() == whole.slices.keys()
    for name, sums in whole.slices.items():
        np.testing.assert_allclose(merged.slices[name].values, sums.values, atol=1e-9)
    assert merged.distinct_real == whole.distinct_real
    for one, other in zip(merged.direction_coordinates, whole.direction_coordinates, strict=True):
        np.testing.assert_allclose(one.moments, other.moments, atol=1e-9)
        assert one.ends == other.ends


def test_a_slice_of_only_one_shard_is_kept() -> None:
    own = world()
    slicings = own.slicings()
    cats = np.flatnonzero(np.array(own.view.manifest.column("label").to_pylist()) == "cat")
    others = np.setdiff1d(np.arange(ROWS), cats)
    parts = [own.take(part).sums(slicings) for part in (cats, others)]
    assert ("label", "cat") not in parts[1].slices
    both = parts[1] + parts[0]
    np.testing.assert_allclose(both.slices["label", "cat"].values, parts[0].slices["label", "cat"].values)


def test_the_core_sums_do_not_depend_on_direction_coordinates() -> None:
    own = world()
    moved = replace(
        own, evidence=replace(own.evidence, direction_coordinates=own.evidence.direction_coordinates * 2)
    )
    np.testing.assert_array_equal(own.sums([]).overall.values, moved.sums([]).overall.values)


def test_scores_name_the_nearest_real_row_and_groups_of_each_row() -> None:
    own = world(3)
    table = own.scores()
    assert table.column_names == [*SCORES.names, "prompt", "seed"]
    ids = dict(zip(own.real_ids["row"].to_pylist(), own.real_ids["id"].to_pylist(), strict=True))
    nearest = own.view.nearest.column("nearest_real_row").to_pylist()
    assert None in nearest
    assert table.column("nearest_real_id").to_pylist() == [None if row is None else ids[row] for row in nearest]
    group_of = {group["row"]: group["near_duplicate_id"] for group in own.view.groups.to_pylist()}
    rows = own.view.manifest.column("row").to_pylist()
    assert table.column("near_duplicate_id").to_pylist() == [group_of.get(row) for row in rows]
    assert table.column("is_near_duplicate").to_pylist() == [row in group_of for row in rows]


def test_scores_of_a_shard_are_those_rows_of_the_whole() -> None:
    own = world(4)
    chosen = np.r_[3:11, 38:60]
    assert own.take(chosen).scores().equals(own.scores().take(pa.array(chosen)))
    # A shard may have no rows of a generator.
    assert own.take(np.arange(0)).scores().num_rows == 0
    empty = own.take(np.arange(0)).sums(own.slicings())
    assert (empty.overall.values == 0).all()


def sums_of_components(
    sizes: list[int], matched: int | None = None, *, real: list[int] | None = None, only: str = ""
) -> ViewSums:
    """Return the sums of a view whose components, of exact repeats, have these sizes; without a classifier.

    Args:
        sizes: synthetic rows of each component.
        matched: size of the matched subsample.
        real: real rows of each component; by default 50 single rows.
        only: prefix of the ids, which decide what is sampled.
    """
    real = [1] * 50 if real is None else real
    n, m = sum(real), sum(sizes)
    is_real, row = np.arange(n + m) < n, np.arange(n + m)
    component = np.r_[np.repeat(np.arange(len(real)), real), np.repeat(len(real) + np.arange(len(sizes)), sizes)]
    rows_of = np.bincount(component)[component]
    alike = np.flatnonzero(rows_of > 1)
    manifest = pa.table(
        {
            "row": row,
            "id": [f"{only}/{i}" for i in row],
            "uri": pa.nulls(n + m, pa.string()),
            "image_filename": pa.nulls(n + m, pa.string()),
            "label": pa.nulls(n + m, pa.string()),
            "real_or_synthetic": np.where(is_real, "real", "synthetic"),
        }
    )
    nearest = pa.table(
        {
            "row": row,
            "nn_distance": np.ones(n + m),
            "nearest_real_row": pa.nulls(n + m, pa.int64()),
            "nearest_real_distance": pa.nulls(n + m, pa.float32()),
            "in_real_manifold": np.ones(n + m, bool),
            "covered": pa.array(np.ones(n + m, bool), mask=~is_real),
            "is_copy": np.zeros(n + m, bool),
            "synthetic_in_radius": pa.array(np.ones(n + m, np.int32), mask=~is_real),
        }
    )
    groups = pa.table(
        {
            "row": row[alike],
            "near_duplicate_id": component[alike],
            "size": rows_of[alike],
            "has_real": is_real[alike],
            "near_real": is_real[alike],
            "component_rows": rows_of[alike],
            "cluster_rows": rows_of[alike],
        }
    )
    hashes = [hash_ids(f"{only}{kind}/{i}" for i in own.tolist()) for kind, own in (("", row), ("c", component))]
    unknown = np.full(n + m, np.nan)
    evidence = RowEvidence(
        log_prior=np.zeros(n + m),
        hashes=RowHashes(hashes[0], hashes[1], hashes[1]),
        logit_file_facts=unknown,
        bytes_per_pixel=unknown,
        direction_coordinates=np.full((n + m, DIRECTIONS), np.nan),
        matched_size=matched,
        sizes=(n, m),
    )
    view = ViewRows(manifest, nearest, groups, unknown)
    scores = score_rows(view, manifest.slice(0, n).select(["row", "id"]), 0.1)
    return sum_view(view, scores, evidence, [])


UNEQUAL = [30, 8, 8, 5, 3, 2, 2, *[1] * 40]
"""Rows of 47 components: 98 in all."""


def of_random_subsets(sizes: list[int], size: int) -> tuple[float, float, float]:
    """Return the mean components, rows that repeat another, and largest component of random subsets of rows."""
    rng, component = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    found = []
    for _ in range(3000):
        counts = np.bincount(rng.permutation(component)[:size])
        found.append([(counts > 0).sum(), counts[counts > 1].sum(), counts.max()])
    mean: list[float] = np.mean(found, axis=0).tolist()
    return mean[0], mean[1], mean[2]


@pytest.mark.parametrize("size", [10, 40, 90])
def test_a_matched_subsample_has_the_components_and_clusters_of_a_random_subset(size: int) -> None:
    parts, repeats, _ = of_random_subsets(UNEQUAL, size)
    found = [sums_of_components(UNEQUAL, size, only=str(seed)).matched for seed in range(150)]
    # The rows are those of one subsample, which is drawn by hash, the rest is an expectation.
    assert np.mean([sums["synthetic"] for sums in found]) == pytest.approx(size, rel=0.06)
    assert np.mean([sums["components"] for sums in found]) == pytest.approx(parts, rel=0.06)
    assert np.mean([sums["repeats"] for sums in found]) == pytest.approx(repeats, rel=0.1)
    assert np.mean([sums["clusters_synthetic"] for sums in found]) == pytest.approx(parts, rel=0.06)
    # Real rows are not sampled.
    assert {sums["clusters_real"] for sums in found} == {50}


def test_a_subsample_of_single_rows_has_a_unique_share_of_exactly_1() -> None:
    for size in (7, 83, 120):
        sums = sums_of_components([1] * 163, size).matched
        assert sums["components"] == sums["synthetic"] == sums["clusters_synthetic"]
    references = view_references(sums_of_components([1] * 83, real=[1] * 163).overall, 163, 5)
    assert references["unique_share"] == references["diversity"] == 1


def test_the_references_are_the_shares_of_a_set_of_real_rows_of_the_generators_size() -> None:
    for m in (20, 60):
        sums = sums_of_components([1] * m, real=UNEQUAL).overall
        parts, repeats, _ = of_random_subsets(UNEQUAL, m)
        references = view_references(sums, 98, 5)
        assert references["unique_share"] == pytest.approx(parts / m, rel=0.01)
        assert references["diversity"] == pytest.approx(1 - repeats / m, rel=0.01)
        # Freshness compares with all real images: 58 of 98 have another one nearby.
        assert references["freshness"] == pytest.approx(1 - 58 / 98)
    # A larger generator is compared with all real rows.
    references = view_references(sums_of_components([1] * 500, real=UNEQUAL).overall, 98, 5)
    assert references["unique_share"] == pytest.approx(47 / 98)
    assert references["diversity"] == pytest.approx(1 - 58 / 98)


def test_references_of_a_matched_subsample_are_those_of_its_size() -> None:
    parts, repeats, _ = of_random_subsets(UNEQUAL, 30)
    sums = sums_of_components([1] * 400, 30, real=UNEQUAL).matched
    references = view_references(sums, 98, 5)
    # The subsample has about 30 rows; its size is exactly 30.
    assert references["unique_share"] == pytest.approx(parts / 30, rel=0.01)
    assert references["diversity"] == pytest.approx(1 - repeats / 30, rel=0.01)


def test_a_real_row_that_only_synthetic_rows_connect_is_alone_in_the_references() -> None:
    # Three real rows in a component, none of which is near another real one.
    repeats, components = _in_a_set_of(np.full(3, 3), np.zeros(3, bool), 40, 40)
    assert repeats.tolist() == [0, 0, 0]
    assert components.tolist() == [1, 1, 1]
