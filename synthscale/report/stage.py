"""The stage report: writes ``report.html``, one file that needs no network.

Reads ``metrics.json``, ``run.json``, ``manifest/``, ``embeddings/``, ``scores/``, ``groups/``, ``failures/`` and
the images of the rows that are shown. The page has aggregates and samples only, so its size does not grow with the
run. Images are re-encoded as thumbnails; one that can no longer be read is shown as missing. Ids, labels and other
texts of the input are not trusted: the template escapes all of them, and the page's Content-Security-Policy allows
no script but its own.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import yaml

import synthscale
from synthscale.config import Config
from synthscale.metrics.metrics_json import notes, warnings_by_text
from synthscale.report import maps, page, readings
from synthscale.report.choice import (
    COLUMNS,
    ChosenGroups,
    ChosenRows,
    choose_groups,
    choose_rows,
    group_members,
)
from synthscale.report.pictures import POINT_PX, POINTS_BYTES, TILE_PX, TILES_BYTES, Thumbnails, files_by_id
from synthscale.report.redaction import Redaction
from synthscale.report.sample_reader import sample_embeddings
from synthscale.report.tiles import GALLERIES, Tiler
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_datasets import group_rows, scores_dataset
from synthscale.storage.run_directory import STAGES
from synthscale.tables.schemas import CONTROL, REAL, SYNTHETIC

ALGORITHM_VERSION = 1
"""Part of the fingerprint. Raise it when the same results give another page: a rerun replaces older ones."""
_TILES = 216
"""Tiles in the galleries of all generators together; each generator has four galleries."""
_MIN_GALLERY_TILES, _MAX_GALLERY_TILES = 9, 27
"""Tiles of one gallery, whatever the number of generators."""
_GROUPS = 24
"""Near-duplicate groups of each kind, of all generators together."""
_MIN_GROUPS, _MAX_GROUPS = 4, 8
"""Near-duplicate groups of each kind of one generator."""
_GROUP_TILES = 6
"""Images shown of each near-duplicate group."""
_DIRECTIONS = 2
"""Separating directions shown of each generator; metrics.json has up to three."""
_DIRECTION_TILES = 3
"""Images of each class at each end of a direction."""
_MAP_POINTS = 800
"""Rows on the map, of all sets together."""
_FAILURE_NAMES = 20
"""Ids listed for each reason of failure; ``failures/`` has all."""
_UNEQUAL_SIZE_RATIO = 1.5
"""Ratio of a generator's set to the real set, or the reverse, above which the page mentions the difference."""


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return the inputs and versions that determine the report."""
    return {
        "input": context.run.completed("reduce").digest,
        "versions": {"algorithm": ALGORITHM_VERSION},
    }


def is_outdated(context: StageContext) -> bool:
    """Return True if a report was written from other results or by another version of this stage."""
    marker = context.run.marker("report")
    return marker is not None and marker.fingerprint != fingerprint(context)


def run(context: StageContext, *, shows_images: bool = True) -> StageOutcome:
    """Write ``report.html``; if ``shows_images`` is False no image is read and the page has none."""
    html = build(context, shows_images=shows_images)
    fsys.write_bytes(context.run.path("report.html"), html.encode(), context.run.storage)
    return StageOutcome({"rows": context.run.completed("ingest").counts["rows"]})


@dataclass(frozen=True)
class _ShownRows:
    """Rows of one generator that the report shows.

    Attributes:
        name: the generator.
        choice: rows of the galleries, and the histogram.
        groups: near-duplicate groups.
        members: group id -> rows of the group.
        directions: for each separating direction the rows at its ends, ``low`` and ``high``.
    """

    name: str
    choice: ChosenRows
    groups: ChosenGroups
    members: dict[int, list[dict[str, Any]]]
    directions: list[dict[str, list[dict[str, Any]]]]

    def galleries(self) -> list[list[dict[str, Any]]]:
        """Return the rows of every gallery."""
        extremes = [rows.to_pylist() for rows in self.choice.extremes.values()]
        ends = [rows for direction in self.directions for rows in direction.values()]
        return [*extremes, *self.members.values(), *ends]


def build(context: StageContext, *, shows_images: bool = True) -> str:
    """Return the report of a scored run as HTML.

    Args:
        context: run directory, and the configuration that it was run with.
        shows_images: False to leave out all images.
    """
    run, config = context.run, context.config
    metrics = run.read_json("metrics.json")
    sample, vectors = sample_embeddings(run, _MAP_POINTS)
    shown = [_select(context, name, block, sample.ids) for name, block in metrics["generators"].items()]
    thumbnails, ids_with_file = _thumbnails(context, shown, sample.ids, shows_images)
    redaction = Redaction(config)
    tiler = Tiler(thumbnails, ids_with_file, redaction, shows_images)
    points = [
        {
            "id": redaction.name(row_id),
            "set": set_name,
            "picture": thumbnails.index.get(row_id),
            **labels_and_scores,
        }
        for row_id, set_name, labels_and_scores in zip(
            sample.ids, sample.sets, _labels_and_scores(sample.ids, shown), strict=True
        )
    ]
    sets = [name for name in (REAL, *metrics["generators"]) if name in set(sample.sets)]
    map_data = page.map_data(maps.project(vectors), points, sets) if len(sample.ids) > 2 else None
    labels = {row["label"] for rows_shown in shown for rows in rows_shown.galleries() for row in rows}
    return page.render(
        "report.html.j2",
        run=run.read_json("run.json"),
        version=synthscale.__version__,
        counts=metrics["counts"],
        gates=metrics["gates"],
        space_notes=notes(metrics["generators"]),
        has_control=CONTROL in metrics["generators"],
        unequal=_unequal_sizes(metrics),
        overview=page.overview({name: block["metrics"] for name, block in metrics["generators"].items()}),
        sections=[_section(metrics["generators"][rows.name], rows, tiler, i) for i, rows in enumerate(shown)],
        warnings=[(redaction.text(text), names) for text, names in _warnings(metrics).items()],
        **page.comparison_pairs(metrics.get("comparisons") or []),
        map=map_data,
        labels=sorted(label for label in labels if label),
        failures=_failures(context, metrics["counts"]["failures"], redaction),
        pictures=page.embedded_json(thumbnails.data),
        map_json=page.embedded_json(map_data),
        **_provenance(context, metrics, redaction),
    )


def _select(context: StageContext, name: str, block: dict[str, Any], sampled_ids: Sequence[str]) -> _ShownRows:
    """Select the rows of a generator that are shown, in three passes over its tables.

    Args:
        context: the run.
        name: the generator.
        block: its block of metrics.json.
        sampled_ids: ids of the rows on the map.
    """
    scores = scores_dataset(context.run, name)
    directions = (block["classifier"].get("directions") or [])[:_DIRECTIONS]
    end_ids = [
        {
            "low": direction[REAL]["lowest"][:_DIRECTION_TILES]
            + direction[SYNTHETIC]["lowest"][:_DIRECTION_TILES],
            "high": direction[REAL]["highest"][:_DIRECTION_TILES]
            + direction[SYNTHETIC]["highest"][:_DIRECTION_TILES],
        }
        for direction in directions
    ]
    requested = {*sampled_ids, *(row_id for ends in end_ids for ids in ends.values() for row_id in ids)}
    tiles = max(_MIN_GALLERY_TILES, min(_MAX_GALLERY_TILES, _TILES // (4 * len(context.generators))))
    choice = choose_rows(scores.to_batches(columns=list(COLUMNS)), tiles, pa.array(sorted(requested), pa.string()))
    group_limit = max(_MIN_GROUPS, min(_MAX_GROUPS, _GROUPS // len(context.generators)))
    groups = choose_groups(group_rows(context.run, name).to_batches(), group_limit)
    group_ids = [group["near_duplicate_id"] for group in (*groups.repeated, *groups.copied)]
    in_groups = scores.to_batches(columns=list(COLUMNS), filter=ds.field("near_duplicate_id").isin(group_ids))
    by_id = {row["id"]: row for row in choice.requested.to_pylist()}
    end_rows = [
        {end: [by_id[row_id] for row_id in ids if row_id in by_id] for end, ids in ends.items()}
        for ends in end_ids
    ]
    return _ShownRows(name, choice, groups, group_members(in_groups, _GROUP_TILES), end_rows)


def _thumbnails(
    context: StageContext, shown: Sequence[_ShownRows], sampled_ids: Sequence[str], shows_images: bool
) -> tuple[Thumbnails, set[str]]:
    """Return thumbnails of all rows that are shown, and the ids that have an image file."""
    galleries = [rows for generator_rows in shown for rows in generator_rows.galleries()]
    # Take the first row of every gallery, then the second: when the budget is spent, each lacks its last tiles.
    rows = [row for turn in zip_longest(*galleries) for row in turn if row is not None]
    # Each row is followed by its nearest real image, which the larger view shows next to it.
    tiles = [row_id for row in rows for row_id in (row["id"], row["nearest_real_id"]) if row_id is not None]
    thumbnails = Thumbnails()
    if not shows_images:
        return thumbnails, set()
    manifest = fsys.dataset(context.run.path("manifest"), context.run.storage)
    files = files_by_id(manifest, [*tiles, *sampled_ids])
    thumbnails.add(tiles, files, TILE_PX, TILES_BYTES, context.config)
    thumbnails.add(sampled_ids, files, POINT_PX, TILES_BYTES + POINTS_BYTES, context.config)
    return thumbnails, set(files)


def _labels_and_scores(sampled_ids: Sequence[str], shown: Iterable[_ShownRows]) -> list[dict[str, Any]]:
    """Return ``label`` and ``scores`` (generator -> probability of being synthetic) of each sampled row."""
    labels: dict[str, str | None] = {}
    scores: dict[str, dict[str, float]] = {row_id: {} for row_id in sampled_ids}
    for generator_rows in shown:
        for row in generator_rows.choice.requested.to_pylist():
            score = row["label_quality_score"]
            labels[row["id"]] = row["label"]
            if row["id"] in scores and score is not None:
                is_real = row["real_or_synthetic"] == REAL
                scores[row["id"]][generator_rows.name] = round(1 - score if is_real else score, 4)
    return [{"label": labels.get(row_id), "scores": scores[row_id]} for row_id in sampled_ids]


def _section(block: dict[str, Any], shown: _ShownRows, tiler: Tiler, number: int) -> dict[str, Any]:
    """Return the template variables of one generator's section."""

    def with_tiles(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**group, "tiles": tiler.tiles(shown.members.get(group["near_duplicate_id"], []))} for group in groups
        ]

    directions = [
        {
            "auc": direction["auc"],
            "share": direction["share"],
            **{end: tiler.tiles(rows) for end, rows in ends.items()},
        }
        for direction, ends in zip(block["classifier"].get("directions") or [], shown.directions, strict=False)
    ]
    auc = block["classifier"]["auc"]
    return {
        "name": shown.name,
        "anchor": f"g{number}",
        "block": block,
        "readings": readings.readings(block["metrics"]),
        "histogram": page.histogram(shown.choice),
        "galleries": [
            {"key": key, "title": title, "words": words, "tiles": tiler.tiles(rows.to_pylist())}
            for key, (title, words) in GALLERIES.items()
            if (rows := shown.choice.extremes.get(key)) is not None
        ],
        "repeated": with_tiles(shown.groups.repeated),
        "copied": with_tiles(shown.groups.copied),
        "totals": shown.groups.totals,
        "exact_copies": shown.choice.exact_copies,
        "is_indistinguishable": auc.get("low") is None or auc["low"] <= 0.5,
        "directions": directions,
        "labels": page.weakest_labels(block),
    }


