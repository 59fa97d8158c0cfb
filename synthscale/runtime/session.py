"""Start and stop Ray for a run: a private local instance or a connection to a cluster.

Starting Ray takes seconds, so it starts in a background thread while the driver imports torch. Ray's own output is
suppressed unless ``verbose`` is set. What this needs to change in the calling process (environment variables, log
levels, Ray Data's context) is as before when the session ends.
"""

import importlib
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType

import ray

from synthscale.errors import StageError, SynthscaleError
from synthscale.storage.retries import full_error, is_full

LOCAL = "local"
"""Address of a private Ray on this machine."""
_NO_PROGRESS_TIMEOUT_S = 4 * 3600
"""Seconds without progress after which Ray Data fails; its default, 1,800 s, is too short for pending nodes."""
_MAX_ACTOR_INIT_DEATHS = 3
"""Consecutive deaths of starting actors that Ray Data tolerates; its default, 0, fails when a node is lost."""

# Environment variables that Ray reads when it starts; values that the user has set are kept. With the last
# one, Ray leaves CUDA_VISIBLE_DEVICES as it is in workers that reserve no GPU.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_SET_BY_RAY = ("PYTHONBREAKPOINT",)
"""Environment variables that ``ray.init`` sets in the driver and ``ray.shutdown`` leaves."""
_PREFIX = "synthscale-"
"""Beginning of the names of Ray's temporary folders."""
_RAY_PATH = re.compile(r"[\w/.\-+ ~:=,@]+", re.ASCII)
"""Paths with which Ray starts: it fails for letters beyond ASCII, and waits in vain if there is a ``%``."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders for Ray's sockets if TMPDIR cannot be used."""
_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Maximum length of the path of a Unix socket."""
_RAY_SOCKET_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99")
"""Length of the longest path that Ray appends to its temporary folder."""
_LOGGERS = ("ray", "ray.data", "ray.train")
"""Loggers of Ray that write to the terminal."""


class RaySession:
    """Ray for one run, as a context manager.

    `start` starts Ray in the background and `wait_until_ready` waits for it. Leaving the context stops Ray, or
    disconnects from the cluster, unless the caller had already started Ray; and restores what the session changed
    in this process.
    """

    def __init__(self, address: str = LOCAL, *, verbose: bool = False, preload: Sequence[str] = ()) -> None:
        """Configure the session; Ray is not started yet.

        Args:
            address: ``local`` for a private Ray, ``auto`` or an address for a cluster.
            verbose: show Ray's log lines and progress bars.
            preload: modules that one worker imports while the first actors start.
        """
        self._address = address
        self._verbose = verbose
        self._preload = tuple(preload)
        self._folder: str | None = None
        self._spill_folder: str | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._preload_task: object | None = None
        self._started, self._closed = threading.Event(), threading.Event()
        self._changes = ExitStack()

    def start(self) -> None:
        """Start Ray in the background; if the caller has already started Ray, use that and leave it running."""
        if self._thread is not None or ray.is_initialized():
            return
        # A private Ray on loopback needs no token, and with tokens Ray crashes if HOME is not writable.
        more = {"RAY_AUTH_MODE": "disabled"} if self._address == LOCAL else {}
        self._changes.enter_context(_default_environment({**_ENVIRONMENT, **more}))
        # ray.init sets the level of its logger.
        self._changes.enter_context(_log_levels_restored("ray"))
        self._thread = threading.Thread(target=self._start, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        options: dict[str, object] = {
            "log_to_driver": self._verbose,
            "logging_level": logging.INFO if self._verbose else logging.ERROR,
        }
        try:
            if self._address == LOCAL:
                options |= {"include_dashboard": False, **self._folders()}
            ray.init(address=self._address, **options)
        except BaseException as error:  # noqa: BLE001 (`wait_until_ready` raises it; Ray may call sys.exit)
            self._error = error
        self._started.set()
        # Linux kills Ray's processes when the thread that started them ends: stay until the session is closed.
        self._closed.wait()

    def _folders(self) -> dict[str, str]:
        """Create Ray's temporary folder; return the arguments of ``ray.init`` that name it and the spill folder.

        Raises:
            StageError: no folder is suitable for Ray's sockets.
        """
        large = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        self._folder = _make_short_folder((large, *_SHORT_FOLDERS))
        if os.path.dirname(self._folder) == large:
            return {"_temp_dir": self._folder}
        # Users set TMPDIR to a disk that has room: Ray's objects are spilled there all the same.
        self._spill_folder = tempfile.mkdtemp(prefix=_PREFIX, dir=large)
        return {"_temp_dir": self._folder, "object_spilling_directory": self._spill_folder}

    def wait_until_ready(self) -> dict[str, float]:
        """Wait until Ray has started and return the cluster's resources, such as ``{"CPU": 8.0, "GPU": 1.0}``.

        Raises:
            StageError: Ray cannot be started or reached.
        """
        self.start()
        if self._thread is not None:
            self._started.wait()
        if isinstance(self._error, SynthscaleError):
            raise self._error
        if self._error is not None:
            raise StageError(
                f"Ray at {self._address}: could not be started or reached: {self._error}"
            ) from self._error
        if self._preload_task is None:
            self._changes.enter_context(_ray_data_configured(self._verbose))
            self._preload_task = ray.remote(_import_all).options(num_cpus=0).remote(self._preload)
        resources: dict[str, float] = ray.cluster_resources()
        return resources

    def __enter__(self) -> "RaySession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changes:
            if self._thread is not None:
                self._started.wait()
                if ray.is_initialized():
                    ray.shutdown()
                self._closed.set()
            for folder in (self._folder, self._spill_folder):
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)


def _make_short_folder(parents: Sequence[str]) -> str:
    """Create a folder in the first of ``parents`` that is writable and in which Ray can make its sockets.

    Raises:
        StageError: there is none.
    """
    for parent in parents:
        # Bytes, not characters; and macOS's /tmp is a link, which Ray may resolve.
        length = max(len(os.fsencode(path)) for path in (parent, os.path.realpath(parent)))
        is_short = length + len(f"/{_PREFIX}XXXXXXXX") + _RAY_SOCKET_BYTES <= _MAX_SOCKET_BYTES
        if not is_short or not _RAY_PATH.fullmatch(parent):
            continue
        with suppress(OSError):
            return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    raise StageError(
        f"no temporary folder can hold Ray's sockets: {parents[0]} is too long, not plain ASCII or not writable, "
        f"and {', '.join(parents[1:])} are not writable; set TMPDIR or RAY_TMPDIR to a writable folder of at most "
        f"{_MAX_SOCKET_BYTES - _RAY_SOCKET_BYTES - len(_PREFIX) - 9} ASCII characters"
    )


@contextmanager
def _default_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set; restore them, and those that Ray sets, at the end."""
    before = {name: os.environ.get(name) for name in (*values, *_SET_BY_RAY)}
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = earlier


