"""`StageContext.in_order` returns one task result per shard, in shard order."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from synthscale.errors import StageError
from synthscale.runtime.stage_context import StageContext
from synthscale.tables.layout import shards_of


def in_order(arrived: list[int], shards: int = 3) -> list[int]:
    """Return the shard indices in the order in which they are yielded, given the order of arrival."""
    context: Any = SimpleNamespace(shards=shards_of([10 * (i + 1) for i in range(shards)]))
    results = ({"shard": shard} for shard in arrived)
    return [result["shard"] for result in StageContext.in_shard_order(context, results, "reduce")]


@pytest.mark.parametrize("arrived", itertools.permutations(range(3)))
def test_results_are_yielded_in_shard_order(arrived: tuple[int, ...]) -> None:
    assert in_order(list(arrived)) == [0, 1, 2]


def test_a_result_is_yielded_as_soon_as_all_results_before_it_have_arrived() -> None:
    taken = []
    context: Any = SimpleNamespace(shards=shards_of([10, 20, 30]))

    def arriving() -> Any:
        for shard in (1, 0, 2):
            taken.append(shard)
            yield {"shard": shard}

    results = StageContext.in_shard_order(context, arriving(), "reduce")
    assert next(results)["shard"] == 0
    assert taken == [1, 0]


@pytest.mark.parametrize("arrived", [[0, 0, 1, 2], [0, 1, 2, 1], [2, 2, 0, 1], [0, 1, 2, 3]])
def test_a_shard_with_two_results_is_an_error(arrived: list[int]) -> None:
    with pytest.raises(StageError, match=r"processed twice; rerun with --redo-from reduce"):
        in_order(arrived)


@pytest.mark.parametrize("arrived", [[], [0, 1], [1, 2]])
def test_a_shard_without_a_result_is_an_error(arrived: list[int]) -> None:
    with pytest.raises(StageError, match=r"shard \d was not processed"):
        in_order(arrived)
