import numpy as np
import pytest
from cleanlab import Datalab
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.groups import collapse_copies
from synthscale.neighbors import Analysis, Members, View, analyse
from synthscale.search import MemorySearcher
from tests.reference import brute

Vectors = NDArray[np.float32]
EXACT = NeighborsConfig()
DATALAB = NeighborsConfig(mode="datalab")


def analysed(sets: dict[str, Vectors], config: NeighborsConfig = EXACT) -> Analysis:
    """Number the rows through the sets, collapse exact copies within each, and analyse."""
    members, vectors, start = {}, {}, 0
    for name, x in sets.items():
        rows = np.arange(start, start + len(x))
        keys = np.array([row.tobytes().hex() for row in x], "S")
        members[name] = Members(rows, collapse_copies(rows, keys))
        distinct = members[name].distinct
        vectors[name] = (x[distinct - start], distinct)
        start += len(x)
    return analyse(MemorySearcher(vectors), members, config)


def only_view(real: Vectors, synthetic: Vectors, config: NeighborsConfig = EXACT) -> View:
    (view,) = analysed({"real": real, "fake": synthetic}, config).views
    return view


def groups_of(view: View) -> set[frozenset[int]]:
    by_id: dict[int, set[int]] = {}
    for row, group in zip(view.groups.row.tolist(), view.groups.near_duplicate_id.tolist(), strict=True):
        by_id.setdefault(group, set()).add(row)
    assert all(min(members) == group for group, members in by_id.items())
    return {frozenset(members) for members in by_id.values()}


def freshness(view: View) -> float:
    """1 - share of synthetic rows in a group with a real member."""
    synthetic = view.groups.row >= view.real_rows
    return 1 - int((synthetic & view.groups.has_real).sum()) / (len(view.nearest.row) - view.real_rows)


def precision_and_coverage(view: View) -> tuple[float, float]:
    n = view.real_rows
    return float(view.nearest.in_real_manifold[n:].mean()), float(view.nearest.covered[:n].mean())


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
    assert view.radius == pytest.approx(radius, rel=1e-9)
    assert view.median_distance == pytest.approx(brute.real_median(real), rel=1e-9)
    assert groups_of(view) == brute.groups(both, radius)
    if len(brute.distinct(real)) > 5:
        assert precision_and_coverage(view) == pytest.approx(brute.precision_and_coverage(real, synthetic))

    found = {
        (i, j): d
        for pairs in analysis.edges.values()
        for i, j, d in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist(), strict=True)
    }
    distances = brute.among(both)
    assert all(i < j and distances[i, j] == pytest.approx(d, abs=1e-15) for (i, j), d in found.items())
    # Copies of one row may hang on their representative alone: the components must agree, and no edge be false.
    assert set(found) <= brute.edges(both, radius)
    reached = brute.components(len(both), set(found))
    assert sorted(reached) == sorted(brute.components(len(both), brute.edges(both, radius)))


@given(kind=st.sampled_from(["uniform", "duplicated"]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_nearest_distances_count_exact_copies_as_zero(kind: str, seed: int) -> None:
    real, synthetic = sets_of(kind, seed, 12, 9)
    both = np.vstack([real, synthetic])
    distances = brute.among(both)
    nearest = only_view(real, synthetic).nearest
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
    view = only_view(real, synthetic)
    (big,) = [group for group in groups_of(view) if 50 in group]
    assert big == set(range(50, 50 + m)) | set(range(50 + m + 30, 50 + m + 30 + m))
    member = view.groups.near_duplicate_id == 50
    assert (view.groups.size[member] == 2 * m).all()
    assert view.groups.has_real[member].all()
    assert view.groups.has_synthetic[member].all()
    assert freshness(view) == 1 - m / (30 + m)


def test_near_duplicates_stay_flagged_when_most_rows_have_exact_copies() -> None:
    base = normal(3, 40)
    real = np.vstack([base, base[:30], base[:30]])
    synthetic = np.vstack([jittered(base[30:], 1e-3), np.repeat(normal(4, 5), 6, axis=0)])
    view = only_view(real, synthetic)
    assert view.radius == pytest.approx(0.13 * brute.real_median(base), rel=1e-9)
    wanted = {frozenset({i, 40 + i, 70 + i}) for i in range(30)}
    wanted |= {frozenset({30 + i, 100 + i}) for i in range(10)}
    wanted |= {frozenset(range(110 + 6 * i, 116 + 6 * i)) for i in range(5)}
    assert groups_of(view) == wanted


def test_identical_rows_only_are_one_group() -> None:
    view = only_view(np.ones((6, 4), np.float32), np.ones((7, 4), np.float32))
    assert groups_of(view) == {frozenset(range(13))}
    assert freshness(view) == 0
    assert view.median_distance is None
    assert (view.nearest.nn_distance == 0).all()


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


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (2, 1), (3, 3), (5, 5), (6, 4), (10, 10)])
def test_few_rows_are_analysed_as_brute_force_does(n: int, m: int) -> None:
    real, synthetic = normal(n, n), normal(100 + m, m)
    view = only_view(real, synthetic)
    if n > 1:
        both = np.vstack([real, synthetic])
        assert groups_of(view) == brute.groups(both, 0.13 * brute.real_median(real))
        assert np.isfinite(view.nearest.knn_radius[:n]).all()
    np.testing.assert_allclose(
        view.nearest.nearest_real_distance[n:], brute.cosine_distances(synthetic, real).min(axis=1), atol=1e-15
    )


