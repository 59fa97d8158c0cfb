"""The near-duplicate analysis of generators' views in memory, beside brute force."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale import Config, InputError, score_features
from synthscale.config import NeighborsConfig
from synthscale.embed.encoders.descriptor import DescriptorEncoder
from synthscale.in_memory import neighbors as memory_search
from synthscale.in_memory.neighbors import Analysis
from synthscale.neighbors import analysis
from synthscale.neighbors import knn_search as relations
from synthscale.neighbors.cells import JoinSample, plan_join
from synthscale.neighbors.edges import Edges
from synthscale.neighbors.join import join_all
from synthscale.neighbors.search_backend import SetPair
from synthscale.neighbors.search_space import search_spaces
from synthscale.statistics.column_moments import ColumnMoments
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.layout import VectorLayout
from tests.examples import examples
from tests.neighbors.views import (
    DATALAB,
    EXACT,
    Seen,
    Vectors,
    analysed,
    around,
    between_distinct_and_to_copies,
    components_of,
    freshness,
    groups_of,
    jittered,
    normal,
    numbered,
    only_view,
    pairs_of,
    precision_and_coverage,
    sets_of,
)
from tests.reference import brute


@given(
    kind=st.sampled_from(["uniform", "clustered", "duplicated", "plane"]),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
)
@examples(75)
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
    assert groups_of(view) == brute.groups(both, radius, n)
    assert components_of(view) == brute.linked(both, radius)
    if len(brute.distinct(real)) > 5:
        assert precision_and_coverage(seen) == pytest.approx(brute.precision_and_coverage(real, synthetic))
        # Real rows inside the radius of some other real row, which may be a copy of theirs.
        unique = brute.distinct(real)
        kth = brute.k_smallest(brute.among(unique, "euclidean"), 5)[:, -1] * (1 + 1e-9)
        radii = kth[[unique.tolist().index(row) for row in real.tolist()]]
        expected = (brute.among(real, "euclidean") <= radii).any(axis=1)
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
@examples(25)
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
    # The nearest real row in the space of the manifold metrics, and that of real rows without their copies.
    apart = brute.among(both, "euclidean")
    row, distance = nearest.manifold_real_row[order], nearest.manifold_real_distance[order]
    np.testing.assert_allclose(distance, apart[:, :12].min(axis=1), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(apart[np.arange(21), row], distance, rtol=1e-5, atol=1e-12)
    assert (row < 12).all()
    is_copy = (both[:12, None] == both[None, :12]).all(axis=2)
    others = np.where(is_copy, np.inf, apart[:12, :12]).min(axis=1)
    np.testing.assert_allclose(nearest.distinct_real_distance[order][:12], others, rtol=1e-5)
    assert np.isinf(nearest.distinct_real_distance[order][12:]).all()


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
        assert groups_of(seen.view) == brute.groups(both, 0.13 * brute.real_median(real), n)
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
@examples(12)
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
@examples(75)
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
        plan = plan_join(JoinSample(axes, rows, codes), {0: 8}, radius)
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


# Chains, vectors of any length, zero vectors and blank images.


@pytest.mark.parametrize("scale", [1e-39, 1e-37, 1e37])
def test_the_length_of_vectors_changes_no_group(scale: float) -> None:
    base = normal(75, 40)
    both = (np.vstack([base, jittered(base[:20], 1e-3)]) * np.float32(scale)).astype(np.float32)
    expected = brute.groups(both, 0.13 * brute.real_median(both[:40]), 40)
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


def test_the_order_of_a_few_rows_changes_no_diameter_in_the_summary() -> None:
    # Four rows in a cone: by sweeps, from one start the two farthest are found, from another they are not.
    cone = np.array([[10, 1, 0], [10, 0, -2], [10, 2, -2], [10, -1, 0]], np.float32)
    fake = -np.eye(3, dtype=np.float32)
    found = [
        only_view(cone[order], fake, NeighborsConfig(radius=0.0245)).view.summary()
        for order in ([3, 2, 1, 0], [0, 1, 2, 3], [1, 3, 0, 2])
    ]
    for summary in found:
        assert summary["rows_in_groups"] == 4
        assert summary["largest_diameter"] == pytest.approx(brute.diameter(cone, [0, 1, 2, 3]), rel=1e-12)
        assert summary["chains"] == found[0]["chains"]


@pytest.mark.parametrize("members", [20, 60, 400])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_no_diameter_in_the_summary(members: int, seed: int) -> None:
    # A loose group of both sets that few pairs span, and other groups beside it.
    rng = np.random.default_rng(seed)
    crowd = (np.eye(6)[0] + 0.2 * rng.normal(size=(members, 6))).astype(np.float32)
    real = np.vstack([crowd[::2], crowd[:3], -normal(seed, 30, 6)])
    fake = np.vstack([crowd[1::2], jittered(real[-5:], 1e-3)])
    found = []
    for _ in range(3):
        move_real, move_fake = rng.permutation(len(real)), rng.permutation(len(fake))
        back = np.concatenate([move_real, len(real) + move_fake])
        groups = only_view(real[move_real], fake[move_fake], NeighborsConfig(radius=0.05), ids=back).view.groups
        at = np.argsort(back[groups.row])
        found.append((back[groups.row][at], groups.diameter[at], groups.is_chain[at]))
    assert len(found[0][0]) >= members
    for row, diameter, is_chain in found[1:]:
        np.testing.assert_array_equal(row, found[0][0])
        np.testing.assert_allclose(diameter, found[0][1], rtol=1e-12)
        np.testing.assert_array_equal(is_chain, found[0][2])


@pytest.mark.parametrize("members", [20, 60, 400])
def test_diameters_are_exact_for_small_groups_and_at_least_a_third_of_the_truth_for_others(members: int) -> None:
    x = (np.eye(6)[0] + 0.2 * normal(80 + members, members, 6)).astype(np.float32)
    view = only_view(x[::2], x[1::2], NeighborsConfig(radius=0.05)).view
    both = np.vstack([x[::2], x[1::2]])
    for group in groups_of(view):
        true = brute.diameter(both, sorted(group))
        diameter = view.groups.diameter[np.searchsorted(view.groups.row, min(group))]
        if len(group) <= 32:
            assert diameter == pytest.approx(true, rel=1e-12)
        else:
            assert true / 3 * (1 - 1e-12) <= diameter <= true * (1 + 1e-12)
    largest = max(map(len, groups_of(view)))
    assert largest > 32 if members > 32 else largest > 5


@pytest.mark.parametrize("row", [0, 3, 7])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_zero_vector_is_a_failure_of_input_that_names_the_row(row: int, zero: float) -> None:
    x = normal(73, 8)
    x[row] = zero
    kinds = ["real"] * 4 + ["synthetic"] * 4
    for settings in ({"metric": "cosine"}, {"mode": "datalab"}):
        with pytest.raises(InputError, match=rf"1 of 8 rows are all zeros, .* row {row}$"):
            score_features(x, kinds, config=Config(neighbors=settings))
    # A row of zeros is as good as any other where rows are compared by their differences.
    for metric in ("auto", "euclidean"):
        frame = score_features(x, kinds, config=Config(neighbors={"metric": metric})).scores()
        assert np.isfinite(frame["distance_to_nearest_neighbor"]).all()


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
    scored = score_features(x[order], kinds, config=Config(neighbors=NeighborsConfig(metric="cosine")))
    assert scored.metrics["synthetic"]["metrics"]["freshness"]["value"] == pytest.approx(1 - 3 / 12)


# The approximate regime, brought down to a few hundred rows.


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Probe cells from a hundred rows on; call it again to measure with another number of sampled queries."""

    def small(queries: int = 80) -> None:
        monkeypatch.setattr(relations, "EXACT_PAIRS", 1000)
        for module in (analysis, memory_search):
            monkeypatch.setattr(module, "FLAT_ROWS", 100)
            monkeypatch.setattr(module, "SAMPLED_QUERIES", queries)
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
    data = memory_search.MemoryRows(x, rows, copies, hash_ids(map(str, range(690))))
    layout = VectorLayout(8, (0, 8), (0, 8))
    spaces = search_spaces(layout, EXACT, ColumnMoments.of(x[:600]))
    backend, manifold = (memory_search.MemoryBackend(data, space) for space in spaces)
    # Datalab's rule asks for as many neighbours across sets as within.
    recalls, calibrations = analysis.search_near_duplicates(backend, NeighborsConfig(mode="datalab"), 1)
    searched = analysis.search_manifold(manifold, (), counts_manifold=False, known={})
    searches = analysis.SearchSummary(recalls, searched, calibrations, frozenset())
    found = analysis.view_neighbors(1, backend.results, (manifold.results, manifold.counts), searches)
    distances = brute.among(x)
    for relation_of, query, database, probed in (
        (found.searches.real_real, slice(600), slice(600), True),
        (found.searches.synthetic_real, slice(600, 690), slice(600), True),
        (found.searches.real_synthetic, slice(600), slice(600, 690), False),
        (found.searches.synthetic_synthetic, slice(600, 690), slice(600, 690), False),
    ):
        true = brute.k_smallest(distances[query, database], 10)
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
    assert searched.radius_recalls[analysis.RadiusKey(0, 0, False)] is not None
    assert searched.radius_recalls[analysis.RadiusKey(1, 0, False)] is not None
    # The searches of the manifold have recalls of their own.
    assert searched.recalls[SetPair(0, 0)] is not None
    assert searched.recalls[SetPair(0, 0)] != recalls[SetPair(0, 0)]
    assert searched.recalls[SetPair(0, 1)] is None


