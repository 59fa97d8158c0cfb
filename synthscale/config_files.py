"""Reads configurations from YAML files, local or on S3, and applies ``--set`` overrides to them."""

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import yaml
from botocore.exceptions import BotoCoreError

from synthscale.config_errors import shown
from synthscale.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that occurs twice in a mapping instead of taking the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} occurs twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


_CONSTRUCTION_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML raises, beside its own errors, for values such as ``2024-13-45`` and ``!!int ''``."""


def _load(text: str) -> Any:
    """Return the value in a YAML text; raise ValueError, with one line that says why, if it is not valid."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        hint = "; indent with blanks, not tabs" if "'\\t'" in str(error.problem) else ""
        raise ValueError(f"not valid YAML{where}: {error.problem or error.context}{hint}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("not valid YAML: nested too deeply") from error
    except _CONSTRUCTION_ERRORS as error:
        # Only the text of a ValueError says something about the value.
        why = f" ({str(error).partition(';')[0]})" if isinstance(error, ValueError) else ""
        raise ValueError(f"not valid YAML: a date, number or tagged value cannot be read{why}") from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; empty for an empty text.

    Args:
        text: YAML.
        source: where the text comes from, for messages.

    Raises:
        ConfigError: the text is not valid YAML, or not a mapping, or a mapping has a key twice.
    """
    try:
        values = _load(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of keys to values, found {shown(values)}")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of nested settings with overrides applied in order.

    Args:
        values: settings by key; sections are mappings.
        overrides: ``section.key=value`` or ``key=value`` each; the value is parsed as YAML.

    Raises:
        ConfigError: an override has no ``=`` or an empty key, its path leads through a value that is not a
            section, or its value is not valid YAML.
    """
    merged = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.split(".")
        if not separator or not all(keys):
            raise ConfigError(f"--set {override}: expected section.key=value")
        target = merged
        for key in keys[:-1]:
            # YAML reads a section without keys as None.
            target[key] = {} if target.get(key) is None else target[key]
            target = target[key]
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: {key} is not a section")
        try:
            target[keys[-1]] = _load(text)
        except ValueError as error:
            raise ConfigError(f"--set {override}: the value is {error}") from error
    return merged


def load_config(uri: str) -> dict[str, Any]:
    """Return the settings in a YAML file, local or ``s3://`` (with credentials from the AWS_* variables).

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or is not a mapping.
    """
    try:
        if uri.startswith("s3://"):
            with fsspec.open(uri, "rb") as file:
                data: bytes = file.read()
        elif "://" in uri and not uri.startswith("file://"):
            raise ConfigError(f"{uri}: cannot read the configuration: use a local path or s3://")
        else:
            data = Path(uri.removeprefix("file://")).expanduser().read_bytes()
    except (OSError, ValueError, ImportError, RuntimeError, BotoCoreError) as error:
        raise ConfigError(f"{uri}: cannot read the configuration: {error}") from error
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{uri}: cannot read the configuration: it is not text in UTF-8 ({error})") from error
    return parse_yaml(text, uri)