def _warnings(metrics: dict[str, Any]) -> dict[str, list[str]]:
    """Return each warning with the names of the generators that it concerns."""
    names_by_warning = warnings_by_text(metrics["generators"])
    for name, tally in metrics["counts"]["generators"].items():
        if tally["failed"]:
            text = "some images could not be read: see the list at the end"
            names_by_warning.setdefault(text, []).append(name)
    return names_by_warning


def _unequal_sizes(metrics: dict[str, Any]) -> list[str]:
    """Return the generators whose number of images differs much from that of the real set."""
    names = []
    for name, block in metrics["generators"].items():
        sizes = block["counts"][REAL], block["counts"][SYNTHETIC]
        if max(sizes) > _UNEQUAL_SIZE_RATIO * min(sizes):
            names.append(name)
    return names


def _failures(context: StageContext, counts: dict[str, int], redaction: Redaction) -> dict[str, Any]:
    """Return number and first ids of the failed rows of each reason, the most frequent reason first."""
    names: dict[str, list[str]] = {reason: [] for reason in counts}
    if counts:
        table = context.read_columns("failures", ["id", "reason"])
        for reason, ids in names.items():
            rows = table.filter(pc.equal(table.column("reason"), reason)).slice(0, _FAILURE_NAMES)
            ids += [redaction.name(row_id) for row_id in rows.column("id").to_pylist()]
    ordered = Counter(counts).most_common()
    return {reason: {"count": count, "names": names[reason]} for reason, count in ordered}


