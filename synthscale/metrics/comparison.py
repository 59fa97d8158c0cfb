"""Differences between generators, of one run or of several, with intervals: which is better on what.

Figures are compared in pairs: their deviations (jackknife.py) are of the same blocks, so what two generators
share, the real rows above all, cancels. The interval of a difference recovers its ends from those of the two
figures (MOVER: Zou 2007, with the correlation of the deviations), so that it stays honest near 0 and 1, where
deviations vanish. Generators of one run whose sizes differ are compared as if the larger ones were as small as
the smallest, where a metric depends on the size (matched.py).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from synthscale.metric_names import FAMILIES
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.size_matching import are_similar_sizes

LOWER_IS_BETTER = frozenset(
    {
        "auc",
        "accuracy",
        "file_facts_auc",
        "frechet_distance",
        "frechet_distance_infinity",
        "kid",
        "exact_match_share",
        "privacy_tail",
        "brightness_ks",
        "contrast_ks",
        "sharpness_ks",
        "width_ks",
        "height_ks",
        "aspect_ks",
    }
)
# accuracy_real is of the real set.
_NOT_COMPARED = frozenset({"p_value", "accuracy_real", *FAMILIES["stability"]})
SIZE_DEPENDENT = frozenset(
    {
        "diversity",
        "coverage",
        "recall",
        "frechet_distance",
        "vendi_score",
        "utility",
        "accuracy_synthetic",
        "label_coverage",
    }
)
"""Not compared between generators of different sizes, but for those that are matched."""


@dataclass(frozen=True)
class Figure:
    """A metric of one generator, over so many synthetic rows, as a line of metrics.parquet has it."""

    value: float
    low: float
    high: float
    deviations: Blocks | None
    rows: int = 0


@dataclass(frozen=True)
class Difference:
    """How much more one generator has of a metric than another.

    Attributes:
        difference: one's value less two's, with its 95 % interval; None where either has no interval.
        better: the name of the better one; None where the interval holds 0 or is unknown.
    """

    metric: str
    one: str
    two: str
    difference: float
    low: float | None
    high: float | None
    better: str | None

    def json(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


Figures = dict[str, Figure]
"""A generator's figures by metric."""


def figure(line: Mapping[str, Any]) -> Figure | None:
    """Return a line of metrics.parquet as a figure; None where it has no value."""
    if line["value"] is None:
        return None
    known = line["deviations"] is not None and all(d is not None for d in line["deviations"])
    ends = [np.nan if line[name] is None else line[name] for name in ("low", "high")]
    deviations = np.array(line["deviations"], np.float64) if known else None
    return Figure(line["value"], ends[0], ends[1], deviations, line["synthetic"])


def compare(one: tuple[str, Figures], two: tuple[str, Figures]) -> list[Difference]:
    """Return the differences of the metrics that two generators have: (name, figures) each."""
    (name, figures), (other, others) = one, two
    return [
        _difference(metric, (name, figures[metric]), (other, others[metric]))
        for metric in figures
        if metric in others
        and metric not in _NOT_COMPARED
        and _comparable(metric, [figures[metric], others[metric]])
    ]


def _comparable(metric: str, figures: Sequence[Figure]) -> bool:
    return metric not in SIZE_DEPENDENT or of_one_size(figures)


def _difference(metric: str, one: tuple[str, Figure], two: tuple[str, Figure]) -> Difference:
    (name, a), (other, b) = one, two
    value = a.value - b.value
    if not np.isfinite([a.low, a.high, b.low, b.high]).all():
        return Difference(metric, name, other, value, None, None, None)
    together = _correlation(a, b)

    def end(first: float, second: float) -> float:
        spread = first**2 + second**2 - 2 * together * first * second
        return float(np.sqrt(max(spread, 0.0)))

    low = value - end(a.value - a.low, b.high - b.value)
    high = value + end(a.high - a.value, b.value - b.low)
    better = None
    if low > 0 or high < 0:
        better = name if (low > 0) != (metric in LOWER_IS_BETTER) else other
    return Difference(metric, name, other, value, low, high, better)


