"""Renders the templates to one HTML file that needs no network, and prepares their charts, tables and map data."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from synthscale.metric_names import CORE_METRICS
from synthscale.report import charts, readings
from synthscale.report.choice import ChosenRows
from synthscale.report.maps import HEIGHT, WIDTH, MapProjection
from synthscale.tables.schemas import REAL, SYNTHETIC

LABELS = 40
"""Rows of the label table; metrics.json has all labels."""
_PAIRS = 45
"""Pairs of generators in the table of differences: all pairs of up to ten generators."""
_AXIS_ENDS = {"fidelity": 0.55, "representativeness": 0.55}
"""End of the axis for metrics whose axis does not end at 1: the reference of these is 0.5."""


def render(template: str, **values: Any) -> str:
    """Render a template of this package as HTML.

    Text values are escaped. The page's Content-Security-Policy allows only its own script and style, by their
    SHA-256 digests.

    Args:
        template: file name in ``templates/``.
        **values: variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("synthscale.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": charts.value_text,
        "interval": charts.interval_text,
        "thousands": "{:,}".format,
        "fitted": shorten_middle,
        "signed": lambda value: f"{value:+.3f}",
        "short": lambda value: "n/a" if value is None else f"{value:.2g}",
    }
    folder = importlib.resources.files("synthscale.report") / "templates"
    sources = {name: (folder / f"report.{name}").read_text("utf-8") for name in ("css", "js")}
    digests = {
        name: base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        for name, source in sources.items()
    }
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests['css']}'; "
        f"script-src 'sha256-{digests['js']}'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        # Markup is safe here, because both are files of this package.
        css=Markup(sources["css"]),
        js=Markup(sources["js"]),
        policy=policy,
        meaning=readings.MEANING,
        evidence=readings.EVIDENCE,
        **values,
    )


def shorten_middle(name: str, length: int) -> str:
    """Shorten a name to ``length`` characters by cutting its middle, since similar names differ at the end."""
    if len(name) <= length:
        return name
    head = (length - 1) // 3
    return f"{name[:head]}…{name[head + 1 - length :]}"


def overview(figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[charts.IntervalChart]:
    """Return one interval chart for each core metric.

    Args:
        figures: generator -> metric -> block of metrics.json (``value``, ``low``, ``high``, ``reference``).
    """
    return [
        charts.interval_chart(
            metric, {name: metrics[metric] for name, metrics in figures.items()}, _AXIS_ENDS.get(metric, 1.0)
        )
        for metric in CORE_METRICS
    ]


def weakest_labels(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the label table, sorted by label: those furthest below reference if there are too many.

    Args:
        block: a generator's block of metrics.json.

    Returns:
        At most LABELS rows with ``label``, ``figures`` (its metrics) and ``levels`` (metric -> -1..4, see
        `charts.heat_level`).
    """
    rows = []
    for label, figures in block["by_label"].items():
        levels = {name: charts.heat_level(figures[name]) for name in CORE_METRICS}
        rows.append({"label": label, "figures": figures, "levels": levels})
    rows.sort(key=lambda row: -sum(max(0, level) for level in row["levels"].values()))
    return sorted(rows[:LABELS], key=lambda row: row["label"])


def histogram(choice: ChosenRows) -> dict[str, str]:
    """Return SVG outlines of the score histograms of both classes, as fractions of each class on one scale."""
    fractions = {kind: counts / max(1, int(counts.sum())) for kind, counts in choice.counts.items()}
    # If one bin has nearly all rows, cut it at half of them, so that the other bins stay visible.
    largest = min(max(float(values.max()) for values in fractions.values()), 0.5)
    return {
        kind: charts.histogram_path(np.minimum(fractions[kind], largest), largest) for kind in (REAL, SYNTHETIC)
    }


def comparison_pairs(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Group differences by pair of generators.

    Args:
        comparisons: the block ``comparisons`` of metrics.json.

    Returns:
        ``pairs``, the first _PAIRS pairs with ``one``, ``two`` and ``by`` (metric -> difference), and
        ``all_pairs``, the number of all pairs.
    """
    by_pair: dict[tuple[str, str], dict[str, Any]] = {}
    for difference in comparisons:
        by_pair.setdefault((difference["one"], difference["two"]), {})[difference["metric"]] = difference
    rows = [{"one": one, "two": two, "by": by_metric} for (one, two), by_metric in by_pair.items()]
    return {"pairs": rows[:_PAIRS], "all_pairs": len(rows)}


def map_data(
    projections: Sequence[MapProjection], points: Sequence[Mapping[str, Any]], sets: Sequence[str]
) -> dict[str, Any]:
    """Return the data that the page's script draws the map from, ready for JSON.

    Args:
        projections: projections of n rows.
        points: n rows with ``id``, ``set``, ``label``, ``picture`` (index of a thumbnail, or None) and ``scores``
            (generator -> probability of being synthetic).
        sets: names of the sets in the order of their colours, ``real`` first.
    """
    labels = sorted({point["label"] for point in points if point["label"]})
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "sets": list(sets),
        "labels": labels,
        "projections": [
            {"name": projection.name, "points": projection.points.tolist(), "shown": projection.shown}
            for projection in projections
        ],
        "points": [
            [
                point["id"],
                sets.index(point["set"]),
                labels.index(point["label"]) if point["label"] else -1,
                point["picture"],
                point["scores"],
            ]
            for point in points
        ],
    }


def embedded_json(value: Any) -> Markup:
    """Return JSON for a script element, escaped so that no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
