import functools
import math
import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.core import (
    FIELDS,
    SMALL,
    CoreSums,
    Indicators,
    MetricContext,
    core_metrics,
    coverage_reference,
    sum_slices,
    view_references,
)
from synthscale.statistics.estimates import NO_INTERVAL, TOO_FEW_INDEPENDENT, Estimate, metric_block
from synthscale.statistics.jackknife import T_HALF_WIDTH, interval, jackknife_blocks
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.schemas import BLOCKS
from tests.examples import examples
from tests.reference import brute

NO_REFERENCES = MetricContext({"precision": None, "coverage": None})
PLAIN_SUMS = ("real", "synthetic", "scored", "quality_real", "quality_synthetic", "repeats", "copies")


def rows_of(is_real: NDArray[np.bool_], **given: Any) -> Indicators:
    """Return indicators with the given values; by default q 0.5, no groups, no radii, blocks assigned in turn."""
    n = len(is_real)
    none = np.zeros(n, np.bool_)
    q = given.get("q", np.full(n, 0.5))
    known = {
        "q": q,
        "q_unadjusted": q,
        "in_synthetic_group": none,
        "in_mixed_group": none,
        "inside": none,
        "covered": none,
        "block": (np.arange(n) % BLOCKS).astype(np.int8),
        "near_real": none,
        "components": np.ones(n),
        "real_repeats": np.zeros(n),
        "real_components": np.ones(n),
        "cluster_rows": np.ones(n, np.int64),
    }
    return Indicators(is_real=is_real, **(known | given))


def indicators(seed: int, n: int) -> Indicators:
    rng = np.random.default_rng(seed)
    q, group = rng.random(n), rng.integers(0, 3, n)
    q[rng.random(n) < 0.05] = np.nan
    flags = rng.random((3, n)) < 0.4
    block = rng.integers(0, BLOCKS, n).astype(np.int8)
    without = rng.random((n, BLOCKS))
    without[np.arange(n), block] = np.nan
    without[np.isnan(q)] = np.nan
    return rows_of(
        flags[0],
        q=q,
        q_unadjusted=q**2,
        in_synthetic_group=group == 1,
        in_mixed_group=group == 2,
        inside=flags[1],
        covered=flags[2],
        block=block,
        near_real=rng.random(n) < 0.2,
        components=1 / rng.integers(1, 5, n),
        real_repeats=rng.random(n),
        real_components=rng.random(n),
        cluster_rows=rng.integers(1, 5, n),
        q_without=without,
        more={"real_radii": rng.integers(0, 9, n).astype(float), "recalled": (rng.random(n) < 0.5) * 1.0},
    )


def take(rows: Indicators, chosen: NDArray[np.integer]) -> Indicators:
    parts = {name: None if part is None else part[chosen] for name, part in vars(rows).items() if name != "more"}
    return Indicators(**parts, more={name: part[chosen] for name, part in rows.more.items()})


def summed(rows: Indicators) -> CoreSums:
    (found,) = sum_slices(rows, np.zeros(len(rows.is_real), np.int64), 1)
    return found


def core(rows: Indicators, context: MetricContext = NO_REFERENCES) -> dict[str, dict[str, Any]]:
    return {name: estimate.to_json() for name, estimate in core_metrics(summed(rows), context).items()}


def by_loop(rows: Indicators, slices: NDArray[np.int64], chosen: int) -> dict[str, NDArray[np.float64]]:
    """Compute the sums of one slice by block with a loop over rows."""
    sums: dict[str, NDArray[np.float64]] = {}

    def add(name: str, block: int, value: float) -> None:
        sums.setdefault(name, np.zeros(BLOCKS))[block] += value

    for i, own in enumerate(slices.tolist()):
        if own != chosen:
            continue
        b, kind, other = int(rows.block[i]), "real", "synthetic"
        if not rows.is_real[i]:
            kind, other = other, kind
        add(kind, b, 1)
        add(f"clusters_{kind}", b, 1 / float(rows.cluster_rows[i]))
        if not math.isnan(rows.q[i]):
            add("scored", b, 1)
            add(f"quality_{kind}", b, float(rows.q[i]))
            add(f"unadjusted_{kind}", b, float(rows.q_unadjusted[i]))
        if kind == "synthetic":
            add("repeats", b, rows.in_synthetic_group[i])
            add("copies", b, rows.in_mixed_group[i])
            add("components", b, rows.components[i])
            add("inside", b, rows.inside[i])
        else:
            add("covered", b, rows.covered[i])
            add("real_inside", b, rows.inside[i])
            add("real_near", b, rows.near_real[i])
            add("real_repeats", b, rows.real_repeats[i])
            add("real_components", b, rows.real_components[i])
        for name, values in rows.more.items():
            add(name, b, float(values[i]))
        if rows.q_without is not None:
            for j, q in enumerate(rows.q_without[i].tolist()):
                add(f"without_{kind}", j, 0.0 if math.isnan(q) else q)
    return sums


