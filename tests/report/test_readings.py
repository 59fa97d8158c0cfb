"""Metrics in words: shares as counts, levels by the gap to the reference, the worst first."""

import itertools
import re

import numpy as np
import pytest

from synthscale.metric_names import CORE_METRICS
from synthscale.report.readings import EVIDENCE, MEANING, reading, readings, share_words

SHARES = ("diversity", "unique_share", "freshness", "precision", "coverage")


def said(words: str) -> float:
    """Return the share that words express, the middle of their range."""
    if match := re.match(r"(fewer than )?(\d+) in ([\d,]+) ", words):
        share = int(match[2]) / int(match[3].replace(",", ""))
        return share / 2 if match[1] else share
    return next(
        share
        for start, share in {"no ": 0.0, "every ": 1.0, "all but a few ": 0.9975, "nearly all ": 0.97}.items()
        if words.startswith(start)
    )


def words_of(share: float) -> str:
    return share_words(share, "image", "repeats", "repeat")


def test_every_core_metric_has_a_meaning_and_evidence() -> None:
    assert set(MEANING) == set(EVIDENCE) == set(CORE_METRICS)
    assert all(text.strip() for text in MEANING.values())


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "no image repeats"),
        (-1e-17, "no image repeats"),
        (0.0004, "fewer than 1 in 1,000 images repeat"),
        (0.001, "1 in 1,000 images repeats"),
        (0.01, "1 in 100 images repeats"),
        (0.125, "1 in 8 images repeats"),
        (1 / 3, "1 in 3 images repeats"),
        (0.5, "5 in 10 images repeat"),
        (0.9, "9 in 10 images repeat"),
        (0.95, "nearly all images repeat"),
        (0.999, "all but a few images repeat"),
        (1.0, "every image repeats"),
    ],
)
def test_a_share_is_expressed_as_a_count(share: float, words: str) -> None:
    assert words_of(share) == words


def test_words_are_close_to_the_share_and_monotonic() -> None:
    shares = np.unique(np.concatenate([np.geomspace(1e-5, 1, 2000), np.linspace(0.00037, 1, 2000)]))
    told = np.array([said(words_of(share)) for share in shares.tolist()])
    assert (np.diff(told) >= 0).all()
    large = shares > 0.4
    assert np.abs(told - shares)[large].max() <= 0.05 + 1e-9
    counted = (shares >= 0.001) & ~large
    assert np.abs(1 / told - 1 / shares)[counted].max() <= 0.5 + 1e-9
    assert (told[shares < 0.001] < 0.001).all()


def test_two_fifths_are_not_called_a_half() -> None:
    assert 1 - 0.6 == 0.4
    assert said(words_of(0.4)) <= said(words_of(0.41))
    assert said(words_of(0.4)) == pytest.approx(0.4, abs=0.07)


def test_the_verb_agrees_with_the_number() -> None:
    for share in np.geomspace(1e-4, 1, 300).tolist():
        words = words_of(share)
        is_one = words.startswith(("1 in", "every"))
        assert words.endswith("repeats" if is_one else "repeat")
        assert ("images" in words) == (not words.startswith("every"))


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("fidelity", 0.5, "synthetic images cannot be told apart from real ones"),
        ("fidelity", 0.62, "synthetic images cannot be told apart from real ones"),
        ("fidelity", 0.36, "synthetic images are hard to tell apart from real ones"),
        ("fidelity", 0.0, "synthetic images can nearly always be told apart from real ones"),
        ("representativeness", 0.48, "real images are matched by synthetic ones"),
        ("representativeness", 0.01, "real images nearly all differ from all synthetic ones"),
        ("diversity", 1.0, "no synthetic image repeats another"),
        ("diversity", 0.75, "1 in 4 synthetic images repeats another"),
        ("freshness", 1.0, "no synthetic image repeats a real one"),
        ("freshness", 0.3, "7 in 10 synthetic images repeat a real one"),
        ("precision", 1.0, "every synthetic image is near a real one"),
        ("precision", 0.0, "every synthetic image is far from all real ones"),
        ("coverage", 1.0, "every real image has a synthetic one near it"),
        ("coverage", 0.9, "1 in 10 real images has no synthetic one near it"),
    ],
)
def test_words_of_a_value(metric: str, value: float, words: str) -> None:
    assert reading(metric, {"value": value, "reference": 1.0}).words == words


@pytest.mark.parametrize("metric", ["fidelity", "representativeness"])
def test_classifier_metrics_have_five_words_in_order(metric: str) -> None:
    texts = [reading(metric, {"value": v, "reference": 0.5}).words for v in np.linspace(0, 1, 501).tolist()]
    changes = sum(a != b for a, b in itertools.pairwise(texts))
    assert changes + 1 == len(set(texts)) == 5


