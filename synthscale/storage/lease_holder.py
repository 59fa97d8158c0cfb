"""Who holds a run's lease: the fields of ``lease.json``, and whether that process still runs."""

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """A driver that holds a lease.

    Attributes:
        owner: random id of this holding; another run of the same process has another one.
        host: name of the machine.
        pid: process id.
        started: when the lease was taken, by the host's clock, ISO 8601 in UTC.
        heartbeat: when it was last renewed, likewise.
        boot_id: of the host's kernel since its last boot; empty if unknown.
        pid_namespace: in which ``pid`` counts: containers of one host have their own; empty if unknown.
        pid_started_ticks: when the process started, in clock ticks since boot: a later one may have the same id.
    """

    owner: str
    host: str
    pid: int
    started: str
    heartbeat: str
    boot_id: str
    pid_namespace: str
    pid_started_ticks: int

    @classmethod
    def this_process(cls) -> "Holder":
        """Return this process as a new holder."""
        now, state = _now(), _process_state(os.getpid())
        return cls(
            owner=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=now,
            heartbeat=now,
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            pid_started_ticks=0 if state is None else state[1],
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Holder | None":
        """Return the holder that a ``lease.json`` names; None if it is empty or damaged."""
        try:
            document = json.loads(data)
            values = {field.name: document[field.name] for field in fields(cls)}
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        numbers = {"pid", "pid_started_ticks"}
        if any(not _is_valid(value, is_number=name in numbers) for name, value in values.items()):
            return None
        return cls(**values)

    def to_json(self) -> bytes:
        """Return the content of ``lease.json``."""
        return json.dumps(asdict(self), indent=1).encode()

    def now(self) -> "Holder":
        """Return the holder with a heartbeat of this moment."""
        return replace(self, heartbeat=_now())

    def has_ended(self) -> bool:
        """Return True if the driver's process ran on this machine and has ended; False if it is elsewhere."""
        here = (socket.gethostname(), _boot_id(), _pid_namespace())
        if "" in here or here != (self.host, self.boot_id, self.pid_namespace):
            return False
        state = _process_state(self.pid)
        if state is None:
            return not _exists(self.pid)
        return state[0] in {"Z", "X"} or state[1] != self.pid_started_ticks

    def __str__(self) -> str:
        return f"{self.host} (process {self.pid})"


def _is_valid(value: object, *, is_number: bool) -> bool:
    """Return True for a process id or a number of ticks, or for text that a terminal may show."""
    if is_number:
        return type(value) is int and 0 <= value < 2**63
    return isinstance(value, str) and value.isprintable()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_state(pid: int) -> tuple[str, int] | None:
    """Return a process's state (Z: has ended) and start in clock ticks since boot (proc(5)); None if unknown."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[0], int(after_name[19])
    except (OSError, IndexError, ValueError):
        return None


def _exists(pid: int) -> bool:
    """Return True if there is such a process, also where ``/proc`` hides those of other users."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