@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(1, 5))
@examples(20)
def test_sums_of_slices_are_those_of_a_loop(seed: int, n: int, count: int) -> None:
    rows = indicators(seed, n)
    slices = np.random.default_rng(seed).integers(-1, count, n)
    for chosen, sums in enumerate(sum_slices(rows, slices, count)):
        expected = by_loop(rows, slices, chosen)
        for name in {*expected, *PLAIN_SUMS}:
            values = expected.get(name, np.zeros(BLOCKS))
            np.testing.assert_allclose(sums.by_block(name), values, atol=1e-12, err_msg=name)
            assert sums[name] == pytest.approx(values.sum())


def test_slices_without_rows_have_empty_sums() -> None:
    rows = indicators(0, 10)
    found = sum_slices(rows, np.full(10, -1), 3)
    assert len(found) == 3
    assert all((sums.values == 0).all() for sums in found)
    assert sum_slices(rows, np.full(10, -1), 0) == []
    assert (summed(take(rows, np.arange(0))).values == 0).all()


@given(st.integers(0, 1000), st.lists(st.integers(0, 100), max_size=4), st.integers(1, 4))
@examples(20)
def test_sums_merge_over_any_split(seed: int, cuts: list[int], count: int) -> None:
    rng, rows = np.random.default_rng(seed), indicators(seed, 100)
    slices = rng.integers(-1, count, 100)
    parts = np.split(rng.permutation(100), sorted(cuts))
    found = [sum_slices(take(rows, part), slices[part], count) for part in parts]
    for i, whole in enumerate(sum_slices(rows, slices, count)):
        merged = functools.reduce(operator.add, [part[i] for part in found], CoreSums())
        np.testing.assert_allclose(merged.values, whole.values, rtol=1e-12, atol=1e-12)


def test_slices_that_partition_the_rows_add_up_to_the_whole() -> None:
    rows = indicators(1, 200)
    parts = sum_slices(rows, np.arange(200) % 7, 7)
    np.testing.assert_allclose(functools.reduce(operator.add, parts).values, summed(rows).values, atol=1e-12)


def test_the_sums_of_each_block_add_up_except_those_of_refitted_heads() -> None:
    whole = summed(indicators(2, 300))
    parts = whole.each_block()
    assert len(parts) == BLOCKS
    for b, part in enumerate(parts):
        for name in FIELDS:
            expected = np.where(np.arange(BLOCKS) == b, whole.by_block(name), 0)
            np.testing.assert_array_equal(part.by_block(name), 0 if name.startswith("without") else expected)


def test_the_tutorials_arithmetic() -> None:
    # 200 real and 202 synthetic rows; 18 synthetic ones in groups without and 5 in groups with real rows.
    is_real = np.arange(402) < 200
    repeats, mixed = np.zeros(402, bool), np.zeros(402, bool)
    repeats[200:218] = True
    mixed[218:223] = True
    # Real rows in groups change neither metric.
    mixed[:5], repeats[10:20] = True, True
    q = np.where(is_real, 0.861, 0.864)
    found = core(rows_of(is_real, q=q, in_synthetic_group=repeats, in_mixed_group=mixed))
    assert tuple(found) == CORE_METRICS
    assert found["diversity"]["value"] == pytest.approx(0.9108910891, abs=1e-10)
    assert found["freshness"]["value"] == pytest.approx(0.9752475248, abs=1e-10)
    assert found["fidelity"]["value"] == pytest.approx(0.136)
    assert found["representativeness"]["value"] == pytest.approx(0.139)


