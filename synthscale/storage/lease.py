"""The lease of a run directory, ``lease.json``: only one driver at a time writes to a run.

A driver creates the file, renews it every `HEARTBEAT_S`, and deletes it at the end, also after an error or
SIGTERM. A second driver is refused. A lease that has not been renewed for `EXPIRES_AFTER_S`, or whose process ran
on this machine and has ended, is taken over. All changes are compare-and-swap (`conditional_file`), so of two
drivers that take over at once one wins.

Ages are differences of two times of the storage's own clock: when ``lease.json`` was last written, and when a file
written now appears there. No clock of a driver's host takes part, so clocks that are wrong neither end a living
lease nor keep a dead one.

A driver that was paused for longer and then goes on has lost its lease: `Lease.renew`, which comes before each
stage's marker, raises. Its tasks may write shards until then: the same as the new holder's, unless that one has
other settings.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from synthscale.errors import StageError, StorageError
from synthscale.storage import filesystems as fsys
from synthscale.storage.conditional_file import Version, conditional_file
from synthscale.storage.lease_holder import Holder
from synthscale.storage.retries import is_empty_or_missing, is_full, retrying
from synthscale.storage.run_directory import LEASE, RunDirectory

T = TypeVar("T")
_log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""Seconds between renewals. Five may fail before the lease expires."""
EXPIRES_AFTER_S = 60.0
"""Age at which others may take a lease over. Half of it risks the lease of a driver that swaps or waits for a slow
server; twice of it only makes the replacement of a lost machine wait longer."""
_ATTEMPTS = 5
"""Attempts to take or renew a lease that changes between reading and writing it."""


