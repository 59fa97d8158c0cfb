"""Quality gates: conditions on metrics, such as ``fidelity>=0.3`` or ``generator=sdxl freshness>=0.98``.

Takes the generators' blocks of ``metrics.json`` and returns its block ``gates``. A gate without a generator
applies to all of them. It compares the value, or an end of the 95 % interval (``freshness.low>=0.98``). If that
number is undefined, the gate fails.
"""

from collections.abc import Iterable
from typing import Any

from synthscale.gate_grammar import OPERATORS, parse_gate
from synthscale.metrics.metrics_json import gate_metric_names, metrics_by_name


def decide(
    texts: Iterable[str], generators: dict[str, dict[str, Any]], control: str | None = None
) -> list[dict[str, Any]]:
    """Return the block ``gates`` of metrics.json: one decision per gate and generator that it applies to.

    Args:
        texts: gate expressions, already validated.
        generators: the generators' blocks of metrics.json.
        control: name of the held-out real images; only gates that name it apply to it.
    """
    decisions = []
    for text in texts:
        gate = parse_gate(text, gate_metric_names(generators))
        scored = [name for name in generators if name != control]
        for name in scored if gate.generator is None else [gate.generator]:
            figure = _figure(generators, name, gate.metric)
            value = figure.get(gate.end)
            passed = value is not None and OPERATORS[gate.operator](value, gate.limit)
            decision = {"gate": text, "generator": name, "on": gate.end, "value": value, "passed": passed}
            if value is None:
                decision["reason"] = figure.get("reason", "undefined")
            decisions.append(decision)
    return decisions


def _figure(generators: dict[str, dict[str, Any]], name: str, metric: str) -> dict[str, Any]:
    """Return the metric of a generator, or only a reason where it does not exist."""
    if name not in generators:
        return {"reason": "the run has no generator of this name"}
    missing = {"reason": "this generator does not have this metric"}
    result: dict[str, Any] = metrics_by_name(generators[name]).get(metric, missing)
    return result
