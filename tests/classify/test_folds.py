import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.classify.folds import assign_folds
from synthscale.tables.id_hashes import Hashes, hash_ids
from tests.examples import examples

Groups = list[tuple[int, int]]
"""Real and synthetic rows of each group."""


def assign(
    keys: Hashes, is_real: list[bool] | NDArray[np.bool_], folds: int = 5, seed: int = 0
) -> NDArray[np.int8]:
    fold = assign_folds(keys, np.asarray(is_real), folds, seed)
    assert fold is not None
    return fold


def named(*names: str) -> Hashes:
    return hash_ids(names)


def rows_of(groups: Groups) -> tuple[Hashes, NDArray[np.bool_]]:
    """Group hash and class of each row of the groups."""
    keys = hash_ids(f"{i}" for i in range(len(groups)))
    is_real = [i < real for real, synthetic in groups for i in range(real + synthetic)]
    return np.repeat(keys, np.array([real + synthetic for real, synthetic in groups], np.int64)), np.array(
        is_real, np.bool_
    )


def class_counts(fold: NDArray[np.int8], is_real: NDArray[np.bool_], folds: int) -> NDArray[np.int64]:
    """Real and synthetic rows by fold: (2, folds)."""
    return np.array([np.bincount(fold[is_real], minlength=folds), np.bincount(fold[~is_real], minlength=folds)])


rows = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60)


@given(rows, st.integers(2, 7), st.integers(0, 2**63))
@examples(150)
def test_no_group_is_split_and_every_training_part_has_both_classes(
    members: list[tuple[int, bool]], folds: int, seed: int
) -> None:
    keys, is_real = hash_ids(f"key{key}" for key, _ in members), np.array([real for _, real in members])
    fold = assign_folds(keys, is_real, folds, seed)
    groups_with = [{key for key, real in members if real is kind} for kind in (True, False)]
    if min(map(len, groups_with)) < 2:
        # All rows of a class are in one group: the head of its fold could not be fitted.
        assert fold is None
        return
    assert fold is not None
    assert len({(key, f) for key, f in zip(keys.tolist(), fold.tolist(), strict=True)}) == len(set(keys.tolist()))
    assert fold.min() >= 0
    assert fold.max() < folds
    for f in range(folds):
        training = fold != f
        assert is_real[training].any()
        assert (~is_real[training]).any()


size = st.one_of(st.integers(0, 3), st.integers(0, 60))


@given(st.lists(st.tuples(size, size), min_size=1, max_size=7), st.integers(2, 6), st.integers(0, 1000))
@example([(2, 1), (1, 7), (3, 0)], 2, 0)
@example([(1, 1), (2, 7), (3, 0)], 2, 6)
@examples(150)
def test_a_few_groups_of_very_unequal_sizes_get_folds_whenever_possible(
    groups: Groups, folds: int, seed: int
) -> None:
    keys, is_real = rows_of(groups)
    fold = assign_folds(keys, is_real, folds, seed)
    # Two folds with both classes exist exactly if no class is in a single group.
    possible = any(
        all(len({f for f, group in zip(repeat, groups, strict=True) if group[kind]}) == 2 for kind in (0, 1))
        for repeat in itertools.product(range(2), repeat=len(groups))
    )
    assert (fold is not None) == possible
    if fold is not None:
        inside = class_counts(fold, is_real, folds)
        assert (inside < inside.sum(axis=1, keepdims=True)).all()
        assert len(set(zip(keys.tolist(), fold.tolist(), strict=True))) == len(np.unique(keys))


@pytest.mark.parametrize(("n", "m"), [(200, 202), (500, 50), (5, 1000), (7, 7)])
def test_single_rows_of_both_classes_are_spread_evenly(n: int, m: int) -> None:
    is_real = np.arange(n + m) < n
    counts = class_counts(assign(hash_ids(f"{i}" for i in range(n + m)), is_real), is_real, 5)
    assert (np.ptp(counts, axis=1) <= 1).all()


several = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 25)).filter(lambda group: sum(group) > 1), min_size=0, max_size=12
)


@given(several, st.integers(0, 90), st.integers(0, 90), st.integers(2, 8), st.integers(0, 1000))
@examples(100)
def test_single_rows_fill_up_the_folds_that_big_groups_left_low(
    groups: Groups, reals: int, synthetics: int, folds: int, seed: int
) -> None:
    keys, is_real = rows_of(groups + [(1, 0)] * reals + [(0, 1)] * synthetics)
    is_single = np.arange(len(keys)) >= sum(map(sum, groups))
    fold = assign_folds(keys, is_real, folds, seed)
    if fold is None:
        return
    # k may have been lowered; folds beyond the last used one do not count.
    possible = [k for k in range(folds, 1, -1) if k > fold.max()]
    filled = []
    for k in possible:
        load = class_counts(fold[~is_single], is_real[~is_single], k)
        for kind, singles in ((0, reals), (1, synthetics)):
            for _ in range(singles):
                load[kind, np.argmin(load[kind])] += 1
        filled.append((np.sort(class_counts(fold, is_real, k)) == np.sort(load)).all())
    assert any(filled)