class Lease:
    """The right to write to a run directory, as a context manager that holds it."""

    def __init__(self, run: RunDirectory) -> None:
        """Prepare the lease of a run; nothing is written yet."""
        self._run, self._storage = run.uri, run.storage
        self._file = conditional_file(run.path(LEASE), run.storage)
        self._holder: Holder
        self._seen = Version(b"")
        self._lost: StageError | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="synthscale-lease", daemon=True)

    def check_free(self) -> None:
        """Raise StageError, naming the holder, if another driver holds the lease; nothing is left behind."""

        def check() -> None:
            seen = self._file.read()
            if seen is not None:
                self._check_abandoned(seen)

        self._patiently("read", check)

    def __enter__(self) -> "Lease":
        """Take the lease.

        Raises:
            StageError: another driver holds it.
            StorageError: the run directory cannot be written.
        """
        self._holder = Holder.this_process()
        self._seen = self._patiently("write", self._taken)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        try:
            # One attempt: the end of a run does not wait for a storage that is gone, and the lease expires anyway.
            with self._lock, self._file.errors("remove"):
                self._release_once()
        except (StageError, StorageError) as failure:
            _log.info("%s: lease.json was not released: %s", self._run, failure)

    def renew(self) -> None:
        """Renew the lease: for another `EXPIRES_AFTER_S` no other driver writes to the run.

        Raises:
            StageError: another driver has taken over.
            StorageError: the storage cannot be reached, for ``storage.retry_s`` seconds.
        """
        with self._lock:
            self._patiently("write", self._renew_once)

    def check_held(self) -> None:
        """Raise StageError if an earlier renewal found that another driver has taken over; asks no storage."""
        if self._lost is not None:
            raise StageError(*self._lost.args)

    def _patiently(self, doing: str, action: Callable[[], T]) -> T:
        """Return ``action()``, repeated after transient errors of the storage."""
        with self._file.errors(doing):
            return retrying(action, self._file.uri, doing, self._storage.retry_s)

    def _renew_once(self) -> None:
        self.check_held()
        for _ in range(_ATTEMPTS):
            written = self._file.replace(self._holder.now().to_json(), self._seen)
            if written is not None:
                self._seen = written
                return
            current = self._file.read()
            if current is None or not self._is_ours(current):
                self._lost = self._loss(current)
                raise self._lost
            # An earlier renewal was written, but its response was lost.
            self._seen = current
        raise StorageError(f"{self._file.uri}: cannot be renewed: its storage does not keep what is written")

    def _release_once(self) -> None:
        try:
            # So that it cannot expire and be taken over just before it is deleted.
            self._renew_once()
        except Exception as error:
            # A file can be deleted from a full disk.
            if not is_full(error):
                raise
        self._file.remove(self._seen)

    def _taken(self) -> Version:
        for _ in range(_ATTEMPTS):
            data = self._holder.now().to_json()
            written = self._file.create(data)
            if written is not None:
                return written
            seen = self._file.read()
            if seen is None:
                continue
            if self._is_ours(seen):
                # It was created, but the response was lost.
                return seen
            self._check_abandoned(seen)
            written = self._file.replace(data, seen)
            if written is not None:
                _log.info("%s: took over from %s", self._run, Holder.from_json(seen.data) or "an unknown driver")
                return written
        raise StageError(f"{self._run}: several drivers are starting at once; run the same command again")

    def _check_abandoned(self, seen: Version) -> None:
        """Raise StageError unless the driver that wrote ``seen`` has ended or stopped renewing its lease."""
        holder = Holder.from_json(seen.data)
        if holder is not None and holder.has_ended():
            return
        age_s = self._file.now_s() - seen.modified_s
        # If the storage's clock is set back, a living driver's lease is in the future until its next heartbeat.
        if abs(age_s) <= EXPIRES_AFTER_S:
            who = "an unknown driver" if holder is None else f"{holder} since {holder.started}"
            raise StageError(
                f"{self._run}: is being written by {who} (heartbeat {max(0, age_s):.0f} s ago); "
                "wait until it has finished, or stop it first"
            )

    def _is_ours(self, version: Version) -> bool:
        holder = Holder.from_json(version.data)
        return holder is not None and holder.owner == self._holder.owner

    def _loss(self, current: Version | None) -> StageError:
        """Return the error that says who has the lease, given the current file.

        Raises:
            OSError: the whole run directory is gone, as when a mount is lost; this may pass.
        """
        if current is not None:
            why = f"was taken over by {Holder.from_json(current.data) or 'an unknown driver'}"
        elif not fsys.is_s3(self._run) and is_empty_or_missing(self._run):
            raise OSError(errno.ENODEV, f"{self._run} has disappeared; is its disk or share still mounted?")
        else:
            why = "lease.json is gone: another driver took over and has finished, or somebody deleted it"
        return StageError(f"{self._run}: {why}; this driver stops; to continue later, run the same command again")

    def _renew_regularly(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                with self._lock, self._file.errors("write"):
                    self._renew_once()
            except StageError as error:
                _log.info("%s", error)
                return
            except StorageError as error:
                _log.info("%s: heartbeat failed, tried again in %g s: %s", self._run, HEARTBEAT_S, error)


@dataclass(frozen=True)
class LeaseState:
    """A lease as ``status`` sees it, which writes nothing.

    Attributes:
        holder: the driver; None if ``lease.json`` is damaged.
        age_s: seconds since the last heartbeat, by this machine's clock against the storage's.
        is_abandoned: whether the next driver takes it over.
    """

    holder: Holder | None
    age_s: float
    is_abandoned: bool


def lease_state(run: RunDirectory) -> LeaseState | None:
    """Return the state of a run's lease; None if no driver holds it."""
    file = conditional_file(run.path(LEASE), run.storage)
    with file.errors("read"):
        seen = retrying(file.read, file.uri, "read", run.storage.retry_s)
    if seen is None:
        return None
    holder, age_s = Holder.from_json(seen.data), max(0.0, time.time() - seen.modified_s)
    has_ended = holder is not None and holder.has_ended()
    return LeaseState(holder, age_s, has_ended or age_s > EXPIRES_AFTER_S)
