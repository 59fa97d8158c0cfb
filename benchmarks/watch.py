"""Watches the memory of this process and all below it."""

import os
import subprocess
import threading
from pathlib import Path

_TICK_S = 0.2


class Memory(threading.Thread):
    """The largest process at any time, and the largest sum over all; pages that are shared do not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest_mib = self.most_mib = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._ended.wait(_TICK_S):
            total = 0.0
            for process in _descendants(os.getpid()):
                try:
                    resident, shared = Path(f"/proc/{process}/statm").read_text().split()[1:3]
                except (OSError, ValueError):
                    continue
                # Pages of the object store are shared by all.
                own_mib = (int(resident) - int(shared)) * page / 2**20
                self.largest_mib, total = max(self.largest_mib, own_mib), total + own_mib
            self.most_mib = max(self.most_mib, total)

    def stop(self) -> "Memory":
        self._ended.set()
        self.join()
        return self


def _descendants(root: int) -> set[int]:
    parents = {}
    for line in subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines():
        child, parent = line.split()
        parents[int(child)] = int(parent)
    found, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found
