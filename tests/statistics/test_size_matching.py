"""Generators of different sizes: subsamples, rarefaction, and which metrics are compared."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthscale import score_features
from synthscale.metrics.comparison import MetricValue, pairwise_differences
from synthscale.metrics.summary import add_control_values
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.statistics.jackknife import jackknife_blocks
from synthscale.statistics.size_matching import (
    RowHashes,
    assignment_block_of,
    block_codes,
    block_of,
    is_outside,
    matched_sizes,
    probability_any_drawn,
)
from synthscale.tables.id_hashes import hash_ids


def scored(real, ids="row", **generators):
    x = np.concatenate([real, *generators.values()])
    kinds = ["real"] * len(real) + ["synthetic"] * (len(x) - len(real))
    names = [None] * len(real) + [name for name, own in generators.items() for _ in own]
    return score_features(x, kinds, generator=names, ids=[f"{ids}/{i}" for i in range(len(x))]).metrics


def normal(seed, n, d=6, mean=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + mean + 2


def test_only_larger_generators_have_a_matched_size():
    assert matched_sizes({"a": 100, "b": 104, "c": 106, "d": 5000}) == {"c": 100, "d": 100}
    assert matched_sizes({"a": 100}) == {}
    assert matched_sizes({}) == {}


@given(population=st.integers(2, 12), data=st.data())
@settings(deadline=None)
def test_the_probability_agrees_with_enumerating_all_samples(population, data):
    others = data.draw(st.integers(0, population))
    drawn = data.draw(st.integers(0, population))
    sets = list(itertools.combinations(range(population), drawn))
    expected = np.mean([any(i < others for i in chosen) for chosen in sets])
    found = probability_any_drawn(np.array([others]), population, drawn)
    assert found[0] == pytest.approx(expected, abs=1e-9)


def test_the_probability_is_accurate_for_large_sets():
    found = probability_any_drawn(np.array([0, 1, 3, 10**6]), 10**8, 10**6)
    assert found == pytest.approx([0, 0.01, 1 - 0.99**3, 1], abs=1e-6)


def test_a_subsample_has_all_real_rows_and_rows_drawn_one_by_one():
    key = hash_ids(map(str, range(3000)))
    group = hash_ids(f"group/{i // 30}" for i in range(3000))
    is_real = np.arange(3000) < 900
    code = block_codes(RowHashes(key, group, group), is_real, 2100, 700)
    assert not is_outside(code)[is_real].any()
    assert abs((~is_outside(code)[~is_real]).sum() - 700) < 5 * math.sqrt(700 * 2 / 3)
    # Groups are not drawn as wholes: each has rows inside and outside.
    inside = [(~is_outside(code))[group == one].mean() for one in np.unique(group[900:])]
    assert 0.2 < np.mean(inside) < 0.5
    assert max(inside) < 0.8
    assert not is_outside(block_codes(RowHashes(key, group, group), is_real, 2100, None)).any()


def test_codes_hold_the_block_of_the_cluster_and_of_the_component():
    key = hash_ids(map(str, range(3000)))
    component = hash_ids(f"component/{i // 6}" for i in range(3000))
    cluster = hash_ids(f"cluster/{i // 3}" for i in range(3000))
    for size in (None, 700):
        code = block_codes(RowHashes(key, component, cluster), np.arange(3000) < 900, 2100, size)
        assert code.dtype == np.int16
        assert code.min() >= 0
        np.testing.assert_array_equal(block_of(code), jackknife_blocks(cluster))
        np.testing.assert_array_equal(assignment_block_of(code), jackknife_blocks(component))


@pytest.mark.slow
def test_matched_coverage_and_diversity_are_the_means_over_subsamples():
    rng = np.random.default_rng(0)
    real, large = normal(1, 150), normal(2, 300)
    # A fifth of the rows nearly repeats others.
    large[:60] = large[100:160] + 1e-5 * rng.normal(size=(60, 6))
    small = normal(3, 100)
    found = scored(real, large=large, small=small)["large"]["matched"]["metrics"]
    means = {"coverage": [], "diversity": [], "unique_share": []}
    for _ in range(30):
        own = scored(real, large=large[rng.permutation(300)[:100]])["large"]["metrics"]
        for name, values in means.items():
            values.append(own[name]["value"])
    assert found["coverage"]["value"] == pytest.approx(np.mean(means["coverage"]), abs=0.02)
    # Diversity and unique_share use the rows of one subsample only, so they vary more.
    for name in ("diversity", "unique_share"):
        assert found[name]["value"] == pytest.approx(np.mean(means[name]), abs=0.03)


def test_exact_copies_count_as_often_as_near_copies():
    base, real, small = normal(4, 60), normal(5, 200), normal(6, 60)
    copies = np.repeat(base, 5, axis=0)
    jittered = copies + 1e-6 * np.random.default_rng(0).normal(size=copies.shape)
    values = [
        scored(real, large=own, small=small)["large"]["matched"]["metrics"]["coverage"]["value"]
        for own in (copies, jittered)
    ]
    assert values[0] == pytest.approx(values[1], abs=0.05)


def test_rows_within_a_query_radius_are_counted_with_their_multiplicity():
    rng = np.random.default_rng(7)
    rows, queries = rng.normal(size=(40, 5)), rng.normal(size=(9, 5))
    counts, radii = rng.integers(1, 9, 40), rng.uniform(0.1, 1, 9)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, rows)]
    expected = ((1 - unit[0] @ unit[1].T <= radii[:, None]) * counts).sum(1)
    index = FlatIndex(rows, np.arange(40))
    np.testing.assert_array_equal(index.count_within(queries, np.arange(100, 109), radii, counts, 2**30), expected)


def test_a_generator_that_repeats_two_images_has_a_matched_subsample_in_every_draw():
    large = np.repeat(normal(8, 2), 150, axis=0)
    for seed in range(5):
        found = scored(normal(9, 60), str(seed), large=large, small=normal(50, 12))["large"]["matched"]
        assert 3 <= found["counts"]["synthetic"] <= 25
        assert found["metrics"]["diversity"]["value"] == pytest.approx(0, abs=0.05)


def figures(value, rows):
    return {name: MetricValue(value, value - 0.1, value + 0.1, None, rows) for name in ("coverage", "precision")}


def test_generators_of_similar_size_are_compared_without_matching_whatever_a_third_ones_size():
    whole = {"a": figures(0.5, 1000), "b": figures(0.6, 1010), "c": figures(0.7, 10)}
    matched = {"a": figures(0.1, 10), "b": figures(0.2, 10)}
    found = {(d.one, d.two, d.metric): d.difference for d in pairwise_differences(whole, matched)}
    assert found["a", "b", "coverage"] == pytest.approx(-0.1)
    assert found["a", "c", "coverage"] == pytest.approx(0.1 - 0.7)


def test_size_dependent_metrics_are_not_compared_between_sizes_without_matching():
    found = {(d.one, d.metric) for d in pairwise_differences({"a": figures(0.5, 1000), "c": figures(0.7, 10)}, {})}
    assert found == {("a", "precision")}


def control_block(rows, value, matched=None):
    metrics = {name: {"value": value} for name in ("coverage", "precision")}
    block = {"counts": {"synthetic": rows}, "metrics": metrics, "by_label": {}, "by": {}, "families": {}}
    block |= {"classifier": {"auc": {"value": value}}, "warnings": []}
    return block if matched is None else block | {"matched": matched}


def test_a_control_of_another_size_is_no_reference_for_size_dependent_metrics():
    generators = {"small": control_block(200, 0.3), "control": control_block(5000, 0.9)}
    add_control_values(generators, "control")
    assert "control" not in generators["small"]["metrics"]["coverage"]
    assert generators["small"]["metrics"]["precision"]["control"] == 0.9
    assert generators["small"]["metrics"]["precision"]["reference"] == 0.9
    assert "reference" not in generators["small"]["metrics"]["coverage"]


def test_a_larger_control_is_shown_at_the_matched_size():
    matched = {"size": 204, "metrics": {"coverage": {"value": 0.4}, "precision": {"value": 0.8}}}
    generators = {"small": control_block(200, 0.3), "control": control_block(5000, 0.9, matched)}
    add_control_values(generators, "control")
    assert generators["small"]["metrics"]["coverage"]["control"] == 0.4
