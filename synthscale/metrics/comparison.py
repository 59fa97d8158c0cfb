"""Differences of metrics between generators, with 95 % intervals and rankings.

Reads metric values (from ``metrics.parquet`` or a run in progress) and returns the blocks ``comparisons`` and
``ranking`` of ``metrics.json`` and the content of ``compare.json``.

Comparisons are paired: all generators of a run have their jackknife deviations over the same blocks
(``statistics/jackknife.py``), so the variance that two generators share, mostly that of the real rows, cancels in
a difference. The interval of a difference is computed from the two metrics' own intervals and the correlation of
their deviations (MOVER: Zou 2007). It therefore stays valid near 0 and 1, where the deviations vanish. Where a
metric depends on the number of images and generators of one run differ in size, the larger ones are compared on a
subsample of the smallest one's size (``statistics/size_matching.py``).
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
"""Metrics of which a lower value is better; of all others a higher one is."""
# accuracy_real describes the real set alone, and the other names are not quality metrics.
_NOT_COMPARED = frozenset({"p_value", "accuracy_real", *FAMILIES["stability"]})
SIZE_DEPENDENT = frozenset(
    {
        "diversity",
        "unique_share",
        "coverage",
        "recall",
        "frechet_distance",
        "vendi_score",
        "utility",
        "accuracy_synthetic",
        "label_coverage",
    }
)
"""Metrics that depend on the number of images: compared between generators of different sizes only on matched
subsamples."""


@dataclass(frozen=True)
class MetricValue:
    """Value and 95 % interval of one metric of one generator, as in a row of ``metrics.parquet``.

    Attributes:
        low: lower end of the interval; NaN where there is none.
        high: upper end; NaN where there is none.
        deviations: (BLOCKS,) jackknife deviations, whose squares sum to the variance; None where unknown.
        rows: number of synthetic rows that the value is computed from.
    """

    value: float
    low: float
    high: float
    deviations: Blocks | None
    rows: int = 0


@dataclass(frozen=True)
class Difference:
    """Difference of a metric between two generators: ``one`` minus ``two``.

    Attributes:
        difference: value of ``one`` minus value of ``two``.
        low: lower end of its 95 % interval; None where either generator has no interval.
        high: upper end; None likewise.
        better: name of the better generator; None where the interval contains 0 or is unknown.
    """

    metric: str
    one: str
    two: str
    difference: float
    low: float | None
    high: float | None
    better: str | None

    def json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


MetricValues = dict[str, MetricValue]
"""Metric name -> value with interval, of one generator."""


def metric_value(line: Mapping[str, Any]) -> MetricValue | None:
    """Convert a row of ``metrics.parquet`` to a `MetricValue`; None where its value is null."""
    if line["value"] is None:
        return None
    known = line["deviations"] is not None and all(d is not None for d in line["deviations"])
    ends = [np.nan if line[name] is None else line[name] for name in ("low", "high")]
    deviations = np.array(line["deviations"], np.float64) if known else None
    return MetricValue(line["value"], ends[0], ends[1], deviations, line["synthetic"])


def compare(one: tuple[str, MetricValues], two: tuple[str, MetricValues]) -> list[Difference]:
    """Return the differences ``one`` minus ``two`` of all metrics that both generators have.

    Metrics that are not compared are left out, and so are size-dependent ones where the sizes differ.

    Args:
        one: name and metrics of the first generator.
        two: name and metrics of the second.
    """
    (first_name, first), (second_name, second) = one, two
    return [
        _difference(metric, (first_name, first[metric]), (second_name, second[metric]))
        for metric in first
        if metric in second
        and metric not in _NOT_COMPARED
        and _comparable(metric, [first[metric], second[metric]])
    ]


def _comparable(metric: str, figures: Sequence[MetricValue]) -> bool:
    return metric not in SIZE_DEPENDENT or have_similar_sizes(figures)


def _difference(metric: str, one: tuple[str, MetricValue], two: tuple[str, MetricValue]) -> Difference:
    """Return ``one`` minus ``two`` with the interval of MOVER (Zou 2007) for dependent estimates."""
    (first_name, a), (second_name, b) = one, two
    value = a.value - b.value
    if not np.isfinite([a.low, a.high, b.low, b.high]).all():
        return Difference(metric, first_name, second_name, value, None, None, None)
    correlation = _correlation(a, b)

    def margin(a_margin: float, b_margin: float) -> float:
        squared = a_margin**2 + b_margin**2 - 2 * correlation * a_margin * b_margin
        return float(np.sqrt(max(squared, 0.0)))

    low = value - margin(a.value - a.low, b.high - b.value)
    high = value + margin(a.high - a.value, b.value - b.low)
    better = None
    if low > 0 or high < 0:
        better = first_name if (low > 0) != (metric in LOWER_IS_BETTER) else second_name
    return Difference(metric, first_name, second_name, value, low, high, better)


def _correlation(a: MetricValue, b: MetricValue) -> float:
    """Return the correlation of the deviations over the blocks; 0 where either is unknown or constant."""
    if a.deviations is None or b.deviations is None:
        return 0.0
    norms = np.linalg.norm(a.deviations) * np.linalg.norm(b.deviations)
    return float(np.clip(a.deviations @ b.deviations / norms, -1, 1)) if norms > 0 else 0.0


def pairwise_differences(
    whole: Mapping[str, MetricValues], matched: Mapping[str, MetricValues]
) -> list[Difference]:
    """Return the differences of all pairs of generators of a run; arguments as for `comparison_blocks`."""
    differences = []
    for (first_name, first), (second_name, second) in itertools.combinations(whole.items(), 2):
        if not have_similar_sizes([*first.values(), *second.values()]):
            first, second = first | matched.get(first_name, {}), second | matched.get(second_name, {})
        differences += compare((first_name, first), (second_name, second))
    return differences


def comparison_blocks(
    whole: Mapping[str, MetricValues], matched: Mapping[str, MetricValues], control: str | None = None
) -> dict[str, Any]:
    """Return the blocks ``comparisons`` and ``ranking`` of metrics.json.

    Args:
        whole: metrics of each generator over all its rows.
        matched: metrics over a subsample of the smallest generator's size, for each larger generator.
        control: name of the held-out real images, if there are any: they are compared and not ranked.
    """
    differences = pairwise_differences(whole, matched)
    ranked = {name: dict(figures) for name, figures in whole.items() if name != control}
    if not have_similar_sizes(metric_value for figures in ranked.values() for metric_value in figures.values()):
        ranked = {name: figures | matched.get(name, {}) for name, figures in ranked.items()}
    metrics = dict.fromkeys(
        metric for figures in ranked.values() for metric in figures if metric not in _NOT_COMPARED
    )
    rankings = {metric: ranking(metric, ranked, differences) for metric in metrics if len(ranked) > 1}
    return {
        "comparisons": [difference.json() for difference in differences],
        "ranking": {metric: [asdict(rank) for rank in ranks] for metric, ranks in rankings.items() if ranks},
    }


def have_similar_sizes(figures: Iterable[MetricValue]) -> bool:
    """Return True if the metrics' numbers of synthetic rows differ by at most 5 %."""
    return are_similar_sizes([metric_value.rows for metric_value in figures])


