"""Computes a generator's block of ``metrics.json`` and rows of ``metrics.parquet`` from the sums over its view.

Takes `ViewSums` and what the stages recorded (`ViewFacts`) in memory; reads and writes no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from synthscale.classify.evaluation import classifier_metrics
from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.comparison import SIZE_DEPENDENT, MetricValue
from synthscale.metrics.core import CoreSums, MetricContext, clusters_of_view, core_metrics, view_references
from synthscale.metrics.evidence import confounder_figures, confounder_warning, direction_figures
from synthscale.metrics.row_families import (
    completeness_family,
    copying_family,
    facts_family,
    manifold_family,
    stability_family,
)
from synthscale.metrics.view_sums import FOLD, ViewSums
from synthscale.metrics.warnings import blind_precision, warnings
from synthscale.neighbors.view import K
from synthscale.statistics.auc import RankSums
from synthscale.statistics.estimates import (
    TOO_FEW_INDEPENDENT,
    Estimate,
    Metric,
    is_too_few,
    metric_block,
    without_interval,
)
from synthscale.statistics.size_matching import are_similar_sizes
from synthscale.tables.schemas import MANIFOLD_REAL

NO_P_INTERVAL = "a p-value has no interval"
NO_IMAGES = "not run: the input is vectors, or neighbors.self_test_images is 0"
"""Reason why the self-test of the near-duplicate radius has no result."""


@dataclass(frozen=True)
class MetricRow:
    """A row of ``metrics.parquet``: a metric of a generator over all its rows or over a slice.

    Attributes:
        real: number of real rows that it is computed over.
        synthetic: number of synthetic rows.
        slice_by: column of the slice; empty over all rows.
        slice: name of the slice.
    """

    family: str
    metric: str
    estimate: Estimate
    real: int
    synthetic: int
    slice_by: str = ""
    slice: str = ""


@dataclass(frozen=True)
class GeneratorMetrics:
    """A generator's metrics in all their forms.

    Attributes:
        block: its block of ``metrics.json``.
        lines: its rows of ``metrics.parquet``.
        matched: core metrics on a subsample of the smallest generator's size; empty for the smallest.
    """

    block: dict[str, Any]
    lines: list[MetricRow]
    matched: dict[str, Estimate] = field(default_factory=dict)

    @property
    def whole(self) -> dict[str, MetricValue]:
        """Metrics over all rows, for comparisons with generators of similar size."""
        estimates = {
            line.metric: line.estimate for line in self.lines if not line.slice_by and line.family != "matched"
        }
        return _figures(estimates, self.block["counts"]["synthetic"])

    @property
    def at_smallest(self) -> dict[str, MetricValue]:
        """Metrics of the matched subsample, for comparisons with smaller generators; empty for the smallest."""
        return _figures(self.matched, self.block.get("matched", {"size": 0})["size"])


def _figures(estimates: Mapping[str, Estimate], rows: int) -> dict[str, MetricValue]:
    return {
        name: MetricValue(
            estimate.value,
            np.nan if estimate.low is None else estimate.low,
            np.nan if estimate.high is None else estimate.high,
            estimate.deviations,
            rows,
        )
        for name, estimate in estimates.items()
        if estimate.value is not None
    }


@dataclass(frozen=True)
class ViewFacts:
    """Results of other stages and passes that a generator's block of ``metrics.json`` includes.

    Attributes:
        head: kind of classifier head (``classifier.head``).
        fit: summary that the classifier's fit recorded; ``folds`` is 0 where none could be fitted.
        neighbors: summary of the view's near-duplicates, with ``spreads``, and ``self_test`` for images.
        families: requested metric families.
        from_vectors: metrics computed from embeddings, by family.
        complete: ``rows``, ``complete``, ``failed`` and ``nulls`` of the generator's input, ``labelled`` and
            ``seen`` real rows (see `row_families.completeness_family`).
        matched_size: rows of the smallest generator if this one is larger, else None.
    """

    head: str
    fit: dict[str, Any]
    neighbors: dict[str, Any]
    families: Sequence[str] = ()
    from_vectors: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    complete: Mapping[str, Any] = field(default_factory=dict)
    matched_size: int | None = None


def generator_metrics(sums: ViewSums, facts: ViewFacts) -> GeneratorMetrics:
    """Return all metrics of a generator.

    Args:
        sums: sums over its whole view.
        facts: results of other stages.
    """
    overall, fit, neighbors = sums.overall, facts.fit, facts.neighbors
    context = _context(sums, neighbors)
    lines = _lines("core", core_metrics(overall, context), overall)
    by: dict[str, dict[str, Any]] = {"label": {}}
    for (column, name), part in sorted(sums.slices.items()):
        if column != FOLD:
            slice_lines = _lines("core", core_metrics(part, context), part, column, name)
            lines += slice_lines
            by.setdefault(column, {})[name] = {"counts": _counts(part), **_as_json(slice_lines)}
    confounders = confounder_figures(sums.file_facts, sums.bytes_per_pixel, bool(fit.get("folds")))
    self_test = neighbors.get("self_test") or metric_block(None, NO_IMAGES)
    shown = {name: value for name, value in neighbors.items() if name != "spreads"}
    classifier = _with_enough_clusters(classifier_metrics(sums.classifier, facts.head, fit), context.clusters)
    lines += _classifier_lines(classifier, confounders, overall)
    families, family_lines = _families(sums, facts, context)
    lines += family_lines
    block: dict[str, Any] = {
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
    _note_blind_precision(block)
    matched = _matched_metrics(sums, context, facts.matched_size)
    if matched:
        block["matched"] = {
            "size": facts.matched_size,
            "counts": _counts(sums.matched),
            "metrics": {name: estimate.to_json() for name, estimate in matched.items()},
        }
        lines += _lines("matched", matched, sums.matched)
    return GeneratorMetrics(block, lines, matched)


def _note_blind_precision(block: dict[str, Any]) -> None:
    """Add the note and warning about precision to a generator's block, or renew them for another reference."""
    precision = block["metrics"]["precision"]
    previous = precision.pop("note", None)
    block["warnings"] = [text for text in block["warnings"] if text != previous]
    note = blind_precision(block["metrics"], block["classifier"]["auc"])
    if note is not None:
        precision["note"] = note
        block["warnings"].append(note)


