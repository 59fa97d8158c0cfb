import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cleanlab import Datalab
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from synthscale import (
    Config,
    FeatureScores,
    InputError,
    parse_config,
    score_features,
    score_synthetic_data_quality,
)
from synthscale.tables.schemas import SCORES
from tests.reference import brute, tutorial

Vectors = NDArray[np.float32]
FOUR = ("fidelity", "representativeness", "diversity", "freshness")


def normal(seed: int, n: int, d: int = 8, mean: float = 0.0) -> Vectors:
    return (mean + np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def kinds(n: int, m: int) -> list[str]:
    return ["real"] * n + ["synthetic"] * m


def flawed(seed: int = 0) -> tuple[Vectors, Vectors]:
    """Return 90 real and 80 shifted synthetic rows; some repeat others, some copy real rows exactly or nearly."""
    rng = np.random.default_rng(seed)
    real = normal(seed, 90)
    synthetic = normal(seed + 1, 80, mean=0.4)
    synthetic[:10] = real[:10] + 1e-3 * rng.normal(size=(10, 8))
    synthetic[10:14] = real[10:14]
    synthetic[20:35] = synthetic[20] + 1e-3 * rng.normal(size=(15, 8))
    synthetic[40:43] = synthetic[40]
    real[80:84] = real[80]
    return real, synthetic


@pytest.fixture(scope="module")
def scored() -> FeatureScores:
    real, synthetic = flawed()
    return score_features(
        np.vstack([real, synthetic]),
        kinds(90, 80),
        labels=[f"{i % 3}" for i in range(170)],
        ids=[f"id-{i:03d}" for i in range(170)],
    )


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in a nested structure with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{i}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def assert_same(found: Any, expected: Any) -> None:
    """Assert that all numbers agree within 1e-5 and everything else is equal."""
    left, right = dict(numbers(found)), dict(numbers(expected))
    assert left.keys() == right.keys()
    for path, value in right.items():
        assert left[path] == pytest.approx(value, abs=1e-5), path


def nulls_without_reason(value: Any, path: str = "") -> list[str]:
    """Return the paths of mappings that have a null but no reason."""
    found = []
    if isinstance(value, dict):
        if any(inner is None for inner in value.values()) and not value.get("reason"):
            found.append(path)
        for key, inner in value.items():
            found += nulls_without_reason(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found += nulls_without_reason(inner, f"{path}[{i}]")
    return found


def assert_honest(metrics: dict[str, Any]) -> None:
    """Assert that every number is finite, or null with a reason."""
    json.dumps(metrics, allow_nan=False)
    assert all(math.isfinite(number) for _, number in numbers(metrics))
    assert nulls_without_reason(metrics) == []


def test_the_tutorials_definitions_on_the_scores_give_the_metrics(scored: FeatureScores) -> None:
    metrics, frame = scored.metrics["synthetic"]["metrics"], scored.scores("synthetic")
    expected = tutorial.scores(frame)
    assert {name: metrics[name]["value"] for name in FOUR} == pytest.approx(expected, abs=1e-9)
    assert score_synthetic_data_quality(frame) == pytest.approx(expected, abs=1e-9)
    assert 0 < metrics["diversity"]["value"] < 1
    assert 0 < metrics["freshness"]["value"] < 1


def test_the_tutorials_definitions_hold_by_label_for_the_classifier_and_groups(scored: FeatureScores) -> None:
    frame = scored.scores()
    for label, block in scored.metrics["synthetic"]["by_label"].items():
        own = frame[frame["label"] == label]
        assert block["counts"] == own["real_or_synthetic"].value_counts().to_dict()
        expected = {
            "fidelity": 1 - own.loc[own.real_or_synthetic == "synthetic", "label_quality_score"].mean(),
            "representativeness": 1 - own.loc[own.real_or_synthetic == "real", "label_quality_score"].mean(),
        }
        for name, value in expected.items():
            assert block[name]["value"] == pytest.approx(value, abs=1e-9)


def test_metrics_by_label_add_up_to_the_whole(scored: FeatureScores) -> None:
    # A slice uses the groups and k-NN radii of the whole view, so shares add up.
    block = scored.metrics["synthetic"]
    for name, kind in (("diversity", "synthetic"), ("freshness", "synthetic"), ("coverage", "real")):
        parts = [(inner["counts"][kind], inner[name]["value"]) for inner in block["by_label"].values()]
        mean = sum(count * value for count, value in parts) / sum(count for count, _ in parts)
        assert mean == pytest.approx(block["metrics"][name]["value"])


def test_groups_precision_and_coverage_equal_brute_force(scored: FeatureScores) -> None:
    real, synthetic = flawed()
    frame, block = scored.scores(), scored.metrics["synthetic"]
    real, synthetic = (brute.scaled(x, real) for x in (real, synthetic))
    radius = 0.13 * brute.real_median(real, "euclidean")
    expected = brute.groups(np.vstack([real, synthetic]), radius, 90, "euclidean")
    assert block["neighbors"]["radius"] == pytest.approx(radius, rel=1e-6)
    by_id = frame[frame["is_near_duplicate"]].groupby("near_duplicate_id")["id"]
    found = {frozenset(int(name.removeprefix("id-")) for name in ids) for _, ids in by_id}
    assert found == expected
    assert block["neighbors"]["groups"] == len(expected)
    assert block["neighbors"]["rows_in_groups"] == sum(map(len, expected))
    precision, coverage = brute.precision_and_coverage(real, synthetic)
    assert block["metrics"]["precision"]["value"] == pytest.approx(precision)
    assert block["metrics"]["coverage"]["value"] == pytest.approx(coverage)


def test_groups_and_distances_are_cosine_ones_where_that_is_configured(scored: FeatureScores) -> None:
    real, synthetic = flawed()
    both = np.vstack([real, synthetic])
    config = parse_config({"neighbors": {"metric": "cosine"}})
    found = score_features(both, kinds(90, 80), ids=[f"id-{i:03d}" for i in range(170)], config=config)
    frame, block = found.scores(), found.metrics["synthetic"]
    by_id = frame[frame["is_near_duplicate"]].groupby("near_duplicate_id")["id"]
    groups = {frozenset(int(name.removeprefix("id-")) for name in ids) for _, ids in by_id}
    assert groups == brute.groups(both, 0.13 * brute.real_median(real), 90)
    distances = brute.among(both)
    np.testing.assert_allclose(frame["distance_to_nearest_neighbor"], distances.min(axis=1), atol=1e-6)
    np.testing.assert_allclose(frame["distance_to_nearest_real"], distances[:, :90].min(axis=1), atol=1e-6)
    assert (block["neighbors"]["space"]["metric"], block["neighbors"]["space"]["scaled"]) == ("cosine", False)
    # The manifold metrics are Euclidean whatever near-duplicates are.
    other = scored.metrics["synthetic"]
    for name in ("precision", "coverage"):
        for number in ("value", "reference"):
            assert block["metrics"][name][number] == other["metrics"][name][number]
    assert block["neighbors"]["manifold_space"] == other["neighbors"]["manifold_space"]
    columns = ["in_real_manifold", "covered"]
    pd.testing.assert_frame_equal(frame[columns], scored.scores()[columns])


def test_the_precision_reference_is_the_share_of_real_rows_inside_another_ones_radius() -> None:
    real, synthetic = normal(30, 90), normal(31, 20)
    distances = brute.among(brute.scaled(real, real), "euclidean")
    expected = (distances <= brute.k_smallest(distances, 5)[:, -1:]).any(axis=0).mean()
    assert expected < 1
    precision = score_features(np.vstack([real, synthetic]), kinds(90, 20)).metrics["synthetic"]["metrics"][
        "precision"
    ]
    assert precision["reference"] == pytest.approx(expected)


def test_precision_and_coverage_are_those_of_prdc() -> None:
    prdc = pytest.importorskip("prdc")
    # Columns of very different units, which are scaled by the real rows.
    units = np.logspace(-3, 5, 8)
    real, synthetic = normal(2, 150) * units + 10 * units, normal(3, 120, mean=0.3) * units + 10 * units
    expected = prdc.compute_prdc(*(brute.scaled(x, real) for x in (real, synthetic)), nearest_k=5)
    assert brute.prdc(*(brute.scaled(x, real) for x in (real, synthetic))) == pytest.approx(expected)
    config = parse_config({"metrics": {"families": ["manifold"]}})
    found = score_features(np.vstack([real, synthetic]), kinds(150, 120), config=config).metrics["synthetic"]
    found = {**found["metrics"], **found["families"]["manifold"]}
    values = {name: found[name]["value"] for name in expected}
    assert values == pytest.approx(expected)
    assert max(values["precision"], values["recall"], values["coverage"]) < 1


def test_the_scores_frame_has_its_columns_and_they_agree_with_one_another(scored: FeatureScores) -> None:
    frame = scored.scores()
    assert list(frame.columns)[: len(SCORES.names)] == SCORES.names
    assert frame["id"].tolist() == [f"id-{i:03d}" for i in range(170)]
    q = frame["label_quality_score"].to_numpy()
    is_real = (frame["real_or_synthetic"] == "real").to_numpy()
    p = np.where(is_real, 1 - q, q)
    expected = get_label_quality_scores(np.where(is_real, 0, 1), np.column_stack([1 - p, p]))
    np.testing.assert_allclose(q, expected, atol=1e-12)
    np.testing.assert_allclose(frame["label_issue_score"], 1 - q, atol=1e-12)
    assert frame["predicted"].tolist() == ["synthetic" if x >= 0.5 else "real" for x in p]
    assert (frame["is_label_issue"] == (frame["predicted"] != frame["real_or_synthetic"])).all()
    assert frame["near_duplicate_id"].notna().equals(frame["is_near_duplicate"])
    real, synthetic = flawed()
    distances = brute.among(brute.scaled(np.vstack([real, synthetic]), real), "euclidean")
    np.testing.assert_allclose(frame["distance_to_nearest_neighbor"], distances.min(axis=1), atol=1e-6)
    np.testing.assert_allclose(frame["distance_to_nearest_real"], distances[:, :90].min(axis=1), atol=1e-6)
    nearest = frame["nearest_real_id"].str.removeprefix("id-").astype(int).to_numpy()
    np.testing.assert_allclose(distances[np.arange(170), nearest], distances[:, :90].min(axis=1), atol=1e-6)
    block = scored.metrics["synthetic"]
    assert frame.loc[~is_real, "in_real_manifold"].mean() == pytest.approx(block["metrics"]["precision"]["value"])
    assert frame.loc[is_real, "covered"].mean() == pytest.approx(block["metrics"]["coverage"]["value"])
    assert frame.loc[~is_real, "covered"].isna().all()
    assert block["classifier"]["auc"]["value"] == pytest.approx(roc_auc_score(~is_real, p), abs=1e-3)


def test_datalab_mode_has_cleanlabs_flags_and_scores() -> None:
    real, synthetic = normal(4, 120, 16), normal(5, 60, 16)
    synthetic[:20] = real[:20] + 0.05 * normal(6, 20, 16)
    both = np.vstack([real, synthetic])
    lab = Datalab({"row": list(range(180))}, verbosity=0)
    lab.find_issues(features=both.astype(float), issue_types={"near_duplicate": {}})
    expected = lab.get_issues("near_duplicate")
    assert expected["is_near_duplicate_issue"].any()
    config = parse_config({"neighbors": {"mode": "datalab"}})
    frame = score_features(both, kinds(120, 60), config=config).scores()
    assert frame["is_near_duplicate"].tolist() == expected["is_near_duplicate_issue"].tolist()
    np.testing.assert_allclose(frame["near_duplicate_score"], expected["near_duplicate_score"], atol=1e-6)


def test_every_number_is_finite_or_null_with_a_reason(scored: FeatureScores) -> None:
    assert_honest(scored.metrics)


@pytest.mark.parametrize("settings", [{"mode": "datalab"}, {"mode": "datalab", "radius": 0.02}, {"radius": 0.02}])
def test_every_number_is_finite_or_null_with_a_reason_in_every_mode(settings: dict[str, Any]) -> None:
    real, synthetic = flawed()
    config = parse_config({"neighbors": settings})
    assert_honest(
        score_features(np.vstack([real, synthetic]), kinds(len(real), len(synthetic)), config=config).metrics
    )


def test_adding_a_generator_leaves_every_number_of_the_first() -> None:
    real, first = flawed()
    second = np.vstack([normal(7, 60, mean=-1), real[:20], np.repeat(first[:1], 12, axis=0)])
    ids = [f"id-{i}" for i in range(170 + len(second))]
    labels = [f"{i % 2}" for i in range(len(ids))]
    alone = score_features(
        np.vstack([real, first]), kinds(90, 80), generator=["a"] * 170, labels=labels[:170], ids=ids[:170]
    )
    # The other generator is inserted between the rows, so that order and row numbers change too.
    order = np.r_[np.arange(90), 170 + np.arange(len(second)), np.arange(90, 170)]
    names = np.array(["a"] * 170 + ["b"] * len(second), dtype=object)
    both = score_features(
        np.vstack([real, first, second])[order],
        [("real" if i < 90 else "synthetic") for i in order],
        generator=names[order].tolist(),
        labels=[labels[i] for i in order],
        ids=[ids[i] for i in order],
    )
    assert set(both.metrics) == {"a", "b"}
    assert_same(both.metrics["a"], alone.metrics["a"])
    assert both.metrics["a"]["warnings"] == alone.metrics["a"]["warnings"]
    columns = ["label_quality_score", "near_duplicate_score", "distance_to_nearest_real", "is_near_duplicate"]
    left, right = (r.scores("a").set_index("id").sort_index()[columns].astype(float) for r in (both, alone))
    pd.testing.assert_frame_equal(left, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("weight", ["balanced", "none"])
def test_permuting_the_rows_with_their_ids_changes_no_number(seed: int, weight: str) -> None:
    real, synthetic = flawed(seed)
    x, kind = np.vstack([real, synthetic]), np.array(kinds(90, 80))
    ids, labels = np.array([f"id-{i}" for i in range(170)]), np.array([f"{i % 3}" for i in range(170)])
    config = parse_config({"classifier": {"class_weight": weight}})
    move = np.random.default_rng(seed).permutation(170)
    before, after = (
        score_features(x[o], kind[o].tolist(), labels=labels[o].tolist(), ids=ids[o].tolist(), config=config)
        for o in (np.arange(170), move)
    )
    assert_same(after.metrics, before.metrics)
    columns = ["label_quality_score", "near_duplicate_score", "in_real_manifold", "is_near_duplicate"]
    left, right = (r.scores().set_index("id").sort_index()[columns].astype(float) for r in (after, before))
    pd.testing.assert_frame_equal(left, right, rtol=0, atol=1e-5)


def test_exact_copies_in_a_large_real_set_do_not_make_the_order_matter() -> None:
    # More distinct real rows than the bandwidth sample, and copies with several ids.
    base = normal(8, 1100, 4)
    x = np.vstack([base, base, normal(9, 300, 4, mean=0.3)])
    kind, ids = np.array(kinds(2200, 300)), np.array([f"id-{i}" for i in range(2500)])
    config = parse_config({"classifier": {"strengths": [0.001], "folds": 2}})
    move = np.random.default_rng(0).permutation(2500)
    before, after = (
        score_features(x[o], kind[o].tolist(), ids=ids[o].tolist(), config=config)
        .scores()
        .set_index("id")
        .sort_index()
        for o in (np.arange(2500), move)
    )
    np.testing.assert_allclose(after["label_quality_score"], before["label_quality_score"], rtol=0, atol=1e-5)


def test_the_same_call_gives_the_same_numbers() -> None:
    x = np.vstack(flawed())
    first, second = (score_features(x, kinds(90, 80)) for _ in range(2))
    assert first.metrics == second.metrics
    pd.testing.assert_frame_equal(first.scores(), second.scores())


def test_the_input_is_left_as_it_was() -> None:
    x, kind = np.vstack(flawed()), kinds(90, 80)
    before = x.copy(), copy.copy(kind)
    score_features(x, kind)
    np.testing.assert_array_equal(x, before[0])
    assert kind == before[1]


@pytest.mark.parametrize("as_type", [list, np.array, pd.Series], ids=["list", "array", "series"])
def test_all_arguments_may_be_lists_arrays_or_series(as_type: Any) -> None:
    x = np.vstack(flawed())
    labels, ids = [f"{i % 3}" for i in range(170)], [f"id-{i}" for i in range(170)]
    plain = score_features(x, kinds(90, 80), generator=["a"] * 170, labels=labels, ids=ids)
    found = score_features(
        x.tolist(),
        as_type(kinds(90, 80)),
        generator=as_type(["a"] * 170),
        labels=as_type(labels),
        ids=as_type(ids),
    )
    assert_same(found.metrics, plain.metrics)


def test_labels_of_one_side_only_give_null_with_a_reason() -> None:
    real, synthetic = flawed()
    labels = ["both"] * 40 + ["only real"] * 50 + ["both"] * 30 + ["only synthetic"] * 40 + [None] * 10
    metrics = score_features(np.vstack([real, synthetic]), kinds(90, 80), labels=labels).metrics
    assert_honest(metrics)
    by_label = metrics["synthetic"]["by_label"]
    assert set(by_label) == {"both", "only real", "only synthetic"}
    for name in ("fidelity", "diversity", "freshness", "precision"):
        assert by_label["only real"][name]["value"] is None
        assert "synthetic" in by_label["only real"][name]["reason"]
        assert by_label["only synthetic"][name]["value"] is not None
    for name in ("representativeness", "coverage"):
        assert by_label["only synthetic"][name]["value"] is None
        assert "real" in by_label["only synthetic"][name]["reason"]
        assert by_label["only real"][name]["value"] is not None


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [
        (normal(0, 1), normal(1, 1)),
        (normal(0, 1), normal(1, 30)),
        (normal(0, 30), normal(1, 1)),
        (normal(0, 2), normal(1, 2)),
        (normal(0, 5), normal(1, 5)),
        (np.ones((6, 3), np.float32), np.ones((7, 3), np.float32)),
        (np.ones((6, 3), np.float32), normal(1, 20, 3)),
        (normal(0, 30, 1), normal(1, 30, 1)),
    ],
    ids=["1+1", "1+30", "30+1", "2+2", "5+5", "identical", "one real image", "one dimension"],
)
def test_degenerate_sets_have_finite_metrics_or_reasons(real: Vectors, synthetic: Vectors) -> None:
    found = score_features(np.vstack([real, synthetic]), kinds(len(real), len(synthetic)))
    block = found.metrics["synthetic"]
    assert_honest(found.metrics)
    assert block["counts"] == {"real": len(real), "synthetic": len(synthetic)}
    assert block["warnings"]
    assert len(found.scores()) == len(real) + len(synthetic)


def test_precision_and_coverage_need_two_distinct_real_images() -> None:
    # Without neighbours there is no k-NN radius; a value of 0 would wrongly blame the synthetic rows.
    metrics = score_features(normal(0, 31), kinds(1, 30)).metrics["synthetic"]["metrics"]
    for name in ("precision", "coverage"):
        assert metrics[name]["value"] is None
        assert metrics[name]["reason"]


def test_a_class_in_one_group_has_all_metrics() -> None:
    # Whole groups cannot be dealt to folds, so rows are.
    real, synthetic = normal(10, 40), np.repeat(normal(11, 1), 12, axis=0)
    found = score_features(np.vstack([real, synthetic]), kinds(40, 12))
    assert_honest(found.metrics)
    metrics = found.metrics["synthetic"]["metrics"]
    assert metrics["fidelity"]["value"] < 0.1
    assert metrics["representativeness"]["value"] < 0.2
    assert (metrics["diversity"]["value"], metrics["freshness"]["value"]) == (0, 1)
    assert metrics["unique_share"]["value"] == pytest.approx(1 / 12)
    assert found.scores()["label_quality_score"].notna().all()
    # One row of a class cannot be dealt.
    alone = score_features(np.vstack([real, synthetic[:1]]), kinds(40, 1))
    assert alone.metrics["synthetic"]["metrics"]["fidelity"]["value"] is None
    assert alone.scores()["label_quality_score"].isna().all()
    assert alone.scores()["predicted"].isna().all()


def test_a_copier_is_not_fresh_and_a_sampler_is() -> None:
    real = normal(12, 300, 16)
    rng = np.random.default_rng(0)
    x = np.vstack([real, real + 0.01 * rng.normal(size=real.shape), normal(13, 300, 16)])
    found = score_features(x, kinds(300, 600), generator=[None] * 300 + ["copier"] * 300 + ["sampler"] * 300)
    assert found.metrics["copier"]["metrics"]["freshness"]["value"] == 0
    assert found.metrics["sampler"]["metrics"]["freshness"]["value"] > 0.98
    assert found.metrics["sampler"]["metrics"]["fidelity"]["value"] == pytest.approx(0.5, abs=0.05)
    # Copies share the fold of their originals, so fidelity does not exceed 0.5.
    assert found.metrics["copier"]["metrics"]["fidelity"]["value"] < 0.55


def test_half_of_the_distribution_gives_a_third_and_no_coverage_of_the_rest() -> None:
    # One of two equal modes is covered perfectly: fidelity and representativeness are 1/3; by mode 2/3 and 0.
    one, other = 8 * np.eye(8)[0], 8 * np.eye(8)[1]
    x = np.vstack([normal(14, 400) + one, normal(15, 400) + other, normal(16, 800) + one])
    labels = ["left"] * 400 + ["right"] * 400 + ["left"] * 800
    block = score_features(x, kinds(800, 800), labels=labels).metrics["synthetic"]
    assert block["metrics"]["fidelity"]["value"] == pytest.approx(1 / 3, abs=0.03)
    assert block["metrics"]["representativeness"]["value"] == pytest.approx(1 / 3, abs=0.03)
    assert block["by_label"]["left"]["representativeness"]["value"] == pytest.approx(2 / 3, abs=0.04)
    assert block["by_label"]["right"]["representativeness"]["value"] < 0.03
    assert block["by_label"]["right"]["coverage"]["value"] < 0.05


def test_unadjusted_values_hold_the_class_shares() -> None:
    found = score_features(np.vstack([normal(17, 400), normal(18, 1200)]), kinds(400, 1200)).metrics["synthetic"]
    metrics = found["metrics"]
    assert metrics["fidelity"]["value"] == pytest.approx(0.5, abs=0.05)
    assert metrics["fidelity"]["unadjusted"] == pytest.approx(0.25, abs=0.03)
    assert metrics["representativeness"]["unadjusted"] == pytest.approx(0.75, abs=0.03)


GOOD = np.vstack([normal(0, 3), normal(1, 3)])


def with_value(row: int, value: float | list[float]) -> Vectors:
    bad = GOOD.copy()
    bad[row] = value
    return bad


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (with_value(4, [np.nan, *[1.0] * 7]), "row 4"),
        (with_value(2, [np.inf, *[1.0] * 7]), "row 2"),
        (GOOD[0], "shape"),
        (GOOD[:0], "shape"),
        (GOOD[:, :0], "shape"),
        (GOOD[None], "shape"),
        (GOOD[:5], "real_or_synthetic"),
        ([[1.0, 2.0], [1.0]] * 3, "length"),
        ([["a", "b"]] * 6, "number"),
    ],
    ids=["nan", "infinite", "1-d", "no rows", "no columns", "3-d", "short", "ragged", "text"],
)
def test_features_that_cannot_be_scored_are_refused(features: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_features(features, kinds(3, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"real_or_synthetic": ["real"] * 6}, "synthetic"),
        ({"real_or_synthetic": ["synthetic"] * 6}, "real"),
        ({"real_or_synthetic": [*kinds(3, 2), "fake"]}, "fake"),
        ({"real_or_synthetic": [*kinds(3, 2), None]}, "None"),
        ({"real_or_synthetic": kinds(3, 2)}, "real_or_synthetic"),
        ({"generator": ["a"] * 5}, "generator"),
        ({"generator": ["a\nb"] * 6}, "control characters"),
        ({"generator": ["real"] * 6}, "real"),
        ({"labels": ["a"] * 5}, "labels"),
        ({"ids": ["a"] * 5}, "ids"),
        ({"ids": ["a", "b", "c", "twice", "twice", "d"]}, "twice"),
    ],
    ids=[
        "no synthetic",
        "no real",
        "unknown kind",
        "missing kind",
        "short kinds",
        "short generators",
        "generator name",
        "generator called real",
        "short labels",
        "short ids",
        "duplicate ids",
    ],
)
def test_arguments_that_cannot_be_used_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_features(GOOD, **{"real_or_synthetic": kinds(3, 3), **arguments})


def test_an_unknown_generator_is_refused_with_the_list_of_known_ones() -> None:
    found = score_features(GOOD, kinds(3, 3), generator=[None] * 3 + ["a", "a", "b"], config=Config())
    assert len(found.scores("a")) == 5
    assert len(found.scores("b")) == 4
    for name in (None, "c"):
        with pytest.raises(InputError, match="a, b"):
            found.scores(name)
