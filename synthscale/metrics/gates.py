"""Quality gates: conditions that a run must meet, ``fidelity>=0.3`` or ``generator=sdxl freshness>=0.98``.

A gate without a generator holds for each of them. It is decided on the value, or, as ``freshness.low>=0.98``, on
an end of the 95 % interval. A metric that is undefined, or an end that is not known, misses its gate.
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
ENDS = ("value", "low", "high")
_GATE = re.compile(
    r"(?:generator=(?P<generator>\S+)\s+)?(?P<metric>[a-z_]+)(?:\.(?P<end>[a-z]+))?"
    r"\s*(?P<operator>>=|<=|>|<)\s*(?P<limit>\S+)"
)


@dataclass(frozen=True)
class Gate:
    """A condition on a metric; ``generator`` is None where it holds for all."""

    text: str
    generator: str | None
    metric: str
    end: str
    operator: str
    limit: float


def parse_gate(text: str, metrics: Iterable[str]) -> Gate:
    """Read a gate; raise ValueError that says what is wrong with it."""
    found = _GATE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"gate {text!r}: expected [generator=NAME ]METRIC[.low|.high]>=NUMBER, or <=, >, <")
    end = found["end"] or "value"
    names = list(metrics)
    if found["metric"] not in names:
        raise ValueError(f"gate {text!r}: no metric {found['metric']}; there are {', '.join(names)}")
    if end not in ENDS:
        raise ValueError(f"gate {text!r}: {end} is neither of {', '.join(ENDS)}")
    try:
        limit = float(found["limit"])
    except ValueError:
        raise ValueError(f"gate {text!r}: {found['limit']!r} is not a number") from None
    if limit != limit:
        raise ValueError(f"gate {text!r}: nothing can be compared with nan")
    return Gate(text, found["generator"], found["metric"], end, found["operator"], limit)


def generators_of(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the gates that hold for one generator, and its name."""
    found = [(text, _GATE.fullmatch(text.strip())) for text in texts]
    return [(text, match["generator"]) for text, match in found if match is not None and match["generator"]]


def decide(
    texts: Iterable[str], generators: dict[str, dict[str, Any]], control: str | None = None
) -> list[dict[str, Any]]:
    """Return the block ``gates`` of metrics.json: each gate for each generator that it holds for.

    Args:
        texts: gates, checked before.
        generators: the generators' blocks of metrics.json.
        control: the generator that is held-out real images: only a gate that names it holds for it.
    """
    decisions = []
    for text in texts:
        gate = parse_gate(text, gated(generators))
        everyone = [name for name in generators if name != control]
        for name in everyone if gate.generator is None else [gate.generator]:
            figure = _figure(generators, name, gate.metric)
            value = figure.get(gate.end)
            passed = value is not None and OPERATORS[gate.operator](value, gate.limit)
            decision = {"gate": text, "generator": name, "on": gate.end, "value": value, "passed": passed}
            if value is None:
                decision["reason"] = figure.get("reason", "undefined")
            decisions.append(decision)
    return decisions


def _figure(generators: dict[str, dict[str, Any]], name: str, metric: str) -> dict[str, Any]:
    if name not in generators:
        return {"reason": "there is no such generator"}
    found: dict[str, Any] = figures(generators[name]).get(metric, {"reason": "this generator has no such metric"})
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