def _matched_metrics(sums: ViewSums, context: MetricContext, size: int | None) -> dict[str, Estimate]:
    """Return the core metrics on the matched subsample of ``size`` rows; empty if ``size`` is None."""
    if size is None:
        return {}
    if not sums.matched["synthetic"]:
        reason = f"no row was sampled into the matched subsample of about {size:,} rows"
        return dict.fromkeys(CORE_METRICS, Estimate.undefined(reason))
    references = view_references(sums.matched, sums.distinct_real, K)
    at_size = replace(context, references=references, clusters=clusters_of_view(sums.matched))
    # No unadjusted values: the log prior of a row is for heads fitted to all rows, not to the subsample.
    return {
        name: replace(estimate, unadjusted=None) for name, estimate in core_metrics(sums.matched, at_size).items()
    }


def _families(sums: ViewSums, facts: ViewFacts, context: MetricContext) -> tuple[dict[str, Any], list[MetricRow]]:
    """Return the metrics of the requested families, as JSON and as rows of ``metrics.parquet``."""
    overall, extra_fields = sums.overall, dict[str, dict[str, Any]]()
    by_family: dict[str, Mapping[str, Estimate]] = dict(facts.from_vectors)
    folds = [part for (column, _), part in sorted(sums.slices.items()) if column == FOLD]
    if "manifold" in facts.families:
        by_family["manifold"] = manifold_family(overall, context, K, sums.distinct_synthetic)
    if "copying" in facts.families:
        by_family["copying"] = copying_family(overall, sums.values.get(MANIFOLD_REAL, RankSums()))
    if "facts" in facts.families:
        by_family["facts"], p_values = facts_family(sums.values)
        few = is_too_few(context.clusters)
        extra_fields |= {name: {"p_value": None if few else value} for name, value in p_values.items()}
    if "completeness" in facts.families:
        by_family["completeness"] = completeness_family(facts.complete)
        extra_fields["complete_share"] = {name: facts.complete[name] for name in ("failed", "nulls")}
    if "stability" in facts.families:
        by_family["stability"] = stability_family(overall, folds, context)
    ordered = {
        name: {
            # Fields of the input are independent, however the images resemble one another.
            metric: estimate if name == "completeness" else estimate.from_clusters(context.clusters)
            for metric, estimate in by_family[name].items()
        }
        for name in facts.families
        if name in by_family
    }
    as_json = {
        family: {name: estimate.to_json() | extra_fields.get(name, {}) for name, estimate in metrics.items()}
        for family, metrics in ordered.items()
    }
    lines = [line for family, metrics in ordered.items() for line in _lines(family, metrics, overall)]
    return as_json, lines


def _with_enough_clusters(classifier: dict[str, Any], clusters: float) -> dict[str, Any]:
    """Return the classifier's block without intervals and p-value if there are too few clusters."""
    metrics = {name: without_interval(classifier[name], clusters) for name in ("auc", "accuracy", "log_loss")}
    if is_too_few(clusters) and classifier["p_value"]["value"] is not None:
        metrics["p_value"] = {"value": None, "reason": TOO_FEW_INDEPENDENT}
    return {**classifier, **metrics}


