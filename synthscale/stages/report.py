"""Report: ``metrics.json``, ``scores/`` and a few pictures -> ``report.html``, one file that needs no network.

Pictures are re-encoded thumbnails; a picture that cannot be read any more is shown as missing. Names, labels and
metadata are text of strangers: the template escapes everything and the page allows no scripts.
"""

import base64
import posixpath
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

import synthscale
from synthscale import filesystems as fsys
from synthscale.config import Config
from synthscale.fetch import fetch
from synthscale.images import ImageFault, thumbnail_jpeg
from synthscale.result import RunResult
from synthscale.schemas import REAL, SYNTHETIC, Stored
from synthscale.stages.context import Outcome, StageContext
from synthscale.storage import RunDirectory

TILES = 12
GROUPS = 6
GROUP_MEMBERS = 6
LABELS = 40
FAILURES = 20
THUMBNAIL_PX = 96

MEANING = {
    "fidelity": "Can the synthetic images be told from real ones? 0.5: no; 0: always.",
    "representativeness": "Is the real data matched by the synthetic? 0.5: fully; 0: real images stand out.",
    "diversity": "Share of synthetic images that do not repeat one another.",
    "freshness": "Share of synthetic images that do not repeat a real one.",
    "precision": "Share of synthetic images that lie among the real ones.",
    "coverage": "Share of real images that have a synthetic one near.",
}

_COLUMNS = [
    "id",
    "uri",
    "label",
    "real_or_synthetic",
    "label_quality_score",
    "near_duplicate_id",
    "distance_to_nearest_neighbor",
]

Picture = Callable[[dict[str, Any]], dict[str, Any]]


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what the report depends on."""
    return {"input": context.run.completed("reduce").digest, "version": synthscale.__version__}


def run(context: StageContext) -> Outcome:
    """Write the report."""
    html = build(context.run, context.config)
    fsys.write_bytes(context.run.path("report.html"), html.encode(), context.run.storage)
    return Outcome({"rows": context.run.completed("ingest").counts["rows"]})


def build(run: RunDirectory, config: Config) -> str:
    """Return the report of a scored run as HTML; ``config`` is what it was run with."""
    result = RunResult(run)
    metrics = result.metrics
    picture = _pictures(run)
    sections = []
    for name, block in metrics["generators"].items():
        scores = result.scores_dataset(name)
        sections.append({"name": name, "block": block, "labels": _labels(block), **_evidence(scores, picture)})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("synthscale"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["figure"] = lambda value: "n/a" if value is None else f"{value:.3f}"
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        meaning=MEANING,
        sections=sections,
        failures=result.failures().head(FAILURES).to_dict("records"),
        config=config,
        version=synthscale.__version__,
    )


def _labels(block: dict[str, Any]) -> list[dict[str, Any]]:
    """At most LABELS labels, those chosen whose real images are matched or covered worst."""
    rows = [{"label": label, **figures} for label, figures in block["by_label"].items()]

    def weakest(row: dict[str, Any]) -> float:
        values = [
            row[name]["value"] for name in ("representativeness", "coverage") if row[name]["value"] is not None
        ]
        return min(values, default=1.0)

    return sorted(sorted(rows, key=weakest)[:LABELS], key=lambda row: row["label"])


def _evidence(scores: ds.Dataset, picture: Picture) -> dict[str, Any]:
    """The tiles of one generator: worst rows of either class, and near-duplicate groups."""

    def worst(kind: str) -> list[dict[str, Any]]:
        own = scores.to_table(columns=_COLUMNS, filter=ds.field("real_or_synthetic") == kind)
        # q is the probability of the row's own class: highest means most clearly fake, or least represented.
        order = pc.select_k_unstable(
            own, k=min(TILES, len(own)), sort_keys=[("label_quality_score", "descending")]
        )
        return [picture(row) for row in own.take(order).to_pylist()]

    grouped = scores.to_table(columns=_COLUMNS, filter=ds.field("near_duplicate_id").is_valid())
    return {"unrealistic": worst(SYNTHETIC), "unrepresented": worst(REAL), **_groups(grouped, picture)}


def _groups(grouped: pa.Table, picture: Picture) -> dict[str, Any]:
    """Groups of synthetic rows only, and of synthetic and real rows: the largest of each, and their numbers."""
    ids, index, sizes = np.unique(
        grouped.column("near_duplicate_id").to_numpy(), return_inverse=True, return_counts=True
    )
    real = np.asarray(pc.equal(grouped.column("real_or_synthetic"), REAL), dtype=bool)
    real_members = np.bincount(index, weights=real, minlength=len(ids))
    chosen = {"repeated": real_members == 0, "copied": (real_members > 0) & (real_members < sizes)}
    found: dict[str, Any] = {}
    for kind, wanted in chosen.items():
        largest = sorted(np.flatnonzero(wanted).tolist(), key=lambda i: (-sizes[i], ids[i]))
        found[f"{kind}_groups"] = int(wanted.sum())
        found[kind] = []
        for group in largest[:GROUPS]:
            # A real member first, so that a copy stands beside what it copies.
            members = sorted(np.flatnonzero(index == group).tolist(), key=lambda i: not real[i])[:GROUP_MEMBERS]
            tiles = [picture(row) for row in grouped.take(members).to_pylist()]
            found[kind].append({"size": int(sizes[group]), "real": int(real_members[group]), "tiles": tiles})
    return found


def _pictures(run: RunDirectory) -> Picture:
    """Return a function that adds ``image`` (a data URI, or None) and a short name to a row of scores."""

    def picture(row: dict[str, Any]) -> dict[str, Any]:
        image = None
        if row["uri"] is not None:
            try:
                data = thumbnail_jpeg(fetch(Stored(row["uri"]), run.storage), THUMBNAIL_PX)
                image = "data:image/jpeg;base64," + base64.b64encode(data).decode()
            except ImageFault:
                image = None  # shown as missing
        # The URI itself stays out: it tells about the machine that made the report.
        shown = {name: row[name] for name in row if name != "uri"}
        return {**shown, "image": image, "has_uri": row["uri"] is not None, "short": posixpath.basename(row["id"])}

    return picture
