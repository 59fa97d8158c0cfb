import numpy as np
import pytest
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.neighbors.copies import Copies, copies_from_pairs
from synthscale.neighbors.knn_search import KnnResult
from synthscale.neighbors.radius import (
    DATALAB_FLOOR,
    EXACT_COPIES_ONLY,
    RadiusCalibration,
    ViewSearches,
    calibrate_radius,
)

Distances = list[float] | NDArray[np.float64]

RELATIVE = NeighborsConfig()
ALL = NeighborsConfig(calibrate_on="all")
DATALAB = NeighborsConfig(mode="datalab")
NONE = Copies(np.empty(0, np.int64), np.empty(0, np.int64))


OWN = 1_000_000
"""Row number of the generator's first row."""


def relation(nearest: Distances, start: int = 0) -> KnnResult:
    """k-NN result of every tenth row from ``start`` on; only the nearest distances matter."""
    distance = np.asarray(nearest, np.float64).reshape(-1, 1)
    return KnnResult(start + 10 * np.arange(len(distance)), distance, np.zeros((len(distance), 1), np.int64))


def searches(
    real_real: Distances, real_synthetic: Distances, synthetic_real: Distances, synthetic_synthetic: Distances
) -> ViewSearches:
    return ViewSearches(
        relation(real_real),
        relation(real_synthetic),
        relation(synthetic_real, OWN),
        relation(synthetic_synthetic, OWN),
    )


def repeated(*rows: tuple[int, int]) -> Copies:
    """Copies from pairs (row, number of its copies, fewer than ten)."""
    pairs = [(np.full(count - 1, row), row + np.arange(1, count)) for row, count in rows]
    return copies_from_pairs(pairs)


def calibrated(real: Distances, rows: int, config: NeighborsConfig = RELATIVE) -> RadiusCalibration:
    """Calibrate on real rows; the results of synthetic rows must not matter."""
    return calibrate_radius(searches(real, np.zeros(len(real)), np.zeros(9), np.zeros(9)), rows, config, NONE)


VIEW = searches([0.4, 0.6, 0.8, 0.9], [0.7, 0.1, 0.9, 0.2], [0.1, 0.2, 0.5], [0.3, 0.05, np.inf])


def test_the_radius_is_the_threshold_times_the_median_among_real_rows() -> None:
    found = calibrate_radius(VIEW, 4, RELATIVE, NONE)
    assert (found.median, found.low, found.high) == (0.7, 0.7, 0.7)
    assert found.radius == pytest.approx(0.13 * 0.7)
    assert (found.queries, found.rows) == (4, 4)
    assert found.summary() == {"exact": True, "queries": 4, "rows": 4, "low": 0.7, "high": 0.7}
    assert calibrate_radius(VIEW, 4, NeighborsConfig(threshold=0.5), NONE).radius == pytest.approx(0.35)


@pytest.mark.parametrize("config", [ALL, DATALAB, NeighborsConfig(mode="datalab", calibrate_on="real")])
def test_a_median_over_both_sets_uses_each_rows_nearest_of_either_set(config: NeighborsConfig) -> None:
    # Nearest distances: 0.4 0.1 0.8 0.2 of the real rows, 0.1 0.05 0.5 of the generator's.
    found = calibrate_radius(VIEW, 7, config, NONE)
    assert found.median == 0.2
    assert found.radius == pytest.approx(0.13 * 0.2)
    assert found.queries == 7


def test_only_datalab_mode_has_a_floor() -> None:
    tiny = searches([1e-9] * 3, [1e-9] * 3, [1e-9] * 3, [1e-9] * 3)
    assert calibrate_radius(tiny, 6, DATALAB, NONE).radius == pytest.approx(0.13e-6)
    assert calibrate_radius(tiny, 6, DATALAB, NONE).median == 1e-6
    assert calibrate_radius(tiny, 6, ALL, NONE).radius == pytest.approx(0.13e-9)
    assert calibrate_radius(tiny, 3, RELATIVE, NONE).radius == pytest.approx(0.13e-9)


@pytest.mark.parametrize("mode", ["exact", "datalab"])
def test_an_absolute_radius_is_used_unchanged(mode: str) -> None:
    found = calibrate_radius(VIEW, 7, NeighborsConfig.model_validate({"radius": 0.03, "mode": mode}), NONE)
    assert found.radius == 0.03
    assert found.median is not None


@pytest.mark.parametrize("nearest", [[], [np.inf], [np.inf, np.inf]])
def test_without_distances_the_radius_covers_exact_copies_only(nearest: list[float]) -> None:
    found = calibrated(nearest, len(nearest))
    assert (found.median, found.low, found.high) == (None, None, None)
    assert found.radius == EXACT_COPIES_ONLY > 0
    assert "real" in found.summary()["reason"]
    assert calibrated(nearest, len(nearest), NeighborsConfig(radius=0.2)).radius == 0.2


