"""Notes of a run: how distances were computed, and which edits of copies the self-test did not find."""

from typing import Any

from synthscale.metrics.metrics_json import notes

COSINE = {"metric": "cosine", "dimensions": 244, "scaled": False}
SCALED = {"metric": "euclidean", "dimensions": 470, "scaled": True}


def said(near: dict[str, Any], manifold: dict[str, Any], **self_test: Any) -> list[str]:
    neighbors = {"space": near, "manifold_space": manifold, "self_test": {"value": 1.0, **self_test}}
    return notes({"one": {"neighbors": neighbors}, "two": {"neighbors": neighbors}})


def test_both_spaces_are_named_with_their_dimensions() -> None:
    (text,) = said(COSINE, SCALED)
    assert "cosine distance on 244 dimensions" in text
    assert "Euclidean distance on 470 dimensions, each scaled by the real images" in text


def test_a_shared_space_is_named_once() -> None:
    (text,) = said(SCALED, SCALED)
    assert text.count("Euclidean") == 1


def test_notes_of_the_self_test_follow() -> None:
    assert said(COSINE, SCALED, notes=["mirrored copies ..."])[1:] == ["mirrored copies ..."]
