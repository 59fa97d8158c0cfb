"""Parser of quality gates such as ``fidelity>=0.3`` or ``generator=sdxl freshness.low>=0.98``.

A gate is ``[generator=NAME ]METRIC[.low|.high]OPERATOR NUMBER``. NAME may contain blanks. It may be put in
single or double quotes, and must be if it begins with a quote, or begins or ends with a blank. metrics/gates.py
decides gates on a run's metrics.
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from synthscale.spelling import did_you_mean

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
"""Comparison operators: metric OPERATOR limit must hold."""

ENDS = ("value", "low", "high")
"""What a gate compares: the metric's value (default), or an end of its 95 % interval."""

_GATE = re.compile(
    r"(?:generator=(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<bare>[^\s\"'](?:.*\S)?))\s+)?"
    r"(?P<metric>[A-Za-z][\w-]*)(?:\.(?P<end>\w+))?"
    r"\s*(?P<operator>>=|<=|>|<)\s*(?P<limit>\S+)"
)


@dataclass(frozen=True)
class Gate:
    """A condition on a metric.

    Attributes:
        text: the gate as written.
        generator: name of the generator it applies to; None if it applies to all.
        metric: name of the metric.
        end: which number of the metric is compared, one of `ENDS`.
        operator: key of `OPERATORS`.
        limit: right-hand side of the comparison; not NaN.
    """

    text: str
    generator: str | None
    metric: str
    end: str
    operator: str
    limit: float


def parse_gate(text: str, metrics: Iterable[str]) -> Gate:
    """Parse a gate.

    Args:
        text: the gate.
        metrics: names of the metrics that a gate may use.

    Raises:
        ValueError: the syntax is wrong, the metric or the end of the interval unknown, or the limit not a number;
            the message has the gate and what is wrong with it.
    """
    match = _GATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"gate {text!r}: expected [generator=NAME ]METRIC[.low|.high]>=NUMBER, or <=, >, <")
    end = match["end"] or "value"
    names = list(metrics)
    if match["metric"] not in names:
        suggestion = did_you_mean(match["metric"], names)
        raise ValueError(f"gate {text!r}: no metric {match['metric']}{suggestion or _choices(names)}")
    if end not in ENDS:
        raise ValueError(f"gate {text!r}: {end} is not one of {', '.join(ENDS)}{did_you_mean(end, ENDS)}")
    try:
        limit = float(match["limit"])
    except ValueError:
        raise ValueError(f"gate {text!r}: {match['limit']!r} is not a number") from None
    if limit != limit:
        raise ValueError(f"gate {text!r}: the limit must not be nan")
    return Gate(text, _generator(match), match["metric"], end, match["operator"], limit)


def _choices(names: Iterable[str]) -> str:
    return f"; choose from {', '.join(names)}"


def generator_gates(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return (gate, generator name) for each gate that applies to one generator only."""
    matches = [(text, _GATE.fullmatch(text.strip())) for text in texts]
    named = [(text, _generator(match)) for text, match in matches if match is not None]
    return [(text, generator) for text, generator in named if generator is not None]


def _generator(match: re.Match[str]) -> str | None:
    """Return the generator's name in a gate, without quotes; None if the gate applies to all generators."""
    return next((match[form] for form in ("double", "single", "bare") if match[form] is not None), None)
