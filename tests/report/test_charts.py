"""Charts of the report: SVG coordinates against the numbers that they represent, and data for the script."""

import html
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from synthscale.metric_names import CORE_METRICS
from synthscale.report.charts import (
    BINS,
    heat_level,
    histogram_path,
    interval_chart,
    interval_text,
    scale_to_box,
    value_text,
)
from synthscale.report.choice import ChosenRows
from synthscale.report.maps import HEIGHT, WIDTH, MapProjection
from synthscale.report.page import LABELS, comparison_pairs, embedded_json, histogram, map_data, weakest_labels

# Interval charts.


def test_values_and_interval_ends_are_positioned_as_fractions_of_the_axis() -> None:
    own = {"value": 0.22, "low": 0.11, "high": 0.33, "reference": 0.5}
    chart = interval_chart("fidelity", {"one": own}, 0.55)
    (line,) = chart.lines
    assert (line.low, line.at, line.high) == (0.2, 0.4, 0.6)
    assert line.reference == pytest.approx(0.5 / 0.55, abs=1e-4)
    assert line.text == "0.220"
    assert line.title == "one: fidelity 0.220, 95 % interval 0.110 to 0.330, reference 0.500"


def test_values_beyond_the_axis_are_clipped_to_its_end() -> None:
    (line,) = interval_chart("fidelity", {"one": {"value": 0.7, "low": -0.1, "high": 0.9}}, 0.55).lines
    assert (line.low, line.at, line.high) == (0.0, 1.0, 1.0)
    assert line.text == "0.700"


def test_an_unknown_value_has_no_position_but_a_reason() -> None:
    chart = interval_chart("coverage", {"one": {"value": None, "reason": "no real images"}}, 1.0)
    (line,) = chart.lines
    assert (line.low, line.at, line.high, line.reference) == (None, None, None, None)
    assert (line.text, line.title) == ("n/a", "one: coverage n/a (no real images)")


def test_generators_keep_their_order_and_have_references_of_their_own() -> None:
    references = {"b": 0.9, "c": None, "a": 0.6}
    figures = {name: {"value": 0.5, "reference": own} for name, own in references.items()}
    chart = interval_chart("coverage", figures, 1.0)
    assert [line.name for line in chart.lines] == ["b", "c", "a"]
    assert [line.reference for line in chart.lines] == [0.9, None, 0.6]


@pytest.mark.parametrize("top", [0.55, 1.0])
def test_ticks_are_positioned_at_their_values(top: float) -> None:
    ticks = interval_chart("any", {}, top).ticks
    assert [text for _, text in ticks] == (["0", "0.25", "0.5"] if top < 1 else ["0", "0.5", "1"])
    np.testing.assert_allclose([place for place, _ in ticks], [float(text) / top for _, text in ticks], atol=1e-4)


def test_interval_text_gives_the_interval_or_the_reason() -> None:
    assert interval_text({"low": 0.1234, "high": 0.5}) == ", 95 % interval 0.123 to 0.500"
    assert interval_text({"low": 0.0, "high": 0.0, "reason": "x"}) == ", 95 % interval 0.000 to 0.000"
    assert interval_text({"low": None, "high": None, "reason": "one block"}) == " (one block)"
    assert interval_text({"value": 0.5}) == ""
    assert [value_text(0.0), value_text(0.99951), value_text(None)] == ["0.000", "1.000", "n/a"]


# Histograms.


def heights(path: str) -> np.ndarray:
    """Return the bin heights, 0..1, of a histogram path; check that it is closed with one step per bin."""
    found = re.findall(r"V(-?[\d.]+)H(\d+)", path)
    assert path == "M0 100" + "".join(f"V{height}H{stop}" for height, stop in found) + "V100Z"
    assert [int(stop) for _, stop in found] == list(range(1, len(found) + 1))
    return 1 - np.array([float(height) for height, _ in found]) / 100


def test_histogram_path_has_the_heights_of_the_counts() -> None:
    counts = np.random.default_rng(0).integers(0, 1000, BINS)
    np.testing.assert_allclose(heights(histogram_path(counts, 1000)), counts / 1000, atol=0.00051)
    assert heights(histogram_path(np.zeros(BINS, np.int64), 0)).tolist() == [0.0] * BINS


def test_both_histograms_are_shares_of_their_class_on_one_scale() -> None:
    rng = np.random.default_rng(1)
    counts = {"real": rng.integers(1, 100, BINS), "synthetic": 1000 * rng.integers(0, 9, BINS)}
    shares = {kind: own / own.sum() for kind, own in counts.items()}
    largest = max(own.max() for own in shares.values())
    found = histogram(ChosenRows(counts=counts))
    assert set(found) == {"real", "synthetic"}
    for kind, own in shares.items():
        np.testing.assert_allclose(heights(found[kind]), own / largest, atol=0.00051)