@pytest.mark.parametrize(
    ("metric", "value", "reference", "level"),
    [
        ("precision", 0.96, 1.0, "good"),
        ("precision", 0.9, 1.0, "fair"),
        ("precision", 0.7, 1.0, "poor"),
        ("coverage", 0.7, 0.72, "good"),
        ("coverage", 0.7, 0.8, "fair"),
        ("coverage", 0.9, 0.8, "good"),
        ("fidelity", 0.46, 0.5, "good"),
        ("fidelity", 0.3, 0.5, "fair"),
        ("fidelity", 0.2, 0.5, "poor"),
        ("fidelity", 0.6, 0.5, "good"),
    ],
)
def test_the_level_depends_on_the_relative_gap_to_the_reference(
    metric: str, value: float, reference: float, level: str
) -> None:
    found = reading(metric, {"value": value, "reference": reference})
    assert found.level == level
    assert found.gap == pytest.approx(max(0.0, 1 - value / reference))


def test_a_value_at_the_limit_is_good() -> None:
    assert reading("fidelity", {"value": 0.45, "reference": 0.5}).level == "good"
    assert reading("precision", {"value": 0.95, "reference": 1.0}).level == "good"


@pytest.mark.parametrize("metric", MEANING)
def test_a_metric_without_a_value_gives_the_reason(metric: str) -> None:
    found = reading(metric, {"value": None, "reference": 1.0, "reason": "too few images"})
    assert (found.level, found.gap) == ("none", 0.0)
    assert found.words == f"{metric} could not be computed: too few images"
    assert reading(metric, {"value": None}).level == "none"


def test_the_reference_is_1_by_default() -> None:
    assert reading("coverage", {"value": 0.9}) == reading("coverage", {"value": 0.9, "reference": 1.0})


def test_readings_are_sorted_by_gap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        metrics = {
            name: {"value": float(rng.uniform()), "reference": 0.5 if name not in SHARES else 1.0}
            for name in rng.permutation(list(MEANING)).tolist()
        }
        found = readings(metrics)
        missing = {name: max(0.0, 1 - own["value"] / own["reference"]) for name, own in metrics.items()}
        assert {each.metric for each in found} == set(metrics)
        gaps = [missing[each.metric] for each in found]
        np.testing.assert_allclose(gaps, sorted(gaps, reverse=True), rtol=1e-12)


def test_unknown_metrics_are_ignored_and_ties_keep_their_order() -> None:
    fine = {"value": 1.0, "reference": 1.0}
    found = readings({"coverage": fine, "fidelity": {"value": 0.5, "reference": 0.5}, "vendi": fine})
    assert [each.metric for each in found] == ["fidelity", "coverage"]
    assert readings({}) == []


@pytest.mark.parametrize("metric", SHARES)
def test_a_value_at_a_reference_below_1_is_said_to_be_as_expected(metric: str) -> None:
    found = reading(metric, {"value": 0.178, "reference": 0.178})
    assert found.level == "good"
    # What the sentence speaks of: images that repeat, or that are near.
    assert ("82 %" if "repeat" in found.words else "18 %") in found.words
    assert not re.search(r"\d+ in \d+", found.words)


@pytest.mark.parametrize("metric", SHARES)
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_nothing_is_below_a_reference_of_0(metric: str, value: float) -> None:
    found = reading(metric, {"value": value, "low": value, "high": value, "reference": 0.0})
    assert (found.level, found.gap) == ("good", 0.0)


@pytest.mark.parametrize("metric", SHARES)
def test_a_value_below_a_reference_below_1_is_compared_with_it(metric: str) -> None:
    found = reading(metric, {"value": 0.3, "reference": 0.75})
    assert found.level == "poor"
    assert found.words.startswith("7 in 10 ")
    assert "1 in 4" in found.words.split("(")[1]


@pytest.mark.parametrize("metric", SHARES)
def test_a_reference_that_rounds_to_1_is_not_mentioned(metric: str) -> None:
    assert reading(metric, {"value": 0.3, "reference": 0.999}).words == reading(metric, {"value": 0.3}).words


@pytest.mark.parametrize("metric", [*SHARES, "fidelity", "representativeness"])
def test_too_few_independent_images_take_the_tick_away(metric: str) -> None:
    figures = {"value": 0.99, "low": None, "high": None, "reference": 1.0, "reason": "too_few_independent"}
    found = reading(metric, figures)
    assert found.level == "none"
    assert found.words.endswith("too few independent images to be sure")
    assert reading(metric, {**figures, "reason": "no interval: another reason"}).level != "none"


def test_a_note_replaces_the_words_and_takes_the_tick_away() -> None:
    found = reading("precision", {"value": 0.94, "low": 0.9, "high": 0.97, "reference": 0.8, "note": "cannot see"})
    assert (found.words, found.level) == ("cannot see", "none")