def test_a_median_of_zero_gives_a_radius_for_exact_copies() -> None:
    assert calibrated([0, 0, 0, 1], 4).radius == EXACT_COPIES_ONLY
    assert calibrated([5e-324] * 3, 3).radius == EXACT_COPIES_ONLY


def test_rows_without_a_neighbor_are_excluded_from_the_median() -> None:
    assert calibrated([0.1, np.inf, 0.3, np.inf, 0.2], 5).median == 0.2


@pytest.mark.parametrize(("rows", "sample"), [(100_000, 400), (1000, 400), (450, 400), (2000, 25)])
def test_the_interval_of_a_sample_covers_the_true_median(rows: int, sample: int) -> None:
    rng = np.random.default_rng(0)
    everything = rng.gamma(0.7, size=rows)
    draws = [calibrated(rng.choice(everything, sample, replace=False), rows) for _ in range(400)]
    true = float(np.median(everything))
    covered = np.mean([d.low <= true <= d.high for d in draws if d.low is not None and d.high is not None])
    assert covered >= 0.9
    assert all(d.low <= d.median <= d.high for d in draws if None not in (d.low, d.median, d.high))
    assert not draws[0].summary()["exact"]


def test_the_interval_shrinks_to_a_point_as_the_sample_becomes_complete() -> None:
    everything = np.random.default_rng(1).random(10_001)

    def width(m: int) -> float:
        found = calibrated(everything[:m], 10_001)
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    widths = [width(m) for m in (100, 1000, 8000, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] < 0.25
    assert widths[-1] < 1e-3
    assert width(10_001) == 0


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_interval_of_a_tiny_sample_spans_all_its_values(m: int) -> None:
    found = calibrated(np.arange(1.0, m + 1), 1000)
    assert (found.low, found.high) == (1, m)


# Datalab does not collapse copies: each counts, with a neighbour at distance 0.


def test_datalab_counts_every_copy_at_distance_zero() -> None:
    # 0.4 0.1 0.8 0.2 and 0.1 0.05 0.5; the third real row occurs three times, the third synthetic row twice.
    found = calibrate_radius(VIEW, 7, DATALAB, repeated((20, 3), (OWN + 20, 2)))
    assert found.median == float(np.median([0.4, 0.1, 0, 0, 0, 0.2, 0.1, 0.05, 0, 0])) == 0.025
    assert (found.low, found.high) == (0.025, 0.025)
    assert found.radius == pytest.approx(0.13 * 0.025)
    assert (found.queries, found.rows) == (7, 7)


def test_datalab_includes_a_copied_row_without_a_neighbour() -> None:
    alone = searches([np.inf, np.inf], [0.3, np.inf], [0.4], [np.inf])
    assert calibrate_radius(alone, 3, DATALAB, NONE).median == pytest.approx(0.35)
    assert calibrate_radius(alone, 3, DATALAB, repeated((10, 2))).median == pytest.approx(0.15)


@pytest.mark.parametrize("config", [RELATIVE, ALL])
def test_copies_change_nothing_in_exact_mode(config: NeighborsConfig) -> None:
    rows = 4 if config is RELATIVE else 7
    assert calibrate_radius(VIEW, rows, config, repeated((20, 9), (OWN, 5))) == calibrate_radius(
        VIEW, rows, config, NONE
    )


def test_the_datalab_floor_applies_to_the_interval_too() -> None:
    zeros = np.zeros(100)
    found = calibrate_radius(searches(zeros, zeros, zeros, zeros), 1000, DATALAB, NONE)
    assert (found.median, found.low, found.high) == (DATALAB_FLOOR,) * 3 == (1e-6,) * 3
    assert found.summary()["low"] == found.summary()["high"] == 1e-6
    # Half of the sample is below the floor; so is the lower end of the interval, but not the upper.
    wide = np.concatenate([np.zeros(50), np.linspace(0.1, 1, 50)])
    found = calibrate_radius(searches(wide, wide, wide, wide), 1000, DATALAB, NONE)
    assert found.low == 1e-6
    assert found.median is not None
    assert found.high is not None
    assert 1e-6 < found.median <= found.high


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("rows", [40, 41, 50, 400])
def test_a_sample_of_copied_rows_has_an_interval_in_datalab_mode(rows: int, count: int) -> None:
    # All of the forty sampled rows have copies, so there are more rows than distinct rows.
    real, own = np.linspace(0.1, 0.2, 20), np.linspace(0.3, 0.4, 20)
    view = searches(real, real, own, own)
    most = repeated(*((10 * i, count) for i in range(19)), *((OWN + 10 * i, count) for i in range(19)))
    found = calibrate_radius(view, rows, DATALAB, most)
    assert (found.median, found.low) == (DATALAB_FLOOR, DATALAB_FLOOR)
    assert found.high is not None
    assert np.isfinite(found.high)
    assert found.high >= found.median
    assert (found.queries, found.rows) == (40, rows)