def test_the_unadjusted_values_are_those_of_their_own_scores() -> None:
    is_real = np.arange(60) < 20
    q = np.linspace(0.1, 0.9, 60)
    found = core(rows_of(is_real, q=q, q_unadjusted=q**2))
    assert found["fidelity"]["unadjusted"] == pytest.approx(1 - np.mean(q[20:] ** 2))
    assert found["representativeness"]["unadjusted"] == pytest.approx(1 - np.mean(q[:20] ** 2))
    assert found["fidelity"]["reference"] == found["representativeness"]["reference"] == 0.5


def test_precision_and_coverage_are_shares_of_their_own_class() -> None:
    is_real = np.arange(10) < 4
    inside, covered = np.zeros(10, bool), np.zeros(10, bool)
    inside[[0, 1, 5, 6, 7]] = True
    covered[[0, 1, 2]] = True
    found = core(
        rows_of(is_real, inside=inside, covered=covered), MetricContext({"precision": 0.5, "coverage": 0.9})
    )
    assert found["precision"]["value"] == 3 / 6
    assert found["coverage"]["value"] == 3 / 4
    assert found["precision"]["reference"] == 0.5
    assert found["coverage"]["reference"] == 0.9


@pytest.mark.parametrize(
    ("missing", "null"),
    [
        ("real", {"representativeness", "coverage"}),
        ("synthetic", {"fidelity", "diversity", "unique_share", "freshness", "precision"}),
    ],
)
def test_a_slice_without_a_class_has_null_metrics_with_that_reason(missing: str, null: set[str]) -> None:
    found = core(rows_of(np.full(5, missing == "synthetic"), q=np.full(5, 0.4)))
    for name, value in found.items():
        assert (value["value"] is None) == (name in null), name
        if name in null:
            assert missing in value["reason"]
            assert (value["low"], value["high"]) == (None, None)


def test_without_a_classifier_only_its_two_metrics_are_null() -> None:
    found = core(rows_of(np.arange(6) < 3, q=np.full(6, np.nan)))
    assert {name for name, value in found.items() if value["value"] is None} == {"fidelity", "representativeness"}
    assert "classifier" in found["fidelity"]["reason"]


def test_without_a_manifold_precision_and_coverage_are_null_with_that_reason() -> None:
    found = core(rows_of(np.arange(6) < 3), MetricContext({}, no_manifold="fewer than two distinct"))
    for name, value in found.items():
        assert (value["value"] is None) == (name in {"precision", "coverage"})
    assert found["coverage"]["reason"] == "fewer than two distinct"


def large(seed: int, n: int = 2000, m: int = 2000) -> Indicators:
    """Return independent rows, a third of which has each property."""
    rng, is_real = np.random.default_rng(seed), np.arange(n + m) < n
    keys = hash_ids(f"{seed}/{i}" for i in range(n + m))
    flags = rng.random((4, n + m)) < 0.3
    return rows_of(
        is_real,
        q=rng.random(n + m),
        in_synthetic_group=flags[0],
        in_mixed_group=flags[1] & ~flags[0],
        inside=flags[2],
        covered=flags[3],
        block=jackknife_blocks(keys),
    )


def half_width(found: dict[str, Any]) -> float:
    return float(found["high"] - found["low"]) / 2


def test_shares_of_independent_rows_have_the_binomial_standard_error() -> None:
    found = [core(large(seed, 1000, 1500)) for seed in range(40)]
    for name, count in (("diversity", 1500), ("freshness", 1500), ("precision", 1500), ("coverage", 1000)):
        values = [one[name] for one in found]
        error = np.mean([half_width(one) for one in values]) / T_HALF_WIDTH
        share = np.mean([one["value"] for one in values])
        assert error == pytest.approx(math.sqrt(share * (1 - share) / count), rel=0.1), name
        assert error == pytest.approx(np.std([one["value"] for one in values]), rel=0.4), name


def test_a_group_of_copies_counts_as_one_independent_row() -> None:
    # Every row occurs four times, in the same block as its copies.
    plain = large(3, 400, 400)
    four = take(plain, np.repeat(np.arange(800), 4))
    four = Indicators(**(vars(four) | {"cluster_rows": np.full(3200, 4)}))
    one, other = core(plain), core(four)
    for name in CORE_METRICS:
        assert other[name] == pytest.approx(one[name]), name
    # 3,200 independent rows would have half the standard error.
    assert half_width(core(large(3, 1600, 1600))["precision"]) < 0.7 * half_width(one["precision"])