@contextmanager
def _log_levels_restored(*names: str) -> Iterator[None]:
    """Restore the levels of loggers at the end."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def ray_errors(stage: str) -> Iterator[None]:
    """Convert Ray's exceptions to synthscale's: the SynthscaleError that a worker raised, else a StageError.

    A full disk is a StorageFull. The message of the StageError quotes the first line of Ray's exception that
    contains "Error"; the traceback is logged at level INFO.
    """
    try:
        yield
    except (ray.exceptions.RayError, *_train_errors()) as error:
        cause: BaseException | None = error
        while cause is not None:
            # Ray's own error has the type of the worker's too, but Ray's traceback as its message.
            if isinstance(cause, SynthscaleError) and not isinstance(cause, ray.exceptions.RayError):
                # Ray Data appends advice about its own retries.
                raise type(cause)(str(cause).partition("\nFailed to ")[0]) from error
            if is_full(cause):
                raise full_error(
                    cause, f"{stage}: {getattr(cause, 'filename', None) or tempfile.gettempdir()}"
                ) from error
            cause = getattr(cause, "cause", None) or cause.__cause__
        logging.getLogger(__name__).info("stage %s failed", stage, exc_info=True)
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(" ")]
        reasons = [line.strip() for line in lines if "Error" in line and "ray::" not in line] or ["unknown reason"]
        raise StageError(
            f"{stage}: a Ray worker failed: {reasons[0]}; run the same command again to continue, "
            "or with --verbose for details"
        ) from error
    except OSError as error:
        # Files that libraries write, most of them temporary. (Some errors of Ray are OSErrors too: after them.)
        if is_full(error):
            raise full_error(error, f"{stage}: {error.filename or tempfile.gettempdir()}") from error
        raise


def _train_errors() -> tuple[type[Exception], ...]:
    """Return the exception type of Ray Train worker groups, if Ray Train has been imported."""
    train = sys.modules.get("ray.train")
    return () if train is None else (train.TrainingFailedError,)


def _import_all(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)


@contextmanager
def _ray_data_configured(verbose: bool) -> Iterator[None]:
    """Make Ray Data tolerate slow and lost nodes; show its progress bars and logs only if ``verbose``."""
    import ray.data

    # A copy, because the caller may use Ray Data too.
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = verbose
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    # Raise a task's own error, whose message says what failed and what to do.
    context.raise_original_map_exception = True
    # Waiting hours for a GPU or spot node, or losing a node while an actor starts, is normal on a cluster.
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.max_consecutive_actor_init_deaths = _MAX_ACTOR_INIT_DEATHS
    with ray.data.DataContext.current(context), _log_levels_restored(*_LOGGERS):
        if not verbose:
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            # At level ERROR it logs the traceback of a task's error, which is raised here: the run's one line.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        yield
