"""Puts a generator's sums and facts together to its block of metrics.json."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthscale import selftest
from synthscale.metrics import CORE_METRICS
from synthscale.metrics.classifier import classifier_figures
from synthscale.metrics.comparison import Figure
from synthscale.metrics.core import Context, Estimate, Metric, Sums, core_metrics, coverage_reference, metric
from synthscale.metrics.evidence import confounder_figures, confounder_warning, direction_figures
from synthscale.metrics.view import FOLD, ViewSums
from synthscale.neighbors import K

NO_P_INTERVAL = "a p-value has no interval"
NO_IMAGES = "not run: the input is vectors, or neighbors.self_test_images is 0"
_MOST_GROUPED = 0.25
"""A larger share of all rows in one near-duplicate group deserves a look at a radius that is not tight."""
SMALL_CLASS = 200
"""Below this many rows of a class the classifier's metrics deserve a warning."""


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

    @property
    def figures(self) -> dict[str, Figure]:
        """What it is compared by: its metrics over all rows."""
        return {
            line.metric: Figure(
                own.value,
                np.nan if own.low is None else own.low,
                np.nan if own.high is None else own.high,
                own.deviations,
            )
            for line in self.lines
            if not line.slice_by and (own := line.estimate).value is not None
        }


def generator_figures(
    sums: ViewSums, head: str, fit: dict[str, Any], neighbors: dict[str, Any]
) -> GeneratorFigures:
    """Return what is said of a generator.

    Args:
        sums: over the whole view.
        head: the classifier's head.
        fit: what the fit recorded.
        neighbors: what `View.summary` gives, ``spreads``, and ``self_test`` where there are images.
    """
    overall = sums.overall
    context = _context(sums, neighbors)
    lines = _lines(overall, context)
    by: dict[str, dict[str, Any]] = {"label": {}}
    for (column, name), part in sorted(sums.slices.items()):
        if column != FOLD:
            own = _lines(part, context, column, name)
            lines += own
            by.setdefault(column, {})[name] = {"counts": _counts(part), **_as_json(own)}
    confounders = confounder_figures(sums.file_facts, sums.bytes_per_pixel, bool(fit.get("folds")))
    self_test = neighbors.get("self_test") or metric(None, NO_IMAGES)
    shown = {name: value for name, value in neighbors.items() if name != "spreads"}
    classifier = classifier_figures(sums.classifier, head, fit)
    lines += _classifier_lines(classifier, confounders, overall)
    block = {
        "counts": _counts(overall),
        "metrics": _as_json(lines[: len(CORE_METRICS)]),
        "by_label": by.pop("label"),
        "by": by,
        "classifier": {**classifier, "directions": direction_figures(sums.along, fit.get("directions", []))},
        "neighbors": {
            **shown,
            "repeats": {"rows": int(overall["repeats"])},
            "copies": {"rows": int(overall["copies"])},
            "self_test": self_test,
        },
        "confounders": confounders,
        "warnings": [*filter(None, [confounder_warning(confounders)]), *warnings(sums, fit, neighbors)],
    }
    return GeneratorFigures(block, lines)


def show_control(generators: dict[str, dict[str, Any]], control: str) -> None:
    """Put what the control got beside every metric of the other generators, as ``control``: a line to read them
    by."""
    reference = generators[control]
    for name, block in generators.items():
        if name == control:
            continue
        pairs = [(block["metrics"], reference["metrics"]), (block["by_label"], reference["by_label"])]
        for own, other in _alike(pairs):
            if other["value"] is not None:
                own["control"] = other["value"]


