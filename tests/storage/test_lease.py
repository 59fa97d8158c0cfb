"""The lease of a run directory: refusal, take-over, heartbeat and loss, on a local disk and on S3."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from synthscale.config import StorageConfig
from synthscale.errors import StageError, StorageFull, StorageUnavailable
from synthscale.storage import filesystems as fsys
from synthscale.storage import lease as lease_module
from synthscale.storage.lease import Lease, lease_state
from synthscale.storage.lease_holder import Holder
from synthscale.storage.run_directory import RunDirectory
from tests.leases import elsewhere, set_age, write_lease

LOCAL = StorageConfig()


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    """A run directory without files, on a local disk and on S3."""
    if request.param == "local":
        return RunDirectory(f"{tmp_path}/run", LOCAL)
    s3 = request.getfixturevalue("s3")
    return RunDirectory(f"s3://{s3.bucket()}/run", StorageConfig(endpoint_url=s3.endpoint_url))


@pytest.fixture
def local_run(tmp_path):
    return RunDirectory(f"{tmp_path}/run", LOCAL)


def holder_of(run):
    return Holder(**json.loads(fsys.read_bytes(run.path("lease.json"), run.storage)))


def files(run):
    return [info.path.rpartition("/")[2] for info in fsys.list_files(run.uri, run.storage)]


def wait_until(is_true):
    deadline = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- one driver ---


def test_a_lease_names_its_driver_and_is_deleted_at_the_end(run):
    lease = Lease(run)
    lease.check_free()
    with lease:
        holder = holder_of(run)
        assert holder.pid == os.getpid()
        assert holder.host
        assert holder.started <= holder.heartbeat
        assert files(run) == ["lease.json"]
    assert files(run) == []


def test_a_lease_is_deleted_after_an_error(run):
    with pytest.raises(RuntimeError, match="broken"), Lease(run):
        raise RuntimeError("broken")
    assert files(run) == []


def test_a_lease_that_is_not_entered_writes_nothing(run):
    Lease(run).check_free()
    assert files(run) == []


def test_no_thread_stays_behind(local_run):
    def heartbeats():
        return [thread for thread in threading.enumerate() if thread.name == "synthscale-lease"]

    with Lease(local_run):
        assert len(heartbeats()) == 1
    assert heartbeats() == []


# --- a second driver ---


def test_a_second_driver_is_refused_with_one_line_that_names_the_first(run):
    with Lease(run):
        first = holder_of(run)
        for refused in (lambda: Lease(run).check_free(), lambda: Lease(run).__enter__()):
            with pytest.raises(StageError) as error:
                refused()
            text = str(error.value)
            assert (
                f"{run.uri}: is being written by {first.host} (process {os.getpid()}) since {first.started}"
                in text
            )
            assert "\n" not in text
            assert error.value.exit_code == 1
        assert holder_of(run).owner == first.owner
        assert files(run) == ["lease.json"]


def test_the_lease_of_another_machine_is_taken_over_when_it_is_old_enough(run):
    write_lease(run, elsewhere(), age_s=50)
    with pytest.raises(StageError, match=r"elsewhere \(process 4711\)"):
        Lease(run).__enter__()
    set_age(run, 65)
    with Lease(run):
        assert holder_of(run).pid == os.getpid()


def test_a_lease_from_the_future_is_taken_over(run):
    """The storage's clock was fast when it was written, and has been set right; its driver has ended."""
    write_lease(run, elsewhere(), age_s=-50)
    with pytest.raises(StageError, match=r"elsewhere .*\(heartbeat 0 s ago\)"):
        Lease(run).__enter__()
    set_age(run, -3600)
    with Lease(run):
        assert holder_of(run).pid == os.getpid()


@pytest.mark.parametrize("heartbeat", ["2001-01-01T00:00:00Z", "2101-01-01T00:00:00Z"])
def test_wrong_clocks_of_drivers_change_nothing(run, heartbeat, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    write_lease(run, replace(elsewhere(), started=heartbeat, heartbeat=heartbeat))
    with pytest.raises(StageError, match="elsewhere"):
        Lease(run).__enter__()
    set_age(run, 65)
    with Lease(run):
        pass


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"[1]", b'{"owner": "x"}', b"\xff"),
        pytest.param(b"[" * 100_000, id="nested"),
        replace(elsewhere(), pid=float("inf")).to_json(),
        replace(elsewhere(), pid=2**80).to_json(),
        replace(elsewhere(), pid=-1).to_json(),
        replace(elsewhere(), pid_started_ticks="1").to_json(),
        replace(elsewhere(), host={}).to_json(),
        replace(elsewhere(), host="two\nlines").to_json(),
        replace(elsewhere(), started="\x1b[31mred").to_json(),
    ],
)
def test_a_damaged_lease_is_respected_until_it_is_old(run, data):
    write_lease(run, data)
    with pytest.raises(StageError, match="an unknown driver"):
        Lease(run).__enter__()
    set_age(run, 65)
    with Lease(run):
        assert holder_of(run).pid == os.getpid()


