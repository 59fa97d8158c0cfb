import functools
import json
import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from synthscale.metrics.evidence import (
    DirectionSums,
    confounder_figures,
    confounder_warning,
    direction_figures,
    sum_directions,
)
from synthscale.statistics.auc import RankSums, auc_metric, sum_ranks
from synthscale.statistics.bootstrap import poisson_weights
from synthscale.statistics.estimates import TOO_FEW_INDEPENDENT

ENDS = 5
"""Number of examples at either end of a direction."""


def figures_of(sums: DirectionSums) -> dict[str, Any]:
    (found,) = direction_figures([sums], [0.7])
    return found


def extremes(places: list[float], ids: list[str], sign: int) -> list[str]:
    """Return the ids at one end, the most extreme first; ties are ordered by id."""
    return [name for _, name in sorted(zip((sign * place for place in places), ids, strict=True))][:ENDS]


# Few distinct coordinates, so that ties at the cut are common.
rows_along = st.lists(
    st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 3.0]), st.booleans()), min_size=2, max_size=60
).filter(lambda rows: len({is_real for _, is_real in rows}) == 2)


@given(rows_along, st.lists(st.integers(0, 60), max_size=4), st.integers(0, 1000))
@settings(deadline=None)
def test_the_ends_are_the_true_extremes_whatever_the_split_and_order(
    rows: list[tuple[float, bool]], cuts: list[int], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    places, is_real = np.array([place for place, _ in rows]), np.array([real for _, real in rows])
    ids = [f"row-{(7 * i) % 61:02d}" for i in range(len(rows))]
    parts = [
        sum_directions(places[part], is_real[part], [ids[i] for i in part])
        for part in np.split(order, sorted(min(c, len(rows)) for c in cuts))
    ]
    found = figures_of(functools.reduce(operator.add, parts, DirectionSums()))
    for name, kind in (("real", True), ("synthetic", False)):
        own = np.flatnonzero(is_real == kind).tolist()
        mine = places[own].tolist(), [ids[i] for i in own]
        assert found[name]["lowest"] == extremes(*mine, 1)
        assert found[name]["highest"] == extremes(*mine, -1)


def spread_out(seed: int, n: int, m: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str]]:
    rng = np.random.default_rng(seed)
    places = np.concatenate([rng.normal(size=n), 0.5 + 2 * rng.normal(size=m)])
    return places, np.arange(n + m) < n, [f"id-{i}" for i in range(n + m)]


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_directions_figures_are_those_of_its_rows(pieces: int) -> None:
    places, is_real, ids = spread_out(0, 300, 200)
    order = np.random.default_rng(1).permutation(500)
    parts = [
        sum_directions(places[part], is_real[part], [ids[i] for i in part])
        for part in np.array_split(order, pieces)
    ]
    found = figures_of(functools.reduce(operator.add, parts))
    assert found["share"] == 0.7
    assert found["auc"] == pytest.approx(roc_auc_score(~is_real, places), abs=1e-3)
    for name, own in (("real", places[is_real]), ("synthetic", places[~is_real])):
        assert found[name]["mean"] == pytest.approx(own.mean())
        assert found[name]["deviation"] == pytest.approx(own.std())
    json.dumps(found, allow_nan=False)


def test_a_class_far_from_zero_without_spread_has_a_deviation_of_zero() -> None:
    # Rounding can make the computed variance negative, which must not give NaN.
    places = np.where(np.arange(40) < 20, 1e6 + 1 / 3, 0.1)
    found = figures_of(sum_directions(places, np.arange(40) < 20, [f"{i:02d}" for i in range(40)]))
    assert found["real"]["mean"] == pytest.approx(1e6 + 1 / 3)
    # Coordinates are in deviations of the real images and clipped, so 1e6 is far beyond what occurs.
    assert 0 <= found["real"]["deviation"] < 0.1
    assert 0 <= found["synthetic"]["deviation"] < 1e-6


def test_rows_without_a_coordinate_are_left_out() -> None:
    places, is_real, ids = spread_out(2, 30, 20)
    more = np.append(places, [np.nan, np.nan]), np.append(is_real, [True, False]), [*ids, "a", "z"]
    assert figures_of(sum_directions(*more)) == figures_of(sum_directions(places, is_real, ids))


def test_adding_up_leaves_the_parts_as_they_were() -> None:
    one, two = sum_directions(*spread_out(3, 20, 20)), sum_directions(*spread_out(4, 20, 20))
    before = figures_of(one), figures_of(two)
    _ = one + two
    assert (figures_of(one), figures_of(two)) == before


def test_there_are_as_many_directions_as_the_classifier_has() -> None:
    sums = [sum_directions(*spread_out(seed, 20, 20)) for seed in range(3)]
    assert [found["share"] for found in direction_figures(sums, [0.5, 0.3])] == [0.5, 0.3]
    assert direction_figures(sums, []) == []
    assert direction_figures([DirectionSums() for _ in range(3)], []) == []


