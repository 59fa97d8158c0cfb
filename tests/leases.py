"""Leases of drivers on other machines, of any age."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from synthscale.storage import filesystems as fsys
from synthscale.storage.lease_holder import Holder
from synthscale.storage.run_directory import LEASE, RunDirectory


def elsewhere() -> Holder:
    """Return a driver on another machine."""
    return replace(Holder.this_process(), host="elsewhere", boot_id="another", pid=4711)


def write_lease(run: RunDirectory, holder: Holder | bytes, age_s: float = 0.0) -> None:
    """Write a run's ``lease.json`` as if it had been renewed ``age_s`` ago."""
    data = holder if isinstance(holder, bytes) else holder.to_json()
    fsys.write_bytes(run.path(LEASE), data, run.storage)
    set_age(run, age_s)


def set_age(run: RunDirectory, age_s: float) -> None:
    """Change when a run's ``lease.json`` was last written, by the clock of its storage."""
    path = run.path(LEASE)
    if not fsys.is_s3(path):
        then = datetime.now().timestamp() - age_s
        os.utime(path, (then, then))
        return
    from moto.s3.models import s3_backends

    bucket, _, key = path.removeprefix("s3://").partition("/")
    (backend,) = (regions["aws"] for regions in s3_backends.values() if bucket in regions["aws"].buckets)
    then = datetime.now(UTC) - timedelta(seconds=age_s)
    backend.buckets[bucket].keys[key].last_modified = then.replace(tzinfo=None)
