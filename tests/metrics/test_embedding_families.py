"""Metric families computed from embeddings: equal to scipy and sklearn, whatever the split of the rows."""

import functools
import operator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist, squareform
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from synthscale import parse_config, score_features
from synthscale.metric_names import FAMILIES
from synthscale.metrics import embedding_families as vectors
from synthscale.metrics.embedding_families import (
    PARTS,
    VECTOR_FAMILIES,
    VectorRows,
    VectorSums,
    VendiMap,
    embedding_families,
    fold_from_hash,
    frechet_family,
    kernel_family,
    requested_families,
    utility_family,
    vendi_family,
)
from synthscale.metrics.kernel import kid
from synthscale.statistics.jackknife import jackknife_blocks
from synthscale.tables.id_hashes import hash_ids
from tests.examples import examples
from tests.reference.kid import polynomial_mmd


def rows_of(seed, n, d=6, *, shift=0.0, labels=3, groups=None, number=np.float32, name="r") -> VectorRows:
    rng = np.random.default_rng(seed)
    key = hash_ids([f"{name}/{seed}/{i}" for i in range(n)])
    group = key if groups is None else key[rng.integers(0, groups, n)]
    label = rng.integers(0, labels, n)
    x = rng.normal(size=(n, d)) + shift + 2.0 * (label[:, None] == np.arange(d)[None, :])
    fold = np.stack([fold_from_hash(group), np.zeros(n, np.int8)], 1)
    return VectorRows(x.astype(number), key, group[:, None].repeat(2, 1), group, [str(own) for own in label], fold)


def sums_of(rows: VectorRows, parts=PARTS, set_rows=None) -> VectorSums:
    return VectorSums.of(rows, len(rows.key) if set_rows is None else set_rows, parts)


def chosen(rows: VectorRows, own) -> VectorRows:
    return rows.take(np.flatnonzero(own))


def figures(real: VectorSums, own: VectorSums, moments=None, view=0, wanted=VECTOR_FAMILIES):
    found = embedding_families((real, own), moments, view, wanted)
    return {name: metric.to_json() for family in found.values() for name, metric in family.items()}


# Frechet.


@pytest.mark.parametrize("parts", [1, PARTS])
@pytest.mark.parametrize("number", [np.float16, np.float32])
def test_the_frechet_distance_is_scipys(parts, number):
    one, two = rows_of(0, 200, number=number), rows_of(1, 150, shift=0.5, number=number)
    found = frechet_family(sums_of(one, parts), sums_of(two, parts))["frechet_distance"]
    x, y = (rows.vectors.astype(np.float64) for rows in (one, two))
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.low is None
    assert "frechet_infinity" in found.reason


def test_the_extrapolated_distance_is_there_where_there_are_parts():
    one, two = rows_of(2, 600, name="r"), rows_of(3, 600, name="s")
    assert set(frechet_family(sums_of(one, 1), sums_of(two, 1))) <= {
        "frechet_distance",
        "frechet_distance_infinity",
    }
    found = frechet_family(sums_of(one), sums_of(two))
    assert set(found) == set(FAMILIES["frechet"])
    limit = found["frechet_distance_infinity"]
    assert limit.low < limit.value < limit.high
    # For equal distributions the bias is removed, and 0 is within the interval.
    assert limit.value < found["frechet_distance"].value
    assert limit.low < 0.01


@pytest.mark.parametrize("sizes", [(1, 40), (40, 1), (1, 1)])
def test_one_row_has_no_covariance(sizes):
    found = frechet_family(sums_of(rows_of(4, sizes[0])), sums_of(rows_of(5, sizes[1])))
    assert found["frechet_distance"].value is None
    assert found["frechet_distance"].reason == "fewer than two rows in a set"
    assert found["frechet_distance_infinity"].value is None
    assert found["frechet_distance_infinity"].reason == "too few rows in a part"


# KID.


def test_kid_is_that_of_all_pairs_with_a_jackknife_interval():
    one, two = rows_of(6, 205), rows_of(7, 130, groups=90, shift=0.3, name="s")
    found = kernel_family(sums_of(one), sums_of(two), 0)["kid"]
    assert found.value == pytest.approx(polynomial_mmd(one.vectors, two.vectors), rel=1e-9)
    _, deviations = kid(*((rows.vectors, jackknife_blocks(rows.cluster[:, 0])) for rows in (one, two)))
    away = 2.093024 * np.sqrt((deviations**2).sum())  # Student, nineteen degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.value - away, found.value + away), rel=1e-5)


