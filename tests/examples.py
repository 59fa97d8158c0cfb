"""Number of examples of property-based tests; ``make test-slow`` runs them again with more (conftest.py)."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import settings

FACTOR = int(os.environ.get("EXAMPLES_FACTOR", "1"))


def examples(count: int) -> Callable[[Any], Any]:
    """Return Hypothesis settings of a test that checks ``count`` x ``EXAMPLES_FACTOR`` examples."""
    return settings(max_examples=count * FACTOR)
