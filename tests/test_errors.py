"""The error tree: documented, exported, picklable, and with the right exit codes."""

import pickle
import re

import pytest

import synthscale
from synthscale import errors

EXIT_CODES = {
    "SynthscaleError": 1,
    "ConfigError": 2,
    "InputError": 2,
    "SchemaError": 2,
    "StorageError": 2,
    "StorageUnavailable": 1,
    "StorageFull": 1,
    "StageError": 1,
    "TooManyFailures": 2,
    "ResumeConflict": 2,
}


def tree_of(kind, parent=None):
    """Return the name of each class from ``kind`` downwards, mapped to the name of its parent."""
    found = {kind.__name__: parent}
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= tree_of(child, kind.__name__)
    return found


CLASSES = [getattr(errors, name) for name in tree_of(errors.SynthscaleError)]


def drawn_tree():
    """Parse the tree in the module's docstring; the column of a name gives its depth."""
    found, path = {}, []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            found[match[2]] = path[depth - 1] if depth else None
    return found


def test_the_tree_in_the_docstring_is_that_of_the_classes():
    assert drawn_tree() == tree_of(errors.SynthscaleError)


def test_every_error_of_the_module_is_in_the_tree():
    defined = {k.__name__ for k in vars(errors).values() if isinstance(k, type) and issubclass(k, BaseException)}
    assert defined == set(EXIT_CODES) == set(tree_of(errors.SynthscaleError))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_pickles_with_its_message(kind):
    again = pickle.loads(pickle.dumps(kind("what, where and what to do")))
    assert type(again) is kind
    assert str(again) == "what, where and what to do"
    assert again.exit_code == kind.exit_code


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_its_exit_code_and_a_docstring(kind):
    assert kind.exit_code == EXIT_CODES[kind.__name__]
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_a_public_name(kind):
    assert getattr(synthscale, kind.__name__) is kind
    assert kind.__name__ in synthscale.__all__


def test_errors_are_not_subclasses_of_builtin_ones():
    assert not issubclass(errors.SynthscaleError, (OSError, ValueError, RuntimeError))
