import numpy as np
import pytest
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.radius import EXACT_COPIES_ONLY, Calibration, Searches, calibrate
from synthscale.relations import Relation

Distances = list[float] | NDArray[np.float64]

RELATIVE = NeighborsConfig()
ALL = NeighborsConfig(calibrate_on="all")
DATALAB = NeighborsConfig(mode="datalab")


def relation(nearest: Distances) -> Relation:
    """A relation of which only the nearest distances matter."""
    distance = np.asarray(nearest, np.float64).reshape(-1, 1)
    return Relation(np.arange(len(distance)), distance, np.zeros((len(distance), 1), np.int64))


def searches(real_real: Distances, real_own: Distances, own_real: Distances, own_own: Distances) -> Searches:
    return Searches(relation(real_real), relation(real_own), relation(own_real), relation(own_own))


def calibrated(real: Distances, rows: int, config: NeighborsConfig = RELATIVE) -> Calibration:
    """Calibrate on real rows; what the synthetic ones find must not matter."""
    return calibrate(searches(real, np.zeros(len(real)), np.zeros(9), np.zeros(9)), rows, config)


VIEW = searches([0.4, 0.6, 0.8, 0.9], [0.7, 0.1, 0.9, 0.2], [0.1, 0.2, 0.5], [0.3, 0.05, np.inf])


def test_the_radius_is_the_threshold_times_the_median_among_real_rows() -> None:
    found = calibrate(VIEW, 4, RELATIVE)
    assert (found.median, found.low, found.high) == (0.7, 0.7, 0.7)
    assert found.radius == pytest.approx(0.13 * 0.7)
    assert (found.queries, found.rows) == (4, 4)
    assert found.summary() == {"exact": True, "queries": 4, "rows": 4, "low": 0.7, "high": 0.7}
    assert calibrate(VIEW, 4, NeighborsConfig(threshold=0.5)).radius == pytest.approx(0.35)


@pytest.mark.parametrize("config", [ALL, DATALAB, NeighborsConfig(mode="datalab", calibrate_on="real")])
def test_over_all_rows_each_counts_its_nearest_of_either_set(config: NeighborsConfig) -> None:
    # 0.4 0.1 0.8 0.2 of the real rows, 0.1 0.05 0.5 of the others.
    found = calibrate(VIEW, 7, config)
    assert found.median == 0.2
    assert found.radius == pytest.approx(0.13 * 0.2)
    assert found.queries == 7


def test_only_datalab_mode_has_a_floor() -> None:
    tiny = searches([1e-9] * 3, [1e-9] * 3, [1e-9] * 3, [1e-9] * 3)
    assert calibrate(tiny, 6, DATALAB).radius == pytest.approx(0.13e-6)
    assert calibrate(tiny, 6, DATALAB).median == 1e-6
    assert calibrate(tiny, 6, ALL).radius == pytest.approx(0.13e-9)
    assert calibrate(tiny, 3, RELATIVE).radius == pytest.approx(0.13e-9)


@pytest.mark.parametrize("mode", ["exact", "datalab"])
def test_an_absolute_radius_is_taken_as_it_is(mode: str) -> None:
    found = calibrate(VIEW, 7, NeighborsConfig.model_validate({"radius": 0.03, "mode": mode}))
    assert found.radius == 0.03
    assert found.median is not None


@pytest.mark.parametrize("nearest", [[], [np.inf], [np.inf, np.inf]])
def test_with_nothing_to_calibrate_on_only_exact_copies_remain(nearest: list[float]) -> None:
    found = calibrated(nearest, len(nearest))
    assert (found.median, found.low, found.high) == (None, None, None)
    assert found.radius == EXACT_COPIES_ONLY > 0
    assert "real" in found.summary()["reason"]
    assert calibrated(nearest, len(nearest), NeighborsConfig(radius=0.2)).radius == 0.2


def test_a_median_of_zero_leaves_exact_copies() -> None:
    assert calibrated([0, 0, 0, 1], 4).radius == EXACT_COPIES_ONLY
    assert calibrated([5e-324] * 3, 3).radius == EXACT_COPIES_ONLY


def test_rows_without_a_neighbor_do_not_enter_the_median() -> None:
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


def test_the_interval_shrinks_to_nothing_as_the_sample_becomes_everything() -> None:
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
def test_a_sample_of_very_few_has_the_widest_interval_it_can(m: int) -> None:
    found = calibrated(np.arange(1.0, m + 1), 1000)
    assert (found.low, found.high) == (1, m)
