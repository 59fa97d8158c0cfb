"""A pool of Ray tasks with a bounded number in flight, and progress."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

_REPORT_EVERY_S = 10.0


_IN_FLIGHT = 4


@dataclass(frozen=True)
class TaskPool:
    """How tasks are run: so many at once, so many GPUs among them, and whom to tell how far they are."""

    workers: int
    gpus: int
    on_progress: Callable[[str], None]

    def run(self, items: Sequence[Any], submit: Callable[[Any], Any], what: str) -> Iterator[tuple[Any, Any]]:
        """Submit a task for each item, a few more than run at once; yield (item, result) as they end.

        Args:
            items: what there is to do.
            submit: starts the task of one item and returns its reference.
            what: names the work for those who wait.
        """
        started = told = time.monotonic()
        waiting: dict[Any, Any] = {}
        queue, done = iter(items), 0
        while True:
            for item in queue:
                waiting[submit(item)] = item
                if len(waiting) >= _IN_FLIGHT * self.workers:
                    break
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready[0]), ray.get(ready[0])
            done, now = done + 1, time.monotonic()
            if now - told >= _REPORT_EVERY_S:
                told, rate = now, done / (now - started)
                left_s = (len(items) - done) / rate
                self.on_progress(f"{what} {done:,} of {len(items):,}, {rate:.2g} a second, {left_s:,.0f} s left")
