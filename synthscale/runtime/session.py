"""Starts and ends Ray for a run: a private local one, or a connection to a cluster; quiet unless asked.

Starting Ray costs seconds, so it begins in a thread while the driver lists inputs and imports torch.
"""

import importlib
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType

import ray

from synthscale.errors import StageError, SynthscaleError

LOCAL = "local"
_PATIENCE_S = 4 * 3600
_ACTOR_INIT_DEATHS = 3

# Read by Ray when it starts; what the user has set stays.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RaySession:
    """One run's Ray. ``ready`` waits until it is up; leaving the context ends what was started here."""

    def __init__(self, address: str = LOCAL, *, verbose: bool = False, preload: Sequence[str] = ()) -> None:
        """Take ``local`` for a private Ray, ``auto`` or an address for a cluster; nothing is started yet.

        ``preload`` names modules that one worker imports while the first actors start.
        """
        self._address = address
        self._verbose = verbose
        self._preload = tuple(preload)
        self._folder: str | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._warm: object | None = None
        self._up, self._over = threading.Event(), threading.Event()

    def begin(self) -> None:
        """Start Ray in the background, unless it is up already: a Ray of the caller's is used and left running."""
        if self._thread is not None or ray.is_initialized():
            return
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self._address == LOCAL:
            # A private Ray on loopback needs no token, and a HOME that cannot be written must not stop it.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        self._thread = threading.Thread(target=self._start, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        options: dict[str, object] = {
            "log_to_driver": self._verbose,
            "logging_level": logging.INFO if self._verbose else logging.ERROR,
        }
        if self._address == LOCAL:
            # Short, because Unix socket paths must fit in 107 characters.
            self._folder = tempfile.mkdtemp(prefix="synthscale-")
            options |= {"include_dashboard": False, "_temp_dir": self._folder}
        try:
            with _native_stderr_closed() if not self._verbose else nullcontext():
                ray.init(address=self._address, **options)
        except Exception as error:  # noqa: BLE001 (handed to the waiting thread, which raises it)
            self._error = error
        self._up.set()
        # Linux ends Ray's processes together with the thread that started them, so it stays.
        self._over.wait()

    def ready(self) -> dict[str, float]:
        """Wait until Ray is up and return its resources; raise StageError when it cannot be started or reached."""
        self.begin()
        if self._thread is not None:
            self._up.wait()
        if self._error is not None:
            raise StageError(
                f"Ray at {self._address}: could not be started or reached: {self._error}"
            ) from self._error
        if self._warm is None:
            set_up_data(self._verbose)
            self._warm = ray.remote(_import_all).options(num_cpus=0).remote(self._preload)
        resources: dict[str, float] = ray.cluster_resources()
        return resources

    def __enter__(self) -> "RaySession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._up.wait()
            if ray.is_initialized():
                ray.shutdown()
            self._over.set()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Quiet Ray's C++ side, below its last words: setting its level writes a line of its own, dropped here."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    original, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(nowhere)


@contextmanager
def ray_errors(stage: str) -> Iterator[None]:
    """Turn what Ray raises into our errors: the one that a worker raised, or a StageError with its last words."""
    try:
        yield
    except (ray.exceptions.RayError, *_train_errors()) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, SynthscaleError):
                raise type(cause)(*cause.args) from error
            cause = getattr(cause, "cause", None) or cause.__cause__
        logging.getLogger(__name__).info("stage %s", stage, exc_info=True)
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(" ")]
        told = [line.strip() for line in lines if "Error" in line and "ray::" not in line] or ["no reason given"]
        raise StageError(
            f"{stage}: a Ray worker failed: {told[0]}; the same command goes on from there, --verbose shows more"
        ) from error


def _train_errors() -> tuple[type[Exception], ...]:
    """What a Ray Train worker group raises; a class of its own, loaded only where Ray Train is."""
    train = sys.modules.get("ray.train")
    return () if train is None else (train.TrainingFailedError,)


def _import_all(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)


def set_up_data(verbose: bool) -> None:
    """Make Ray Data patient with clusters that grow, and quiet at the terminal of somebody who did not ask."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    # A GPU or spot node that is hours away, or one that is lost while an actor starts, is ordinary and no failure.
    # A task's own error names the place and the remedy.
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = _PATIENCE_S
    context.max_consecutive_actor_init_deaths = _ACTOR_INIT_DEATHS
    if not verbose:
        for name in ("ray.data", "ray.train", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