def _alike(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[tuple[Metric, Metric]]:
    """Yield the metrics that stand at the same places of nested mappings."""
    for own, other in pairs:
        for name in own.keys() & other.keys() - {"counts"}:
            if "value" in own[name]:
                yield own[name], other[name]
            else:
                yield from _alike([(own[name], other[name])])


def _context(sums: ViewSums, neighbors: dict[str, Any]) -> Context:
    overall = sums.overall
    references = {
        "precision": overall["real_inside"] / overall["real"] if overall["real"] else None,
        "coverage": coverage_reference(sums.distinct_real, int(overall["synthetic"]), K),
    }
    no_manifold = "fewer than two distinct real rows" if sums.distinct_real < 2 else None
    spreads = {name: np.asarray(spread) for name, spread in neighbors["spreads"].items()}
    return Context(references, no_manifold, spreads)


def _counts(sums: Sums) -> dict[str, int]:
    return {"real": int(sums["real"]), "synthetic": int(sums["synthetic"])}


def _lines(sums: Sums, context: Context, column: str = "", name: str = "") -> list[Line]:
    counts = _counts(sums)
    return [
        Line("core", metric_name, estimate, counts["real"], counts["synthetic"], column, name)
        for metric_name, estimate in core_metrics(sums, context).items()
    ]


def _as_json(lines: Sequence[Line]) -> dict[str, Metric]:
    return {line.metric: line.estimate.metric() for line in lines}


def _classifier_lines(classifier: dict[str, Any], confounders: dict[str, Any], overall: Sums) -> list[Line]:
    """Return the classifier's figures as lines; their intervals are the bootstrap's."""
    counts = _counts(overall)
    figures = {name: classifier[name] for name in ("auc", "accuracy", "log_loss", "p_value")}
    found = [("classifier", name, figure) for name, figure in figures.items()]
    found.append(("confounders", "file_facts_auc", confounders["auc"]))
    return [
        Line(
            family,
            name,
            Estimate(
                figure["value"],
                figure.get("low"),
                figure.get("high"),
                figure.get("reason") or (NO_P_INTERVAL if name == "p_value" else None),
                reference=figure.get("reference"),
            ),
            counts["real"],
            counts["synthetic"],
        )
        for family, name, figure in found
    ]


def warnings(sums: ViewSums, fit: dict[str, Any], neighbors: dict[str, Any]) -> list[str]:
    """Return what a reader of the numbers should know first."""
    found = []
    for name, count in (("real", sums.overall["real"]), ("synthetic", sums.overall["synthetic"])):
        if count < SMALL_CLASS:
            found.append(
                f"only {int(count)} {name} rows: fidelity and representativeness are uncertain below {SMALL_CLASS}"
            )
    if not fit.get("folds"):
        found.append("no classifier could be cross-validated: fidelity and representativeness are null")
    elif not fit["converged"]:
        found.append("the classifier did not fully converge: scores may move by more than 1e-5 between machines")
    if sums.distinct_real <= K:
        found.append(f"only {sums.distinct_real} distinct real rows: precision and coverage mean little")
    if neighbors.get("self_test"):
        found += filter(None, [selftest.warning(neighbors["self_test"])])
    if neighbors["share_in_largest"] > _MOST_GROUPED and _is_wide(neighbors):
        found.append(
            f"{neighbors['share_in_largest']:.0%} of all rows are one near-duplicate group, which spans a "
            f"distance of {neighbors['largest_diameter']:.3g} at radius {neighbors['radius'] or 0:.3g}: check "
            "that the radius (neighbors.threshold or neighbors.radius) is not too large"
        )
    elif neighbors["chains"]:
        found.append(
            f"{neighbors['chains']} near-duplicate groups are chains: their ends are no near-duplicates of each "
            "other (column is_chain of groups/)"
        )
    if neighbors["median_distance"] is None:
        found.append("too few distinct real rows to calibrate the radius: only exact copies are near-duplicates")
    elif neighbors["median_distance"] <= 0:
        found.append("half of the distinct real rows have another at distance 0: only exact copies are found")
    return found


def _is_wide(neighbors: dict[str, Any]) -> bool:
    """Tell whether groups are more than copies of one image: chains, or a radius near the ordinary distance."""
    median, radius = neighbors["median_distance"], neighbors["radius"]
    return bool(neighbors["chains"]) or (median is not None and radius is not None and radius > median / 2)
