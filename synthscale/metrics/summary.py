"""Puts a generator's sums and facts together to its block of metrics.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from synthscale.classify.evaluation import classifier_figures
from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.comparison import SIZE_DEPENDENT, Figure
from synthscale.metrics.core import CoreSums, MetricContext, core_metrics, coverage_reference
from synthscale.metrics.evidence import confounder_figures, confounder_warning, direction_figures
from synthscale.metrics.row_families import (
    completeness_family,
    copying_family,
    facts_family,
    manifold_family,
    stability_family,
)
from synthscale.metrics.view_sums import FOLD, ViewSums
from synthscale.metrics.warnings import warnings
from synthscale.neighbors.view import K
from synthscale.statistics.auc import RankSums
from synthscale.statistics.estimates import Estimate, Metric, metric
from synthscale.statistics.size_matching import are_similar_sizes
from synthscale.tables.schemas import NEAREST_REAL

NO_P_INTERVAL = "a p-value has no interval"
NO_IMAGES = "not run: the input is vectors, or neighbors.self_test_images is 0"


@dataclass(frozen=True)
class Line:
    """A metric of a generator, over all its rows (``slice_by`` is empty) or a slice: a line of metrics.parquet."""

    family: str
    metric: str
    estimate: Estimate
    real: int
    synthetic: int
    slice_by: str = ""
    slice: str = ""


@dataclass(frozen=True)
class GeneratorFigures:
    """A generator's block of metrics.json, and its lines of metrics.parquet."""

    block: dict[str, Any]
    lines: list[Line]
    matched: dict[str, Estimate] = field(default_factory=dict)

    @property
    def whole(self) -> dict[str, Figure]:
        """What it is compared by with generators of its size."""
        found = {
            line.metric: line.estimate for line in self.lines if not line.slice_by and line.family != "matched"
        }
        return _figures(found, self.block["counts"]["synthetic"])

    @property
    def at_smallest(self) -> dict[str, Figure]:
        """What it is compared by with smaller generators; nothing for the smallest itself."""
        return _figures(self.matched, self.block.get("matched", {"size": 0})["size"])


def _figures(estimates: Mapping[str, Estimate], rows: int) -> dict[str, Figure]:
    return {
        name: Figure(
            own.value,
            np.nan if own.low is None else own.low,
            np.nan if own.high is None else own.high,
            own.deviations,
            rows,
        )
        for name, own in estimates.items()
        if own.value is not None
    }


@dataclass(frozen=True)
class ViewFacts:
    """What is known of a generator beside the sums over its view.

    Attributes:
        head: the classifier's head.
        fit: what the fit recorded.
        neighbors: what `View.summary` gives, ``spreads``, and ``self_test`` where there are images.
        families: those that are asked for.
        of_vectors: metrics that were made of the embeddings, by family.
        complete: ``rows``, ``complete``, ``failed`` and ``nulls`` of the generator's input, ``labelled`` and
            ``seen`` real rows (`rows.completeness_family`).
        matched_size: rows of the smallest generator, if this one is larger.
    """

    head: str
    fit: dict[str, Any]
    neighbors: dict[str, Any]
    families: Sequence[str] = ()
    of_vectors: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    complete: Mapping[str, Any] = field(default_factory=dict)
    matched_size: int | None = None


def generator_figures(sums: ViewSums, known: ViewFacts) -> GeneratorFigures:
    """Return what is said of a generator, from the sums over its whole view."""
    overall, fit, neighbors = sums.overall, known.fit, known.neighbors
    context = _context(sums, neighbors)
    lines = _lines("core", core_metrics(overall, context), overall)
    by: dict[str, dict[str, Any]] = {"label": {}}
    for (column, name), part in sorted(sums.slices.items()):
        if column != FOLD:
            own = _lines("core", core_metrics(part, context), part, column, name)
            lines += own
            by.setdefault(column, {})[name] = {"counts": _counts(part), **_as_json(own)}
    confounders = confounder_figures(sums.file_facts, sums.bytes_per_pixel, bool(fit.get("folds")))
    self_test = neighbors.get("self_test") or metric(None, NO_IMAGES)
    shown = {name: value for name, value in neighbors.items() if name != "spreads"}
    classifier = classifier_figures(sums.classifier, known.head, fit)
    lines += _classifier_lines(classifier, confounders, overall)
    families, further = _families(sums, known, context)
    lines += further
    block = {
        "counts": _counts(overall),
        "metrics": _as_json(lines[: len(CORE_METRICS)]),
        "by_label": by.pop("label"),
        "by": by,
        "classifier": {
            **classifier,
            "directions": direction_figures(sums.direction_coordinates, fit.get("directions", [])),
        },
        "neighbors": {
            **shown,
            "repeats": {"rows": int(overall["repeats"])},
            "copies": {"rows": int(overall["copies"])},
            "self_test": self_test,
        },
        "confounders": confounders,
        "families": families,
        "warnings": [*filter(None, [confounder_warning(confounders)]), *warnings(sums, fit, neighbors)],
    }
    matched = _matched(sums, context, known.matched_size)
    if matched:
        block["matched"] = {
            "size": known.matched_size,
            "counts": _counts(sums.matched),
            "metrics": {name: own.metric() for name, own in matched.items()},
        }
        lines += _lines("matched", matched, sums.matched)
    return GeneratorFigures(block, lines, matched)