def ranked(seed: int, n: int, shift: float, scale: float = 1.0) -> RankSums:
    rng = np.random.default_rng(seed)
    value = np.concatenate([rng.normal(size=n), rng.normal(size=n) + shift])
    return sum_ranks(scale * value, np.arange(2 * n) < n, poisson_weights(np.arange(2 * n, dtype=np.uint64)))


def test_the_confounder_figures_are_both_aucs() -> None:
    facts, size = ranked(0, 200, 1.0), ranked(1, 200, 0.5)
    found = confounder_figures(facts, size, True)
    assert found["auc"] == auc_metric(facts)
    assert found["bytes_per_pixel_auc"] == pytest.approx(auc_metric(size)["value"])
    assert "reason" not in found


@pytest.mark.parametrize("sign", [1, -1])
def test_bytes_per_pixel_auc_is_the_same_for_smaller_and_larger_files(sign: int) -> None:
    found = confounder_figures(ranked(0, 200, 1.0), ranked(1, 200, 0.8, scale=sign), True)
    assert found["bytes_per_pixel_auc"] == pytest.approx(
        confounder_figures(RankSums(), ranked(1, 200, 0.8), True)["bytes_per_pixel_auc"]
    )
    assert found["bytes_per_pixel_auc"] > 0.6


@pytest.mark.parametrize("is_classified", [True, False])
def test_vectors_have_null_confounders_with_a_reason(is_classified: bool) -> None:
    nothing = sum_ranks(np.full(20, np.nan), np.arange(20) < 10)
    found = confounder_figures(nothing, nothing, is_classified)
    assert found["auc"]["value"] is None
    assert "vectors" in found["auc"]["reason"]
    assert found["bytes_per_pixel_auc"] is None
    assert "vectors" in found["reason"]
    assert confounder_warning(found) is None
    json.dumps(found, allow_nan=False)


def test_files_without_a_classifier_have_a_null_area_with_its_reason_and_their_sizes() -> None:
    unknown = sum_ranks(np.full(400, np.nan), np.arange(400) < 200)
    found = confounder_figures(unknown, ranked(1, 200, 0.5), False)
    assert found["auc"]["value"] is None
    assert "classifier" in found["auc"]["reason"]
    assert found["bytes_per_pixel_auc"] > 0.5
    assert confounder_warning(found) is None


def figures_at(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"auc": {"value": value, "low": low, "high": high}, "bytes_per_pixel_auc": 0.99}


@pytest.mark.parametrize(
    ("low", "fires"), [(0.61, True), (0.9, True), (1.0, True), (0.6, False), (0.59, False), (0.3, False)]
)
def test_the_warning_fires_where_the_lower_end_is_above_six_tenths(low: float, fires: bool) -> None:
    warning = confounder_warning(figures_at(max(low, 0.75), low, 1.0))
    assert (warning is not None) == fires
    if warning:
        assert f"{max(low, 0.75):.2f}" in warning


def test_neither_a_high_value_nor_the_files_sizes_warn_by_themselves() -> None:
    assert confounder_warning(figures_at(0.95, None, None)) is None
    assert confounder_warning(figures_at(0.95, 0.55, 1.0)) is None
    assert confounder_warning(figures_at(0.5, 0.45, 0.55)) is None


@pytest.mark.parametrize(("n", "fires"), [(12, False), (2000, True)])
def test_few_files_that_differ_a_little_do_not_warn_and_many_do(n: int, fires: bool) -> None:
    # The AUC of N(0, 1) against N(0.6, 1) is 0.66.
    figures = confounder_figures(ranked(5, n, 0.6), ranked(6, n, 0.0), True)
    assert (confounder_warning(figures) is not None) == fires


def test_two_formats_warn_and_one_does_not() -> None:
    # A classifier of file properties gives equal logits to files of one format.
    n = 50
    drawn = poisson_weights(np.arange(2 * n, dtype=np.uint64))
    is_real, size = np.arange(2 * n) < n, ranked(7, n, 0.0)
    apart = sum_ranks(np.where(is_real, -4.0, 4.0), is_real, drawn)
    alike = sum_ranks(np.zeros(2 * n), is_real, drawn)
    assert confounder_warning(confounder_figures(apart, size, True))
    assert confounder_warning(confounder_figures(alike, size, True)) is None


@pytest.mark.parametrize(("n", "m", "has_interval"), [(9, 200, False), (200, 9, False), (10, 10, True)])
def test_fewer_than_ten_files_of_a_set_have_no_interval_and_no_warning(n: int, m: int, has_interval: bool) -> None:
    is_real = np.arange(n + m) < n
    weights = poisson_weights(np.arange(n + m, dtype=np.uint64))
    apart = sum_ranks(np.where(is_real, -4.0, 4.0), is_real, weights)
    found = confounder_figures(apart, apart, True)
    assert found["auc"]["value"] == 1
    assert (found["auc"]["low"] is not None) == has_interval
    assert (confounder_warning(found) is not None) == has_interval
    if not has_interval:
        assert found["auc"]["reason"] == TOO_FEW_INDEPENDENT