def test_the_kid_interval_contains_the_closed_form():
    # Closed form for N(0, I) against N(m, I), with a = |m|^2 / d.
    d, a = 16, 0.09
    expected = (1 + a) ** 3 - 1 + 3 / d * (a + 2 * a * a) + 6 * a / d**2
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(400, d)), rng.normal(size=(400, d)) + np.sqrt(a)
        one, two = rows_of(seed, 400, name="x"), rows_of(seed, 400, name="y")
        sums = [sums_of(replace(r, vectors=v)) for v, r in ((x, one), (y, two))]
        found = kernel_family(*sums, 0)["kid"]
        inside += found.low <= expected <= found.high
    assert inside >= 33


@pytest.mark.parametrize("sizes", [(1, 100), (100, 1), (1, 1)])
def test_kid_of_one_row_has_a_reason(sizes):
    found = kernel_family(sums_of(rows_of(8, sizes[0])), sums_of(rows_of(9, sizes[1])), 0)["kid"]
    assert found.value is None
    assert found.reason == "fewer than two rows in a set"


def test_kid_of_one_image_repeated_has_no_interval():
    found = kernel_family(sums_of(rows_of(8, 100)), sums_of(rows_of(9, 50, groups=1)), 0)["kid"]
    assert found.value is not None
    assert found.low is None
    assert "one cluster of near-duplicates" in found.reason


def test_the_error_of_kid_is_over_the_groups_of_the_generators_view():
    one = rows_of(8, 300)
    two = rows_of(9, 300, groups=60, shift=0.3, name="s")
    # In the second view every row is its own group.
    two = replace(
        two, vectors=two.vectors[np.unique(two.part_key, return_inverse=True)[1]], cluster=two.cluster.copy()
    )
    two.cluster[:, 1] = two.key
    by_group, by_row = (kernel_family(sums_of(one), sums_of(two), view)["kid"] for view in (0, 1))
    assert by_group.value == by_row.value
    assert by_group.high - by_group.low > 1.5 * (by_row.high - by_row.low)


# Vendi.


def vendi(real: VectorRows, own: VectorRows):
    features = VendiMap.of(sums_of(real))
    return vendi_family(features.moment(real.vectors), features.moment(own.vectors))["vendi_score"]


def exact_vendi(x, mean, scale, bandwidth):
    z = (x.astype(np.float64) - mean) / scale
    kernel = np.exp(-squareform(pdist(z, "sqeuclidean")) / (2 * bandwidth**2))
    p = np.linalg.eigvalsh(kernel / len(z)).clip(1e-300)
    return np.exp(-(p * np.log(p)).sum())


def test_the_vendi_score_is_near_that_of_the_kernel():
    real, own = rows_of(10, 250, 4), rows_of(11, 180, 4)
    x = real.vectors.astype(np.float64)
    bandwidth = np.median(pdist((x - x.mean(0)) / x.std(0)))
    found = vendi(real, own)
    for shown, rows in ((found.value, own), (found.reference, real)):
        assert shown == pytest.approx(exact_vendi(rows.vectors, x.mean(0), x.std(0), bandwidth), rel=0.03)
    assert found.low is None
    assert "all rows at once" in found.reason


def test_repeats_lower_the_vendi_score():
    real = rows_of(12, 200)
    few = chosen(real, np.arange(200) < 4)
    repeated = few.take(np.arange(4).repeat(50))
    found = vendi(real, repeated)
    assert 1 < found.value <= 4 + 1e-9
    assert found.value < found.reference / 2
    one = few.take(np.zeros(30, np.int64))
    assert vendi(real, one).value == pytest.approx(1)


def test_the_vendi_score_is_defined_with_constant_dimensions():
    real, own = rows_of(13, 60), rows_of(14, 60)
    for rows in (real, own):
        rows.vectors[:, 2] = 300.1
    assert 1 < vendi(real, own).value < 60
    flat = replace(real.take(np.arange(9)), vectors=np.ones((9, 6), np.float32))
    assert vendi(flat, flat).value == pytest.approx(1)


# Utility.


def test_utility_is_near_that_of_sklearns_ridge():
    real, own = rows_of(15, 600, shift=0.1), rows_of(16, 500)
    found = utility_family(sums_of(real), sums_of(own), 0)
    truth = np.array(real.label)

    def ridge(x, y):
        return lambda z: RidgeClassifier(alpha=6).fit(scaler.fit_transform(x), y).predict(scaler.transform(z))

    scaler = StandardScaler()
    by_synthetic = ridge(own.vectors, np.array(own.label))(real.vectors)
    by_real = np.empty_like(truth)
    for fold in range(5):
        inside = real.fold[:, 0] == fold
        by_real[inside] = ridge(real.vectors[~inside], truth[~inside])(real.vectors[inside])
    expected = [balanced_accuracy_score(truth, answers) for answers in (by_synthetic, by_real)]
    assert found["accuracy_synthetic"].value == pytest.approx(expected[0], abs=0.015)
    assert found["accuracy_real"].value == pytest.approx(expected[1], abs=0.015)
    assert found["utility"].value == pytest.approx(
        found["accuracy_synthetic"].value / found["accuracy_real"].value, rel=1e-9
    )
    assert found["accuracy_synthetic"].reference == found["accuracy_real"].value
    assert found["utility"].reference == 1
    assert found["utility"].low < found["utility"].value < found["utility"].high


