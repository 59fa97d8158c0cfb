"""The warning about precision in spaces where it cannot see a difference that the classifier sees."""

from typing import Any

import pytest

from synthscale.metrics.warnings import blind_precision


def said(value: float | None, reference: float | None, low: float | None) -> str | None:
    metrics: dict[str, Any] = {"precision": {"value": value, "reference": reference}}
    return blind_precision(metrics, {"value": 0.97, "low": low})


def test_a_high_precision_beside_a_high_auc_is_blind() -> None:
    text = said(0.94, 0.82, 0.95)
    assert text is not None
    assert "precision (0.94) cannot see this difference" in text
    assert said(0.82, 0.82, 0.9) is not None


@pytest.mark.parametrize(
    ("value", "reference", "low"),
    [(0.81, 0.82, 0.95), (0.94, 0.82, 0.89), (0.94, 0.82, None), (None, 0.82, 0.95), (0.94, None, 0.95)],
)
def test_nothing_is_said_where_precision_sees_it_or_nothing_is_known(
    value: float | None, reference: float | None, low: float | None
) -> None:
    assert said(value, reference, low) is None
