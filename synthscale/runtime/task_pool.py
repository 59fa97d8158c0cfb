"""Run Ray tasks with a bounded number in flight, and report progress."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

_REPORT_EVERY_S = 10.0
"""Seconds between two progress lines."""
_IN_FLIGHT_PER_WORKER = 4
"""Tasks submitted per worker: more than run at once, so that a worker need not wait for the next submission."""


@dataclass(frozen=True)
class TaskPool:
    """Task pool: concurrency, GPUs and a progress callback.

    Attributes:
        workers: number of tasks that the cluster can run at the same time.
        gpus: number of GPUs in the cluster that callers may reserve; 0 for work on CPUs.
        on_progress: called with a line of text about every 10 s while tasks run.
    """

    workers: int
    gpus: int
    on_progress: Callable[[str], None]

    def run(self, items: Sequence[Any], submit: Callable[[Any], Any], what: str) -> Iterator[tuple[Any, Any]]:
        """Run one task per item, with at most 4 x ``workers`` tasks submitted; yield results as tasks finish.

        Args:
            items: one entry per task.
            submit: starts the task of an item and returns its Ray object reference.
            what: name of the work in progress lines.

        Yields:
            (item, result) in the order in which tasks finish.
        """
        started = last_report = time.monotonic()
        in_flight: dict[Any, Any] = {}
        queue, done = iter(items), 0
        while True:
            for item in queue:
                in_flight[submit(item)] = item
                if len(in_flight) >= _IN_FLIGHT_PER_WORKER * self.workers:
                    break
            if not in_flight:
                return
            ready, _ = ray.wait(list(in_flight), num_returns=1)
            yield in_flight.pop(ready[0]), ray.get(ready[0])
            done, now = done + 1, time.monotonic()
            if now - last_report >= _REPORT_EVERY_S:
                last_report, rate = now, done / (now - started)
                left_s = (len(items) - done) / rate
                self.on_progress(f"{what} {done:,} of {len(items):,}, {rate:.2g} a second, {left_s:,.0f} s left")
