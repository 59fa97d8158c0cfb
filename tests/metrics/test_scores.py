import numpy as np
import pytest
from cleanlab.datalab.internal.issue_manager.duplicate import _compute_scores_with_exp_transform
from cleanlab.rank import get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from synthscale.classify.evaluation import synthetic_probability
from synthscale.metrics.scores import label_quality_scores, near_duplicate_score, quality


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=50))
@settings(deadline=None)
def test_q_is_cleanlabs_label_quality_score(rows: list[tuple[float, bool]]) -> None:
    logit, is_real = np.array([logit for logit, _ in rows]), np.array([real for _, real in rows])
    p = expit(logit)
    expected = get_label_quality_scores(
        labels=np.where(is_real, 0, 1), pred_probs=np.column_stack([1 - p, p]), method="self_confidence"
    )
    np.testing.assert_allclose(quality(logit, is_real), expected, atol=1e-12)
    np.testing.assert_allclose(label_quality_scores(logit, is_real), expected, atol=1e-12)


@given(st.lists(st.tuples(st.floats(-800, 800) | st.just(np.nan), st.booleans()), max_size=50))
@settings(deadline=None)
def test_cleanlabs_scores_equal_the_vectorised_quality(rows: list[tuple[float, bool]]) -> None:
    """Also for no rows, one class alone, saturated probabilities and NaN logits, which stay NaN."""
    logit = np.array([logit for logit, _ in rows], np.float64)
    is_real = np.array([real for _, real in rows], np.bool_)
    scores = label_quality_scores(logit, is_real)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(logit))
    np.testing.assert_allclose(scores, quality(logit, is_real), atol=1e-12)


def test_probabilities_neither_overflow_nor_leave_the_unit_interval() -> None:
    logit = np.array([-1e6, -800.0, 0.0, 800.0, 1e6])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(synthetic_probability(logit), [0, 0, 0.5, 1, 1])


def test_nan_logits_have_nan_quality() -> None:
    logit, is_real = np.array([np.nan, np.nan]), np.array([True, False])
    assert np.isnan(quality(logit, is_real)).all()
    assert np.isnan(label_quality_scores(logit, is_real)).all()


def test_the_qualities_of_both_labels_add_up_to_one() -> None:
    logit = np.linspace(-20, 20, 101)
    both = quality(logit, np.ones(101, bool)) + quality(logit, np.zeros(101, bool))
    np.testing.assert_allclose(both, 1, atol=1e-15)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30), st.floats(1e-6, 2))
@settings(deadline=None)
def test_the_near_duplicate_score_is_cleanlabs(distances: list[float], median: float) -> None:
    d = np.array(distances)
    expected = _compute_scores_with_exp_transform(d, temperature=1 / median)
    np.testing.assert_allclose(near_duplicate_score(d, median), expected, atol=1e-12)


def test_the_near_duplicate_score_at_known_distances() -> None:
    found = near_duplicate_score(np.array([0.0, 1e-8, 0.2, np.log(2) * 0.2]), 0.2)
    assert found.tolist() == pytest.approx([0, 0, 1 - np.exp(-1), 0.5])


def test_the_near_duplicate_score_is_nan_where_distance_or_median_is_unknown_except_for_copies() -> None:
    d = np.array([0.0, 0.1, np.nan])
    np.testing.assert_array_equal(near_duplicate_score(d, None), [0, np.nan, np.nan])
    found = near_duplicate_score(d, 0.1)
    assert found[0] == 0
    assert np.isnan(found[2])


def test_a_median_of_zero_leaves_copies_at_zero_and_the_rest_at_one() -> None:
    np.testing.assert_array_equal(near_duplicate_score(np.array([0.0, 0.3]), 0.0), [0, 1])