def _matched(sums: ViewSums, context: MetricContext, size: int | None) -> dict[str, Estimate]:
    """Return the core metrics at the size of the smallest generator; none for that itself."""
    if size is None:
        return {}
    if not sums.matched["synthetic"]:
        reason = f"no near-duplicate group was drawn into the subsample of about {size} rows"
        return dict.fromkeys(CORE_METRICS, Estimate.none(reason))
    coverage = coverage_reference(sums.distinct_real, int(sums.matched["synthetic"]), K)
    at_size = replace(context, references={**context.references, "coverage": coverage})
    # The class shares are not those of the subsample's heads.
    return {name: replace(own, unadjusted=None) for name, own in core_metrics(sums.matched, at_size).items()}


def _families(sums: ViewSums, known: ViewFacts, context: MetricContext) -> tuple[dict[str, Any], list[Line]]:
    """Return the metrics of the families that are asked for, as JSON and as lines."""
    overall, more = sums.overall, dict[str, dict[str, Any]]()
    found: dict[str, Mapping[str, Estimate]] = dict(known.of_vectors)
    folds = [part for (column, _), part in sorted(sums.slices.items()) if column == FOLD]
    if "manifold" in known.families:
        found["manifold"] = manifold_family(overall, context, K, sums.distinct_synthetic)
    if "copying" in known.families:
        found["copying"] = copying_family(overall, sums.values.get(NEAREST_REAL, RankSums()))
    if "facts" in known.families:
        found["facts"], p_values = facts_family(sums.values)
        more |= {name: {"p_value": value} for name, value in p_values.items()}
    if "completeness" in known.families:
        found["completeness"] = completeness_family(known.complete)
        more["complete_share"] = {name: known.complete[name] for name in ("failed", "nulls")}
    if "stability" in known.families:
        found["stability"] = stability_family(overall, folds, context)
    ordered = {name: found[name] for name in known.families if name in found}
    as_json = {
        family: {name: own.metric() | more.get(name, {}) for name, own in metrics.items()}
        for family, metrics in ordered.items()
    }
    lines = [line for family, metrics in ordered.items() for line in _lines(family, metrics, overall)]
    return as_json, lines


def show_control(generators: dict[str, dict[str, Any]], control: str) -> None:
    """Put what the control got beside every metric of the other generators, as ``control``."""
    reference = generators[control]
    for name, block in generators.items():
        if name == control:
            continue
        _beside(block["metrics"], _at_size(reference, block["counts"]["synthetic"]))
        if "matched" in block:
            _beside(block["matched"]["metrics"], _at_size(reference, block["matched"]["size"]))
        if not are_similar_sizes([reference["counts"]["synthetic"], block["counts"]["synthetic"]]):
            # Slices and families are not matched.
            continue
        slices = [(block["by_label"], reference["by_label"])]
        columns = block["by"].keys() & reference["by"].keys()
        slices += [(block["by"][column], reference["by"][column]) for column in columns]
        for own, other in slices:
            for value in own.keys() & other.keys():
                _beside(own[value], other[value])
        for family in block["families"].keys() & reference["families"].keys():
            _beside(block["families"][family], reference["families"][family])


def _at_size(reference: dict[str, Any], rows: int) -> dict[str, Metric]:
    """The control's metrics at about so many rows; without those that depend on the size where it has none."""
    whole: dict[str, Metric] = reference["metrics"]
    if are_similar_sizes([reference["counts"]["synthetic"], rows]):
        return whole
    matched: dict[str, Any] = reference.get("matched", {"size": 0})
    if are_similar_sizes([matched["size"], rows]):
        at_size: dict[str, Metric] = matched["metrics"]
        return at_size
    return {name: own for name, own in whole.items() if name not in SIZE_DEPENDENT}


def _beside(own: dict[str, Metric], other: dict[str, Metric]) -> None:
    for name, figure in own.items():
        if name != "counts" and name in other and other[name]["value"] is not None:
            figure["control"] = other[name]["value"]


def _context(sums: ViewSums, neighbors: dict[str, Any]) -> MetricContext:
    overall = sums.overall
    references = {
        "precision": overall["real_inside"] / overall["real"] if overall["real"] else None,
        "coverage": coverage_reference(sums.distinct_real, int(overall["synthetic"]), K),
    }
    no_manifold = "fewer than two distinct real rows" if sums.distinct_real < 2 else None
    spreads = {name: np.asarray(spread) for name, spread in neighbors["spreads"].items()}
    return MetricContext(references, no_manifold, spreads)


def _counts(sums: CoreSums) -> dict[str, int]:
    return {"real": int(sums["real"]), "synthetic": int(sums["synthetic"])}


def _lines(
    family: str, metrics: Mapping[str, Estimate], sums: CoreSums, column: str = "", name: str = ""
) -> list[Line]:
    counts = _counts(sums)
    return [
        Line(family, metric_name, estimate, counts["real"], counts["synthetic"], column, name)
        for metric_name, estimate in metrics.items()
    ]


def _as_json(lines: Sequence[Line]) -> dict[str, Metric]:
    return {line.metric: line.estimate.metric() for line in lines}


def _classifier_lines(classifier: dict[str, Any], confounders: dict[str, Any], overall: CoreSums) -> list[Line]:
    """Return the classifier's figures as lines; their intervals are the bootstrap's."""
    figures = {name: classifier[name] for name in ("auc", "accuracy", "log_loss", "p_value")}
    found = {name: _as_estimate(figure) for name, figure in figures.items()}
    found["p_value"] = replace(found["p_value"], reason=figures["p_value"].get("reason") or NO_P_INTERVAL)
    files = {"file_facts_auc": _as_estimate(confounders["auc"])}
    return _lines("classifier", found, overall) + _lines("confounders", files, overall)


def _as_estimate(figure: Metric) -> Estimate:
    """A figure that was made in the shape of metrics.json."""
    low, high, reason, reference = (figure.get(name) for name in ("low", "high", "reason", "reference"))
    return Estimate(figure["value"], low, high, reason, reference=reference)
