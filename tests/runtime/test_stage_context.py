"""What stages share: the answers of tasks, one a shard."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from synthscale.errors import StageError
from synthscale.runtime.stage_context import StageContext
from synthscale.tables.layout import shards_of


def in_order(arrived: list[int], shards: int = 3) -> list[int]:
    """The shards of answers that arrive in some order, as they are handed on."""
    context: Any = SimpleNamespace(shards=shards_of([10 * (i + 1) for i in range(shards)]))
    answers = ({"shard": shard} for shard in arrived)
    return [answer["shard"] for answer in StageContext.in_order(context, answers, "reduce")]


@pytest.mark.parametrize("arrived", itertools.permutations(range(3)))
def test_answers_are_handed_on_in_the_order_of_the_shards(arrived: tuple[int, ...]) -> None:
    assert in_order(list(arrived)) == [0, 1, 2]


def test_answers_are_handed_on_as_soon_as_it_is_their_turn() -> None:
    taken = []
    context: Any = SimpleNamespace(shards=shards_of([10, 20, 30]))

    def arriving() -> Any:
        for shard in (1, 0, 2):
            taken.append(shard)
            yield {"shard": shard}

    found = StageContext.in_order(context, arriving(), "reduce")
    assert next(found)["shard"] == 0
    assert taken == [1, 0]


@pytest.mark.parametrize("arrived", [[0, 0, 1, 2], [0, 1, 2, 1], [2, 2, 0, 1], [0, 1, 2, 3]])
def test_a_shard_that_is_done_twice_is_an_error(arrived: list[int]) -> None:
    with pytest.raises(StageError, match=r"done twice; rerun with --redo-from reduce"):
        in_order(arrived)


@pytest.mark.parametrize("arrived", [[], [0, 1], [1, 2]])
def test_a_shard_that_is_not_done_is_an_error(arrived: list[int]) -> None:
    with pytest.raises(StageError, match=r"shard \d was not done"):
        in_order(arrived)
