"""Quality gates: conditions that a run must meet, ``fidelity>=0.3`` or ``generator=sdxl freshness>=0.98``.

A gate without a generator holds for each of them. It is decided on the value, or, as ``freshness.low>=0.98``, on
an end of the 95 % interval. A metric that is undefined, or an end that is not known, misses its gate.
"""

from collections.abc import Iterable
from typing import Any

from synthscale.gate_grammar import OPERATORS, parse_gate
from synthscale.metrics.metrics_json import figures, gated


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
