from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors import cells as module
from synthscale.neighbors.cells import CellAssignment, JoinPlan, JoinSample, assign_cells, plan_join, sample_size
from synthscale.neighbors.projection import Projection
from synthscale.tables.plain_data import from_npz, to_npz
from tests.examples import examples
from tests.reference import brute

Vectors = NDArray[np.float32]
Codes = NDArray[np.int32]


def planned(x: Vectors, code: Codes, radius: float) -> JoinPlan:
    sizes = dict(zip(*(part.tolist() for part in np.unique(code, return_counts=True)), strict=True))
    return plan_join(JoinSample(x, np.arange(len(x)), code), sizes, radius)


def vectors_of(kind: str, seed: int, n: int) -> Vectors:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, {"plane": 2, "space": 3}.get(kind, 8)))
    if kind == "clustered":
        x = rng.normal(size=(3, 8))[rng.integers(0, 3, n)] + rng.choice([1e-5, 0.01, 0.2], (n, 1)) * x
    elif kind == "one direction":
        x = np.repeat(x[:1], n, axis=0) * rng.uniform(0.1, 10, (n, 1))
    return x.astype(np.float32)


def centers_of(kind: str, seed: int, count: int, width: int) -> Vectors:
    """Centres that k-means would not return."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(count, width))
    centers *= rng.uniform(0, 2, (count, 1)) / np.linalg.norm(centers, axis=1, keepdims=True)
    if kind == "coinciding":
        centers = centers[rng.integers(0, 1 + count // 2, count)]
    elif kind == "nearly coinciding":
        centers = np.nextafter(np.repeat(centers[:1], count, axis=0).astype(np.float32), np.float32(seed % 2))
        centers[:, 0] += rng.choice([0, 1e-7, 1e-4], count)
    elif kind == "in a corner":
        centers = 1.5 + 0.01 * centers
    return centers.astype(np.float32)


def meet(placed: CellAssignment, n: int, hubs_from: int) -> NDArray[np.bool_]:
    """Whether two rows are compared, or connected by the hub that absorbed both, (n, n)."""
    entries = list(zip(placed.row_index.tolist(), placed.cell.tolist(), placed.home.tolist(), strict=True))
    met = np.zeros((n, n), np.bool_)
    for cell in set(placed.cell.tolist()):
        residents = [row for row, at, home in entries if at == cell and home]
        visitors = [row for row, at, home in entries if at == cell and not home]
        assert not set(residents) & set(visitors)
        assert cell < hubs_from or all(placed.hub[row] == cell - hubs_from for row in residents)
        met[np.ix_(residents, residents + visitors)] = True
    return met | met.T


@given(
    kind=st.sampled_from(["uniform", "clustered", "plane", "space", "one direction"]),
    centers=st.sampled_from(["random", "coinciding", "nearly coinciding", "in a corner"]),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 50),
    count=st.integers(1, 12),
    radius=st.sampled_from([5e-324, 1e-9, 1e-4, 0.01, 0.3, 2.0]),
    hub_rows=st.sampled_from([2, 256]),
)
@examples(75)
def test_rows_within_the_radius_share_a_cell_in_any_partition(
    kind: str, centers: str, seed: int, n: int, count: int, radius: float, hub_rows: int
) -> None:
    x = vectors_of(kind, seed, n)
    code = np.random.default_rng(seed).integers(0, 3, n).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_HUB_ROWS", hub_rows)
        plan = planned(x, code, radius)
    plan = replace(plan, centers=centers_of(centers, seed, count, plan.projection.width))
    placed = assign_cells(plan, x, code)
    assert sorted(placed.row_index[placed.home].tolist()) == list(range(n))
    assert ((placed.cell >= 0) & (placed.cell < plan.cells)).all()
    entries = list(zip(placed.row_index.tolist(), placed.cell.tolist(), strict=True))
    assert len(set(entries)) == len(entries)
    distances = brute.cosine_distances(x, x)
    related = (code[:, None] == code) | (code[:, None] == 0) | (code == 0)
    assert meet(placed, n, len(plan.centers))[(distances < radius) & related].all()
    # What a hub absorbs is of its set, within half of the Euclidean radius.
    absorbed = np.flatnonzero(placed.hub >= 0)
    pivots = plan.hubs.row[placed.hub[absorbed]]
    assert (code[absorbed] == code[pivots]).all()
    assert (distances[absorbed, pivots] <= radius / 4 + 1e-15).all()
    visits = ~placed.home & (placed.cell >= len(plan.centers))
    owners = plan.hubs.code[placed.cell[visits] - len(plan.centers)]
    assert (
        (code[placed.row_index[visits]] == owners) | (code[placed.row_index[visits]] == 0) | (owners == 0)
    ).all()


@pytest.mark.parametrize("radius", [5e-324, 1e-9, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("apart", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("d", [3, 512])
def test_rows_on_opposite_sides_of_a_boundary_share_a_cell(radius: float, apart: float, d: int) -> None:
    # Both rows are r / 2 from the plane up to rounding, so only the slack makes one of them visit.
    rng = np.random.default_rng(0)
    across = np.eye(d)[0]
    middle = rng.normal(size=(100, d)) * (1 - across)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    half = 0.499999 * np.sqrt(2 * radius) * across
    x = np.vstack([middle + half, middle - half]).astype(np.float32)
    hubless = planned(x[:1], np.zeros(1, np.int32), radius)
    for side in (0.0, 1.0, 2.0):
        foot = side * np.eye(d)[1]
        plan = replace(
            hubless,
            projection=Projection(np.zeros(d, np.float32), None),
            centers=np.stack([foot + apart / 2 * across, foot - apart / 2 * across]).astype(np.float32),
        )
        placed = assign_cells(plan, x, np.zeros(200, np.int32))
        met = meet(placed, 200, 2)
        assert met[np.arange(100), 100 + np.arange(100)].all()


def test_rows_far_from_every_boundary_visit_no_cell() -> None:
    axes = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    plan = planned(axes, np.zeros(20, np.int32), 0.01)
    plan = replace(plan, centers=np.eye(4, dtype=np.float32) - plan.projection.mean)
    placed = assign_cells(plan, axes, np.zeros(20, np.int32))
    assert placed.home.all()
    assert np.unique(placed.cell).tolist() == [0, 1, 2, 3]


def clusters(n: int, count: int, d: int = 16) -> Vectors:
    rng = np.random.default_rng(1)
    return (rng.normal(size=(count, d))[rng.integers(0, count, n)] + 0.05 * rng.normal(size=(n, d))).astype(
        np.float32
    )


def test_few_rows_are_joined_by_brute_force_and_many_in_cells() -> None:
    few, many = clusters(2000, 50), clusters(12_000, 300)
    at_once = planned(few, np.zeros(2000, np.int32), 1e-3)
    in_cells = planned(many, np.zeros(12_000, np.int32), 1e-3)
    assert (at_once.estimate.method, at_once.cells, at_once.estimate.cells) == ("brute force", 1, 1)
    assert in_cells.estimate.method == "cells"
    assert in_cells.cells == in_cells.estimate.cells > 50
    assert in_cells.estimate.seconds < in_cells.estimate.brute_force_seconds
    # Everything is near every plane: cells would only add to the work.
    assert planned(many, np.zeros(12_000, np.int32), 1.5).estimate.method == "brute force"


def test_a_plan_is_deterministic_and_survives_a_file() -> None:
    x, code = clusters(6000, 30), np.zeros(6000, np.int32)
    one, other = planned(x, code, 1e-3), from_npz(JoinPlan, to_npz(planned(x, code, 1e-3)), "plan")
    np.testing.assert_array_equal(one.centers, other.centers)
    assert one.estimate == other.estimate
    for left, right in zip(
        vars(assign_cells(one, x, code)).values(), vars(assign_cells(other, x, code)).values(), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def test_oversized_cells_are_split() -> None:
    # Two thirds of the points are one cluster, which k-means gives too few of its centres.
    rng = np.random.default_rng(2)
    x = np.vstack([np.eye(6)[0] + 0.02 * rng.normal(size=(4000, 6)), rng.normal(size=(2000, 6))]).astype(
        np.float32
    )
    few = module._kmeans(x[4000:], 60, 0)
    with pytest.MonkeyPatch.context() as patch:
        real = module._kmeans
        # The first call sees only the spread points: a bad start.
        calls = iter([few])
        patch.setattr(module, "_kmeans", lambda *args: next(calls, None) if len(args[0]) == 6000 else real(*args))
        centers = module._centers(x, 60, 0)
    sizes = np.bincount(((x[:, None] - centers[None]) ** 2).sum(axis=2).argmin(axis=1), minlength=len(centers))
    before = np.bincount(((x[:, None] - few[None]) ** 2).sum(axis=2).argmin(axis=1))
    assert before.max() > 1000
    assert sizes.max() <= 4 * 6000 / 60
    assert len(centers) > 60


def test_coinciding_points_give_finite_centres() -> None:
    x = np.repeat(np.eye(4, dtype=np.float32), [3000, 5, 5, 5], axis=0)
    assert np.isfinite(module._centers(x, 20, 0)).all()


def test_a_hub_is_found_only_if_an_image_is_repeated_within_one_set() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, 12)).astype(np.float32)
    x[:600] = x[0] + 1e-3 * rng.normal(size=(600, 12))
    real, mixed = np.zeros(3000, np.int32), (np.arange(3000) % 3).astype(np.int32)
    hubs = planned(x, real, 1e-3).hubs
    assert hubs.code.tolist() == [0]
    assert hubs.row[0] < 600
    np.testing.assert_allclose(brute.cosine_distances(hubs.vectors, x[hubs.row]), [[0]], atol=1e-15)
    assert sorted(planned(np.vstack([x, x]), np.repeat([0, 1], 3000).astype(np.int32), 1e-3).hubs.code) == [0, 1]
    # 200 rows of each set are too few to be worth a hub.
    assert len(planned(x, mixed, 1e-3).hubs.row) == 0


def test_rows_that_only_float64_separates_get_no_hub() -> None:
    # float32 points cannot separate these rows at so small a radius, but the float64 distance can.
    rng = np.random.default_rng(4)
    crowd = (rng.normal(size=12) + 1e-4 * rng.normal(size=(400, 12))).astype(np.float32)
    assert len(planned(crowd, np.zeros(400, np.int32), 1e-10).hubs.row) == 0


@pytest.mark.parametrize("n", [1, 100, 8192, 10**6, 10**9])
def test_a_sample_is_no_larger_than_needed(n: int) -> None:
    assert min(n, 8192) <= sample_size(n) <= min(n, 2**20)
    assert sample_size(n) <= sample_size(n + 1)
