"""Takes the machine out of texts: who a report is shared with has neither its folders nor its servers."""

import posixpath
import re
from typing import Any

from synthscale.config import Config
from synthscale.storage import filesystems as fsys

_MACHINES = ("endpoint_url", "profile", "cache")


class Redaction:
    """Replaces the folders that a configuration names by their last part."""

    def __init__(self, config: Config) -> None:
        """Take the folders of a configuration."""
        manifest = None if config.manifest is None else posixpath.dirname(config.manifest)
        named = [config.real, *config.synthetic.values(), config.manifest, manifest]
        named += [config.output, config.encoder.weights]
        folders = {fsys.absolute(uri).rstrip("/") for uri in named if uri is not None and not fsys.is_s3(uri)}
        # The longest first: one may lie in another.
        ordered = sorted(folders - {""}, key=len, reverse=True)
        # Whole paths alone: neither parts of longer names nor of s3:// keys.
        any_of = "|".join(re.escape(folder) for folder in ordered)
        self._folders = re.compile(rf"(?<![^\s'\"(=,])(?:{any_of})(?![^/\s'\",:;)])") if ordered else None

    def text(self, text: str) -> str:
        """Return a text without the folders."""
        if self._folders is None:
            return text
        return self._folders.sub(lambda found: posixpath.basename(found[0]), text)

    def name(self, name: str) -> str:
        """Return an id, which may be a path or a member of an archive, without folders of this machine."""
        head, separator, path = name.rpartition("::")
        path = self.text(path.removeprefix("file://"))
        if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", path):
            path = "…/" + "/".join(re.split(r"[\\/]", path)[-2:])
        return f"{head}{separator}{path}"

    def settings(self, config: Config) -> dict[str, Any]:
        """Return the settings that someone else needs for the same result."""
        values = config.model_dump(mode="json", exclude_none=True)
        values["storage"] = {key: value for key, value in values["storage"].items() if key not in _MACHINES}

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: clean(own) for key, own in value.items()}
            if isinstance(value, list):
                return [clean(own) for own in value]
            return self.name(value) if isinstance(value, str) else value

        result: dict[str, Any] = clean(values)
        return result