def test_a_dominant_bin_is_cut_so_that_the_others_stay_visible() -> None:
    counts = {"real": np.eye(BINS, dtype=np.int64)[0] * 7, "synthetic": np.full(BINS, 3)}
    found = {kind: heights(path) for kind, path in histogram(ChosenRows(counts=counts)).items()}
    assert found["real"].tolist() == [1.0] + [0.0] * (BINS - 1)
    np.testing.assert_allclose(found["synthetic"], 2 / BINS, atol=0.00051)


def test_a_class_without_rows_has_a_flat_histogram() -> None:
    none = np.zeros(BINS, np.int64)
    found = histogram(ChosenRows(counts={"real": none, "synthetic": none}))
    assert heights(found["real"]).tolist() == heights(found["synthetic"]).tolist() == [0.0] * BINS


# Heat maps.


@pytest.mark.parametrize(
    ("value", "reference", "level"),
    [
        (1.0, 1.0, 0),
        (0.6, 0.5, 0),
        (0.96, 1.0, 0),
        (0.9, 1.0, 1),
        (0.45, 0.5, 1),
        (0.6, 1.0, 2),
        (0.2, 0.5, 3),
        (0.34, 1.0, 4),
        (0.0, 0.5, 4),
        (None, 1.0, -1),
        (0.5, None, -1),
        (0.5, 0.0, -1),
    ],
)
def test_heat_level_grows_with_the_gap_to_the_reference(value: Any, reference: Any, level: int) -> None:
    assert heat_level({"value": value, "reference": reference}) == level


def test_heat_level_decreases_with_the_value_and_uses_all_levels() -> None:
    for reference in (0.5, 0.8, 1.0):
        levels = [
            heat_level({"value": v, "reference": reference}) for v in np.linspace(0, reference, 400).tolist()
        ]
        assert levels == sorted(levels, reverse=True)
        assert set(levels) == {0, 1, 2, 3, 4}


# Maps.


def test_scaled_points_fill_the_box_inside_the_margin_in_their_order() -> None:
    places = np.random.default_rng(2).normal(size=(400, 2)) * [1e-3, 1e6]
    found = scale_to_box(places, 720, 480, 8)
    assert found.min(0).tolist() == [8, 8]
    assert found.max(0).tolist() == [712, 472]
    for axis in range(2):
        assert (np.diff(found[np.argsort(places[:, axis]), axis]) >= 0).all()


def test_points_between_the_quantiles_are_scaled_linearly() -> None:
    places = np.column_stack([np.arange(201.0), -3 * np.arange(201.0)])
    found = scale_to_box(places, 220, 120, 10)
    within = np.arange(1, 200)
    np.testing.assert_allclose(found[within, 0], 10 + 200 * (within - 1) / 198, atol=0.051)
    np.testing.assert_allclose(found[within, 1], 110 - 100 * (within - 1) / 198, atol=0.051)


def test_an_outlier_does_not_compress_the_other_points() -> None:
    places = np.random.default_rng(3).uniform(0, 1, (1000, 2))
    places[0] = 1e9
    found = scale_to_box(places, 720, 480, 8)
    assert found[0].tolist() == [712, 472]
    assert (np.ptp(found[1:], axis=0) > [690, 455]).all()
    assert (np.std(found[1:], axis=0) > [190, 125]).all()


def test_identical_points_stay_identical_and_inside_the_box() -> None:
    found = scale_to_box(np.full((5, 2), 3.25), 720, 480, 8)
    assert len(np.unique(found, axis=0)) == 1
    assert (found >= 8).all()
    assert (found <= [712, 472]).all()


# Labels.


def label_figures(*gaps: float | None) -> dict[str, Any]:
    """Return a label's metrics, given how far each is below its reference (None: no value)."""
    values = (*gaps, *[0.0] * (len(CORE_METRICS) - len(gaps)))
    return {
        name: {"value": None if gap is None else 1 - gap, "reference": 1.0}
        for name, gap in zip(CORE_METRICS, values, strict=True)
    }


def test_few_labels_are_all_shown_sorted_and_with_their_levels() -> None:
    by_label = {"b": label_figures(0.9, 0.1), "a": label_figures(None), "": label_figures()}
    found = weakest_labels({"by_label": by_label})
    assert [row["label"] for row in found] == ["", "a", "b"]
    assert [row["figures"] for row in found] == [by_label[row["label"]] for row in found]
    rest = [0] * (len(CORE_METRICS) - 2)
    assert [list(row["levels"].values()) for row in found] == [[0, 0, *rest], [-1, 0, *rest], [4, 1, *rest]]
    assert weakest_labels({"by_label": {}}) == []


