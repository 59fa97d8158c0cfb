"""A run leaves the process that calls it as it was, and says when Ray cannot start."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from synthscale.errors import StageError
from synthscale.runtime import session
from synthscale.runtime.session import RaySession

PROGRAM = """
import json, logging, os, signal, sys, threading, time, warnings
import aiohttp.web, grpc, ray, ray.data, ray.train.torch, torch
from synthscale import Options, parse_config, score
# Libraries add filters and loggers of their own when they are imported.
from synthscale.classify import stage
from synthscale.embed import stage
from synthscale.metrics import stage
from synthscale.neighbors import stage
from synthscale.report import stage

real, synthetic, output = sys.argv[1:]


class Handler(logging.Handler):
    def emit(self, record):
        pass


# What a user's program may have set.
logging.getLogger().addHandler(Handler())
logging.getLogger().setLevel(logging.WARNING)
logging.getLogger("ray").setLevel(logging.INFO)
logging.getLogger("synthscale").setLevel(logging.DEBUG)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
warnings.filterwarnings("error", message="a filter of the user")
os.environ["RAY_USAGE_STATS_ENABLED"] = "1"
context = ray.data.DataContext.get_current()
context.enable_progress_bars = True
context.execution_no_progress_timeout_s = 17


def state_of(log):
    return [log.level, list(map(repr, log.handlers)), log.propagate, log.disabled, list(map(repr, log.filters))]


def state():
    named = {name: log for name, log in logging.root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    loggers = {name: state_of(log) for name, log in {**named, "": logging.getLogger()}.items()}
    # A logger that was only named says nothing yet.
    untouched = [0, [], True, False, []]
    now = ray.data.DataContext.get_current()
    return {
        "environment": dict(os.environ),
        "loggers": {name: state for name, state in loggers.items() if state != untouched},
        "data context": {name: repr(value) for name, value in vars(now).items()},
        "is the same context": now is context,
        "warnings": list(map(repr, warnings.filters)),
        "signals": {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "stderr": os.readlink("/proc/self/fd/2"),
        "folder": os.getcwd(),
        "threads of torch": torch.get_num_threads(),
        "hooks": [repr(sys.excepthook), repr(sys.breakpointhook), repr(threading.excepthook)],
        "streams": [repr(sys.stdout), repr(sys.stderr)],
        "ray": ray.is_initialized(),
    }


def changes(one, other, path=""):
    if isinstance(one, dict) and isinstance(other, dict):
        both = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
        return [text for key, a, b in both for text in changes(a, b, f"{path}/{key}")]
    return [] if one == other else [f"{path}: {one} -> {other}"]


def fail(report):
    if report.stage == "neighbors":
        raise KeyError("of the caller")


places, running = set(), True


def watch():
    while running:
        places.add(os.readlink("/proc/self/fd/2"))
        time.sleep(0.001)


watcher = threading.Thread(target=watch)
watcher.start()
before = state()
config = parse_config({"real": real, "synthetic": {"new": synthetic}, "output": output})
try:
    score(config, Options(on_stage=fail))
except KeyError as error:
    raised = str(error)
after_error = state()
score(config)
after = state()
running = False
watcher.join()
answer = {
    "raised": raised,
    "after an error": changes(before, after_error),
    "after success": changes(before, after),
    "stderr": sorted(places),
}
print(json.dumps(answer))
"""


def test_a_run_leaves_the_process_as_it_was(make_images: Any, tmp_path: Path) -> None:
    make_images(tmp_path / "real", 40, seed=1)
    make_images(tmp_path / "new", 40, seed=2)
    paths = [str(tmp_path / name) for name in ("real", "new", "run")]
    with (tmp_path / "stderr").open("w") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *paths], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
        )
    told = (tmp_path / "stderr").read_text()
    assert done.returncode == 0, told
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["raised"] == "'of the caller'"
    assert answer["after an error"] == []
    assert answer["after success"] == []
    # Other threads of the program may write to it at any time.
    assert answer["stderr"] == [str(tmp_path / "stderr")]
    assert told == ""


@pytest.mark.parametrize("error", [SystemExit(1), ValueError("of Ray"), KeyboardInterrupt()])
def test_whatever_ends_the_start_of_ray_reaches_the_caller(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    errors: list[BaseException] = []

    def wait() -> None:
        with RaySession() as session:
            try:
                session.wait_until_ready()
            except StageError as raised:
                errors.append(raised)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(60)
    assert [raised.__cause__ for raised in errors] == [error]


LONG = "x" * 112
START = """
import os, ray
from synthscale.runtime.session import RaySession
with RaySession() as session:
    session.wait_until_ready()
    ray.get(ray.remote(lambda: None).remote())
    print(session._folder)
    print(session._spill_folder)
print([os.path.exists(path) for path in (session._folder, session._spill_folder) if path])
"""


@pytest.mark.parametrize(
    ("variable", "name", "is_used"),
    [
        ("TMPDIR", LONG, False),
        ("TMPDIR", "é", False),
        ("TMPDIR", "a%", False),
        ("TMPDIR", "a b", True),
        ("RAY_TMPDIR", "r", True),
    ],
)
def test_ray_starts_whatever_the_temporary_folder_is(variable: str, name: str, is_used: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as top:
        chosen = Path(top) / name
        chosen.mkdir()
        assert name != LONG or len(str(chosen)) >= 120
        environment = {**os.environ, variable: str(chosen)}
        done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        folder, spill, rest = done.stdout.splitlines()
        assert Path(folder).parent == (chosen if is_used else Path("/tmp"))
        # Spilled objects go where the user wants them.
        assert spill == "None" if is_used else Path(spill).parent == chosen
        assert "True" not in rest
        assert list(chosen.iterdir()) == []


@pytest.mark.parametrize("name", [LONG, "é" * 40, "missing"])
def test_without_a_short_writable_folder_the_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    if name != "missing":
        (tmp_path / name).mkdir()
    monkeypatch.setattr(session, "_SHORT_FOLDERS", ("/proc/none",))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / name))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(StageError, match="set TMPDIR or RAY_TMPDIR to") as caught, RaySession() as started:
        started.wait_until_ready()
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