def test_wrong_synthetic_labels_give_a_low_accuracy():
    real, own = rows_of(17, 400), rows_of(18, 400)
    wrong = [str((int(own_label) + 1) % 3) for own_label in own.label]
    own = replace(own, label=wrong)
    found = utility_family(sums_of(real), sums_of(own), 0)
    assert found["accuracy_synthetic"].value < 0.2
    assert found["accuracy_real"].value > 0.6


def test_the_errors_of_utility_are_over_groups_of_real_rows():
    real, own = rows_of(36, 300, shift=0.1), rows_of(37, 500)
    # Four copies of each real row, in one group.
    key = hash_ids(map(str, range(1200)))
    copies = replace(real.take(np.arange(1200) % 300), key=key)
    split = replace(copies, cluster=key[:, None].repeat(2, 1))
    plain, together, apart = (utility_family(sums_of(rows), sums_of(own), 0) for rows in (real, copies, split))
    for name in ("accuracy_synthetic", "accuracy_real", "utility"):
        widths = [found[name].high - found[name].low for found in (plain, together, apart)]
        assert together[name].value == apart[name].value
        assert widths[1] == pytest.approx(widths[0], rel=0.1)
        assert widths[2] == pytest.approx(widths[0] / 2, rel=0.1)


def test_the_folds_are_those_of_the_generators_view():
    real, own = rows_of(19, 200), rows_of(20, 200)
    # In the second view all rows are in one fold, so there are no training rows.
    assert utility_family(sums_of(real), sums_of(own), 0)["accuracy_real"].value > 0.6
    found = utility_family(sums_of(real), sums_of(own), 1)
    assert found["accuracy_real"].value is None
    assert "two folds" in found["accuracy_real"].reason


@pytest.mark.parametrize(
    ("real", "synthetic", "reason"),
    [
        (None, "ab", "no labels in the real set"),
        ("ab", None, "no labels in the synthetic set"),
        ("a", "a", "fewer than two labels"),
        ("ab", "cd", "fewer than two labels"),
        ("ab", "a", "fewer than two labels"),
    ],
)
def test_utility_without_labels_has_a_reason(real, synthetic, reason):
    sums = []
    for i, names in enumerate((real, synthetic)):
        rows = rows_of(21 + i, 60)
        label = [None] * 60 if names is None else [names[j % len(names)] for j in range(60)]
        sums.append(sums_of(replace(rows, label=label)))
    found = utility_family(*sums, 0)
    assert set(found) == set(FAMILIES["utility"])
    for own in found.values():
        assert own.value is None
        assert reason in own.reason


# Sums that merge.


@examples(5)
@given(seed=st.integers(0, 10_000), parts=st.integers(2, 5))
def test_any_split_and_any_order_give_the_same_figures(seed, parts):
    rng = np.random.default_rng(seed)
    real, own = rows_of(seed, 130, groups=60, name="r"), rows_of(seed + 1, 110, groups=50, shift=0.2, name="s")

    def both(split):
        sums, moments = [], []
        for rows in (real, own):
            n = len(rows.key)
            if split:
                order, of = rng.permutation(n), rng.integers(0, parts, n)
                pieces = [rows.take(order[of == i]) for i in rng.permutation(parts)]
            else:
                pieces = [rows]
            sums.append(functools.reduce(operator.add, (sums_of(piece, set_rows=n) for piece in pieces)))
            moments.append(pieces)
        features = VendiMap.of(sums[0])
        added = tuple(
            functools.reduce(operator.add, (features.moment(piece.vectors) for piece in pieces))
            for pieces in moments
        )
        return figures(*sums, moments=added)

    one, two = both(False), both(True)
    assert set(one) == {name for family in VECTOR_FAMILIES for name in FAMILIES[family]}
    for name, metric in one.items():
        assert metric.keys() == two[name].keys()
        for key, value in metric.items():
            expected = pytest.approx(value, rel=1e-9, abs=1e-11) if isinstance(value, float) else value
            assert two[name][key] == expected, (name, key)


def test_no_group_is_split_over_parts():
    rows = rows_of(30, 300, groups=40)
    counts = np.array(
        [[part.count for part in sums_of(chosen(rows, rows.part_key == g)).moments] for g in rows.part_key]
    )
    assert ((counts > 0).sum(1) == 1).all()
    # Groups are spread over all parts.
    assert (np.array([part.count for part in sums_of(rows_of(31, 600)).moments]) > 20).all()


