"""Look-ups in the blocks of ``metrics.json``: a generator's figures by name, and its warnings."""

from collections.abc import Mapping
from typing import Any


def warned(generators: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return each warning of metrics.json's generators, once, with the names of those that it concerns."""
    found: dict[str, list[str]] = {}
    for name, block in generators.items():
        for text in block["warnings"]:
            found.setdefault(text, []).append(name)
    return found


def gated(generators: dict[str, dict[str, Any]]) -> list[str]:
    """Return the metrics that gates may name."""
    return list(dict.fromkeys(name for block in generators.values() for name in figures(block)))


def figures(block: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a generator's metrics by name: the six, the classifier's, and those of the families."""
    found: dict[str, dict[str, Any]] = {**block["metrics"], "auc": block["classifier"]["auc"]}
    for family in block.get("families", {}).values():
        found |= family
    return found