def _correlation(a: Figure, b: Figure) -> float:
    if a.deviations is None or b.deviations is None:
        return 0.0
    size = np.linalg.norm(a.deviations) * np.linalg.norm(b.deviations)
    return float(np.clip(a.deviations @ b.deviations / size, -1, 1)) if size > 0 else 0.0


def pairwise(whole: Mapping[str, Figures], matched: Mapping[str, Figures]) -> list[Difference]:
    """Return the differences of every two generators of a run; see `between`."""
    differences = []
    for (name, figures), (other, others) in itertools.combinations(whole.items(), 2):
        if not of_one_size([*figures.values(), *others.values()]):
            figures, others = figures | matched.get(name, {}), others | matched.get(other, {})
        differences += compare((name, figures), (other, others))
    return differences


def between(
    whole: Mapping[str, Figures], matched: Mapping[str, Figures], control: str | None = None
) -> dict[str, Any]:
    """Return the blocks ``comparisons`` and ``ranking`` of metrics.json.

    Args:
        whole: figures of each generator over all its rows.
        matched: of those that are larger than the smallest, the figures of a subsample of its size.
        control: the generator that is held-out real images, if there is one: compared with, and not ranked.
    """
    differences = pairwise(whole, matched)
    ranked = {name: dict(own) for name, own in whole.items() if name != control}
    if not of_one_size(figure for own in ranked.values() for figure in own.values()):
        ranked = {name: own | matched.get(name, {}) for name, own in ranked.items()}
    metrics = dict.fromkeys(metric for own in ranked.values() for metric in own if metric not in _NOT_COMPARED)
    places = {metric: ranking(metric, ranked, differences) for metric in metrics if len(ranked) > 1}
    return {
        "comparisons": [difference.json() for difference in differences],
        "ranking": {metric: [asdict(rank) for rank in ranks] for metric, ranks in places.items() if ranks},
    }


def of_one_size(figures: Iterable[Figure]) -> bool:
    """Tell whether figures are over about as many synthetic rows."""
    return are_similar_sizes([figure.rows for figure in figures])


@dataclass(frozen=True)
class Rank:
    """A generator's place on a metric, 1 is best, and the places that it might have: 95 % intervals tell apart."""

    generator: str
    value: float
    rank: int
    best: int
    worst: int


def ranking(metric: str, figures: Mapping[str, Figures], differences: Sequence[Difference]) -> list[Rank]:
    """Return the generators in order of a metric, the best first, with how sure their places are.

    Args:
        metric: its name.
        figures: of each generator.
        differences: of all pairs.
    """
    there = {name: own[metric] for name, own in figures.items() if metric in own}
    if not _comparable(metric, list(there.values())):
        return []
    known = {name: own.value for name, own in there.items()}
    sign = 1 if metric in LOWER_IS_BETTER else -1
    ordered = sorted(known, key=lambda name: sign * known[name])
    decided = [
        d for d in differences if d.metric == metric and d.better is not None and {d.one, d.two} <= known.keys()
    ]
    ranks = []
    for place, name in enumerate(ordered):
        beaten_by = sum(d.better != name for d in decided if name in (d.one, d.two))
        beats = sum(d.better == name for d in decided)
        ranks.append(Rank(name, known[name], place + 1, 1 + beaten_by, len(ordered) - beats))
    return ranks


@dataclass(frozen=True)
class ScoredGenerator:
    """A generator of a run; ``name`` tells it from those of the other runs.

    ``figures`` are over all its rows, ``matched`` over a subsample, where it is larger than others of its run.
    """

    name: str
    generator: str
    run: str
    figures: Figures
    matched: Figures


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found: the generators, the differences of each pair, and what makes them less sure."""

    scored: list[ScoredGenerator]
    differences: list[Difference]
    warnings: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "schema_version": 1,
            "generators": [
                {
                    "name": own.name,
                    "generator": own.generator,
                    "run": own.run,
                    "metrics": {name: figure.value for name, figure in own.figures.items()},
                }
                for own in self.scored
            ],
            "differences": [difference.json() for difference in self.differences],
            "warnings": self.warnings,
        }
