import contextlib
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthscale.gate_grammar import parse_gate
from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.gates import decide
from synthscale.metrics.metrics_json import gate_metric_names, metrics_by_name

KNOWN = [*CORE_METRICS, "auc", "kid"]
BY_SIGN = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"value": value, "low": low, "high": high}
    if value is None or low is None:
        found["reason"] = "no interval" if value is not None else "no classifier"
    return found


def block(fidelity: dict[str, Any], **families: dict[str, dict[str, Any]]) -> dict[str, Any]:
    metrics = {name: figure(0.9, 0.8, 0.95) for name in CORE_METRICS} | {"fidelity": fidelity}
    return {"metrics": metrics, "classifier": {"auc": figure(0.7, 0.6, 0.8)}, "families": families}


def passed(gate: str, found: dict[str, Any]) -> bool:
    (decision,) = decide([gate], {"gan": block(found)})
    return bool(decision["passed"])


@given(st.sampled_from(sorted(BY_SIGN)), st.floats(-2, 2), st.floats(-2, 2))
def test_a_gate_compares_the_value_by_its_sign(sign: str, limit: float, value: float) -> None:
    assert passed(f"fidelity{sign}{limit!r}", figure(value)) == BY_SIGN[sign](value, limit)


@pytest.mark.parametrize(("sign", "at_the_limit"), [(">=", True), ("<=", True), (">", False), ("<", False)])
def test_a_value_at_the_limit(sign: str, at_the_limit: bool) -> None:
    assert passed(f"fidelity{sign}0.3", figure(0.3)) == at_the_limit


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("fidelity>=0.45", True),
        ("fidelity.value>=0.45", True),
        ("fidelity.low>=0.45", False),
        ("fidelity.low>=0.4", True),
        ("fidelity.high<=0.6", True),
        ("fidelity.high<0.6", False),
        ("auc.high<=0.8", True),
        ("auc<0.7", False),
    ],
)
def test_a_gate_may_look_at_either_end_of_the_interval(gate: str, expected: bool) -> None:
    assert passed(gate, figure(0.5, 0.4, 0.6)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fidelity>=0.3", (None, "fidelity", "value", ">=", 0.3)),
        ("  fidelity  >=  0.3 ", (None, "fidelity", "value", ">=", 0.3)),
        ("freshness.low >0.98", (None, "freshness", "low", ">", 0.98)),
        ("generator=sdxl-1.0 auc.high< 0.9", ("sdxl-1.0", "auc", "high", "<", 0.9)),
        ("generator=a_b\tkid<=1e-3", ("a_b", "kid", "value", "<=", 0.001)),
        ("kid<=-.5", (None, "kid", "value", "<=", -0.5)),
        ("kid<inf", (None, "kid", "value", "<", float("inf"))),
    ],
)
def test_gates_are_read_with_any_spaces(text: str, expected: tuple[Any, ...]) -> None:
    gate = parse_gate(text, KNOWN)
    assert (gate.generator, gate.metric, gate.end, gate.operator, gate.limit) == expected
    assert gate.text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected"),
        ("fidelity", "expected"),
        ("fidelity=0.3", "expected"),
        ("fidelity=>0.3", "expected"),
        ("fidelity==0.3", "expected"),
        ("fidelity!=0.3", "expected"),
        ("0.3<=fidelity", "expected"),
        (">=0.3", "expected"),
        ("fidelity>=", "number"),
        ("fidelity>=0.3 0.4", "expected"),
        ("fidelity>=0.3 and auc<0.9", "expected"),
        ("generator=a", "expected"),
        ("generator= fidelity>=0.3", "expected"),
        ("generator=afidelity>=0.3", "expected"),
        ("fidelity.low.high>=0.3", "expected"),
        ("fidelity>==0.3", "'=0.3' is not a number"),
        ("fidelity>=30%", "'30%' is not a number"),
        ("fidelity>=high", "'high' is not a number"),
        ("fidelity>=nan", "nan"),
        ("fidelty>=0.3", "no metric fidelty"),
        ("recall>=0.3", "no metric recall"),
        ("fidelity.mean>=0.3", "mean"),
    ],
)
def test_a_gate_that_cannot_be_read_says_which_and_why(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_gate(text, KNOWN)
    assert repr(text) in str(error.value)
    assert message in str(error.value)


def test_an_unknown_metric_or_end_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ValueError, match=", ".join(KNOWN)):
        parse_gate("nothing>=0.3", KNOWN)
    with pytest.raises(ValueError, match="value, low, high"):
        parse_gate("fidelity.middle>=0.3", KNOWN)


def test_a_gate_applies_to_every_generator_or_to_the_one_it_names() -> None:
    blocks = {"a": block(figure(0.5)), "b": block(figure(0.1))}
    found = decide(["fidelity>=0.3", "generator=b fidelity>=0.05"], blocks)
    assert [(d["gate"], d["generator"], d["value"], d["passed"]) for d in found] == [
        ("fidelity>=0.3", "a", 0.5, True),
        ("fidelity>=0.3", "b", 0.1, False),
        ("generator=b fidelity>=0.05", "b", 0.1, True),
    ]


def test_without_gates_nothing_is_decided() -> None:
    assert decide([], {"a": block(figure(0.5))}) == []


@pytest.mark.parametrize("sign", sorted(BY_SIGN))
@pytest.mark.parametrize("limit", ["-inf", "inf", "0"])
def test_an_undefined_metric_fails_every_gate_with_its_reason(sign: str, limit: str) -> None:
    for end in ("", ".low", ".high"):
        (found,) = decide([f"fidelity{end}{sign}{limit}"], {"a": block(figure(None))})
        assert found["passed"] is False
        assert found["value"] is None
        assert found["reason"] == "no classifier"


def test_a_gate_on_a_missing_interval_end_fails_and_one_on_the_value_passes() -> None:
    blocks = {"a": block(figure(0.5))}
    value, low = decide(["fidelity>=0", "fidelity.low>=0"], blocks)
    assert value["passed"]
    assert "reason" not in value
    assert (low["passed"], low["value"], low["reason"], low["on"]) == (False, None, "no interval", "low")


def test_a_gate_for_a_generator_that_does_not_exist_fails() -> None:
    # Otherwise a misspelt name would make the gate pass in every run.
    found: list[dict[str, Any]] = [{"passed": False}]
    with contextlib.suppress(ValueError):
        found = decide(["generator=typo fidelity>=0.99"], {"a": block(figure(0.5))})
    assert [decision["passed"] for decision in found] == [False]


def test_the_metrics_of_families_can_be_gated() -> None:
    kid = {"kid": figure(0.02, 0.01, 0.03)}
    blocks = {"a": block(figure(0.5), kernel=kid)}
    assert metrics_by_name(blocks["a"])["kid"] == kid["kid"]
    assert gate_metric_names(blocks) == [*CORE_METRICS, "auc", "kid"]
    assert [d["passed"] for d in decide(["kid<=0.025", "kid.high<=0.025"], blocks)] == [True, False]


def test_a_gate_fails_for_a_generator_without_the_metric() -> None:
    blocks = {"a": block(figure(0.5), kernel={"kid": figure(0.02)}), "b": block(figure(0.5))}
    assert [d["passed"] for d in decide(["kid<=0.025"], blocks)] == [True, False]


def test_figures_leave_the_block_as_it_was() -> None:
    own = block(figure(0.5), kernel={"kid": figure(0.02)})
    metrics_by_name(own)["fidelity"] = figure(0.0)
    assert set(own["metrics"]) == set(CORE_METRICS)
    assert own["metrics"]["fidelity"]["value"] == 0.5
