"""Look-ups in the generators' blocks of ``metrics.json``: metrics by name, and warnings."""

from collections.abc import Mapping
from typing import Any


def warnings_by_text(generators: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return each distinct warning with the names of the generators that have it.

    Args:
        generators: the generators' blocks of metrics.json, by name.
    """
    names_by_warning: dict[str, list[str]] = {}
    for name, block in generators.items():
        for text in block["warnings"]:
            names_by_warning.setdefault(text, []).append(name)
    return names_by_warning


def notes(generators: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how distances were computed, and which edits of copies the self-test did not find.

    Args:
        generators: the generators' blocks of metrics.json; they share the spaces and the self-test.
    """
    neighbors = next(iter(generators.values()))["neighbors"]
    near, manifold = _space_words(neighbors["space"]), _space_words(neighbors["manifold_space"])
    texts = [f"near-duplicates are compared by {near}"]
    texts.append("so are precision and coverage" if near == manifold else f"precision and coverage by {manifold}")
    return ["; ".join(texts), *neighbors["self_test"].get("notes", [])]


def _space_words(space: Mapping[str, Any]) -> str:
    scaled = ", each scaled by the real images" if space["scaled"] else ""
    name = "cosine" if space["metric"] == "cosine" else "Euclidean"
    return f"{name} distance on {space['dimensions']} dimensions{scaled}"


def gate_metric_names(generators: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of all metrics that a gate may use."""
    return list(dict.fromkeys(name for block in generators.values() for name in metrics_by_name(block)))


def metrics_by_name(block: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a generator's metrics by name: the core metrics, the classifier's AUC and the families."""
    metrics: dict[str, dict[str, Any]] = {**block["metrics"], "auc": block["classifier"]["auc"]}
    for family in block.get("families", {}).values():
        metrics |= family
    return metrics
