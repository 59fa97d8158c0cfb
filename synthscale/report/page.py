"""The page: words, charts, tiles and the map, put into the template as one file that needs no network."""

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
_PAIRS = 45
_TOPS = {"fidelity": 0.55, "representativeness": 0.55}
"""Where the axes of metrics end that do not end at 1."""


def render(template: str, **values: Any) -> str:
    """Render a template of ours; the page allows its own script and style, by their digests, and nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("synthscale.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": charts.figure,
        "interval": charts.interval_text,
        "thousands": "{:,}".format,
        "fitted": fitted,
        "signed": lambda value: f"{value:+.3f}",
        "short": lambda value: "n/a" if value is None else f"{value:.2g}",
    }
    folder = importlib.resources.files("synthscale.report") / "templates"
    sources = {name: (folder / f"report.{name}").read_text("utf-8") for name in ("css", "js")}
    digests = {
        name: base64.b64encode(hashlib.sha256(own.encode()).digest()).decode() for name, own in sources.items()
    }
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests['css']}'; "
        f"script-src 'sha256-{digests['js']}'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        # Both are files of this package.
        css=Markup(sources["css"]),
        js=Markup(sources["js"]),
        policy=policy,
        meaning=readings.MEANING,
        evidence=readings.EVIDENCE,
        **values,
    )


def fitted(name: str, most: int) -> str:
    """Shorten a name in its middle: names of one family differ at their ends."""
    if len(name) <= most:
        return name
    head = (most - 1) // 3
    return f"{name[:head]}…{name[head + 1 - most :]}"


def overview(figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[charts.IntervalChart]:
    """Return one chart for each core metric, with the figures of all generators, given by name and metric."""
    return [
        charts.interval_chart(metric, {name: own[metric] for name, own in figures.items()}, _TOPS.get(metric, 1.0))
        for metric in CORE_METRICS
    ]


def weakest_labels(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return at most LABELS labels with their figures and levels, those chosen that are far below reference."""
    rows = []
    for label, own in block["by_label"].items():
        levels = {name: charts.level_of(own[name]) for name in CORE_METRICS}
        rows.append({"label": label, "figures": own, "levels": levels})
    rows.sort(key=lambda row: -sum(max(0, level) for level in row["levels"].values()))
    return sorted(rows[:LABELS], key=lambda row: row["label"])


def histogram(choice: ChosenRows) -> dict[str, str]:
    """Return the outlines of both classes' histograms, each as shares of its class."""
    shares = {kind: own / max(1, int(own.sum())) for kind, own in choice.counts.items()}
    # Where all lie in one bin, the rest should still be seen.
    largest = min(max(float(own.max()) for own in shares.values()), 0.5)
    return {kind: charts.steps(np.minimum(shares[kind], largest), largest) for kind in (REAL, SYNTHETIC)}


def pairs(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the differences of each pair of generators, by metric: ``pairs``, the first of ``all_pairs``."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in comparisons:
        found.setdefault((each["one"], each["two"]), {})[each["metric"]] = each
    rows = [{"one": one, "two": two, "by": by} for (one, two), by in found.items()]
    return {"pairs": rows[:_PAIRS], "all_pairs": len(rows)}


def map_data(
    projections: Sequence[MapProjection], points: Sequence[Mapping[str, Any]], sets: Sequence[str]
) -> dict[str, Any]:
    """Return what the script needs for the map; points have id, set, label, picture, and a score by generator."""
    labels = sorted({point["label"] for point in points if point["label"]})
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "sets": list(sets),
        "labels": labels,
        "projections": [
            {"name": own.name, "points": own.points.tolist(), "shown": own.shown} for own in projections
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
    """Return JSON that can stand in a script element: no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