@pytest.mark.parametrize("found", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_near_0_and_1_intervals_are_exact_over_independent_groups(found: int, size: int) -> None:
    # `found` of 60 groups have the property, with `size` rows each.
    is_real = np.repeat(np.arange(120) < 60, size)
    group = np.repeat(np.arange(120), size)
    flags = dict.fromkeys(("in_synthetic_group", "in_mixed_group", "inside", "covered"), group % 60 < found)
    rows = rows_of(
        is_real,
        **flags,
        block=(group % BLOCKS).astype(np.int8),
        cluster_rows=np.full(120 * size, size),
    )
    ends = binomtest(found, 60).proportion_ci(0.95, method="exact")
    metrics = core(rows)
    for name in ("precision", "coverage"):
        assert metrics[name]["value"] == pytest.approx(found / 60)
        assert (metrics[name]["low"], metrics[name]["high"]) == pytest.approx((ends.low, ends.high))
    for name in ("diversity", "freshness"):
        assert (metrics[name]["low"], metrics[name]["high"]) == pytest.approx((1 - ends.high, 1 - ends.low))


def test_clusters_of_unequal_sizes_count_once_each() -> None:
    # 40 single rows and one cluster of 20, all fresh: none of 41 observations is a copy.
    sizes = np.r_[np.ones(40, int), np.full(20, 20)]
    is_real = np.r_[np.ones(60, bool), np.zeros(60, bool)]
    ends = core(rows_of(is_real, cluster_rows=np.r_[np.ones(60, int), sizes]))["freshness"]
    assert ends["value"] == 1
    assert ends["high"] == 1
    assert ends["low"] == pytest.approx(0.025 ** (1 / 41))


@pytest.mark.parametrize(("clusters", "enough"), [(9, False), (10, True)])
def test_fewer_than_ten_clusters_of_the_metrics_own_rows_give_no_interval(clusters: int, enough: bool) -> None:
    # The synthetic rows of a slice are in few clusters, and the real ones in many.
    rng = np.random.default_rng(0)
    is_real = np.r_[np.ones(200, bool), np.zeros(10 * clusters, bool)]
    n = len(is_real)
    rows = rows_of(
        is_real,
        q=rng.random(n),
        inside=rng.random(n) < 0.5,
        covered=rng.random(n) < 0.5,
        cluster_rows=np.where(is_real, 1, 10),
    )
    found = core(rows)
    for name in ("fidelity", "diversity", "unique_share", "freshness", "precision"):
        assert found[name]["value"] is not None
        assert (found[name]["low"] is not None) == enough, name
        assert found[name].get("reason") == (None if enough else TOO_FEW_INDEPENDENT), name
    for name in ("representativeness", "coverage"):
        assert found[name]["low"] is not None


def test_too_few_clusters_in_the_whole_view_take_every_interval() -> None:
    rng = np.random.default_rng(0)
    is_real = np.arange(400) < 200
    rows = rows_of(is_real, q=rng.random(400), inside=rng.random(400) < 0.5, covered=rng.random(400) < 0.5)
    for name, found in core(rows, MetricContext({}, 9.0)).items():
        assert (found["low"], found["high"], found["reason"]) == (None, None, TOO_FEW_INDEPENDENT), name
    assert all(found["low"] is not None for found in core(rows, MetricContext({}, 10.0)).values())


def test_unique_share_counts_components() -> None:
    # Components of 4, 2, 1, 1 and 1 synthetic rows; sizes of real components do not count.
    sizes = np.array([4] * 4 + [2] * 2 + [1] * 3)
    is_real = np.r_[np.zeros(9, bool), np.ones(20, bool)]
    rows = rows_of(is_real, components=1 / np.r_[sizes, np.full(20, 7)])
    assert core(rows)["unique_share"]["value"] == pytest.approx(5 / 9)


def test_references_are_shares_of_the_real_rows() -> None:
    rng = np.random.default_rng(0)
    is_real = np.arange(300) < 200
    rows = rows_of(
        is_real,
        near_real=rng.random(300) < 0.3,
        inside=rng.random(300) < 0.6,
        real_repeats=rng.random(300),
        real_components=rng.random(300),
    )
    found = view_references(summed(rows), 200, 5)
    assert found["freshness"] == pytest.approx(1 - rows.near_real[:200].mean())
    assert found["diversity"] == pytest.approx(1 - rows.real_repeats[:200].mean())
    assert found["unique_share"] == pytest.approx(rows.real_components[:200].mean())
    assert found["precision"] == pytest.approx(rows.inside[:200].mean())
    assert found["coverage"] == coverage_reference(200, 100, 5)


def refitted(seed: int, sizes: NDArray[np.int64]) -> tuple[Indicators, NDArray[np.float64]]:
    """Return rows in blocks of the given sizes, and q of each row by heads fitted without each block."""
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(BLOCKS), sizes).astype(np.int8)
    n = len(block)
    is_real = rng.random(n) < 0.5
    effect = rng.normal(0, 0.01, BLOCKS)
    q = np.clip(0.5 + 0.1 * rng.normal(size=n), 0, 1)
    without = q[:, None] + effect
    without[np.arange(n), block] = np.nan
    return rows_of(is_real, q=q, block=block, q_without=without), effect