def test_one_real_row_still_has_its_exact_copies_found() -> None:
    real = normal(8, 1)
    view = only_view(real, np.vstack([real, jittered(real, 1e-3), normal(9, 3)]))
    assert view.median_distance is None
    assert groups_of(view) == {frozenset({0, 1})}


def test_a_pair_at_exactly_the_absolute_radius_is_not_grouped() -> None:
    axes = np.eye(4, dtype=np.float32)
    assert groups_of(only_view(axes[:2], axes[2:], NeighborsConfig(radius=1.0))) == set()
    just_above = NeighborsConfig(radius=float(np.nextafter(1.0, 2)))
    assert groups_of(only_view(axes[:2], axes[2:], just_above)) == {frozenset(range(4))}


def test_a_row_at_exactly_the_knn_radius_counts_for_precision_and_coverage() -> None:
    axes = np.eye(8, dtype=np.float32)
    assert precision_and_coverage(only_view(axes[:7], axes[7:])) == (1, 1)


@pytest.mark.parametrize("config", [EXACT, DATALAB, NeighborsConfig(calibrate_on="all")])
def test_adding_a_generator_changes_nothing_of_another(config: NeighborsConfig) -> None:
    real, first = sets_of("duplicated", 10, 60, 50)
    # The second would widen or collapse the radius if anything were pooled.
    for second in (normal(11, 80, 6), jittered(real, 1e-3), np.repeat(first, 3, axis=0)):
        alone = analysed({"real": real, "a": first}, config).views[0]
        beside = analysed({"real": real, "a": first, "b": second.astype(np.float32)}, config).views[0]
        assert beside.radius == alone.radius
        assert groups_of(beside) == groups_of(alone)
        for name in ("nn_row", "nn_distance", "nearest_real_row", "knn_radius", "in_real_manifold", "covered"):
            np.testing.assert_array_equal(getattr(beside.nearest, name), getattr(alone.nearest, name))


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
    assert sum(len(pairs.left) for pairs in analysis.edges.values()) == 0
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
    assert after.radius == before.radius
    assert {frozenset(back[list(group)].tolist()) for group in groups_of(after)} == groups_of(before)
    assert precision_and_coverage(after) == precision_and_coverage(before)


def datalab_edges(x: Vectors) -> tuple[NDArray[np.bool_], set[tuple[int, int]], float]:
    """Cleanlab's flags and pairs, and the median that it measures by."""
    lab = Datalab({"row": list(range(len(x)))}, verbosity=0)
    lab.find_issues(features=x.astype(np.float64), issue_types={"near_duplicate": {}})
    sets = lab.get_info("near_duplicate")["near_duplicate_sets"]
    assert max(map(len, sets)) <= 10, "beyond its k = 10 cleanlab misses pairs: no conformance to be had"
    flags = lab.get_issues("near_duplicate")["is_near_duplicate_issue"].to_numpy()
    edges = {(min(i, int(j)), max(i, int(j))) for i, found in enumerate(sets) for j in found}
    return flags, edges, lab.get_info("near_duplicate")["median_distance_to_nearest_neighbor"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d", [4, 64])
@pytest.mark.parametrize("copies", [0, 12])
def test_datalab_mode_equals_cleanlab(seed: int, d: int, copies: int) -> None:
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(150, d))
    chosen = rng.integers(0, 150, 40)
    synthetic = np.vstack([rng.normal(size=(100, d)), real[chosen] + 0.02 * rng.normal(size=(40, d))])
    synthetic[:copies] = real[:copies]
    synthetic[20 : 20 + copies] = synthetic[60 : 60 + copies]
    real, synthetic = real.astype(np.float32), synthetic.astype(np.float32)
    flags, edges, median = datalab_edges(np.vstack([real, synthetic]))
    assert flags.any()
    analysis = analysed({"real": real, "fake": synthetic}, DATALAB)
    (view,) = analysis.views
    assert view.median_distance == pytest.approx(median, rel=1e-6)
    assert sorted(view.groups.row.tolist()) == np.flatnonzero(flags).tolist()
    found = {
        pair
        for pairs in analysis.edges.values()
        for pair in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
    }
    if copies:
        # Copies within a set hang on their representative: the same components from fewer edges.
        assert brute.components(290, found) == brute.components(290, edges)
    else:
        assert found == edges