def add_control_values(generators: dict[str, dict[str, Any]], control: str) -> None:
    """Add the control's value as ``control`` and ``reference`` to the metrics of the other generators, in place.

    Size-dependent metrics get it only from a control of similar size (whole or matched).

    Args:
        generators: the generators' blocks of metrics.json, by name.
        control: name of the held-out real images among them.
    """
    reference = generators[control]
    for name, block in generators.items():
        if name == control:
            continue
        _add_control(block["metrics"], _at_size(reference, block["counts"]["synthetic"]))
        _note_blind_precision(block)
        _add_control(*({"auc": part["classifier"]["auc"]} for part in (block, reference)))
        if "matched" in block:
            _add_control(block["matched"]["metrics"], _at_size(reference, block["matched"]["size"]))
        if not are_similar_sizes([reference["counts"]["synthetic"], block["counts"]["synthetic"]]):
            # Slices and families exist only for all rows, not for matched subsamples.
            continue
        slices = [(block["by_label"], reference["by_label"])]
        columns = block["by"].keys() & reference["by"].keys()
        slices += [(block["by"][column], reference["by"][column]) for column in columns]
        for metrics, control_metrics in slices:
            for value in metrics.keys() & control_metrics.keys():
                _add_control(metrics[value], control_metrics[value])
        for family in block["families"].keys() & reference["families"].keys():
            _add_control(block["families"][family], reference["families"][family])


def _at_size(reference: dict[str, Any], rows: int) -> dict[str, Metric]:
    """Return the control's metrics at about ``rows`` rows; without size-dependent ones if it has no such size."""
    whole: dict[str, Metric] = reference["metrics"]
    if are_similar_sizes([reference["counts"]["synthetic"], rows]):
        return whole
    matched: dict[str, Any] = reference.get("matched", {"size": 0})
    if are_similar_sizes([matched["size"], rows]):
        at_size: dict[str, Metric] = matched["metrics"]
        return at_size
    return {name: value for name, value in whole.items() if name not in SIZE_DEPENDENT}


def _add_control(metrics: dict[str, Metric], control: dict[str, Metric]) -> None:
    for name, value in metrics.items():
        if name != "counts" and name in control and control[name]["value"] is not None:
            value["control"] = value["reference"] = control[name]["value"]


def _context(sums: ViewSums, neighbors: dict[str, Any]) -> MetricContext:
    """Return the references and spreads that all slices of the view share."""
    overall = sums.overall
    no_manifold = "fewer than two distinct real rows" if sums.distinct_real < 2 else None
    spreads = {name: np.asarray(spread) for name, spread in neighbors["spreads"].items()}
    references = view_references(overall, sums.distinct_real, K)
    return MetricContext(references, clusters_of_view(overall), no_manifold, spreads)


def _counts(sums: CoreSums) -> dict[str, int]:
    return {"real": int(sums["real"]), "synthetic": int(sums["synthetic"])}


def _lines(
    family: str, metrics: Mapping[str, Estimate], sums: CoreSums, column: str = "", name: str = ""
) -> list[MetricRow]:
    counts = _counts(sums)
    return [
        MetricRow(family, metric_name, estimate, counts["real"], counts["synthetic"], column, name)
        for metric_name, estimate in metrics.items()
    ]


def _as_json(lines: Sequence[MetricRow]) -> dict[str, Metric]:
    return {line.metric: line.estimate.to_json() for line in lines}


def _classifier_lines(
    classifier: dict[str, Any], confounders: dict[str, Any], overall: CoreSums
) -> list[MetricRow]:
    """Return the classifier's metrics, which have bootstrap intervals, as rows of ``metrics.parquet``."""
    figures = {name: classifier[name] for name in ("auc", "accuracy", "log_loss", "p_value")}
    estimates = {name: _as_estimate(figure) for name, figure in figures.items()}
    estimates["p_value"] = replace(estimates["p_value"], reason=figures["p_value"].get("reason") or NO_P_INTERVAL)
    files = {"file_facts_auc": _as_estimate(confounders["auc"])}
    return _lines("classifier", estimates, overall) + _lines("confounders", files, overall)


def _as_estimate(figure: Metric) -> Estimate:
    """Convert a metric in the form of metrics.json to an Estimate."""
    low, high, reason, reference = (figure.get(name) for name in ("low", "high", "reason", "reference"))
    return Estimate(figure["value"], low, high, reason, reference=reference)
