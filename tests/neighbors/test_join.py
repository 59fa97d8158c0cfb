import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors import cells, projection
from synthscale.neighbors import join as module
from synthscale.neighbors.candidate_filter import TorchFilter
from synthscale.neighbors.cells import JoinPlan, JoinSample, plan_join
from synthscale.neighbors.distance import half_squared_distance, normalized
from synthscale.neighbors.edges import Edges, distinct_edges
from synthscale.neighbors.join import JoinPiece, JoinResult, hub_edges, join, join_all, place_rows
from synthscale.neighbors.projection import Projection
from tests.examples import examples
from tests.reference import brute

Vectors = NDArray[np.float32]
Codes = NDArray[np.int32]
Pairs = set[tuple[int, int]]

KINDS = ["uniform", "clustered", "duplicated", "tight", "plane", "d3", "d4", "one direction", "power", "float16"]


def vectors_of(kind: str, seed: int, n: int) -> Vectors:
    rng = np.random.default_rng(seed)
    d = {"plane": 2, "d3": 3, "d4": 4, "power": 24}.get(kind, 8)
    x = rng.normal(size=(n, d))
    if kind in ("clustered", "float16", "power"):
        spread = rng.choice([0.003, 0.03, 0.2], (n, 1))
        x = rng.normal(size=(4, d))[rng.integers(0, 4, n)] + spread * x
    elif kind == "tight":
        x = rng.normal(size=(2, d))[rng.integers(0, 2, n)] + 1e-5 * x
    elif kind == "duplicated":
        x = x[rng.integers(0, max(1, n // 3), n)]
    elif kind == "one direction":
        x = np.repeat(x[:1], n, axis=0) * rng.uniform(0.01, 100, (n, 1))
    if kind == "power":
        x *= np.arange(1, d + 1) ** -1.0
    return x.astype(np.float16).astype(np.float32) if kind == "float16" else x.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """Rows with unordered row numbers, and the true edges at a radius by brute force."""

    x: Vectors
    row: NDArray[np.int64]
    code: Codes
    radius: float
    truth: dict[tuple[int, int], float]

    @property
    def rows_of_views(self) -> list[set[int]]:
        """Return the rows of each generator's view."""
        codes = sorted(set(self.code.tolist()) - {0}) or [0]
        return [set(self.row[(self.code == 0) | (self.code == code)].tolist()) for code in codes]

    @property
    def rows_of_sets(self) -> list[set[int]]:
        """Return the rows of each set."""
        return [set(self.row[self.code == code].tolist()) for code in set(self.code.tolist())]


def case_of(x: Vectors, code: Codes, radius: float, seed: int = 0) -> Case:
    row = np.random.default_rng(seed).permutation(3 * len(x))[: len(x)]
    # The production formula decides which side of the radius a distance is on, because the last bit matters.
    distances = half_squared_distance(normalized(x)[:, None], normalized(x)[None])
    np.testing.assert_allclose(distances, brute.cosine_distances(x, x), atol=1e-14)
    related = (code[:, None] == code) | (code[:, None] == 0) | (code == 0)
    near = np.argwhere((distances < radius) & related & (row[:, None] < row))
    return Case(x, row, code, radius, {(int(row[i]), int(row[j])): float(distances[i, j]) for i, j in near})


def random_case(kind: str, seed: int, n: int, sets: int, share: float, side: str) -> Case:
    """Return a case whose radius is the distance of some pair, the next larger float, or tiny."""
    x = vectors_of(kind, seed, n)
    code = np.random.default_rng(seed).integers(0, sets, n).astype(np.int32)
    occurring = np.unique(half_squared_distance(normalized(x)[:, None], normalized(x)[None]))
    at = float(occurring[int(share * (len(occurring) - 1))])
    smallest = float(np.nextafter(0, 1))
    radius = {"at": at, "above": float(np.nextafter(at, 3)), "tiny": 1e-9, "smallest": smallest}[side]
    return case_of(x, code, max(radius, smallest), seed)


def plan_of(case: Case, centers: str = "planned", seed: int = 0) -> JoinPlan:
    sizes = dict(zip(*(part.tolist() for part in np.unique(case.code, return_counts=True)), strict=True))
    plan = plan_join(JoinSample(case.x, case.row, case.code), sizes, case.radius)
    if centers == "planned":
        return plan
    rng = np.random.default_rng(seed)
    bad = rng.normal(size=(7, plan.projection.width))
    bad *= rng.uniform(0, 2, (7, 1)) / np.linalg.norm(bad, axis=1, keepdims=True)
    return replace(plan, centers=bad[rng.integers(0, 7, 9)].astype(np.float32))


def piece_of(plan: JoinPlan, case: Case, chosen: NDArray[np.bool_]) -> JoinPiece:
    return place_rows(plan, case.x[chosen], case.row[chosen], case.code[chosen])


def join_in_pieces(plan: JoinPlan, case: Case, chosen: NDArray[np.bool_]) -> JoinResult:
    a, b = piece_of(plan, case, chosen), piece_of(plan, case, ~chosen)
    parts = [join(plan, a), join(plan, b), join(plan, a, b)]
    stars = [hub_edges(plan, a), hub_edges(plan, b)]
    edges = distinct_edges([*(part.edges for part in parts), *stars])
    return JoinResult(edges, all(part.is_whole for part in parts) and not any(map(len, stars)))


def pairs_of(edges: Edges) -> Pairs:
    pairs = list(zip(edges.left.tolist(), edges.right.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def parts_of(rows: set[int], pairs: Pairs) -> set[frozenset[int]]:
    number = {row: i for i, row in enumerate(sorted(rows))}
    inside = {(number[i], number[j]) for i, j in pairs if i in rows and j in rows}
    names = sorted(rows)
    return {frozenset(names[i] for i in part) for part in brute.components(len(rows), inside)}


def assert_right(found: JoinResult, case: Case, plan: JoinPlan) -> None:
    """Assert that all pairs are listed or, if not, true pairs with the same components in every view and set."""
    pairs = pairs_of(found.edges)
    assert pairs <= set(case.truth)
    assert [
        case.truth[i, j] for i, j in zip(found.edges.left.tolist(), found.edges.right.tolist(), strict=True)
    ] == (found.edges.distance.tolist())
    code = dict(zip(case.row.tolist(), case.code.tolist(), strict=True))
    assert [code[i] for i in found.edges.left.tolist()] == found.edges.left_code.tolist()
    assert [code[i] for i in found.edges.right.tolist()] == found.edges.right_code.tolist()
    if found.is_whole:
        assert pairs == set(case.truth)
    for rows in [*case.rows_of_views, *case.rows_of_sets]:
        assert parts_of(rows, pairs) == parts_of(rows, set(case.truth))


def check(
    case: Case, centers: str, seed: int, share: float, hub_rows: int, edges_per_row: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_WIDTHS", (2, 6))
        patch.setattr(cells, "_FEWEST_ROWS", 0)
        patch.setattr(cells, "_CELL_S", -1.0)
        patch.setattr(cells, "_HUB_ROWS", hub_rows)
        patch.setattr(module, "EDGES_PER_ROW", edges_per_row)
        patch.setattr(module, "_BLOCK", block)
        plan = plan_of(case, centers, seed)
        whole = join_all(plan, case.x, case.row, case.code)
        assert_right(whole, case, plan)
        chosen = np.random.default_rng(seed).random(len(case.x)) < share
        assert_right(join_in_pieces(plan, case, chosen), case, plan)
        if edges_per_row == 64 and hub_rows == 256:
            assert whole.is_whole


cases = given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 50),
    share=st.floats(0, 1),
    side=st.sampled_from(["at", "above", "tiny", "smallest"]),
    centers=st.sampled_from(["planned", "bad"]),
)


@cases
@examples(75)
def test_a_join_finds_exactly_the_pairs_within_the_radius(
    kind: str, seed: int, n: int, share: float, side: str, centers: str
) -> None:
    check(random_case(kind, seed, n, 3, share, side), centers, seed, share, 256, 64, 2048)


@cases
@examples(50)
def test_hubs_and_spanning_edges_keep_the_components_of_one_view(
    kind: str, seed: int, n: int, share: float, side: str, centers: str
) -> None:
    case = random_case(kind, seed, n, 2, share, side)
    check(case, centers, seed, share, hub_rows=3, edges_per_row=64, block=16)
    check(case, centers, seed, share, hub_rows=256, edges_per_row=1, block=16)
    check(case, centers, seed, share, hub_rows=3, edges_per_row=0, block=16)


@cases
@examples(50)
def test_hubs_and_spanning_edges_keep_the_components_of_two_views(
    kind: str, seed: int, n: int, share: float, side: str, centers: str
) -> None:
    case = random_case(kind, seed, n, 3, share, side)
    check(case, centers, seed, share, hub_rows=3, edges_per_row=64, block=16)
    check(case, centers, seed, share, hub_rows=256, edges_per_row=1, block=16)


@cases
@examples(25)
def test_torch_gives_the_same_edges(kind: str, seed: int, n: int, share: float, side: str, centers: str) -> None:
    case = random_case(kind, seed, n, 3, share, side)
    plan = plan_of(case, centers, seed)
    chosen = np.random.default_rng(seed).random(n) < share
    a, b = piece_of(plan, case, chosen), piece_of(plan, case, ~chosen)
    for one, other in ((a, None), (b, None), (a, b)):
        torch, cpu = join(plan, one, other, TorchFilter("cpu")), join(plan, one, other)
        for left, right in zip(vars(torch.edges).values(), vars(cpu.edges).values(), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("kind", ["clustered", "tight", "duplicated"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_float16_vectors_are_joined_with_their_exact_values(kind: str, dtype: type[np.floating]) -> None:
    x = vectors_of(kind, 1, 60).astype(np.float16).astype(dtype)
    case = case_of(x, np.zeros(60, np.int32), 1e-3)
    plan = plan_of(case, "bad")
    found = join_all(plan, x, case.row, case.code)
    assert len(found.edges)
    assert_right(found, case, plan)


@pytest.mark.parametrize("size", [1e-39, 1e-30, 1e30, 1e38])
def test_a_join_does_not_depend_on_the_length_of_vectors(size: float) -> None:
    x = (normalized(vectors_of("clustered", 2, 60)) * size).astype(np.float32)
    case = case_of(x, np.zeros(60, np.int32), 1e-3)
    plan = plan_of(case)
    found = join_all(plan, x, case.row, case.code)
    assert len(found.edges)
    assert_right(found, case, plan)


def test_a_row_with_a_tiny_residual_finds_its_pair() -> None:
    # The residual of the first row of each pair is smaller than the rounding error of its squared norm.
    rng = np.random.default_rng(0)
    low = np.zeros((100, 64))
    low[:, :31] = normalized(rng.normal(size=(100, 31)))
    inside, outside = low.copy(), low.copy()
    inside[:, 40], outside[:, 40] = 3e-4, 0.03
    x = np.vstack([inside, outside]).astype(np.float32)
    distances = half_squared_distance(normalized(x[:100]), normalized(x[100:]))
    case = case_of(x, np.zeros(200, np.int32), float(np.nextafter(distances.max(), 1)))
    basis = np.linalg.qr(np.hstack([np.eye(64)[:, :31], rng.normal(size=(64, 1))]))[0]
    narrow = Projection(np.zeros(64, np.float32), basis.astype(np.float32))
    plan = replace(plan_of(case), projection=narrow, centers=np.zeros((1, 33), np.float32))
    assert pairs_of(join_all(plan, x, case.row, case.code).edges) == set(case.truth)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_rows_are_joined(n: int) -> None:
    case = case_of(np.ones((n, 5), np.float32), np.zeros(n, np.int32), 1e-6)
    assert len(join_all(plan_of(case), case.x, case.row, case.code).edges) == n * (n - 1) // 2


def repeated(seed: int, m: int, size: float, d: int = 12) -> Vectors:
    """One image re-encoded m times; distances of about d size^2."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=d) + size * rng.normal(size=(m, d))).astype(np.float32)


def code_of(*counts: int) -> Codes:
    return np.repeat(np.arange(len(counts)), counts).astype(np.int32)


@pytest.mark.parametrize("m", [260, 400])
def test_an_image_repeated_m_times_gives_edges_linear_in_m(m: int) -> None:
    x = np.vstack([repeated(0, m, 1e-4), repeated(1, m, 1e-4), repeated(2, 100, 1.0)])
    case = case_of(x, code_of(m, m, 100), 1e-5)
    plan = plan_of(case)
    assert len(plan.hubs.row) == 2
    found = join_all(plan, case.x, case.row, case.code)
    assert_right(found, case, plan)
    assert len(found.edges) < 1.1 * len(x)


@pytest.mark.parametrize("apart", [0.0, 1e-3, 3e-3, 4.4e-3, 6e-3])
def test_hubs_of_two_sets_within_the_radius_are_one_group(apart: float) -> None:
    real, own = repeated(3, 300, 2e-4), repeated(3, 300, 2e-4)
    own = (normalized(own) + apart * np.eye(12)[0]).astype(np.float32)
    case = case_of(np.vstack([real, own]), code_of(300, 300), 1e-5)
    plan = plan_of(case)
    assert sorted(set(plan.hubs.code.tolist())) == [0, 1]
    found = join_all(plan, case.x, case.row, case.code)
    assert_right(found, case, plan)
    assert_right(join_in_pieces(plan, case, np.arange(600) % 3 == 0), case, plan)
    assert len(found.edges) < 3 * 600


@pytest.mark.parametrize("owner", [0, 1])
def test_a_hub_connects_no_rows_of_another_generator(owner: int) -> None:
    # Rows of the second generator on opposite sides of the hub, more than the radius apart.
    away = 1.2 * np.sqrt(2e-5) / 2
    middle = normalized(repeated(4, 400, 1e-5))
    turned = np.linalg.qr(np.vstack([middle[:1], np.eye(12)[1:2]]).T)[0][:, 1]
    sides = middle[:2] + away * np.outer([1, -1], turned)
    x = np.vstack([middle, sides]).astype(np.float32)
    case = case_of(x, np.array([owner] * 400 + [2, 2], np.int32), 1e-5)
    plan = plan_of(case)
    assert plan.hubs.code.tolist() == [owner]
    found = join_all(plan, x, case.row, case.code)
    assert_right(found, case, plan)
    ends = set(found.edges.left.tolist() + found.edges.right.tolist())
    assert set(case.row[400:].tolist()) <= ends if owner == 0 else not set(case.row[400:].tolist()) & ends


def test_a_path_through_a_generator_does_not_replace_an_edge_between_real_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All six are near-duplicates; the second generator's view must be connected without the first's row.
    monkeypatch.setattr(module, "EDGES_PER_ROW", 0)
    x = repeated(5, 6, 1e-4)
    for code in ([1, 0, 0, 2, 0, 1], [0, 1, 0, 0, 2, 2]):
        case = case_of(x, np.array(code, np.int32), 1e-3)
        plan = plan_of(case)
        assert_right(join_all(plan, x, case.row, case.code), case, plan)


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_one_group_of_all_rows_gives_edges_linear_in_the_rows(
    sets: int, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 1500
    monkeypatch.setattr(module, "_BLOCK", 128)
    x = np.random.default_rng(6).normal(size=(n, 4)).astype(np.float32)
    code, row = (np.arange(n) % sets).astype(np.int32), np.arange(n)
    everything = Case(x, row, code, 2.0, {})
    plan = plan_of(everything)
    halves = row < n // 2
    found = join_in_pieces(plan, everything, halves) if in_pieces else join_all(plan, x, row, code)
    assert not found.is_whole
    assert len(found.edges) <= (module.EDGES_PER_ROW + 1) * n * (2 if in_pieces else 1)
    for rows in everything.rows_of_views:
        assert len(parts_of(rows, pairs_of(found.edges))) == 1


@pytest.mark.parametrize("radius", [1e-4, 2.0])
def test_memory_stays_small(radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 512)
    n = 20_000
    rng = np.random.default_rng(7)
    x = rng.normal(size=(200, 16))[rng.integers(0, 200, n)] + 0.02 * rng.normal(size=(n, 16))
    x[: n // 4] = x[0] + 1e-4 * rng.normal(size=(n // 4, 16))
    case = Case(x.astype(np.float32), np.arange(n), np.zeros(n, np.int32), radius, {})
    chosen = rng.permutation(n)[:4000]
    plan = plan_join(JoinSample(case.x[chosen], chosen, case.code[chosen]), {0: n}, radius)
    tracemalloc.start()
    found = join_all(plan, case.x, case.row, case.code)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.edges) <= (module.EDGES_PER_ROW + 1) * n
    assert peak < 400 * 2**20


@pytest.mark.parametrize("copies", [1, 2, 300])
def test_each_edge_is_listed_once_with_the_smaller_row_first(copies: int) -> None:
    case = case_of(
        np.repeat(vectors_of("clustered", 8, 10), copies, axis=0)[:400], code_of(0, 10 * copies)[:400], 0.1
    )
    edges = join_all(plan_of(case), case.x, case.row, case.code).edges
    assert (edges.left < edges.right).all()
    assert (np.diff(edges.left) >= 0).all()
    pairs_of(edges)
