"""Hashes of ids: published values, independence of other rows and of numbering, uniformity."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from synthscale.tables.id_hashes import Hashes, hash_groups, hash_ids, mix
from tests.examples import examples


@pytest.mark.parametrize(
    ("name", "digest"),
    # From `printf NAME | b2sum -l 64`. Folds on disk depend on these numbers, so they must never change.
    [("img/0001.png", "bd3bc8e2868cb099"), ("é", "cb1abf8beff3192f"), ("", "e4a6a0577479b2b4")],
)
def test_the_hash_of_an_id_is_its_64_bit_blake2b_digest(name: str, digest: str) -> None:
    assert hash_ids([name]).tolist() == [int.from_bytes(bytes.fromhex(digest), "little")]


def test_a_hash_depends_only_on_its_own_id() -> None:
    ids = [f"cat/{i}.jpg" for i in range(50)]
    hashes = hash_ids(ids)
    assert hashes.shape == (50,)
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == 50
    assert hash_ids(reversed(ids)).tolist() == hashes[::-1].tolist()
    assert hash_ids(iter(ids[7:9])).tolist() == hashes[7:9].tolist()
    assert hash_ids([]).shape == (0,)


@pytest.mark.parametrize(
    ("seed", "outputs"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (
            1234567,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423,
                4593380528125082431,
                16408922859458223821,
            ],
        ),
    ],
)
def test_streams_are_the_published_outputs_of_splitmix64(seed: int, outputs: list[int]) -> None:
    state = np.array([seed], np.uint64)
    assert [int(mix(state, stream)[0]) for stream in range(len(outputs))] == outputs


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=30, unique=True), st.integers(0, 2**64))
def test_different_hashes_never_mix_to_the_same_number(hashes: list[int], stream: int) -> None:
    numbers = mix(np.array(hashes, np.uint64), stream)
    assert len(set(numbers.tolist())) == len(hashes)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(0, 2**64), st.data())
def test_a_mixed_number_depends_only_on_its_own_hash_and_the_stream(
    hashes: list[int], stream: int, data: st.DataObject
) -> None:
    array = np.array(hashes, np.uint64)
    before = array.copy()
    numbers = mix(array, stream)
    chosen = data.draw(st.lists(st.integers(0, len(hashes) - 1), max_size=10))
    assert mix(array[chosen], stream).tolist() == numbers[chosen].tolist()
    assert mix(array[:, None], stream).tolist() == numbers[:, None].tolist()
    assert array.tolist() == before.tolist()


@pytest.mark.parametrize("kind", ["digests", "counted"])
def test_mixed_numbers_are_uniform_and_streams_are_uncorrelated(kind: str) -> None:
    n = 20_000
    hashes = hash_ids(f"{i}" for i in range(n)) if kind == "digests" else np.arange(n, dtype=np.uint64)
    streams = np.stack([mix(hashes, stream) / 2.0**64 for stream in range(4)])
    assert min(stats.kstest(row, "uniform").pvalue for row in streams) > 1e-3
    correlation = np.corrcoef(streams)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 5 / n**0.5
    # The remainder assigns rows to blocks, parts and batches.
    counts = np.bincount((mix(hashes, 5) % np.uint64(7)).astype(int), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_mixing_twice_gives_numbers_unrelated_to_the_first_ones() -> None:
    hashes = hash_ids(f"{i}" for i in range(10_000))
    once, twice = mix(hashes, 0), mix(mix(hashes, 0), 3)
    assert abs(np.corrcoef(once / 2.0**64, twice / 2.0**64)[0, 1]) < 0.05
    assert not np.isin(twice, np.stack([mix(hashes, stream) for stream in range(8)])).any()


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([None, 3, 7, 900, -1])), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
@examples(100)
def test_a_group_has_the_smallest_hash_of_its_members(rows: list[tuple[int, int | None]], random: object) -> None:
    number = np.cumsum([step for step, _ in rows]).astype(np.int64)
    hashes = hash_ids(f"image-{n}" for n in number)
    before = hashes.copy()
    members = [(n, group) for n, (_, group) in zip(number.tolist(), rows, strict=True) if group is not None]
    random.shuffle(members)  # type: ignore[attr-defined]
    member, group = np.array([m for m, _ in members], np.int64), np.array([g for _, g in members], np.int64)
    group_hashes = hash_groups(hashes, number, (member, group))
    hash_of = dict(zip(number.tolist(), hashes.tolist(), strict=True))
    for n, group_hash, (_, name) in zip(number.tolist(), group_hashes.tolist(), rows, strict=True):
        group_members = [m for m, g in members if g == name] if name is not None else [n]
        assert group_hash == min(hash_of[m] for m in group_members)
    assert hashes.tolist() == before.tolist()


def test_group_hashes_do_not_depend_on_the_numbering_of_rows_and_groups() -> None:
    ids = [f"{hashlib.md5(str(i).encode()).hexdigest()}.png" for i in range(60)]
    group = np.arange(60) // 4
    order = np.random.default_rng(0).permutation(60)

    def group_hashes(chosen: np.ndarray, numbers: np.ndarray) -> dict[str, int]:
        rows = np.arange(60) * 3
        result: Hashes = hash_groups(hash_ids(ids[i] for i in chosen), rows, (rows, numbers))
        return dict(zip([ids[i] for i in chosen], result.tolist(), strict=True))

    assert group_hashes(np.arange(60), group) == group_hashes(order, 1000 - group[order])
