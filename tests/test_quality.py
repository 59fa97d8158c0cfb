import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthscale import InputError, score_synthetic_data_quality
from tests.examples import examples
from tests.reference import tutorial


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Data frames like Studio's ``cleanset_df``; near-duplicate groups have at least two rows."""
    kinds = draw(st.lists(st.sampled_from(["real", "synthetic"]), min_size=2, max_size=40))
    kinds[:2] = ["real", "synthetic"]
    n = len(kinds)
    group = np.array(draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)))
    sizes = np.bincount(group)
    member = sizes[group] > 1
    return pd.DataFrame(
        {
            "real_or_synthetic": kinds,
            "label_quality_score": draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)),
            "is_near_duplicate": member,
            "near_duplicate_id": pd.array(np.where(member, group, 0), "Int64"),
        }
    ).assign(near_duplicate_id=lambda df: df["near_duplicate_id"].where(member))


@given(frames())
@settings(deadline=None)
def test_the_four_metrics_equal_the_tutorials(frame: pd.DataFrame) -> None:
    assert score_synthetic_data_quality(frame) == pytest.approx(tutorial.scores(frame), abs=1e-12)


@given(frames(), st.integers(0, 1000))
@examples(15)
def test_the_order_and_index_of_rows_do_not_matter(frame: pd.DataFrame, seed: int) -> None:
    shuffled = frame.sample(frac=1, random_state=seed)
    assert score_synthetic_data_quality(shuffled) == pytest.approx(score_synthetic_data_quality(frame), abs=1e-12)


def studio(n: int = 200, m: int = 202) -> pd.DataFrame:
    """18 synthetic rows in synthetic-only groups and 5 in groups with a real row, as in the tutorial."""
    kinds = ["real"] * n + ["synthetic"] * m
    group = np.full(n + m, np.nan)
    group[n : n + 18] = np.arange(18) // 2
    group[n + 18 : n + 23] = 100 + np.arange(5)
    group[:5] = 100 + np.arange(5)
    return pd.DataFrame(
        {
            "real_or_synthetic": kinds,
            "label_quality_score": np.where(np.array(kinds) == "real", 0.861, 0.864),
            "is_near_duplicate": ~np.isnan(group),
            "near_duplicate_id": group,
        }
    )


def test_the_tutorials_published_metrics_are_reproduced() -> None:
    found = score_synthetic_data_quality(studio())
    assert set(found) == {"fidelity", "representativeness", "diversity", "freshness"}
    assert found["diversity"] == pytest.approx(0.9108910891, abs=1e-10)
    assert found["freshness"] == pytest.approx(0.9752475248, abs=1e-10)
    assert found["fidelity"] == pytest.approx(0.136)
    assert found["representativeness"] == pytest.approx(0.139)


def test_without_near_duplicates_diversity_and_freshness_are_one() -> None:
    frame = studio().assign(is_near_duplicate=False, near_duplicate_id=None)
    found = score_synthetic_data_quality(frame)
    assert (found["diversity"], found["freshness"]) == (1, 1)


def test_group_ids_of_rows_that_are_not_near_duplicates_are_ignored() -> None:
    # Some exports fill the group id of rows outside groups with 0.
    frame = studio()
    frame["near_duplicate_id"] = frame["near_duplicate_id"].fillna(0)
    assert score_synthetic_data_quality(frame) == score_synthetic_data_quality(studio())


def test_categorical_and_other_column_types_give_the_same_metrics() -> None:
    frame = studio()
    frame["real_or_synthetic"] = frame["real_or_synthetic"].astype("category")
    frame["is_near_duplicate"] = frame["is_near_duplicate"].astype(object)
    frame["near_duplicate_id"] = frame["near_duplicate_id"].astype("Int64")
    assert score_synthetic_data_quality(frame) == pytest.approx(score_synthetic_data_quality(studio()))


def test_class_names_are_given_as_synthetic_then_real() -> None:
    frame = studio().replace({"real_or_synthetic": {"real": "photo", "synthetic": "drawn"}})
    found = score_synthetic_data_quality(frame, ("drawn", "photo"))
    assert found == score_synthetic_data_quality(studio())
    with pytest.raises(InputError, match="synthetic_class_names"):
        score_synthetic_data_quality(frame)
    with pytest.raises(InputError, match="photo"):
        score_synthetic_data_quality(frame, ("drawn", "real"))


def test_an_issue_score_is_not_used_unless_it_is_named() -> None:
    # The column's meaning was reversed in 2023, so using it by default could invert every metric.
    frame = studio().rename(columns={"label_quality_score": "label_issue_score"})
    with pytest.raises(InputError, match="severity_column"):
        score_synthetic_data_quality(frame)


def test_a_named_severity_column_is_one_minus_quality() -> None:
    frame = studio().rename(columns={"label_quality_score": "label_issue_score"})
    frame["label_issue_score"] = 1 - frame["label_issue_score"]
    found = score_synthetic_data_quality(frame, severity_column="label_issue_score")
    assert found == pytest.approx(score_synthetic_data_quality(studio()))
    with pytest.raises(InputError, match="no_such"):
        score_synthetic_data_quality(frame, severity_column="no_such")


def test_an_issue_score_is_ignored_if_there_is_a_quality_score() -> None:
    frame = studio().assign(label_issue_score=0.123)
    assert score_synthetic_data_quality(frame) == score_synthetic_data_quality(studio())


@pytest.mark.parametrize("column", ["real_or_synthetic", "is_near_duplicate", "near_duplicate_id"])
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(InputError, match=column):
        score_synthetic_data_quality(studio().drop(columns=column))


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_one_class_alone_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="both"):
        score_synthetic_data_quality(studio().query("real_or_synthetic == @kind"))


def test_the_data_frame_is_not_modified() -> None:
    frame = studio()
    score_synthetic_data_quality(frame)
    pd.testing.assert_frame_equal(frame, studio())