@pytest.mark.usefixtures("probing")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
@pytest.mark.parametrize("config", [EXACT, NeighborsConfig(radius=0.01)])
def test_groups_are_exact_though_neighbours_are_probed(seed: int, config: NeighborsConfig) -> None:
    real, fake = approximate_sets(seed)
    view = only_view(real, fake, config).view
    assert view.summary()["recall"] == 1.0
    both = np.vstack([real, fake])
    assert np.abs(brute.among(both) - view.radius).min() > 1e-12
    assert groups_of(view) == brute.groups(both, view.radius, len(real))
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
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_datalabs_median_is_sampled_over_copies_too(copies: int) -> None:
    # Most rows have copies: 150 distinct rows of each set, of which 80 in all are sampled.
    real, fake = normal(85, 150), normal(86, 150)
    both = [np.vstack([x, *[x[:130]] * (copies - 1)]) for x in (real, fake)]
    view = only_view(*both, DATALAB).view
    calibration = view.summary()["calibration"]
    assert not calibration["exact"]
    assert calibration["rows"] == 300
    assert 80 <= calibration["queries"] <= 82
    true = max(1e-6, float(np.median(brute.among(np.vstack(both)).min(axis=1))))
    assert calibration["low"] <= true <= calibration["high"]
    assert np.isfinite(calibration["high"])


@pytest.mark.usefixtures("probing")
@pytest.mark.parametrize("config", [EXACT, DATALAB, NeighborsConfig(calibrate_on="all")])
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
    before, after = only_view(real, fake), only_view(real[move_real], fake[move_fake], ids=back)
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
