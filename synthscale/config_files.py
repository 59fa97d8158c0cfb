"""Configurations as YAML, local or on S3, and what ``--set`` lays over them."""

from collections.abc import Mapping
from typing import Any

import fsspec
import yaml
from botocore.exceptions import BotoCoreError

from synthscale.errors import ConfigError


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Read a YAML mapping; raise ConfigError naming ``source`` when it is not one."""
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
    """Return ``values`` with each ``section.key=value`` laid over it; the value is read as YAML."""
    merged = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.split(".")
        if not separator or not all(keys):
            raise ConfigError(f"--set {override}: expected section.key=value")
        target = merged
        for key in keys[:-1]:
            # A section that a file leaves empty is None.
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
    """Read the values of a YAML configuration, local or ``s3://`` (AWS_* variables apply)."""
    try:
        with fsspec.open(uri, "rb") as file:
            text = file.read().decode("utf-8")
    except (OSError, ValueError, ImportError, BotoCoreError) as error:
        raise ConfigError(f"{uri}: cannot read the configuration: {error}") from error
    return parse_yaml(text, uri)