def test_only_the_weakest_of_many_labels_are_shown() -> None:
    rng = np.random.default_rng(4)
    gaps = {f"label {i:03d}": rng.choice([0.0, 0.2, 0.4, 0.6, 0.8], len(CORE_METRICS)) for i in range(200)}
    found = weakest_labels({"by_label": {name: label_figures(*own.tolist()) for name, own in gaps.items()}})
    shown = [row["label"] for row in found]
    assert len(shown) == LABELS
    assert shown == sorted(shown)
    # These gaps correspond to levels 0 to 4.
    sums = {name: own.sum() for name, own in gaps.items()}
    assert min(sums[name] for name in shown) >= max(sums[name] for name in sums.keys() - set(shown)) - 1e-9


def test_a_label_without_synthetic_images_is_preferred_to_perfect_ones() -> None:
    by_label = {f"perfect {i:03d}": label_figures() for i in range(LABELS)}
    missing = {name: {"value": None, "reference": 1.0, "reason": "no images"} for name in CORE_METRICS}
    by_label["never made"] = {**missing, "coverage": {"value": 0.0, "reference": 1.0}}
    assert "never made" in [row["label"] for row in weakest_labels({"by_label": by_label})]


# Comparisons.


def comparisons(names: list[str]) -> list[dict[str, Any]]:
    return [
        {"one": one, "two": two, "metric": metric, "difference": i + j / 100}
        for metric in CORE_METRICS
        for i, one in enumerate(names)
        for j, two in enumerate(names)
        if i < j
    ]


def test_differences_are_grouped_by_pair_and_metric() -> None:
    given_ones = comparisons(["a", "b", "c"])
    found = comparison_pairs(given_ones)["pairs"]
    assert [(row["one"], row["two"]) for row in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for row in found:
        assert list(row["by"]) == list(CORE_METRICS)
        assert all(each in given_ones and each["metric"] == name for name, each in row["by"].items())
        assert {(each["one"], each["two"]) for each in row["by"].values()} == {(row["one"], row["two"])}
    assert comparison_pairs([]) == {"pairs": [], "all_pairs": 0}


def test_only_the_first_of_many_pairs_are_shown_with_all_metrics() -> None:
    names = [f"g{i:02d}" for i in range(15)]
    found, total = comparison_pairs(comparisons(names)).values()
    assert total == 105
    assert 10 < len(found) < 105
    every = list(itertools.combinations(names, 2))
    assert [(row["one"], row["two"]) for row in found] == every[: len(found)]
    assert all(len(row["by"]) == len(CORE_METRICS) for row in found)


# Data for the script.


def test_map_data_refers_to_sets_and_labels_by_index() -> None:
    points = [
        {"id": "1", "set": "real", "label": "dog", "picture": 3, "scores": {"b": 0.5}},
        {"id": "2", "set": "b", "label": None, "picture": None, "scores": {}},
        {"id": "3", "set": "a", "label": "cat", "picture": 0, "scores": {"a": 1.0}},
        {"id": "4", "set": "a", "label": "", "picture": 1, "scores": {"a": 0.0}},
        {"id": "5", "set": "real", "label": "dog", "picture": 2, "scores": {"a": 0.25, "b": 0.5}},
    ]
    places = np.arange(10.0).reshape(5, 2)
    projections = [MapProjection("PCA", places, (0.5, 0.25)), MapProjection("UMAP", places + 0.5, None)]
    found = json.loads(str(embedded_json(map_data(projections, points, ["real", "a", "b"]))))
    assert (found["width"], found["height"]) == (WIDTH, HEIGHT)
    assert found["labels"] == ["cat", "dog"]
    for point, (name, own_set, label, picture, scores) in zip(points, found["points"], strict=True):
        assert (name, picture, scores) == (point["id"], point["picture"], point["scores"])
        assert found["sets"][own_set] == point["set"]
        assert (found["labels"][label] if label >= 0 else "") == (point["label"] or "")
    assert [own["name"] for own in found["projections"]] == ["PCA", "UMAP"]
    assert [own["shown"] for own in found["projections"]] == [[0.5, 0.25], None]
    assert found["projections"][1]["points"] == (places + 0.5).tolist()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda own: st.lists(own, max_size=4) | st.dictionaries(st.text(), own, max_size=4),
    max_leaves=12,
)


@given(values)
def test_embedded_json_round_trips_and_contains_no_markup(value: Any) -> None:
    text = str(embedded_json(value))
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!-- <script>", "]]>", "&lt;", "a\u2028b"]
)
def test_no_text_ends_the_script_element(text: str) -> None:
    found = str(embedded_json({text: [text]}))
    assert json.loads(found) == {text: [text]}
    assert html.unescape(found) == found
    assert "<" not in found
    # Nor does the template escape it once more.
    assert str(escape(embedded_json({text: [text]}))) == found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        embedded_json([value])