def test_parts_add_up_to_the_whole():
    rows = rows_of(32, 157)
    whole = sums_of(rows).whole
    assert whole.count == 157
    assert whole.mean == pytest.approx(rows.vectors.astype(float).mean(0), rel=1e-9)
    assert whole.scatter / 156 == pytest.approx(np.cov(rows.vectors.astype(float).T), rel=1e-9)


def test_samples_take_rows_whatever_their_groups(monkeypatch):
    monkeypatch.setattr(vectors, "SAMPLE_ROWS", 1000)
    rows = rows_of(33, 8000, 3, groups=3000)
    sample = sums_of(rows, 1).sample
    assert len(sample.key) == pytest.approx(1000, abs=120)
    # A row's selection depends only on its hash, not on the other rows.
    half = chosen(rows, np.arange(8000) % 2 == 0)
    again = sums_of(half, 1, set_rows=8000).sample
    assert set(again.key.tolist()) == set(sample.key.tolist()) & set(half.key.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_of_a_generator_that_repeats_forty_images_is_as_large_as_any(seed, monkeypatch):
    # Whole groups at a share of 1 % gave no row in two of three draws.
    monkeypatch.setattr(vectors, "SAMPLE_ROWS", 200)
    rows = rows_of(seed, 20_000, 2, groups=40)
    sample = sums_of(rows, 1).sample
    assert len(sample.key) == pytest.approx(200, abs=60)
    assert len(np.unique(sample.part_key)) > 30


def test_sets_up_to_the_sample_are_taken_whole():
    rows = rows_of(34, 500)
    assert len(sums_of(rows).sample.key) == 500


def test_the_order_of_a_sample_does_not_depend_on_the_order_of_rows():
    rows = rows_of(35, 90, groups=30)
    back = rows.take(np.arange(89, -1, -1))
    one, two = sums_of(rows).ordered_sample(), sums_of(back).ordered_sample()
    assert (one.key == two.key).all()
    assert (one.vectors == two.vectors).all()
    assert one.label == two.label


def test_folds_from_hashes_are_five_of_similar_sizes():
    fold = fold_from_hash(hash_ids(map(str, range(5000))))
    assert np.bincount(fold).min() > 900
    assert len(np.bincount(fold)) == 5


def test_families_of_embeddings_are_named_once():
    assert requested_families(tuple(FAMILIES)) == list(VECTOR_FAMILIES)
    assert requested_families(("manifold", "facts")) == []
    assert requested_families(("kernel",)) == ["kernel"]


# Through score_features.


def features(seed, n, m, d=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + m, d)) + 0.3 * (np.arange(n + m) >= n)[:, None]
    return x.astype(np.float32), ["real"] * n + ["synthetic"] * m


CONFIG = parse_config({"metrics": {"families": "frechet,kernel,vendi,utility", "frechet_infinity": True}})


def test_the_order_of_rows_with_ids_does_not_matter():
    x, kinds = features(0, 80, 60)
    labels, ids = [str(i % 3) for i in range(140)], [f"id{i}" for i in range(140)]
    order = np.random.default_rng(1).permutation(140)
    one, two = (
        score_features(
            x[own],
            [kinds[i] for i in own],
            labels=[labels[i] for i in own],
            ids=[ids[i] for i in own],
            config=CONFIG,
        ).metrics["synthetic"]["families"]
        for own in (np.arange(140), order)
    )
    assert one.keys() == two.keys()
    for family, metrics in one.items():
        for name, metric in metrics.items():
            assert two[family][name]["value"] == pytest.approx(metric["value"], rel=1e-9, abs=1e-12), name


def test_adding_a_generator_changes_no_others_numbers():
    x, kinds = features(2, 80, 60)
    rng = np.random.default_rng(3)
    # The second generator repeats real rows, which makes groups in its own view only.
    more = (x[:40] + 1e-4 * rng.normal(size=(40, 5))).astype(np.float32)
    ids = [f"r{i}" for i in range(80)] + [f"s{i}" for i in range(60)] + [f"a{i}" for i in range(40)]
    labels = [str(i % 3) for i in range(180)]
    names = ["one"] * 140 + ["two"] * 40
    alone = score_features(x, kinds, generator=names[:140], labels=labels[:140], ids=ids[:140], config=CONFIG)
    both = score_features(
        np.vstack([x, more]), kinds + ["synthetic"] * 40, generator=names, labels=labels, ids=ids, config=CONFIG
    )
    assert both.metrics["one"]["families"] == alone.metrics["one"]["families"]


def test_frechet_of_score_features_is_that_of_numpy():
    x, kinds = features(4, 90, 70)
    found = score_features(x, kinds, config=CONFIG).metrics["synthetic"]["families"]["frechet"]["frechet_distance"]
    a, b = (part.astype(float) for part in (x[:90], x[90:]))
    covariances = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert found["value"] == pytest.approx(expected, rel=1e-6)
