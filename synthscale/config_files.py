"""Reads configurations from YAML files, local or on S3, and applies ``--set`` overrides to them."""

from collections.abc import Mapping
from typing import Any

import fsspec
import yaml
from botocore.exceptions import BotoCoreError

from synthscale.errors import ConfigError


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; empty for an empty text.

    Args:
        text: YAML.
        source: where the text comes from, for messages.

    Raises:
        ConfigError: the text is not valid YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of keys to values")
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
            target[keys[-1]] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    return merged


def load_config(uri: str) -> dict[str, Any]:
    """Return the settings in a YAML file, local or ``s3://`` (with credentials from the AWS_* variables).

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or is not a mapping.
    """
    try:
        with fsspec.open(uri, "rb") as file:
            text = file.read().decode("utf-8")
    except (OSError, ValueError, ImportError, BotoCoreError) as error:
        raise ConfigError(f"{uri}: cannot read the configuration: {error}") from error
    return parse_yaml(text, uri)