@dataclass(frozen=True)
class Rank:
    """Rank of a generator on a metric: 1 is the best.

    Attributes:
        rank: position by value.
        best: best rank that the 95 % intervals of the differences allow.
        worst: worst rank that they allow.
    """

    generator: str
    value: float
    rank: int
    best: int
    worst: int


def ranking(metric: str, figures: Mapping[str, MetricValues], differences: Sequence[Difference]) -> list[Rank]:
    """Return the generators sorted by a metric, the best first, with the range of ranks that is possible.

    Args:
        metric: name of the metric.
        figures: metrics of each generator.
        differences: differences of all pairs of generators.

    Returns:
        One `Rank` for each generator that has the metric; empty where their sizes make it incomparable.
    """
    available = {name: own[metric] for name, own in figures.items() if metric in own}
    if not _comparable(metric, list(available.values())):
        return []
    values = {name: own.value for name, own in available.items()}
    sign = 1 if metric in LOWER_IS_BETTER else -1
    ordered = sorted(values, key=lambda name: sign * values[name])
    decided = [
        d for d in differences if d.metric == metric and d.better is not None and {d.one, d.two} <= values.keys()
    ]
    ranks = []
    for position, name in enumerate(ordered):
        beaten_by = sum(d.better != name for d in decided if name in (d.one, d.two))
        beats = sum(d.better == name for d in decided)
        ranks.append(Rank(name, values[name], position + 1, 1 + beaten_by, len(ordered) - beats))
    return ranks


@dataclass(frozen=True)
class ScoredGenerator:
    """A generator of a finished run with its metrics.

    Attributes:
        name: unique over all compared runs.
        generator: its name within its run.
        run: path of the run.
        figures: metrics over all its rows.
        matched: metrics over a subsample of the size of the run's smallest generator; empty for that one.
    """

    name: str
    generator: str
    run: str
    figures: MetricValues
    matched: MetricValues


@dataclass(frozen=True)
class Comparison:
    """Result of ``compare``: the generators, the differences of each pair, and warnings that qualify them."""

    scored: list[ScoredGenerator]
    differences: list[Difference]
    warnings: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return the content of ``compare.json``."""
        return {
            "schema_version": 1,
            "generators": [
                {
                    "name": generator.name,
                    "generator": generator.generator,
                    "run": generator.run,
                    "metrics": {name: metric_value.value for name, metric_value in generator.figures.items()},
                }
                for generator in self.scored
            ],
            "differences": [difference.json() for difference in self.differences],
            "warnings": self.warnings,
        }
