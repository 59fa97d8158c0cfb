"""The near-duplicate analysis of generators' views in memory, beside brute force and cleanlab's Datalab."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from cleanlab import Datalab
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale import Config, InputError, memory_search, relations, score_features
from synthscale.cells import Sample, plan_join
from synthscale.config import NeighborsConfig
from synthscale.copies import Copies, collapse, equal_pairs, vector_keys
from synthscale.edges import Edges
from synthscale.encoders.descriptor import DescriptorEncoder
from synthscale.join import join_all
from synthscale.memory_search import Analysis, analyse
from synthscale.neighbors import DATALAB_K, Found, Inside, Nearest, View, listed_edges, nearest_rows
from synthscale.radius import Searches
from synthscale.relations import Recall, Relation
from tests.reference import brute

Vectors = NDArray[np.float32]
EXACT = NeighborsConfig()
DATALAB = NeighborsConfig(mode="datalab")


def numbered(sets: dict[str, Vectors]) -> tuple[Vectors, dict[str, NDArray[np.int64]], Copies]:
    """Number the rows through the sets, and collapse exact copies within each."""
    rows, start = {}, 0
    for name, x in sets.items():
        rows[name] = np.arange(start, start + len(x))
        start += len(x)
    vectors = np.concatenate(list(sets.values()))
    return vectors, rows, collapse(equal_pairs(vector_keys(vectors[own], name), own) for name, own in rows.items())


def analysed(sets: dict[str, Vectors], config: NeighborsConfig = EXACT) -> Analysis:
    return analyse(*numbered(sets), config)


class Seen(NamedTuple):
    """A generator's view beside the real rows 0..real_rows-1, and its rows' neighbours."""

    view: View
    nearest: Nearest
    real_rows: int


def only_view(real: Vectors, synthetic: Vectors, config: NeighborsConfig = EXACT) -> Seen:
    analysis = analysed({"real": real, "fake": synthetic}, config)
    (view,) = analysis.views
    assert view.generator == "fake"
    assert list(analysis.nearest) == ["fake"]
    return Seen(view, analysis.nearest["fake"], len(real))


def groups_of(view: View) -> set[frozenset[int]]:
    by_id: dict[int, set[int]] = {}
    for row, group in zip(view.groups.row.tolist(), view.groups.near_duplicate_id.tolist(), strict=True):
        by_id.setdefault(group, set()).add(row)
    assert all(min(members) == group for group, members in by_id.items())
    return {frozenset(members) for members in by_id.values()}


def pairs_of(edges: Edges) -> set[tuple[int, int]]:
    pairs = list(zip(edges.left.tolist(), edges.right.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    return set(pairs)


def freshness(seen: Seen) -> float:
    """1 - share of synthetic rows in a group with a real member."""
    synthetic = seen.view.groups.row >= seen.real_rows
    copied = int((synthetic & seen.view.groups.has_real).sum())
    return 1 - copied / (len(seen.nearest.row) - seen.real_rows)


def precision_and_coverage(seen: Seen) -> tuple[float, float]:
    n = seen.real_rows
    return float(seen.nearest.in_real_manifold[n:].mean()), float(seen.nearest.covered[:n].mean())


def normal(seed: int, n: int, d: int = 8) -> Vectors:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def jittered(x: Vectors, size: float, seed: int = 99) -> Vectors:
    return (x + size * np.random.default_rng(seed).normal(size=x.shape)).astype(np.float32)


def sets_of(kind: str, seed: int, n: int, m: int) -> tuple[Vectors, Vectors]:
    """A real and a synthetic set with near-duplicates within and across them."""
    rng = np.random.default_rng(seed)
    d = 2 if kind == "plane" else 6
    real = rng.normal(size=(n, d))
    if kind == "clustered":
        real = rng.normal(size=(3, d))[rng.integers(0, 3, n)] + 0.1 * real
    fresh = rng.normal(size=(m, d))
    copies = real[rng.integers(0, n, m)] + rng.choice([0, 0.01, 0.05], (m, 1)) * rng.normal(size=(m, d))
    synthetic = np.where(rng.random((m, 1)) < 0.5, fresh, copies)
    if kind == "duplicated":
        real = real[rng.integers(0, max(n // 2, 1), n)]
        synthetic = synthetic[rng.integers(0, max(m // 2, 1), m)]
        synthetic[: m // 4] = real[rng.integers(0, n, m // 4)]
    return real.astype(np.float32), synthetic.astype(np.float32)


def between_distinct_and_to_copies(real: Vectors, synthetic: Vectors, radius: float) -> set[tuple[int, int]]:
    """All pairs within the radius of rows without an earlier copy in their set, and one pair for each copy."""
    n, both = len(real), np.vstack([real, synthetic])
    first: dict[tuple[Any, ...], int] = {}
    of = [first.setdefault((i < n, *row), i) for i, row in enumerate(both.tolist())]
    pairs = {(i, j) for i, j in brute.edges(both, radius) if of[i] == i and of[j] == j}
    return pairs | {(of[i], i) for i in range(len(both)) if of[i] != i}


@given(
    kind=st.sampled_from(["uniform", "clustered", "duplicated", "plane"]),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
)
@settings(max_examples=150, deadline=None)
def test_groups_edges_and_manifold_are_those_of_brute_force(kind: str, seed: int, n: int, m: int) -> None:
    real, synthetic = sets_of(kind, seed, n, m)
    assume(len(brute.distinct(real)) >= 2)
    both = np.vstack([real, synthetic])
    radius = 0.13 * brute.real_median(real)
    assume((np.abs(brute.among(both) - radius) > 1e-13).all())
    analysis = analysed({"real": real, "fake": synthetic})
    (view,) = analysis.views
    seen = Seen(view, analysis.nearest["fake"], n)
    assert view.rows == n + m
    assert view.radius == pytest.approx(radius, rel=1e-9)
    assert view.median_distance == pytest.approx(brute.real_median(real), rel=1e-9)
    assert groups_of(view) == brute.groups(both, radius)
    if len(brute.distinct(real)) > 5:
        assert precision_and_coverage(seen) == pytest.approx(brute.precision_and_coverage(real, synthetic))
        # Real rows inside the radius of some other real row, which may be a copy of theirs.
        unique = brute.distinct(real)
        kth = brute.k_smallest(brute.among(unique), 5)[:, -1]
        radii = kth[[unique.tolist().index(row) for row in real.tolist()]]
        expected = (brute.among(real) <= radii).any(axis=1)
        np.testing.assert_array_equal(seen.nearest.in_real_manifold[:n], expected)

    distances = brute.among(both)
    found = pairs_of(analysis.edges)
    assert found == between_distinct_and_to_copies(real, synthetic, radius)
    true = brute.edges(both, radius)
    assert sorted(brute.components(len(both), found)) == sorted(brute.components(len(both), true))
    edges = analysis.edges
    assert (edges.left < edges.right).all()
    np.testing.assert_allclose(edges.distance, distances[edges.left, edges.right], atol=1e-15)
    np.testing.assert_array_equal(edges.left_code, edges.left >= n)
    np.testing.assert_array_equal(edges.right_code, edges.right >= n)


@given(kind=st.sampled_from(["uniform", "duplicated"]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_nearest_distances_count_exact_copies_as_zero(kind: str, seed: int) -> None:
    real, synthetic = sets_of(kind, seed, 12, 9)
    both = np.vstack([real, synthetic])
    distances = brute.among(both)
    nearest = only_view(real, synthetic).nearest
    assert nearest.exact.all()
    order = np.argsort(nearest.row)
    np.testing.assert_allclose(nearest.nn_distance[order], distances.min(axis=1), atol=1e-15)
    np.testing.assert_allclose(nearest.nearest_real_distance[order], distances[:, :12].min(axis=1), atol=1e-15)
    for name in ("nn", "nearest_real"):
        row, distance = getattr(nearest, f"{name}_row")[order], getattr(nearest, f"{name}_distance")[order]
        np.testing.assert_allclose(distances[np.arange(21), row], distance, atol=1e-15)
    assert (nearest.nearest_real_row < 12).all()


@pytest.mark.parametrize("m", [11, 40])
def test_many_copies_of_one_image_hide_no_near_duplicate(m: int) -> None:
    # With m > k = 10 each k-nearest list is full of exact copies and holds no synthetic row: Datalab's hole.
    real = np.vstack([normal(0, 50), np.repeat(normal(1, 1), m, axis=0)])
    near_copy = jittered(real[-1:], 1e-3)
    synthetic = np.vstack([normal(2, 30), np.repeat(near_copy, m, axis=0)])
    seen = only_view(real, synthetic)
    (big,) = [group for group in groups_of(seen.view) if 50 in group]
    assert big == set(range(50, 50 + m)) | set(range(50 + m + 30, 50 + m + 30 + m))
    member = seen.view.groups.near_duplicate_id == 50
    assert (seen.view.groups.size[member] == 2 * m).all()
    assert seen.view.groups.has_real[member].all()
    assert seen.view.groups.has_synthetic[member].all()
    assert freshness(seen) == 1 - m / (30 + m)


def test_near_duplicates_stay_flagged_when_most_rows_have_exact_copies() -> None:
    base = normal(3, 40)
    real = np.vstack([base, base[:30], base[:30]])
    synthetic = np.vstack([jittered(base[30:], 1e-3), np.repeat(normal(4, 5), 6, axis=0)])
    seen = only_view(real, synthetic)
    assert seen.view.radius == pytest.approx(0.13 * brute.real_median(base), rel=1e-9)
    wanted = {frozenset({i, 40 + i, 70 + i}) for i in range(30)}
    wanted |= {frozenset({30 + i, 100 + i}) for i in range(10)}
    wanted |= {frozenset(range(110 + 6 * i, 116 + 6 * i)) for i in range(5)}
    assert groups_of(seen.view) == wanted


def test_identical_rows_only_are_one_group() -> None:
    seen = only_view(np.ones((6, 4), np.float32), np.ones((7, 4), np.float32))
    assert groups_of(seen.view) == {frozenset(range(13))}
    assert freshness(seen) == 0
    assert seen.view.median_distance is None
    assert (seen.nearest.nn_distance == 0).all()


def test_perturbed_copies_of_every_real_row_are_not_fresh() -> None:
    real = normal(5, 300, 16)
    assert freshness(only_view(real, jittered(real, 0.01))) == 0


def test_datalab_mode_calls_a_copier_fresh_as_datalab_does() -> None:
    # Both sides of each pair are nearly 0 apart, so the median over all rows collapses and nothing is flagged.
    real = normal(5, 300, 16)
    assert freshness(only_view(real, jittered(real, 0.01), DATALAB)) == 1
    assert freshness(only_view(real, jittered(real, 0.01), NeighborsConfig(calibrate_on="all"))) == 1


@pytest.mark.parametrize("copies", [1, 8])
def test_exact_copies_of_repeated_real_points_are_precise_and_cover_everything(copies: int) -> None:
    # Radii of the repeated rows would all be 0, and prdc answers 0.
    base = normal(6, 40)
    assert precision_and_coverage(only_view(np.repeat(base, 8, axis=0), np.repeat(base, copies, axis=0))) == (1, 1)


def test_the_manifold_reference_counts_other_real_rows_only() -> None:
    # Two far groups of axes; the lone axis 7 is inside no one's radius but its own.
    rng = np.random.default_rng(7)
    crowd = (np.eye(8)[0] + 0.01 * rng.normal(size=(20, 8))).astype(np.float32)
    lone = np.eye(8, dtype=np.float32)[7:]
    nearest = only_view(np.vstack([crowd, lone]), crowd).nearest
    assert nearest.in_real_manifold[:20].any()
    assert not nearest.in_real_manifold[20]
    twice = only_view(np.vstack([crowd, lone, lone]), crowd).nearest
    assert twice.in_real_manifold[20:22].all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (2, 1), (3, 3), (5, 5), (6, 4), (10, 10)])
def test_few_rows_are_analysed_as_brute_force_does(n: int, m: int) -> None:
    real, synthetic = normal(n, n), normal(100 + m, m)
    seen = only_view(real, synthetic)
    if n > 1:
        both = np.vstack([real, synthetic])
        assert groups_of(seen.view) == brute.groups(both, 0.13 * brute.real_median(real))
        assert np.isfinite(seen.nearest.knn_radius[:n]).all()
    np.testing.assert_allclose(
        seen.nearest.nearest_real_distance[n:], brute.cosine_distances(synthetic, real).min(axis=1), atol=1e-15
    )


def test_one_real_row_still_has_its_exact_copies_found() -> None:
    real = normal(8, 1)
    seen = only_view(real, np.vstack([real, jittered(real, 1e-3), normal(9, 3)]))
    assert seen.view.median_distance is None
    assert groups_of(seen.view) == {frozenset({0, 1})}


def test_a_pair_at_exactly_the_absolute_radius_is_not_grouped() -> None:
    axes = np.eye(4, dtype=np.float32)
    assert groups_of(only_view(axes[:2], axes[2:], NeighborsConfig(radius=1.0)).view) == set()
    just_above = NeighborsConfig(radius=float(np.nextafter(1.0, 2)))
    assert groups_of(only_view(axes[:2], axes[2:], just_above).view) == {frozenset(range(4))}


def test_a_row_at_exactly_the_knn_radius_counts_for_precision_and_coverage() -> None:
    axes = np.eye(8, dtype=np.float32)
    assert precision_and_coverage(only_view(axes[:7], axes[7:])) == (1, 1)


def assert_first_view_is_the_same(found: Analysis, expected: Analysis) -> None:
    """Every number of the first generator is equal to the last bit."""
    one, other = found.views[0], expected.views[0]
    assert one.summary() == other.summary()
    assert one.calibration == other.calibration
    for pair in ((one.groups, other.groups), (found.nearest[one.generator], expected.nearest[other.generator])):
        for name, values in vars(pair[1]).items():
            np.testing.assert_array_equal(getattr(pair[0], name), values, err_msg=name)


@pytest.mark.parametrize("config", [EXACT, DATALAB, NeighborsConfig(calibrate_on="all")])
def test_adding_a_generator_changes_nothing_of_another(config: NeighborsConfig) -> None:
    real, first = sets_of("duplicated", 10, 60, 50)
    # The second would widen or collapse the radius if anything were pooled.
    for second in (normal(11, 80, 6), jittered(real, 1e-3), np.repeat(first, 3, axis=0)):
        alone = analysed({"real": real, "a": first}, config)
        beside = analysed({"real": real, "a": first, "b": second.astype(np.float32)}, config)
        assert_first_view_is_the_same(beside, alone)


def test_real_pairs_beyond_a_generators_own_radius_are_not_in_its_groups() -> None:
    base = normal(20, 30)
    real = np.vstack([base, jittered(base[:5], 0.05)])
    # Beside the copier the radius over all rows collapses; beside the sampler the five real pairs are within it.
    sets = {"real": real, "copier": jittered(real, 1e-3), "sampler": normal(21, 60)}
    copier, sampler = analysed(sets, NeighborsConfig(calibrate_on="all")).views
    pairs = {frozenset({i, 30 + i}) for i in range(5)}
    assert pairs <= groups_of(sampler)
    assert not any(group <= set(range(35)) for group in groups_of(copier))


def test_no_edge_joins_two_generators() -> None:
    real, fake = normal(12, 20), normal(13, 20)
    analysis = analysed({"real": real, "a": fake, "b": fake})
    assert len(analysis.edges) == 0
    assert [groups_of(view) for view in analysis.views] == [set(), set()]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_order_of_rows_changes_no_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, synthetic = sets_of("duplicated", seed, 30, 30)
    move_real, move_synthetic = rng.permutation(30), rng.permutation(30)
    back = np.concatenate([move_real, 30 + move_synthetic])
    before = only_view(real, synthetic)
    after = only_view(real[move_real], synthetic[move_synthetic])
    assert after.view.radius == before.view.radius
    assert {frozenset(back[list(group)].tolist()) for group in groups_of(after.view)} == groups_of(before.view)
    assert precision_and_coverage(after) == precision_and_coverage(before)


# What the flat search's own tests said of pairs within a radius, where those now come from.


def radius_in_a_gap(distances: NDArray[np.float64], share: float) -> float:
    """A radius that no distance is close to, so that rounding in the oracle cannot decide a test."""
    values = np.unique(distances[np.isfinite(distances)])
    gaps = np.flatnonzero((np.diff(values) > 1e-13) & (np.diff(values) > 1e-9 * values[1:]))
    assume(len(gaps))
    at = gaps[int(share * (len(gaps) - 1))]
    return float(values[at] + values[at + 1]) / 2


@given(
    kind=st.sampled_from(brute.KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 60),
    cut=st.floats(0, 1),
    share=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_pairs_within_a_radius_are_exactly_those_of_brute_force(
    kind: str, seed: int, n: int, cut: float, share: float
) -> None:
    x = brute.vectors(kind, seed, n)
    expected = brute.among(x)
    radius = radius_in_a_gap(expected, share)
    reals = 1 + int(cut * (n - 2))
    real, synthetic = x[:reals], x[reals:]
    edges = analysed({"real": real, "fake": synthetic}, NeighborsConfig(radius=radius)).edges
    assert pairs_of(edges) == between_distinct_and_to_copies(real, synthetic, radius)
    np.testing.assert_allclose(edges.distance, expected[edges.left, edges.right], atol=1e-15)


def test_pairs_across_more_rows_than_one_block_are_all_found() -> None:
    x = normal(2, 2100, 4)
    edges = analysed({"real": x[:1200], "fake": x[1200:]}, NeighborsConfig(radius=1e-3)).edges
    assert pairs_of(edges) == {(i, j) for i, j in zip(*np.nonzero(brute.among(x) < 1e-3), strict=True) if i < j}


def test_a_pair_at_exactly_the_radius_is_no_edge() -> None:
    # Axes are at distance 1 and opposite axes at 2, without any rounding.
    axes = np.vstack([np.eye(4), -np.eye(4)]).astype(np.float32)
    rows, codes = np.arange(8), np.zeros(8, np.int32)

    def edges(radius: float) -> Edges:
        plan = plan_join(Sample(axes, rows, codes), {0: 8}, radius)
        return join_all(plan, axes, rows, codes).edges

    assert len(edges(1.0)) == 0
    above_one = edges(float(np.nextafter(1.0, 2)))
    assert len(above_one) == 8 * 6 // 2
    assert (above_one.distance == 1.0).all()
    assert len(edges(2.0)) == 8 * 6 // 2
    assert len(edges(2.5)) == 8 * 7 // 2
    whole = analysed({"real": axes[:3], "fake": axes[3:]}, NeighborsConfig(radius=2.0)).edges
    assert len(whole) == 8 * 6 // 2


def test_pairs_across_sets_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    edges = analysed({"real": real, "fake": fake}, NeighborsConfig(radius=0.4)).edges
    across = {(i, j) for i, j in pairs_of(edges) if i < 30 <= j}
    wanted = brute.cosine_distances(real, fake) < 0.4
    assert across == {(i, 30 + j) for i, j in zip(*np.nonzero(wanted), strict=True)}


# A view must not lean on rows that are not in it.


def around(direction: int, lengths: list[float]) -> Vectors:
    """The first of eight axes, moved by so much along another."""
    x = np.zeros((len(lengths), 8), np.float32)
    x[:, 0], x[:, direction] = 1, lengths
    return x


def test_adding_a_generator_with_too_many_pairs_to_list_unlinks_no_rows_of_another_view() -> None:
    # Real rows 1-4 are near-duplicates of row 0 and of nothing else, but for the second generator's rows.
    reach = float(np.sqrt(2 * 0.01))
    leaves = [around(i, [0.9 * reach]) for i in range(1, 5)]
    real = np.vstack([around(1, [0.0]), *leaves])
    first = -np.eye(8, dtype=np.float32)[4:]
    scale = np.random.default_rng(0).uniform(0.05, 0.15, 200) * reach
    crowd = np.vstack([around(1 + i % 4, [length]) for i, length in enumerate(scale)])
    config = NeighborsConfig(radius=0.01)
    alone = analysed({"real": real, "a": first}, config)
    assert groups_of(alone.views[0]) == {frozenset(range(5))}
    beside = analysed({"real": real, "a": first, "b": crowd}, config)
    assert groups_of(beside.views[0]) == groups_of(alone.views[0])
    assert groups_of(beside.views[1]) == {frozenset({*range(5), *range(9, 209)})}


@pytest.mark.parametrize("rows", [300, 900])
def test_a_hub_is_one_group_whatever_it_is_beside(rows: int) -> None:
    # One picture in hundreds of slightly changed copies, real and synthetic, and other near-duplicates beside it.
    base, hub = normal(40, 60), normal(41, 1)
    real = np.vstack([base, jittered(np.repeat(hub, rows, axis=0), 1e-3, 42)])
    fake = np.vstack(
        [jittered(base[:10], 1e-3, 43), jittered(np.repeat(hub, rows, axis=0), 1e-3, 44), normal(45, 20)]
    )
    seen = only_view(real, fake, NeighborsConfig(radius=1e-3))
    n = len(real)
    wanted = {frozenset({i, n + i}) for i in range(10)}
    wanted.add(frozenset(range(60, n)) | frozenset(range(n + 10, n + 10 + rows)))
    assert groups_of(seen.view) == wanted
    assert not seen.view.groups.is_chain.any()


# Pure pieces: rows of a shard, and Datalab's edges.


def relation(x: Vectors, query: NDArray[np.int64], database: NDArray[np.int64], k: int) -> Relation:
    """What brute force finds; ties go to the smaller row."""
    distances = brute.among(x)[np.ix_(query, database)]
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    distance = np.take_along_axis(distances, order, axis=1)
    pad = ((0, 0), (0, k - order.shape[1]))
    neighbor = np.where(np.isinf(distance), -1, database[order])
    return Relation(
        query, np.pad(distance, pad, constant_values=np.inf), np.pad(neighbor, pad, constant_values=-1)
    )


def found_by_brute_force(x: Vectors, real: NDArray[np.int64], own: NDArray[np.int64], k: int) -> Found:
    pairs = ((real, real), (real, own), (own, real), (own, own))
    searches = Searches(*(relation(x, query, database, k) for query, database in pairs))
    radii = searches.real_real.radius(5)
    inside = [(brute.among(x)[np.ix_(rows, real)] <= radii).any(axis=1) for rows in (real, own)]
    return Found(searches, Inside(real, inside[0]), Inside(own, inside[1]))


@given(
    kind=st.sampled_from(["uniform", "duplicated"]),
    seed=st.integers(0, 2**32 - 1),
    some=st.lists(st.booleans(), min_size=30, max_size=30),
)
@settings(max_examples=40, deadline=None)
def test_nearest_rows_of_a_shard_are_those_of_the_whole(kind: str, seed: int, some: list[bool]) -> None:
    sets = dict(zip(("real", "fake"), sets_of(kind, seed, 18, 12), strict=True))
    x, rows, copies = numbered(sets)
    distinct = [own[copies.are_distinct(own)] for own in rows.values()]
    found = found_by_brute_force(x, *distinct, 5)
    whole = nearest_rows(found, copies, rows["real"], rows["fake"])
    assert whole.row.tolist() == list(range(30))
    chosen = np.flatnonzero(some)
    part = nearest_rows(found, copies, chosen[chosen < 18], chosen[chosen >= 18])
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(part, name), values[chosen], err_msg=name)
    searched = analyse(x, rows, copies, EXACT).nearest["fake"]
    for name in ("nn_distance", "nearest_real_distance", "knn_radius"):
        np.testing.assert_allclose(getattr(searched, name), getattr(whole, name), atol=1e-15)


def test_rows_are_exact_where_both_their_searches_are() -> None:
    x = normal(50, 30)
    real, own = np.arange(20), np.arange(20, 30)
    found = found_by_brute_force(x, real, own, 5)
    parts = dict(vars(found.searches))
    none = Copies(np.empty(0, np.int64), np.empty(0, np.int64))
    for name, real_is, own_is in (
        ("real_real", False, True),
        ("real_own", False, True),
        ("own_real", True, False),
        ("own_own", True, False),
    ):
        whole = parts[name]
        probed = Relation(whole.row, whole.distance, whole.neighbor, Recall(0.99, 0.96, 100, 8))
        searches = Searches(**{**parts, name: probed})
        exact = nearest_rows(Found(searches, found.real_inside, found.own_inside), none, real, own).exact
        assert (exact[:20] == real_is).all()
        assert (exact[20:] == own_is).all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 4), (6, 5), (40, 30)])
@pytest.mark.parametrize("codes", [(0, 1), (0, 3)])
def test_listed_edges_are_those_of_the_ten_nearest_of_either_end(n: int, m: int, codes: tuple[int, int]) -> None:
    real, fake = sets_of("clustered", n, n, m)
    x = np.vstack([real, fake])
    distances, rows = brute.nearest_lists(x, min(10, n + m - 1))
    radius = float(np.quantile(brute.among(x)[np.isfinite(brute.among(x))], 0.3)) * (1 + 1e-9)
    wanted = {
        (min(i, int(j)), max(i, int(j)))
        for i in range(n + m)
        for j, d in zip(rows[i], distances[i], strict=True)
        if d < radius
    }
    found = found_by_brute_force(x, np.arange(n), np.arange(n, n + m), DATALAB_K)
    edges = listed_edges(found.searches, radius, codes)
    assert pairs_of(edges) == wanted
    np.testing.assert_array_equal(edges.left_code, np.where(edges.left < n, *codes))
    np.testing.assert_array_equal(edges.right_code, np.where(edges.right < n, *codes))
    if n == 40:
        assert len(wanted) < len(brute.edges(x, radius))


def test_a_listed_pair_at_exactly_the_radius_is_no_edge() -> None:
    axes = np.eye(4, dtype=np.float32)
    found = found_by_brute_force(axes, np.arange(2), np.arange(2, 4), DATALAB_K)
    assert len(listed_edges(found.searches, 1.0, (0, 1))) == 0
    assert len(listed_edges(found.searches, float(np.nextafter(1.0, 2)), (0, 1))) == 6


# Beside cleanlab's Datalab.


class Lab(NamedTuple):
    """What cleanlab says of rows."""

    flags: NDArray[np.bool_]
    sets: list[set[int]]
    median: float

    @property
    def edges(self) -> set[tuple[int, int]]:
        return {(min(i, j), max(i, j)) for i, found in enumerate(self.sets) for j in found}


def datalab(x: Vectors) -> Lab:
    lab = Datalab({"row": list(range(len(x)))}, verbosity=0)
    lab.find_issues(features=x.astype(np.float64), issue_types={"near_duplicate": {}})
    info = lab.get_info("near_duplicate")
    flags = lab.get_issues("near_duplicate")["is_near_duplicate_issue"].to_numpy()
    sets = [set(map(int, found)) for found in info["near_duplicate_sets"]]
    return Lab(flags, sets, info["median_distance_to_nearest_neighbor"])


def pictures(kind: str, seed: int) -> tuple[Vectors, Vectors]:
    """Real and synthetic rows: d > 3, n > 10, near-duplicates among them, and what sets Datalab off."""
    rng = np.random.default_rng(seed)
    if kind == "few":
        real, fake = rng.normal(size=(6, 5)), rng.normal(size=(5, 5))
        fake[:2] = real[:2] + 0.02 * rng.normal(size=(2, 5))
        return real.astype(np.float32), fake.astype(np.float32)
    d = {"low": 4, "wide": 256, "pixels": 48}.get(kind, 24)
    real, fake = rng.normal(size=(150, d)), rng.normal(size=(130, d))
    if kind == "clustered":
        centres = rng.normal(size=(5, d))
        real, fake = (centres[rng.integers(0, 5, len(x))] + 0.1 * x for x in (real, fake))
    chosen = rng.integers(0, 150, 40)
    fake[:40] = real[chosen] + rng.choice([0.01, 0.05, 0.2], (40, 1)) * rng.normal(size=(40, d))
    if kind == "pixels":
        real, fake = 300 + real, 300 + fake
    if kind == "copies":
        fake[60:72], fake[80:92], real[20:40] = real[:12], fake[100:112], real[0]
    if kind == "mostly copies":
        # The median over all rows is then 0, and its floor of 1e-6 decides.
        real[20:], fake[30:] = real[rng.integers(0, 10, 130)], fake[rng.integers(0, 10, 100)]
        fake[:5] = real[:5] + 1e-4 * rng.normal(size=(5, d))
        fake[5:10] = real[5:10] + 1e-2 * rng.normal(size=(5, d))
    if kind == "crowds":
        # More than ten near-duplicates of one row.
        fake[40:80] = real[0] + 0.01 * rng.normal(size=(40, d))
    return real.astype(np.float32), fake.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "kind", ["low", "normal", "wide", "clustered", "pixels", "copies", "mostly copies", "crowds", "few"]
)
def test_datalab_mode_equals_cleanlab(kind: str, seed: int) -> None:
    real, synthetic = pictures(kind, seed)
    expected = datalab(np.vstack([real, synthetic]))
    assert expected.flags.any()
    analysis = analysed({"real": real, "fake": synthetic}, DATALAB)
    (view,) = analysis.views
    assert view.median_distance == pytest.approx(expected.median, rel=1e-9)
    assert view.radius == pytest.approx(0.13 * expected.median, rel=1e-9)
    flags = np.isin(np.arange(len(expected.flags)), view.groups.row)
    np.testing.assert_array_equal(flags, expected.flags)
    if kind in ("copies", "mostly copies"):
        # Which ten of more than ten exact copies are listed is arbitrary: the same components, by other edges.
        n, found = len(flags), pairs_of(analysis.edges)
        assert brute.components(n, found) == brute.components(n, expected.edges)
    else:
        assert pairs_of(analysis.edges) == expected.edges


@pytest.mark.parametrize("kind", ["normal", "copies", "mostly copies", "few"])
def test_score_features_in_datalab_mode_has_cleanlabs_flags(kind: str) -> None:
    real, synthetic = pictures(kind, 9)
    both = np.vstack([real, synthetic])
    expected = datalab(both)
    scored = score_features(
        both,
        ["real"] * len(real) + ["synthetic"] * len(synthetic),
        config=Config(neighbors=NeighborsConfig(mode="datalab")),
    )
    assert scored.scores()["is_near_duplicate"].tolist() == expected.flags.tolist()
    block = scored.metrics["synthetic"]["neighbors"]
    assert block["median_distance"] == pytest.approx(expected.median, rel=1e-9)
    assert block["radius"] == pytest.approx(0.13 * expected.median, rel=1e-9)


@pytest.mark.parametrize("threshold", [0.05, 0.5])
def test_datalab_mode_takes_the_threshold_that_cleanlab_is_given(threshold: float) -> None:
    real, synthetic = pictures("normal", 5)
    lab = Datalab({"row": list(range(280))}, verbosity=0)
    both = np.vstack([real, synthetic]).astype(np.float64)
    lab.find_issues(features=both, issue_types={"near_duplicate": {"threshold": threshold}})
    flags = lab.get_issues("near_duplicate")["is_near_duplicate_issue"].to_numpy()
    view = only_view(real, synthetic, NeighborsConfig(mode="datalab", threshold=threshold)).view
    assert sorted(view.groups.row.tolist()) == np.flatnonzero(flags).tolist()


def test_datalab_mode_ends_at_the_tenth_neighbour_and_exact_mode_does_not() -> None:
    # Two crowds of twelve, near-duplicates of one another, but each row's ten nearest are of its own crowd.
    a, b = around(1, [1e-4 * i for i in range(12)]), around(2, [0.05 + 1e-4 * i for i in range(12)])
    real, fake = np.vstack([a, normal(60, 20)]), np.vstack([b, normal(61, 20)])
    one, other = frozenset(range(12)), frozenset(range(32, 44))
    assert brute.cosine_distances(a, b).max() < 0.002
    expected = datalab(np.vstack([real, fake]))
    assert expected.median * 0.13 > 0.002
    assert not any(one & found and other & found for found in expected.sets)
    assert groups_of(only_view(real, fake, DATALAB).view) == {one, other}
    assert freshness(only_view(real, fake, DATALAB)) == 1
    assert groups_of(only_view(real, fake).view) == {one | other}
    assert freshness(only_view(real, fake)) == 1 - 12 / 32


@pytest.mark.parametrize("m", [11, 40])
def test_datalab_does_not_see_the_copied_image_that_we_do(m: int) -> None:
    # The same rows as in the test of many copies above: what Datalab makes of them.
    real = np.vstack([normal(0, 50), np.repeat(normal(1, 1), m, axis=0)])
    synthetic = np.vstack([normal(2, 30), np.repeat(jittered(real[-1:], 1e-3), m, axis=0)])
    n = len(real)
    lab = datalab(np.vstack([real, synthetic]))
    assert all(lab.flags[[50, n + 30]])
    assert not any(i < n <= j for i, j in lab.edges)
    assert freshness(only_view(real, synthetic, DATALAB)) == 1
    assert freshness(only_view(real, synthetic)) == 1 - m / (30 + m)


def test_datalab_loses_near_duplicates_when_most_rows_have_exact_copies_and_we_do_not() -> None:
    base = normal(3, 40)
    real = np.vstack([base, base[:30], base[:30]])
    synthetic = np.vstack([jittered(base[30:], 5e-3), np.repeat(normal(4, 5), 6, axis=0)])
    lab = datalab(np.vstack([real, synthetic]))
    near = [*range(30, 40), *range(100, 110)]
    assert lab.median == 1e-6
    assert not lab.flags[near].any()
    assert np.isin(near, only_view(real, synthetic).view.groups.row).all()
    assert not np.isin(near, only_view(real, synthetic, DATALAB).view.groups.row).any()


def test_datalab_flags_none_of_a_generator_that_copies_every_real_image_and_we_flag_all() -> None:
    real = normal(5, 300, 16)
    synthetic = jittered(real, 0.01)
    assert not datalab(np.vstack([real, synthetic])).flags.any()
    seen = only_view(real, synthetic)
    assert freshness(seen) == 0
    assert {frozenset({i, 300 + i}) for i in range(300)} == groups_of(seen.view)


def test_datalab_fails_on_ten_rows_or_fewer_and_we_answer_in_both_modes() -> None:
    real = normal(70, 5)
    synthetic = np.vstack([real[:1], jittered(real[1:2], 1e-3), normal(71, 3)])
    with pytest.raises(ValueError, match=r"near_duplicate not found|No issues available"):
        datalab(np.vstack([real, synthetic]))
    for config in (EXACT, DATALAB):
        seen = only_view(real, synthetic, config)
        assert frozenset({0, 5}) in groups_of(seen.view)
        assert np.isfinite(seen.nearest.nn_distance).all()
    assert groups_of(only_view(real, synthetic).view) == {frozenset({0, 5}), frozenset({1, 6})}


def test_identical_rows_only_are_one_group_for_datalab_as_for_us() -> None:
    x = np.ones((30, 8), np.float32)
    lab = datalab(x)
    assert lab.flags.all()
    assert lab.median == 1e-6
    for config in (EXACT, DATALAB):
        assert groups_of(only_view(x[:14], x[14:], config).view) == {frozenset(range(30))}
    assert only_view(x[:14], x[14:], DATALAB).view.radius == pytest.approx(0.13e-6, rel=1e-9)


def test_datalab_mode_leaves_precision_and_coverage_as_they_are() -> None:
    # It is about near-duplicate flags; radii are those of distinct real rows whatever the mode.
    real = np.repeat(normal(72, 40), 8, axis=0)
    synthetic = jittered(real[::8], 0.05)
    exact = precision_and_coverage(only_view(real, synthetic))
    assert exact == (1, 1)
    assert precision_and_coverage(only_view(real, synthetic, DATALAB)) == exact


# Chains, vectors of any length, zero vectors and blank images.


@pytest.mark.parametrize("scale", [1e-39, 1e-37, 1e37])
def test_the_length_of_vectors_changes_no_group(scale: float) -> None:
    base = normal(75, 40)
    both = (np.vstack([base, jittered(base[:20], 1e-3)]) * np.float32(scale)).astype(np.float32)
    expected = brute.groups(both, 0.13 * brute.real_median(both[:40]))
    assert len(expected) == 20
    assert groups_of(only_view(both[:40], both[40:]).view) == expected


def test_a_chain_is_one_group_flagged_with_its_diameter() -> None:
    # Thirty steps of 0.1 along a circle, and far rows in another plane that set no radius.
    angle = 0.1 * np.arange(30)
    chain = np.zeros((30, 4), np.float32)
    chain[:, 0], chain[:, 1] = np.cos(angle), np.sin(angle)
    far = np.eye(4, dtype=np.float32)[2:]
    config = NeighborsConfig(radius=0.006)
    seen = only_view(np.vstack([chain[::2], far]), np.vstack([chain[1::2], -far, -far * 2]), config)
    groups, summary = seen.view.groups, seen.view.summary()
    (ring,) = [group for group in groups_of(seen.view) if len(group) > 2]
    assert len(ring) == 30
    in_ring = np.isin(groups.row, list(ring))
    assert groups.is_chain.tolist() == in_ring.tolist()
    np.testing.assert_allclose(groups.diameter[in_ring], 1 - np.cos(2.9), rtol=1e-6)
    assert (groups.diameter[~in_ring] == 0).all()
    assert summary["chains"] == 1
    assert summary["largest_diameter"] == pytest.approx(1 - np.cos(2.9), rel=1e-6)


def test_the_order_of_rows_changes_no_diameter_in_the_summary() -> None:
    # Four rows in a cone: from one start the two farthest are found, from another they are not.
    cone = np.array([[10, 1, 0], [10, 0, -2], [10, 2, -2], [10, -1, 0]], np.float32)
    fake = -np.eye(3, dtype=np.float32)
    one, other = (
        only_view(cone[order], fake, NeighborsConfig(radius=0.0245)).view.summary()
        for order in ([3, 2, 1, 0], [0, 1, 2, 3])
    )
    assert one["rows_in_groups"] == other["rows_in_groups"] == 4
    assert one["largest_diameter"] == pytest.approx(other["largest_diameter"], abs=1e-5)
    assert one["chains"] == other["chains"]


@pytest.mark.parametrize("row", [0, 3, 7])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_zero_vector_is_a_failure_of_input_that_names_the_row(row: int, zero: float) -> None:
    x = normal(73, 8)
    x[row] = zero
    with pytest.raises(InputError, match=rf"1 rows are all zeros .* row {row}$"):
        score_features(x, ["real"] * 4 + ["synthetic"] * 4)


def test_blank_images_group_through_the_descriptor_encoder() -> None:
    encoder = DescriptorEncoder()
    size, rng = encoder.image_size, np.random.default_rng(74)
    blank = np.array([0, 128, 255], np.uint8).repeat([3, 2, 2])
    images = np.concatenate(
        [
            np.broadcast_to(blank[:, None, None, None], (7, size, size, 3)),
            rng.integers(0, 256, (20, 4, 4, 3), np.uint8).repeat(size // 4, axis=1).repeat(size // 4, axis=2),
        ]
    )
    # One level more in one of the black images: no exact copy, but nothing to see.
    images[2] = 1
    x = encoder.encode(images)[:, slice(*encoder.search)]
    assert (x != 0).any(axis=1).all()
    order = [0, 3, *range(7, 20), 1, 2, 4, 5, 6, *range(20, 27)]
    real, fake = x[order[:15]], x[order[15:]]
    seen = only_view(real, fake)
    # Black 0 with 1 and almost black 2; grey 3 with 4; the white pair.
    assert groups_of(seen.view) == {frozenset({0, 15, 16}), frozenset({1, 17}), frozenset({18, 19})}
    kinds = ["real"] * 15 + ["synthetic"] * 12
    scored = score_features(x[order], kinds)
    assert scored.metrics["synthetic"]["metrics"]["freshness"]["value"] == pytest.approx(1 - 3 / 12)


# The approximate regime, brought down to a few hundred rows.


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Probe cells from a hundred rows on; call it again to measure with another number of sampled queries."""

    def small(queries: int = 80) -> None:
        monkeypatch.setattr(relations, "EXACT_PAIRS", 1000)
        monkeypatch.setattr(memory_search, "FLAT_ROWS", 100)
        monkeypatch.setattr(memory_search, "SAMPLED_QUERIES", queries)
        # In earnest an index is always trained on a part of its rows.
        monkeypatch.setattr(memory_search, "index_sample_size", lambda n: n // 2)

    small()
    return small


def approximate_sets(seed: int, n: int = 600, m: int = 400, d: int = 8) -> tuple[Vectors, Vectors]:
    """Vectors of so high a dimension for their number that probing misses some, with copies and near-copies."""
    real, fake = normal(seed, n, d), normal(seed + 1000, m, d)
    fake[: m // 4] = jittered(real[: m // 4], 0.02, seed + 2000)
    fake[m // 4 : m // 4 + 10] = real[n - 10 :]
    real[100:105] = real[105:110]
    return real, fake


@pytest.mark.usefixtures("probing")
@pytest.mark.parametrize("seed", range(3))
def test_probed_distances_are_never_below_the_truth_and_their_recall_is_measured(seed: int) -> None:
    real, fake = approximate_sets(seed)
    seen = only_view(real, fake)
    assert not seen.nearest.exact.any()
    searches = seen.view.searches
    assert not searches["exact"]
    assert searches["queries"] == 80
    assert searches["recall"] >= 0.99
    assert searches["recall_all"] >= 0.95
    distances = brute.among(np.vstack([real, fake]))
    for found, true in (
        (seen.nearest.nn_distance, distances.min(axis=1)),
        (seen.nearest.nearest_real_distance, distances[:, :600].min(axis=1)),
    ):
        # Vectors are kept in float32 here: differences of unit vectors are off by up to 1e-7.
        off = np.sqrt(2 * true) * 1.2e-7 + 1e-14
        assert (found >= true - off).all()
        assert (found <= true + off).mean() >= 0.98
    copied = np.r_[100:110, 590:600, 700:710]
    assert (seen.nearest.nn_distance[copied] == 0).all()


@pytest.mark.usefixtures("probing")
def test_each_relation_carries_its_own_measured_recall() -> None:
    # Only the pair of small sets is compared in full.
    sets = {"real": normal(80, 600), "fake": normal(81, 90)}
    x, rows, copies = numbered(sets)
    searcher = memory_search._Searcher(x, {name: own[copies.are_distinct(own)] for name, own in rows.items()})
    found = searcher.view("fake", 5)
    distances = brute.among(x)
    for relation_of, query, database, probed in (
        (found.searches.real_real, slice(600), slice(600), True),
        (found.searches.own_real, slice(600, 690), slice(600), True),
        (found.searches.real_own, slice(600), slice(600, 690), False),
        (found.searches.own_own, slice(600, 690), slice(600, 690), False),
    ):
        true = brute.k_smallest(distances[query, database], 5)
        right = relation_of.distance <= true * (1 + 1e-5) + 1e-14
        if not probed:
            assert relation_of.recall is None
            assert right.all()
            continue
        recall = relation_of.recall
        assert recall is not None
        assert recall.queries == 80
        assert recall.probes >= 8
        # Measured on 80 queries: the share over all rows differs by sampling alone.
        assert right[:, 0].mean() == pytest.approx(recall.nearest, abs=0.03)
        assert right.mean() == pytest.approx(recall.all, abs=0.03)
    assert found.real_inside.recall is not None
    assert found.own_inside.recall is not None


@pytest.mark.usefixtures("probing")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", [EXACT, NeighborsConfig(radius=0.01)])
def test_groups_are_exact_though_neighbours_are_probed(seed: int, config: NeighborsConfig) -> None:
    real, fake = approximate_sets(seed)
    view = only_view(real, fake, config).view
    assert view.summary()["recall"] == 1.0
    both = np.vstack([real, fake])
    assert np.abs(brute.among(both) - view.radius).min() > 1e-12
    assert groups_of(view) == brute.groups(both, view.radius)
    assert len(groups_of(view)) > 50


def test_the_sampled_median_comes_with_an_interval_that_holds_the_true_one(probing: Callable[..., None]) -> None:
    probing(60)
    held = []
    for seed in range(20):
        real, fake = normal(seed, 300, 8), normal(seed + 500, 40, 8)
        seen = only_view(real, fake)
        calibration = seen.view.summary()["calibration"]
        assert not calibration["exact"]
        assert calibration["rows"] == 300
        assert 60 <= calibration["queries"] <= 62
        assert calibration["low"] <= seen.view.median_distance <= calibration["high"]
        assert calibration["low"] < calibration["high"]
        assert seen.view.radius == pytest.approx(0.13 * seen.view.median_distance, rel=1e-12)
        held.append(calibration["low"] <= brute.real_median(real) <= calibration["high"])
    assert sum(held) >= 17


@pytest.mark.usefixtures("probing")
def test_the_sample_is_searched_exactly_whatever_probing_finds() -> None:
    # The sampled distances are true ones of real rows: their median lies between two of those.
    real, fake = approximate_sets(7)
    view = only_view(real, fake).view
    distinct = brute.distinct(real)
    true = np.sort(brute.among(distinct).min(axis=1))
    for bound in (view.calibration.low, view.calibration.high):
        assert np.abs(true - bound).min() < 1e-8


@pytest.mark.usefixtures("probing")
def test_calibrating_on_all_rows_samples_both_sets_in_proportion() -> None:
    real, fake = normal(82, 600, 8), normal(83, 300, 8)
    view = only_view(real, fake, NeighborsConfig(calibrate_on="all")).view
    calibration = view.summary()["calibration"]
    assert not calibration["exact"]
    assert calibration["rows"] == 900
    assert 80 <= calibration["queries"] <= 82
    true = float(np.median(brute.among(np.vstack([real, fake])).min(axis=1)))
    assert calibration["low"] <= true <= calibration["high"]


@pytest.mark.usefixtures("probing")
@pytest.mark.parametrize("config", [EXACT, NeighborsConfig(calibrate_on="all")])
def test_adding_a_generator_changes_nothing_of_another_where_cells_are_probed(config: NeighborsConfig) -> None:
    real, first = approximate_sets(8)
    for second in (normal(84, 700), jittered(real, 1e-3)):
        alone = analysed({"real": real, "a": first}, config)
        beside = analysed({"real": real, "a": first, "b": second}, config)
        assert_first_view_is_the_same(beside, alone)


@pytest.mark.usefixtures("probing")
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_no_number_where_cells_are_probed(seed: int) -> None:
    real, fake = approximate_sets(seed)
    rng = np.random.default_rng(seed)
    move_real, move_fake = rng.permutation(600), rng.permutation(400)
    back = np.concatenate([move_real, 600 + move_fake])
    before, after = only_view(real, fake), only_view(real[move_real], fake[move_fake])
    assert not before.nearest.exact.any()
    numbers = [
        {**seen.view.summary(), **seen.view.summary()["calibration"], **seen.view.searches}
        for seen in (before, after)
    ]
    for name, value in numbers[0].items():
        if not isinstance(value, dict):
            assert numbers[1][name] == pytest.approx(value, abs=1e-5), name
    assert {frozenset(back[list(group)].tolist()) for group in groups_of(after.view)} == groups_of(before.view)
    for name in ("nn_distance", "nearest_real_distance", "knn_radius", "in_real_manifold", "covered", "exact"):
        left, right = getattr(after.nearest, name), getattr(before.nearest, name)[back]
        np.testing.assert_allclose(left.astype(float), right.astype(float), atol=1e-5, err_msg=name)
