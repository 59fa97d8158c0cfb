"""The errors that synthscale raises on purpose.

::

    SynthscaleError
    ├── ConfigError          a configuration that cannot be run
    ├── InputError           input data that cannot be used
    ├── SchemaError          a table that is not what its contract says
    ├── StorageError         a place that cannot be read or written
    └── StageError           a stage that could not finish
        ├── TooManyFailures  more unusable rows than ``max_failure_fraction`` allows
        └── ResumeConflict   an output directory that belongs to another run

Arguments are positional, so that every error survives pickling between processes. ``exit_code`` is what the
command line returns: 2 where the user's input has to change, 1 where a repeat may succeed.
"""


class SynthscaleError(Exception):
    """Base of all errors that synthscale raises on purpose; its text says what, where and what to do."""

    exit_code = 1


class ConfigError(SynthscaleError):
    """The configuration cannot be run: an unknown key, a value out of range, a missing or clashing input."""

    exit_code = 2


class InputError(SynthscaleError):
    """The input data as a whole cannot be used: duplicate ids, an empty set, one class only."""

    exit_code = 2


class SchemaError(SynthscaleError):
    """A table lacks columns, or holds types, that its contract promises."""

    exit_code = 2


class StorageError(SynthscaleError):
    """A file, folder or bucket cannot be read or written."""

    exit_code = 2


class StageError(SynthscaleError):
    """A stage could not finish; finished work is kept and the same command goes on from there."""


class TooManyFailures(StageError):  # noqa: N818 (the design's name)
    """More rows failed than ``max_failure_fraction`` allows; ``failures/`` lists them."""

    exit_code = 2


class ResumeConflict(StageError):  # noqa: N818 (the design's name)
    """The output directory holds another run, or was begun with other settings or inputs."""

    exit_code = 2
