"""Exceptions that synthscale raises for problems it can explain.

::

    SynthscaleError
    ├── ConfigError          the configuration is invalid
    ├── InputError           the input data cannot be used
    ├── SchemaError          a table does not have the columns or types of its schema
    ├── StorageError         a file, folder or bucket cannot be read or written
    │   ├── StorageUnavailable  storage did not answer for ``storage.retry_s`` seconds
    │   └── StorageFull         a disk or quota is full
    └── StageError           a stage could not finish
        ├── TooManyFailures  more rows are unusable than ``max_failure_fraction`` allows
        └── ResumeConflict   the output directory belongs to another run

All take their message as a positional argument, so that they can be pickled between processes. ``exit_code`` is
the exit code of the command line: 2 if the user has to change something, 1 if running the command again may
succeed.
"""


class SynthscaleError(Exception):
    """Base class; the message says what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(SynthscaleError):
    """The configuration is invalid: an unknown key, a value out of range, a missing or conflicting input."""

    exit_code = 2


class InputError(SynthscaleError):
    """The input data as a whole cannot be used: duplicate ids, an empty set, only one class."""

    exit_code = 2


class SchemaError(SynthscaleError):
    """A table has missing columns, or columns of the wrong type."""

    exit_code = 2


class StorageError(SynthscaleError):
    """A file, folder or bucket cannot be read or written."""

    exit_code = 2


class StorageUnavailable(StorageError):  # noqa: N818 (says what storage is)
    """A transient fault (time-out, reset, 429, 5xx, lost mount) lasted longer than ``storage.retry_s``."""

    exit_code = 1


class StorageFull(StorageError):  # noqa: N818 (says what storage is)
    """A disk or quota is full. Finished work is kept; the same command continues once there is space."""

    exit_code = 1


class StageError(SynthscaleError):
    """A stage could not finish. Finished work is kept; the same command continues from there."""


class TooManyFailures(StageError):  # noqa: N818 (the design's name)
    """More rows are unusable than ``max_failure_fraction`` allows; ``failures/`` lists them with reasons."""

    exit_code = 2


class ResumeConflict(StageError):  # noqa: N818 (the design's name)
    """The output directory contains another run, or this run with other settings or inputs."""

    exit_code = 2