def test_of_drivers_that_take_over_at_once_one_wins(run):
    write_lease(run, elsewhere(), age_s=100)
    start, outcomes = threading.Barrier(4), []

    def take(lease):
        start.wait()
        try:
            lease.__enter__()
        except StageError as error:
            outcomes.append(error)
        else:
            outcomes.append(lease)

    threads = [threading.Thread(target=take, args=(Lease(run),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (outcome for outcome in outcomes if isinstance(outcome, Lease))
    assert len(outcomes) == 4
    winner.renew()
    winner.__exit__(None, None, None)
    assert files(run) == []


def test_who_is_overtaken_between_reading_and_writing_is_refused(run, monkeypatch):
    write_lease(run, elsewhere(), age_s=100)
    slow, quick, check = Lease(run), Lease(run), Lease._check_abandoned

    def overtaken(self, seen):
        check(self, seen)
        monkeypatch.undo()
        quick.__enter__()

    monkeypatch.setattr(Lease, "_check_abandoned", overtaken)
    with pytest.raises(StageError, match="is being written by"):
        slow.__enter__()
    quick.renew()
    quick.__exit__(None, None, None)


# --- a driver of this machine that has ended ---

DRIVER = """
import signal, sys
from synthscale.cli import _exit_on_signal
from synthscale.config import StorageConfig
from synthscale.errors import StageError
from synthscale.storage.lease import Lease
from synthscale.storage.run_directory import RunDirectory
signal.signal(signal.SIGTERM, _exit_on_signal)
with Lease(RunDirectory(sys.argv[1], StorageConfig())) as lease:
    print("holds", flush=True)
    for _ in sys.stdin:
        try:
            lease.renew()
            print("renewed", flush=True)
        except StageError as error:
            print(error, flush=True)
"""


@pytest.fixture
def driver(local_run):
    """A process that holds the lease, and renews it for every line that it reads."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, local_run.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_killed_driver_of_this_machine_is_replaced_at_once(local_run, driver):
    with pytest.raises(StageError, match=rf"process {driver.pid}\)"):
        Lease(local_run).check_free()
    driver.kill()
    # Not yet waited for: a zombie.
    wait_until(lambda: Path(f"/proc/{driver.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert lease_state(local_run).is_abandoned
    Lease(local_run).check_free()
    driver.wait()
    with Lease(local_run):
        assert holder_of(local_run).pid == os.getpid()


def test_a_terminated_driver_releases_its_lease(local_run, driver):
    driver.terminate()
    assert driver.wait() == 128 + signal.SIGTERM
    assert files(local_run) == []


def test_a_driver_that_was_paused_notices_that_it_was_replaced(local_run, driver):
    driver.stdin.write("\n")
    driver.stdin.flush()
    assert driver.stdout.readline() == "renewed\n"
    driver.send_signal(signal.SIGSTOP)
    set_age(local_run, 65)
    with Lease(local_run):
        owner = holder_of(local_run).owner
        driver.send_signal(signal.SIGCONT)
        driver.stdin.write("\n")
        driver.stdin.flush()
        line = driver.stdout.readline()
        assert f"was taken over by {holder_of(local_run).host} (process {os.getpid()})" in line
        driver.stdin.close()
        assert driver.wait() == 0
        # Its end does not delete the new holder's lease.
        assert holder_of(local_run).owner == owner


def test_a_process_id_that_was_used_again_is_another_process(local_run):
    ours = Holder.this_process()
    assert not ours.has_ended()
    assert replace(ours, pid_started_ticks=ours.pid_started_ticks - 1).has_ended()


@pytest.mark.parametrize("field", ["host", "boot_id", "pid_namespace"])
def test_a_process_elsewhere_is_not_judged_by_its_id(field):
    """A host after a reboot, a container of this host, or another host with the same name."""
    dead = replace(Holder.this_process(), pid=2**22 + 1)
    assert dead.has_ended()
    assert not replace(dead, **{field: "another"}).has_ended()


def test_a_process_that_proc_hides_is_looked_up_by_a_signal(monkeypatch):
    monkeypatch.setattr("synthscale.storage.lease_holder._process_state", lambda pid: None)
    assert not replace(Holder.this_process(), pid=1).has_ended()
    assert replace(Holder.this_process(), pid=2**22 + 1).has_ended()


# --- losing a lease ---


def test_a_driver_that_was_replaced_learns_by_whom(run):
    with Lease(run) as lease:
        lease.renew()
        write_lease(run, elsewhere())
        lease.check_held()
        for check in (lease.renew, lease.check_held):
            with pytest.raises(StageError, match=r"was taken over by elsewhere \(process 4711\)") as error:
                check()
            assert error.value.exit_code == 1
    assert holder_of(run).host == "elsewhere"


def test_a_driver_whose_lease_is_gone_does_not_take_it_again(run):
    run.write_json("run.json", {})
    with Lease(run) as lease:
        fsys.remove(run.path("lease.json"), run.storage)
        with pytest.raises(StageError, match=r"lease\.json is gone"):
            lease.renew()
    assert files(run) == ["run.json"]


def test_a_run_directory_that_has_disappeared_is_not_a_lost_lease(local_run, tmp_path):
    impatient = RunDirectory(local_run.uri, StorageConfig(retry_s=0))
    with Lease(impatient) as lease:
        shutil.move(local_run.uri, tmp_path / "unmounted")
        with pytest.raises(StorageUnavailable, match="has disappeared"):
            lease.renew()
        shutil.move(tmp_path / "unmounted", local_run.uri)
        lease.renew()


def test_a_renewal_waits_for_a_storage_that_comes_back(local_run, tmp_path):
    with Lease(local_run) as lease:
        shutil.move(local_run.uri, tmp_path / "unmounted")
        back = threading.Timer(0.3, shutil.move, (tmp_path / "unmounted", local_run.uri))
        back.start()
        lease.renew()
        back.join()
    assert files(local_run) == []


# --- heartbeat ---


def test_the_heartbeat_renews_the_lease(run, monkeypatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.02)
    with Lease(run):
        set_age(run, 1000)
        wait_until(lambda: lease_state(run).age_s < 500)


def test_the_heartbeat_notices_a_new_holder(run, monkeypatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.02)

    def is_lost(lease):
        try:
            lease.check_held()
        except StageError:
            return True
        return False

    with Lease(run) as lease:
        write_lease(run, elsewhere())
        wait_until(lambda: is_lost(lease))


def test_the_heartbeat_goes_on_after_an_error_of_the_storage(local_run, monkeypatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.02)
    lease = Lease(local_run)
    failures, write = [ConnectionResetError("no answer")] * 3, lease._file.replace

    def fail_first(data, seen):
        if failures:
            raise failures.pop()
        return write(data, seen)

    lease._file.replace = fail_first
    with lease:
        set_age(local_run, 1000)
        wait_until(lambda: lease_state(local_run).age_s < 500)
    assert not failures
    assert files(local_run) == []


def test_a_write_whose_response_was_lost_is_recognized(run):
    lease = Lease(run)
    create, write, lost = lease._file.create, lease._file.replace, []

    def loses(action):
        def act(*arguments):
            result = action(*arguments)
            if action in lost:
                return result
            lost.append(action)
            return None

        return act

    lease._file.create, lease._file.replace = loses(create), loses(write)
    with lease:
        lease.renew()
        lease.renew()
    assert len(lost) == 2
    assert files(run) == []


def test_an_error_at_the_release_does_not_hide_that_of_the_run(local_run):
    lease = Lease(local_run)

    def unreachable(data, seen):
        raise ConnectionResetError("no answer")

    lease._file.replace = unreachable
    with pytest.raises(RuntimeError, match="broken"), lease:
        raise RuntimeError("broken")


def test_a_lease_is_deleted_from_a_full_disk(local_run):
    """The process may go on, as in a notebook: the same call continues once there is space."""
    lease = Lease(local_run)

    def full(data, seen):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lease._file.replace = full
    with pytest.raises(StorageFull), lease:
        lease.renew()
    assert files(local_run) == []


# --- status ---


def test_the_state_of_a_lease(run):
    assert lease_state(run) is None
    with Lease(run):
        state = lease_state(run)
        assert state.holder == holder_of(run)
        assert not state.is_abandoned
        assert state.age_s < 60
    write_lease(run, elsewhere(), age_s=100)
    state = lease_state(run)
    assert state.is_abandoned
    assert 95 < state.age_s < 160
    assert files(run) == ["lease.json"]