def _provenance(context: StageContext, metrics: dict[str, Any], redaction: Redaction) -> dict[str, Any]:
    """Return the template variables of the section on how the report was made."""
    config: Config = context.config
    radii: dict[str, list[str]] = {}
    for name, block in metrics["generators"].items():
        radius = block["neighbors"]["radius"]
        radii.setdefault("0 (exact copies only)" if radius is None else f"{radius:.3g}", []).append(name)
    distances = (
        next(iter(radii)) if len(radii) == 1 else ", ".join(f"{r} ({', '.join(n)})" for r, n in radii.items())
    )
    source = "Precomputed vectors" if context.vectors is not None else f"Encoder {config.encoder.name}"
    markers = [context.run.completed(name) for name in STAGES[:-1]]
    stages = [
        {"name": marker.stage, "rows": marker.counts.get("rows", 0), "seconds": marker.seconds}
        for marker in markers
    ]
    versions = context.run.read_json("run.json").get("versions", {})
    return {
        "made": f"{source}; near-duplicates: distance below {distances}; "
        f"{config.classifier.folds}-fold {config.classifier.head} classifier, seed {config.classifier.seed}.",
        "stages": stages,
        "notes": [redaction.text(note) for note in context.run.completed("ingest").info["notes"]],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "settings": yaml.safe_dump(redaction.settings(config), sort_keys=False, allow_unicode=True),
    }
