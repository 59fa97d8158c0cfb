"""The grammar of quality gates: ``fidelity>=0.3`` or ``generator=sdxl freshness.low>=0.98``."""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
