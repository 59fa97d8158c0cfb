"""Removes local folders and storage settings from texts and settings, so that a report can be shared."""

import posixpath
import re
from typing import Any

from synthscale.config import Config
from synthscale.storage import filesystems as fsys

_PRIVATE_STORAGE_KEYS = ("endpoint_url", "profile", "cache")
"""Keys of the section ``storage`` that describe the machine and not the result."""


class Redaction:
    """Replaces each local folder that a configuration names by the last part of its path."""

    def __init__(self, config: Config) -> None:
        """Collect the local folders of a configuration; paths on S3 are kept as they are."""
        manifest = None if config.manifest is None else posixpath.dirname(config.manifest)
        uris = [config.real, *config.synthetic.values(), config.manifest, manifest]
        uris += [config.output, config.encoder.weights]
        folders = {fsys.absolute(uri).rstrip("/") for uri in uris if uri is not None and not fsys.is_s3(uri)}
        # The longest first, because one folder may be inside another.
        ordered = sorted(folders - {""}, key=len, reverse=True)
        # Match whole paths only, not parts of longer names or of s3:// keys.
        alternatives = "|".join(re.escape(folder) for folder in ordered)
        self._folders = re.compile(rf"(?<![^\s'\"(=,])(?:{alternatives})(?![^/\s'\",:;)])") if ordered else None

    def text(self, text: str) -> str:
        """Return a text with each of the folders shortened to its last part."""
        if self._folders is None:
            return text
        return self._folders.sub(lambda match: posixpath.basename(match[0]), text)

    def name(self, name: str) -> str:
        """Return an id without local folders; the id may be a path or a member of an archive.

        An absolute path outside the configured folders keeps its last two parts, as ``…/cat/1.png``.
        """
        head, separator, path = name.rpartition("::")
        path = self.text(path.removeprefix("file://"))
        if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", path):
            path = "…/" + "/".join(re.split(r"[\\/]", path)[-2:])
        return f"{head}{separator}{path}"

    def settings(self, config: Config) -> dict[str, Any]:
        """Return the settings that another person needs to repeat the run, without local folders or servers."""
        values = config.model_dump(mode="json", exclude_none=True)
        values["storage"] = {
            key: value for key, value in values["storage"].items() if key not in _PRIVATE_STORAGE_KEYS
        }

        def redacted(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: redacted(item) for key, item in value.items()}
            if isinstance(value, list):
                return [redacted(item) for item in value]
            return self.name(value) if isinstance(value, str) else value

        settings: dict[str, Any] = redacted(values)
        return settings
