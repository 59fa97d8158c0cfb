import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.folds import deal_folds


def dealt(
    keys: list[str], is_real: list[bool] | NDArray[np.bool_], folds: int = 5, seed: int = 0
) -> NDArray[np.int8]:
    fold = deal_folds(keys, np.asarray(is_real), folds, seed)
    assert fold is not None
    return fold


def class_counts(fold: NDArray[np.int8], is_real: NDArray[np.bool_], folds: int) -> NDArray[np.int64]:
    """Real and synthetic rows by fold: (2, folds)."""
    return np.array([np.bincount(fold[is_real], minlength=folds), np.bincount(fold[~is_real], minlength=folds)])


rows = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60)


@given(rows, st.integers(2, 7), st.integers(0, 2**63))
@settings(max_examples=300, deadline=None)
def test_no_group_is_split_and_every_training_part_has_both_classes(
    members: list[tuple[int, bool]], folds: int, seed: int
) -> None:
    keys, is_real = [f"key{key}" for key, _ in members], np.array([real for _, real in members])
    fold = deal_folds(keys, is_real, folds, seed)
    groups_with = [{key for key, real in members if real is kind} for kind in (True, False)]
    if min(map(len, groups_with)) < 2:
        # All rows of a class are in one group: the head of its fold could never see that class.
        assert fold is None
        return
    assert fold is not None
    assert len({(key, f) for key, f in zip(keys, fold.tolist(), strict=True)}) == len(set(keys))
    assert fold.min() >= 0
    assert fold.max() < folds
    for f in range(folds):
        training = fold != f
        assert is_real[training].any()
        assert (~is_real[training]).any()


@pytest.mark.parametrize(("n", "m"), [(200, 202), (500, 50), (5, 1000), (7, 7)])
def test_single_rows_of_both_classes_are_spread_evenly(n: int, m: int) -> None:
    is_real = np.arange(n + m) < n
    counts = class_counts(dealt([f"{i}" for i in range(n + m)], is_real), is_real, 5)
    assert (np.ptp(counts, axis=1) <= 1).all()


def test_groups_of_many_sizes_leave_the_classes_balanced() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 300)
    keys = np.repeat([f"g{i}" for i in range(300)], sizes).tolist()
    # Some groups are all real, some all synthetic, some mixed.
    is_real = rng.random(len(keys)) < np.repeat(rng.choice([0.0, 0.5, 1.0], 300), sizes)
    counts = class_counts(dealt(keys, is_real), is_real, 5)
    assert (np.abs(counts - counts.mean(axis=1, keepdims=True)) <= 0.05 * counts.mean(axis=1, keepdims=True)).all()


@given(st.permutations(list(range(40))), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_the_deal_does_not_depend_on_the_order_of_rows(order: list[int], seed: int) -> None:
    keys = [f"k{i // 3}" for i in range(40)]
    is_real = np.arange(40) % 2 == 0
    straight = dealt(keys, is_real, seed=seed)
    moved = dealt([keys[i] for i in order], is_real[order], seed=seed)
    np.testing.assert_array_equal(moved, straight[order])


def test_another_seed_deals_otherwise_and_the_same_seed_alike() -> None:
    keys, is_real = [f"{i}" for i in range(100)], np.arange(100) < 50
    np.testing.assert_array_equal(dealt(keys, is_real, seed=1), dealt(keys, is_real, seed=1))
    assert (dealt(keys, is_real, seed=1) != dealt(keys, is_real, seed=2)).any()


def test_fewer_groups_than_folds_lower_k() -> None:
    # Two groups of each class: three folds would leave one empty or one class in a single fold.
    fold = dealt(["a", "a", "b", "c", "d", "d"], [True, True, True, False, False, False])
    assert set(fold.tolist()) == {0, 1}


def test_a_class_in_one_group_cannot_be_cross_validated() -> None:
    assert deal_folds(["a", "a", "a", "b", "c"], np.array([True, True, False, False, False]), 5, 0) is None
    assert deal_folds(["a", "b"], np.array([True, False]), 5, 0) is None
    assert deal_folds(["a", "b", "c"], np.array([True, False, False]), 5, 0) is None
