"""Both search spaces through the analysis and `score_features`: prdc's formulas, units, outliers, the oracles."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale import Config, FeatureScores, parse_config, score_features
from synthscale.config import NeighborsConfig
from synthscale.in_memory.neighbors import MemoryRows, analyse_rows, analyse_vectors
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.layout import VectorLayout
from tests.examples import examples
from tests.neighbors.views import (
    Seen,
    Vectors,
    components_of,
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

MANIFOLD = ("precision", "recall", "density", "coverage")


def kinds(n: int, m: int) -> list[str]:
    return ["real"] * n + ["synthetic"] * m


def manifold(real: Vectors, synthetic: Vectors, layout: VectorLayout | None = None, **settings: Any) -> Seen:
    """Analyse a view with the counts of density and recall."""
    analysis = analyse_vectors(
        *numbered({"real": real, "fake": synthetic}), NeighborsConfig(**settings), counts=True, layout=layout
    )
    return Seen(analysis.views[0], analysis.nearest["fake"], len(real))


def shares(seen: Seen) -> dict[str, float]:
    """The four metrics from the indicators of rows."""
    n, nearest = seen.real_rows, seen.nearest
    precision, coverage = precision_and_coverage(seen)
    return {
        "precision": precision,
        "recall": float((nearest.in_synthetic_manifold[:n] > 0).mean()),
        "density": float(nearest.real_radii_containing[n:].mean() / 5),
        "coverage": coverage,
    }


def columns_of(d: int) -> VectorLayout:
    return VectorLayout(d, (0, d), (0, d), scaled=True, columns=True)


# The manifold metrics are those of prdc.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("offset", [0, 300])
def test_on_embeddings_the_manifold_metrics_are_those_of_prdc_on_the_raw_vectors(
    seed: int, shift: float, offset: float
) -> None:
    # Norms and offsets differ: by direction everything is alike.
    real, synthetic = normal(seed, 150) + offset, normal(seed + 50, 120) * np.float32(0.8) + offset + shift
    found = shares(manifold(real.astype(np.float32), synthetic.astype(np.float32)))
    assert found == pytest.approx(brute.prdc(real.astype(np.float32), synthetic.astype(np.float32)))
    prdc = pytest.importorskip("prdc")
    assert found == pytest.approx(prdc.compute_prdc(real, synthetic, nearest_k=5))


@given(
    kind=st.sampled_from(brute.COLUMN_KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(24, 45),
    m=st.integers(15, 30),
)
@examples(50)
def test_on_columns_the_manifold_metrics_are_those_of_prdc_on_scaled_ones(
    kind: str, seed: int, n: int, m: int
) -> None:
    x = brute.columns(kind, seed, n + m)
    real, synthetic = x[:n], x[n:]
    assume(min(len(brute.distinct(part)) for part in (real, synthetic)) > 5)
    scaled = brute.scaled(x, real)
    found = shares(manifold(real, synthetic, columns_of(x.shape[1])))
    # Float32 vectors round distances, so that a difference of 1e-6 of a radius counts as a tie.
    least, most = (brute.prdc(scaled[:n], scaled[n:], ties=ties) for ties in (-1e-6, 3e-6))
    if kind == "integers":
        least = most = brute.prdc(scaled[:n], scaled[n:])
    for name, value in found.items():
        assert least[name] - 1e-9 <= value <= most[name] + 1e-9, name


def test_ties_on_columns_of_few_values_are_within_the_radius() -> None:
    # Nearly every distance is tied with a radius: prdc itself compares with `<` and says much less.
    x = np.random.default_rng(0).integers(0, 4, (400, 3)).astype(np.float32)
    real, synthetic = x[:200], x[200:]
    found = shares(manifold(real, synthetic, columns_of(3)))
    scaled = brute.scaled(x, real)
    assert found == pytest.approx(brute.prdc(scaled[:200], scaled[200:]))
    prdc = pytest.importorskip("prdc")
    strict = prdc.compute_prdc(scaled[:200], scaled[200:], nearest_k=5)
    assert found["coverage"] > strict["coverage"] + 0.1


@pytest.mark.parametrize("layout", [None, columns_of(6)])
def test_the_metric_of_near_duplicates_changes_no_manifold_metric(layout: VectorLayout | None) -> None:
    real, synthetic = sets_of("duplicated", 1, 60, 50)
    found = [
        manifold(real, synthetic, layout, **settings).nearest
        for settings in ({}, {"metric": "cosine"}, {"metric": "euclidean"}, {"mode": "datalab"})
    ]
    for other in found[1:]:
        for name in (
            "manifold_real_row",
            "manifold_real_distance",
            "distinct_real_distance",
            "in_real_manifold",
            "covered",
            "real_radii_containing",
            "in_synthetic_manifold",
        ):
            np.testing.assert_array_equal(getattr(other, name), getattr(found[0], name), err_msg=name)
        np.testing.assert_array_equal(other.knn_radius[:60], found[0].knn_radius[:60])


def test_manifold_distances_are_of_the_manifolds_space_and_the_others_of_near_duplicates() -> None:
    # The nearest row by direction is twice as long and far away; the nearest by difference has another direction.
    real = np.array([[10, 0], [0.5, 0.5], [-3, -3], [-4, 1], [3, -7], [2, 9], [-8, 8]], np.float32)
    synthetic = np.array([[1, 0.01], [1, 0]], np.float32)
    nearest = only_view(real, synthetic).nearest
    assert nearest.nearest_real_row[7:].tolist() == [0, 0]
    assert nearest.manifold_real_row[7:].tolist() == [1, 1]
    np.testing.assert_allclose(nearest.manifold_real_distance[8], 0.25, rtol=1e-6)
    assert nearest.nearest_real_distance[8] == 0
    assert nearest.manifold_real_row[1] == brute.among(real, "euclidean")[1].argmin()


# Near-duplicates among columns.


@given(
    kind=st.sampled_from(brute.COLUMN_KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(6, 45),
    m=st.integers(15, 30),
)
@examples(60)
def test_groups_of_columns_are_those_of_brute_force(kind: str, seed: int, n: int, m: int) -> None:
    x = brute.columns(kind, seed, n + m)
    rng = np.random.default_rng(seed)
    x[n : n + m // 2] = x[rng.integers(0, n, m // 2)] * np.float32(1.0001)
    real = x[:n]
    scaled = brute.scaled(x, real)
    assume(scaled.shape[1] and len(brute.distinct(scaled[:n])) > 1)
    radius = 0.13 * brute.real_median(scaled[:n], "euclidean")
    apart = brute.among(scaled, "euclidean")
    assume((np.abs(apart - radius) > 1e-4 * radius).all())
    # Vectors are float32 once scaled: of distances far below, only the outliers' may be lost.
    view = manifold(real, x[n:], columns_of(x.shape[1])).view
    assert view.radius == pytest.approx(radius, rel=1e-3)
    assert groups_of(view) == brute.groups(scaled, radius, n, "euclidean")
    assert components_of(view) == brute.linked(scaled, radius, "euclidean")


def test_units_of_columns_change_nothing() -> None:
    real, synthetic = sets_of("duplicated", 2, 60, 50)
    units, offset = np.float32([1e-3, 1, 1024, 2, 0.5, 64]), np.float32([0, 0, 0, 0, 0, 0])
    plain = manifold(real, synthetic, columns_of(6))
    other = manifold(real * units + offset, synthetic * units + offset, columns_of(6))
    assert groups_of(other.view) == groups_of(plain.view)
    assert shares(other) == shares(plain)
    np.testing.assert_allclose(other.nearest.nn_distance, plain.nearest.nn_distance, rtol=1e-4, atol=1e-10)


def test_the_radius_of_columns_may_exceed_two() -> None:
    real, synthetic = normal(3, 40), normal(4, 30)
    scaled = brute.scaled(np.vstack([real, synthetic]), real)
    seen = manifold(real, synthetic, columns_of(8), radius=5.0)
    assert len(groups_of(seen.view)) > 0
    assert groups_of(seen.view) == brute.groups(scaled, 5.0, 40, "euclidean")


@pytest.mark.parametrize("value", [1e9, 1e20, 1e30, float(np.finfo(np.float32).max)])
def test_a_synthetic_value_far_outside_hides_no_other_row(value: float) -> None:
    # As where a missing value is stated as a huge number.
    real, synthetic = normal(5, 60), normal(6, 40)
    synthetic[:10] = jittered(real[:10], 1e-3)
    synthetic[20:22] = synthetic[20]
    plain = manifold(real, synthetic, columns_of(8))
    synthetic[30:33, 2] = value
    # Two of the three differ a little in another column.
    synthetic[31] = synthetic[30]
    synthetic[31, 0] += np.float32(1e-3)
    found = manifold(real, synthetic, columns_of(8))
    assert found.view.radius == plain.view.radius
    assert groups_of(found.view) == groups_of(plain.view) | {frozenset({90, 91})}
    assert np.isfinite(found.nearest.nn_distance).all()
    assert np.isfinite(found.nearest.manifold_real_distance).all()
    # Two rows with the value are near one another, the third is near no one, and none is near a real row.
    assert found.nearest.nn_row[[90, 91]].tolist() == [91, 90]
    assert not found.nearest.in_real_manifold[[90, 91, 92]].any()
    others = np.delete(np.arange(100), [90, 91, 92])
    unchanged = np.isin(plain.nearest.nn_row[others], [90, 91, 92], invert=True)
    np.testing.assert_array_equal(found.nearest.nn_row[others][unchanged], plain.nearest.nn_row[others][unchanged])


# Scores.


def scored(real: Vectors, synthetic: Vectors, ids: list[str] | None = None, **neighbors: Any) -> FeatureScores:
    config = Config(neighbors=NeighborsConfig(**neighbors)) if neighbors else None
    return score_features(np.vstack([real, synthetic]), kinds(len(real), len(synthetic)), ids=ids, config=config)


def values(found: FeatureScores, *names: str) -> list[float]:
    return [found.metrics["synthetic"]["metrics"][name]["value"] for name in names]


def test_a_chain_from_a_real_row_has_one_copy_and_eight_repeats() -> None:
    # s1 to s9 at equal steps along a line that begins at a real row, each within the radius of the next alone.
    real = normal(7, 200, 4)
    deviation, radius = real.std(axis=0), 0.02
    step = np.zeros(4, np.float32)
    step[0] = np.sqrt(2 * radius) * 0.9 * deviation[0]
    # From the outermost real row outwards, so that no other is near.
    start = real[int(real[:, 0].argmax())]
    chain = np.array([start + (i + 1) * step for i in range(9)], np.float32)
    others = normal(8, 91, 4) + np.float32([0, 100, 0, 0]) * np.arange(1, 92)[:, None].astype(np.float32)
    found = scored(real, np.vstack([chain, others]), radius=radius)
    diversity, freshness, unique = values(found, "diversity", "freshness", "unique_share")
    assert freshness == pytest.approx(1 - 1 / 100)
    assert diversity == pytest.approx(1 - 8 / 100)
    # The component counts once, and each of the 91 others.
    assert unique == pytest.approx(92 / 100)
    frame = found.scores().iloc[200:209]
    assert frame["is_near_duplicate"].all()
    assert frame["near_duplicate_id"].nunique() == 2
    assert found.metrics["synthetic"]["neighbors"]["components"] >= 1


@pytest.mark.parametrize("novel", [False, True])
@pytest.mark.parametrize("metric", ["auto", "cosine"])
def test_one_image_repeated_four_hundred_times_in_five_hundred(novel: bool, metric: str) -> None:
    real, others = normal(9, 300, 16), normal(10, 100, 16)
    image = 3 * normal(11, 1, 16) if novel else real[:1]
    found = scored(real, np.vstack([np.repeat(image, 400, axis=0), others]), metric=metric)
    diversity, freshness, unique = values(found, "diversity", "freshness", "unique_share")
    expected = (0.2, 1.0) if novel else (1.0, 0.2)
    assert (diversity, freshness) == pytest.approx(expected)
    assert unique == pytest.approx(0.202)


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (0.0, 1.0, (0.895, 0.978, 0.872)),
        (0.0, 0.3, (1.0, 0.888, 0.0)),
        (1.0, 1.0, (0.285, 0.217, None)),
        (3.0, 1.0, (0.0, 0.0, 0.0)),
    ],
)
def test_gaussians_have_the_precision_coverage_and_recall_that_simulation_says(
    mean: float, spread: float, expected: tuple[float | None, ...]
) -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(600, 16)).astype(np.float32)
    synthetic = (mean + spread * rng.normal(size=(600, 16))).astype(np.float32)
    found = shares(manifold(real, synthetic))
    for name, value in zip(("precision", "coverage", "recall"), expected, strict=True):
        if value is not None:
            assert found[name] == pytest.approx(value, abs=0.05), name


def flawed(seed: int) -> tuple[Vectors, Vectors]:
    """Sets with copies, near-copies, chains and repeats."""
    real, synthetic = normal(seed, 90), normal(seed + 1, 80)
    synthetic[:10] = jittered(real[:10], 1e-3, seed)
    synthetic[10:14] = real[10:14]
    synthetic[20:35] = jittered(np.repeat(synthetic[20:21], 15, axis=0), 1e-3, seed + 2)
    synthetic[40:43] = synthetic[40]
    synthetic[50:60] = real[50] + 0.25 * np.arange(1, 11)[:, None] * np.float32([1, 0, 0, 0, 0, 0, 0, 0])
    real[80:84] = real[80]
    return real, synthetic


@pytest.mark.parametrize("settings", [{}, {"metric": "cosine"}, {"metric": "cosine", "calibrate_on": "all"}])
def test_neither_the_order_of_rows_nor_another_generator_changes_a_number(settings: dict[str, Any]) -> None:
    real, first = flawed(0)
    second = np.vstack([100 * normal(12, 60), jittered(real[:30], 1e-3), np.repeat(first[:1], 40, axis=0)])
    x = np.vstack([real, first, second]).astype(np.float32)
    names = np.array([None] * 90 + ["a"] * 80 + ["b"] * 130, object)
    ids = np.array([f"id-{i * 7919 % 1009}" for i in range(300)])
    config = parse_config({"neighbors": settings, "metrics": {"families": ["manifold"]}})

    def found(rows: NDArray[np.int64]) -> FeatureScores:
        return score_features(
            x[rows],
            ["real" if i < 90 else "synthetic" for i in rows.tolist()],
            generator=names[rows].tolist(),
            ids=ids[rows].tolist(),
            config=config,
        )

    alone = found(np.arange(170))
    shuffled = found(np.random.default_rng(1).permutation(300))
    one, other = alone.metrics["a"], shuffled.metrics["a"]
    for block in ("metrics", "families"):
        assert_close(other[block], one[block])
    for name in ("radius", "groups", "components", "rows_in_groups", "chains", "largest_diameter"):
        assert other["neighbors"][name] == pytest.approx(one["neighbors"][name], rel=1e-5)
    left, right = (f.scores("a").set_index("id").sort_index() for f in (shuffled, alone))
    columns = ["is_near_duplicate", "in_real_manifold", "covered"]
    assert left[columns].equals(right[columns])
    distances = ["distance_to_nearest_neighbor", "distance_to_nearest_real", "near_duplicate_score"]
    np.testing.assert_allclose(left[distances], right[distances], rtol=0, atol=1e-5)
    # Group numbers are row numbers; the groups themselves are the same.
    groups = [
        {frozenset(part) for part in frame.groupby("near_duplicate_id").groups.values()} for frame in (left, right)
    ]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("seed", range(5))
def test_another_generators_crowd_does_not_change_what_is_behind_a_copy(seed: int) -> None:
    # With the crowd there are too many pairs to list: a path through a copy may stand for a pair of repeats.
    rng = np.random.default_rng(seed)
    real = np.vstack([[[0, 0]], 50 + 3 * rng.normal(size=(20, 2))])
    behind = np.array([[0.9, 0], [1.7, 0.3], [1.7, -0.3], [1.5, 0.1], [2.3, 0]]) + 0.05 * rng.normal(size=(5, 2))
    first = np.vstack([behind, 3 * rng.normal(size=(10, 2)) - 50])
    crowd = 100 + 0.05 * rng.normal(size=(230, 2))
    crowd[:30] = np.array([1.2, 0]) + 0.1 * rng.normal(size=(30, 2))
    sets = {"real": real.astype(np.float32), "a": first.astype(np.float32), "b": crowd.astype(np.float32)}
    ids = hash_ids(f"{seed}-{i}" for i in range(266))
    found = []
    for names in (("real", "a"), ("real", "a", "b")):
        x, rows, copies = numbered({name: sets[name] for name in names})
        config = NeighborsConfig(radius=0.5, metric="euclidean")
        data, layout = MemoryRows(x, rows, copies, ids[: len(x)]), VectorLayout(2, (0, 2), (0, 2))
        found.append(analyse_rows(data, config, layout).views[0].groups)
    assert (found[0].near_duplicate_id != found[0].component_id).any()
    for name, values in vars(found[0]).items():
        np.testing.assert_array_equal(getattr(found[1], name), values, err_msg=name)


def assert_close(found: Any, expected: Any, path: str = "") -> None:
    """All numbers agree within 1e-5, and everything else is equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_close(found[key], value, f"{path}.{key}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5), path
    else:
        assert found == expected, path


def test_clusters_and_not_components_are_the_units_of_intervals() -> None:
    # Three hundred synthetic rows linked in one long chain are many observations; one image repeated is one.
    real = normal(13, 300, 4)
    line = np.zeros((300, 4), np.float32)
    line[:, 0] = 50 + 0.3 * np.arange(300)
    chained = scored(real, line, radius=0.06)
    repeated = scored(real, jittered(np.repeat(line[:1], 300, axis=0), 1e-4), radius=0.06)
    assert values(chained, "diversity", "freshness") == values(repeated, "diversity", "freshness") == [0, 1]
    block = chained.metrics["synthetic"]["metrics"]["freshness"]
    assert block["low"] is not None
    assert block["low"] > 0.9
    assert repeated.metrics["synthetic"]["metrics"]["freshness"]["low"] is None


def test_pairs_across_sets_of_columns_are_those_of_brute_force() -> None:
    real, synthetic = normal(14, 60), normal(15, 50)
    analysis = analyse_vectors(
        *numbered({"real": real, "fake": synthetic}), NeighborsConfig(radius=1.5), layout=columns_of(8)
    )
    scaled = brute.scaled(np.vstack([real, synthetic]), real)
    assert pairs_of(analysis.edges) == brute.edges(scaled, 1.5, "euclidean")
    np.testing.assert_allclose(
        analysis.edges.distance,
        brute.halved_squares(scaled, scaled)[analysis.edges.left, analysis.edges.right],
        rtol=1e-5,
    )
