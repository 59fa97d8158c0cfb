"""Takes the machine out of texts: who a report is shared with has neither its folders nor its servers."""

import posixpath
from typing import Any

from synthscale import filesystems as fsys
from synthscale.config import Config

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
        self._folders = sorted(folders - {""}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return a text without the folders."""
        for folder in self._folders:
            text = text.replace(folder, posixpath.basename(folder))
        return text

    def name(self, name: str) -> str:
        """Return an id, which may be a path, without folders of this machine."""
        name = self.text(name)
        return "…/" + "/".join(name.split("/")[-2:]) if name.startswith(("/", "~")) else name

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