@pytest.mark.parametrize("folds", [2, 5, 20])
def test_after_one_huge_group_single_rows_go_to_the_other_folds(folds: int) -> None:
    keys, is_real = rows_of([(1000, 0)] + [(1, 0)] * 300 + [(0, 1)] * 400)
    fold = assign(keys, is_real, folds)
    counts = class_counts(fold, is_real, folds)
    low = counts[0] < 1000
    assert low.sum() == folds - 1
    assert counts[0][low].sum() == 300
    assert np.ptp(counts[0][low]) <= 1
    assert np.ptp(counts[1]) <= 1


def test_groups_of_many_sizes_leave_the_classes_balanced() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 300)
    keys = np.repeat(hash_ids(f"g{i}" for i in range(300)), sizes)
    # Some groups are all real, some all synthetic, some mixed.
    is_real = rng.random(len(keys)) < np.repeat(rng.choice([0.0, 0.5, 1.0], 300), sizes)
    counts = class_counts(assign(keys, is_real), is_real, 5)
    assert (np.abs(counts - counts.mean(axis=1, keepdims=True)) <= 0.05 * counts.mean(axis=1, keepdims=True)).all()


def test_a_rare_class_in_groups_is_spread_as_well_as_a_frequent_one() -> None:
    keys, is_real = rows_of([(30, 0)] * 100 + [(0, 3)] * 25)
    counts = class_counts(assign(keys, is_real), is_real, 5)
    np.testing.assert_array_equal(counts, [[600] * 5, [15] * 5])


@given(st.permutations(list(range(40))), st.integers(0, 5))
@examples(25)
def test_folds_do_not_depend_on_the_order_of_rows(order: list[int], seed: int) -> None:
    # Groups of three, pairs of one class, and single rows.
    keys = hash_ids(f"k{i // 3 if i < 15 else i // 2 if i < 25 else i}" for i in range(40))
    is_real = np.arange(40) % 2 == 0
    straight = assign(keys, is_real, seed=seed)
    moved = assign(keys[order], is_real[order], seed=seed)
    np.testing.assert_array_equal(moved, straight[order])


def test_the_same_seed_gives_the_same_folds_and_another_seed_others() -> None:
    keys, is_real = hash_ids(f"{i}" for i in range(100)), np.arange(100) < 50
    np.testing.assert_array_equal(assign(keys, is_real, seed=1), assign(keys, is_real, seed=1))
    assert (assign(keys, is_real, seed=1) != assign(keys, is_real, seed=2)).any()
    assert (assign(keys, is_real, seed=2**63 - 1) != assign(keys, is_real, seed=2**63)).any()


def test_fold_assignments_of_different_seeds_are_independent() -> None:
    keys, is_real = hash_ids(f"{i}" for i in range(5000)), np.arange(5000) < 2500
    first, second = assign(keys, is_real, seed=0), assign(keys, is_real, seed=1)
    assert np.mean(first == second) == pytest.approx(0.2, abs=0.03)


def test_fewer_groups_than_folds_lower_k() -> None:
    # Two groups of each class: three folds would leave one empty or one class in a single fold.
    fold = assign(named("a", "a", "b", "c", "d", "d"), [True, True, True, False, False, False])
    assert set(fold.tolist()) == {0, 1}


def test_folds_in_use_are_numbered_without_gaps() -> None:
    for groups in range(2, 9):
        keys, is_real = rows_of([(2, 0), (0, 3)] * (groups // 2 + 1) + [(1, 0)] * (groups % 3))
        fold = assign(keys, is_real, 7)
        assert set(fold.tolist()) == set(range(fold.max() + 1))


def test_a_class_in_one_group_cannot_be_cross_validated() -> None:
    assert assign_folds(named("a", "a", "a", "b", "c"), np.array([True, True, False, False, False]), 5, 0) is None
    assert assign_folds(named("a", "b"), np.array([True, False]), 5, 0) is None
    assert assign_folds(named("a", "b", "c"), np.array([True, False, False]), 5, 0) is None


@pytest.mark.parametrize("kind", [True, False])
def test_a_view_of_one_class_alone_cannot_be_cross_validated(kind: bool) -> None:
    assert assign_folds(hash_ids(f"{i}" for i in range(30)), np.full(30, kind), 5, 0) is None


def test_many_rows_are_assigned_evenly() -> None:
    rng = np.random.default_rng(1)
    group = rng.integers(0, 60_000, 100_000)
    keys, is_real = hash_ids(f"{g}" for g in range(60_000))[group], rng.random(100_000) < 0.9
    fold = assign(keys, is_real, 100)
    assert (np.ptp(class_counts(fold, is_real, 100), axis=1) <= 1).all()
    assert np.unique(np.stack([keys, fold.astype(np.uint64)]), axis=1).shape[1] == len(np.unique(keys))