@pytest.mark.parametrize("equal", [True, False])
def test_fidelity_and_representativeness_have_the_delete_a_block_jackknife_error(equal: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = np.full(BLOCKS, 50) if equal else rng.integers(35, 65, BLOCKS)
    rows, _ = refitted(1, sizes)
    found = core_metrics(summed(rows), NO_REFERENCES)
    for name, kind in (("fidelity", False), ("representativeness", True)):
        own = rows.is_real == kind
        value = 1 - rows.q[own].mean()
        assert rows.q_without is not None
        replicates = np.array([1 - np.nanmean(rows.q_without[own][:, b]) for b in range(BLOCKS)])
        variance = (BLOCKS - 1) / BLOCKS * np.square(replicates - replicates.mean()).sum()
        deviations = found[name].deviations
        assert deviations is not None
        error = math.sqrt(np.square(deviations).sum())
        assert error == pytest.approx(math.sqrt(variance), rel=1e-9 if equal else 0.1)
        one = found[name].to_json()
        assert one["value"] == pytest.approx(value)
        assert (one["low"], one["high"]) == pytest.approx(interval(value, error, 1000, other_clusters=1000))


def test_fits_that_move_with_the_data_have_wider_intervals_than_fixed_ones() -> None:
    rows, _ = refitted(2, np.full(BLOCKS, 50))
    fixed = rows_of(rows.is_real, q=rows.q, block=rows.block)
    assert half_width(core(rows)["fidelity"]) > 2 * half_width(core(fixed)["fidelity"])


def test_without_refits_the_standard_error_is_multiplied_by_root_2() -> None:
    deviations = [core_metrics(summed(large(seed)), NO_REFERENCES)["fidelity"].deviations for seed in range(20)]
    errors = [math.sqrt(np.square(own).sum()) for own in deviations if own is not None]
    assert len(errors) == 20
    assert np.mean(errors) == pytest.approx(math.sqrt(2 / 12 / 2000), rel=0.1)


def test_a_slice_within_one_block_has_a_value() -> None:
    rows, _ = refitted(3, np.full(BLOCKS, 20))
    inside = np.where(rows.block == 4, 0, -1)
    (sums,) = sum_slices(rows, inside, 1)
    found = core_metrics(sums, NO_REFERENCES)["fidelity"].to_json()
    own = (rows.block == 4) & ~rows.is_real
    assert found["value"] == pytest.approx(1 - rows.q[own].mean())
    assert found["low"] is None or found["low"] < found["value"] < found["high"]


@pytest.mark.parametrize("effect", [0.5, 1.0, 4.0])
def test_intervals_of_precision_and_coverage_follow_the_design_effect(effect: float) -> None:
    # The squared deviations sum to the design effect, in units of the binomial variance.
    rows = large(5)
    spread = np.full(BLOCKS, math.sqrt(effect / BLOCKS))
    plain = core(rows)
    found = core(rows, MetricContext(NO_REFERENCES.references, spreads={"precision": spread, "coverage": spread}))
    for name in ("precision", "coverage"):
        share = found[name]["value"]
        binomial = T_HALF_WIDTH * math.sqrt(share * (1 - share) / 2000)
        assert found[name]["value"] == plain[name]["value"]
        if effect == 4:
            assert half_width(found[name]) == pytest.approx(2 * binomial, rel=0.01)
        # The interval is never narrower than that of the jackknife over groups.
        assert half_width(found[name]) >= half_width(plain[name]) - 1e-12
    assert found["diversity"] == plain["diversity"]


def test_near_1_the_binomial_interval_uses_rows_divided_by_the_design_effect() -> None:
    is_real = np.arange(400) < 200
    spread = np.full(BLOCKS, math.sqrt(4 / BLOCKS))
    context = MetricContext(NO_REFERENCES.references, spreads={"precision": spread})
    found = core(rows_of(is_real, inside=~is_real, covered=is_real), context)
    assert found["precision"]["low"] == pytest.approx(0.025 ** (1 / 50))
    assert found["coverage"]["low"] == pytest.approx(0.025 ** (1 / 200))


def test_slices_of_few_rows_are_marked() -> None:
    for count, small in ((SMALL - 1, True), (SMALL, False)):
        is_real = np.arange(count + 200) < 200
        found = core(rows_of(is_real))
        assert found["diversity"].get("small", False) == small
        assert "small" not in found["coverage"]
    # The mark is decided by the number of clusters.
    is_real = np.arange(400) < 200
    assert core(rows_of(is_real, cluster_rows=np.full(400, 10)))["diversity"]["small"]


def test_one_row_has_a_value_and_no_interval() -> None:
    found = core(rows_of(np.array([True, False])))
    for name in CORE_METRICS:
        assert found[name]["value"] is not None
        assert (found[name]["low"], found[name]["high"]) == (None, None)
        assert found[name]["reason"] == TOO_FEW_INDEPENDENT


@given(st.integers(0, 10_000), st.integers(1, 60))
@examples(30)
def test_every_metric_is_a_share_within_its_interval_or_says_why_not(seed: int, n: int) -> None:
    for name, found in core(indicators(seed, n)).items():
        if found["value"] is None:
            assert found["reason"]
        else:
            assert -1e-12 <= found["value"] <= 1 + 1e-12
            if found["low"] is None:
                assert found["high"] is None
                assert found["reason"]
            else:
                assert "reason" not in found
                assert 0 <= found["low"] <= found["value"] + 1e-9, name
                assert found["value"] <= found["high"] + 1e-9 <= 1 + 2e-9, name


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_metric_that_is_no_number_is_null_with_a_reason(value: float | None) -> None:
    found = metric_block(value, reference=0.5)
    assert (found["value"], found["low"], found["high"]) == (None, None, None)
    assert found["reason"]


def test_a_metric_without_an_interval_says_so() -> None:
    assert metric_block(0.25, reference=0.5, unadjusted=None) == {
        "value": 0.25,
        "low": None,
        "high": None,
        "reference": 0.5,
        "reason": NO_INTERVAL,
    }
    assert Estimate(0.25, reason="a p-value has no interval").to_json()["reason"] == "a p-value has no interval"
    assert Estimate.undefined("nothing to see").to_json()["reason"] == "nothing to see"
    whole = Estimate(0.25, 0.0, 1.0, is_small=True).to_json()
    assert whole == {"value": 0.25, "low": 0.0, "high": 1.0, "small": True}


@pytest.mark.parametrize(("n", "m", "expected"), [(500, 500, 0.9692), (2000, 500, 0.6728)])
def test_the_coverage_reference_has_known_values(n: int, m: int, expected: float) -> None:
    assert coverage_reference(n, m, 5) == pytest.approx(expected, abs=5e-5)


def test_the_coverage_reference_is_what_a_simulation_gives() -> None:
    rng = np.random.default_rng(11)
    found = [
        brute.precision_and_coverage(rng.normal(size=(120, 4)), rng.normal(size=(60, 4)))[1] for _ in range(40)
    ]
    assert coverage_reference(120, 60, 5) == pytest.approx(np.mean(found), abs=4 * np.std(found) / 40**0.5)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_there_is_no_coverage_reference_for_five_real_rows_or_fewer(n: int) -> None:
    assert coverage_reference(n, 100, 5) is None
