"""Datalab mode beside cleanlab's Datalab, and the cases that Datalab gets wrong and exact mode does not."""

from typing import NamedTuple

import numpy as np
import pytest
from cleanlab import Datalab
from numpy.typing import NDArray

from synthscale import Config, score_features
from synthscale.config import NeighborsConfig
from tests.neighbors.views import (
    DATALAB,
    EXACT,
    Vectors,
    analysed,
    around,
    freshness,
    groups_of,
    jittered,
    normal,
    only_view,
    pairs_of,
    precision_and_coverage,
    sets_of,
)
from tests.reference import brute


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
    # The same rows as in test_many_copies_of_one_image_hide_no_near_duplicate: what Datalab makes of them.
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


def test_datalab_mode_calls_a_copier_fresh_as_datalab_does() -> None:
    # Both sides of each pair are nearly 0 apart, so the median over all rows collapses and nothing is flagged.
    real = normal(5, 300, 16)
    assert freshness(only_view(real, jittered(real, 0.01), DATALAB)) == 1
    assert freshness(only_view(real, jittered(real, 0.01), NeighborsConfig(calibrate_on="all"))) == 1


# Copies count on Datalab's lists, and nowhere else.


def repeats(seed: int, most: int) -> tuple[Vectors, Vectors]:
    """Crowds of near-duplicates around a few pictures, each row up to ``most`` times; none is in both sets."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 24))
    both = []
    for count in (30, 25):
        near = rng.choice([0.003, 0.05], (count, 1)) * rng.normal(size=(count, 24))
        x = np.vstack([centres[rng.integers(0, 6, count)] + near, rng.normal(size=(250, 24))]).astype(np.float32)
        times = np.concatenate([rng.integers(1, most + 1, count), np.ones(250, np.int64)])
        both.append(np.repeat(x, times, axis=0)[rng.permutation(times.sum())])
    return both[0], both[1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [2, 4, 14])
def test_datalab_mode_has_cleanlabs_components_where_near_duplicates_have_copies(most: int, seed: int) -> None:
    real, synthetic = repeats(seed, most)
    both = np.vstack([real, synthetic])
    expected = datalab(both)
    assert expected.median > 1e-3
    analysis = analysed({"real": real, "fake": synthetic}, DATALAB)
    (view,) = analysis.views
    assert view.median_distance == pytest.approx(expected.median, rel=1e-9)
    n = len(both)
    assert brute.components(n, pairs_of(analysis.edges)) == brute.components(n, expected.edges)
    np.testing.assert_array_equal(np.isin(np.arange(n), view.groups.row), expected.flags)
    if most == 14:
        # It matters here that copies take up places: all pairs within the radius connect more.
        near = np.argwhere(np.triu(brute.among(both) < view.radius))
        assert len(brute.components(n, set(map(tuple, near.tolist())))) < len(brute.components(n, expected.edges))


@pytest.mark.parametrize(("n", "m"), [(3, 4), (8, 8), (12, 12), (30, 2), (2, 30)])
def test_a_picture_that_is_exactly_copied_between_the_sets_is_one_group_for_datalab_and_us(n: int, m: int) -> None:
    real = np.vstack([normal(0, 40), np.repeat(normal(1, 1), n, axis=0)])
    synthetic = np.vstack([normal(2, 30), np.repeat(normal(1, 1), m, axis=0)])
    both = np.vstack([real, synthetic])
    lab = datalab(both)
    copied = frozenset([*range(40, 40 + n), *range(40 + n + 30, 40 + n + 30 + m)])
    assert sorted(copied) in brute.components(len(both), lab.edges)
    for config in (EXACT, DATALAB):
        seen = only_view(real, synthetic, config)
        assert copied in groups_of(seen.view)
        assert freshness(seen) == 1 - m / (30 + m)


@pytest.mark.parametrize("kind", ["duplicated", "uniform"])
@pytest.mark.parametrize("seed", range(3))
def test_datalab_mode_changes_no_nearest_row_and_no_indicator(kind: str, seed: int) -> None:
    real, synthetic = sets_of(kind, seed, 60, 50)
    exact, lab = (only_view(real, synthetic, config).nearest for config in (EXACT, DATALAB))
    for name, values in vars(exact).items():
        np.testing.assert_array_equal(getattr(lab, name), values, err_msg=name)


@pytest.mark.parametrize("config", [DATALAB, NeighborsConfig(mode="datalab", radius=0.01)])
def test_datalab_mode_claims_no_recall_and_says_why(config: NeighborsConfig) -> None:
    summary = only_view(*sets_of("uniform", 1, 40, 30), config).view.summary()
    assert summary["recall"] is None
    assert summary["reason"]
