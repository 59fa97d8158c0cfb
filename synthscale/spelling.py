"""Suggestions for misspelt names in error messages."""

import difflib
import re
from collections.abc import Iterable, Mapping

_SIMILARITY = 0.6
"""Similarity of two names, 0..1, from which one is suggested for the other: difflib's own default."""


def did_you_mean(word: object, choices: Iterable[str], full_names: Mapping[str, str] | None = None) -> str:
    """Return "; did you mean X?" with the choice that is most like a misspelt word; empty if none is like it.

    Case does not matter, nor does the sign between words (``slice-by``, ``Slice By``).

    Args:
        word: the misspelt word.
        choices: words that would be right.
        full_names: what to suggest for each choice instead of itself.
    """
    choice = closest(str(word), choices)
    return "" if choice is None else f"; did you mean {(full_names or {}).get(choice, choice)}?"


def closest(word: str, choices: Iterable[str], similarity: float = _SIMILARITY) -> str | None:
    """Return the choice that is most like a word, by at least ``similarity`` (0..1); None if none is."""
    plain = {_plain(choice): choice for choice in choices}
    close = difflib.get_close_matches(_plain(word[:200]), plain, 1, similarity)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", "_", name.strip().casefold())
