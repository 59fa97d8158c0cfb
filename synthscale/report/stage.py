"""Report: the run's tables and a few pictures -> ``report.html``, one file that needs no network.

Only aggregates and samples are shown, so that the page opens fast whatever the size of the run. Pictures are
re-encoded thumbnails; one that cannot be read any more is shown as missing. Names, labels and metadata are texts
of strangers: the template escapes everything, and the page allows no script but its own.
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
from synthscale.metrics.metrics_json import warnings_by_text
from synthscale.report import maps, page, readings
from synthscale.report.choice import COLUMNS, ChosenGroups, ChosenRows, choose_groups, choose_rows, members
from synthscale.report.pictures import POINT_PX, POINTS_BYTES, TILE_PX, TILES_BYTES, Thumbnails, files_by_id
from synthscale.report.redaction import Redaction
from synthscale.report.sample_reader import sample_embeddings
from synthscale.report.tiles import GALLERIES, Tiler
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_datasets import group_rows, scores_dataset
from synthscale.storage.run_directory import STAGES
from synthscale.tables.schemas import CONTROL, REAL, SYNTHETIC

_TILES_IN_ALL = 216
_FEWEST_TILES, _MOST_TILES = 9, 27
_GROUPS_IN_ALL = 24
_FEWEST_GROUPS, _MOST_GROUPS = 4, 8
_MEMBERS = 6
_DIRECTIONS = 2
_ENDS = 3
_POINTS = 800
_FAILURES = 20
_UNEQUAL = 1.5


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what the report depends on."""
    return {"input": context.run.completed("reduce").digest, "version": synthscale.__version__}


def run(context: StageContext, *, shows_images: bool = True) -> StageOutcome:
    """Write the report; without images, no picture is read."""
    html = build(context, shows_images=shows_images)
    fsys.write_bytes(context.run.path("report.html"), html.encode(), context.run.storage)
    return StageOutcome({"rows": context.run.completed("ingest").counts["rows"]})


@dataclass(frozen=True)
class _Shown:
    """The rows of a generator that are shown: by score, in groups (members by id), at ends of directions."""

    name: str
    choice: ChosenRows
    groups: ChosenGroups
    members: dict[int, list[dict[str, Any]]]
    directions: list[dict[str, list[dict[str, Any]]]]

    def lists(self) -> list[list[dict[str, Any]]]:
        """All rows, gallery by gallery."""
        ends = [rows.to_pylist() for rows in self.choice.ends.values()]
        return [*ends, *self.members.values(), *(rows for own in self.directions for rows in own.values())]


def build(context: StageContext, *, shows_images: bool = True) -> str:
    """Return the report of a scored run as HTML; the context's configuration is what it was run with."""
    run, config = context.run, context.config
    metrics = run.read_json("metrics.json")
    sample, vectors = sample_embeddings(run, _POINTS)
    shown = [_show(context, name, block, sample.ids) for name, block in metrics["generators"].items()]
    album, with_file = _pictures(context, shown, sample.ids, shows_images)
    redaction = Redaction(config)
    tiler = Tiler(album, with_file, redaction, shows_images)
    points = [
        {"id": redaction.name(name), "set": own, "picture": album.places.get(name), **known}
        for name, own, known in zip(sample.ids, sample.sets, _known(sample.ids, shown), strict=True)
    ]
    sets = [name for name in (REAL, *metrics["generators"]) if name in set(sample.sets)]
    projected = page.map_data(maps.project(vectors), points, sets) if len(sample.ids) > 2 else None
    return page.render(
        "report.html.j2",
        run=run.read_json("run.json"),
        version=synthscale.__version__,
        counts=metrics["counts"],
        gates=metrics["gates"],
        has_control=CONTROL in metrics["generators"],
        unequal=_unequal(metrics),
        overview=page.overview({name: own["metrics"] for name, own in metrics["generators"].items()}),
        sections=[_section(metrics["generators"][own.name], own, tiler, i) for i, own in enumerate(shown)],
        warnings=[(redaction.text(text), names) for text, names in _warnings(metrics).items()],
        **page.pairs(metrics.get("comparisons") or []),
        map=projected,
        labels=sorted({tile["label"] for own in shown for rows in own.lists() for tile in rows if tile["label"]}),
        failures=_failures(context, metrics["counts"]["failures"], redaction),
        pictures=page.embedded_json(album.data),
        map_json=page.embedded_json(projected),
        **_provenance(context, metrics, redaction),
    )


def _show(context: StageContext, name: str, block: dict[str, Any], sampled: Sequence[str]) -> _Shown:
    """Choose the rows of a generator that are shown, in three passes over what each needs."""
    scores = scores_dataset(context.run, name)
    directions = (block["classifier"].get("directions") or [])[:_DIRECTIONS]
    ends = [
        {
            "low": own[REAL]["lowest"][:_ENDS] + own[SYNTHETIC]["lowest"][:_ENDS],
            "high": own[REAL]["highest"][:_ENDS] + own[SYNTHETIC]["highest"][:_ENDS],
        }
        for own in directions
    ]
    wanted = {*sampled, *(name for own in ends for ids in own.values() for name in ids)}
    tiles = max(_FEWEST_TILES, min(_MOST_TILES, _TILES_IN_ALL // (4 * len(context.generators))))
    choice = choose_rows(scores.to_batches(columns=list(COLUMNS)), tiles, pa.array(sorted(wanted), pa.string()))
    most_groups = max(_FEWEST_GROUPS, min(_MOST_GROUPS, _GROUPS_IN_ALL // len(context.generators)))
    groups = choose_groups(group_rows(context.run, name).to_batches(), most_groups)
    numbers = [group["near_duplicate_id"] for group in (*groups.repeated, *groups.copied)]
    in_groups = scores.to_batches(columns=list(COLUMNS), filter=ds.field("near_duplicate_id").isin(numbers))
    by_id = {row["id"]: row for row in choice.wanted.to_pylist()}
    found = [{end: [by_id[each] for each in ids if each in by_id] for end, ids in own.items()} for own in ends]
    return _Shown(name, choice, groups, members(in_groups, _MEMBERS), found)


def _pictures(
    context: StageContext, shown: Sequence[_Shown], sampled: Sequence[str], shows_images: bool
) -> tuple[Thumbnails, set[str]]:
    """Return the pictures of all that is shown, and the ids that have an image at all."""
    lists = [rows for own in shown for rows in own.lists()]
    # The first of every gallery, then the second: what there is no room for are the last ones of each.
    rows = [row for turn in zip_longest(*lists) for row in turn if row is not None]
    # With each its nearest real image, which the larger view shows beside it.
    tiles = [name for row in rows for name in (row["id"], row["nearest_real_id"]) if name is not None]
    album = Thumbnails()
    if not shows_images:
        return album, set()
    manifest = fsys.dataset(context.run.path("manifest"), context.run.storage)
    files = files_by_id(manifest, [*tiles, *sampled])
    album.add(tiles, files, TILE_PX, TILES_BYTES, context.config)
    album.add(sampled, files, POINT_PX, TILES_BYTES + POINTS_BYTES, context.config)
    return album, set(files)


def _known(sampled: Sequence[str], shown: Iterable[_Shown]) -> list[dict[str, Any]]:
    """Return the label of each sampled row, and by generator the probability that it is synthetic."""
    labels: dict[str, str | None] = {}
    scores: dict[str, dict[str, float]] = {name: {} for name in sampled}
    for own in shown:
        for row in own.choice.wanted.to_pylist():
            score = row["label_quality_score"]
            labels[row["id"]] = row["label"]
            if row["id"] in scores and score is not None:
                is_real = row["real_or_synthetic"] == REAL
                scores[row["id"]][own.name] = round(1 - score if is_real else score, 4)
    return [{"label": labels.get(name), "scores": scores[name]} for name in sampled]


def _section(block: dict[str, Any], shown: _Shown, tiler: Tiler, number: int) -> dict[str, Any]:
    def tiled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**group, "tiles": tiler.tiles(shown.members.get(group["near_duplicate_id"], []))} for group in groups
        ]

    directions = [
        {"auc": figures["auc"], "share": figures["share"], **{end: tiler.tiles(rows) for end, rows in own.items()}}
        for figures, own in zip(block["classifier"].get("directions") or [], shown.directions, strict=False)
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
            if (rows := shown.choice.ends.get(key)) is not None
        ],
        "repeated": tiled(shown.groups.repeated),
        "copied": tiled(shown.groups.copied),
        "totals": shown.groups.totals,
        "same": shown.choice.same,
        "tells_little": auc.get("low") is None or auc["low"] <= 0.5,
        "directions": directions,
        "labels": page.weakest_labels(block),
    }


def _warnings(metrics: dict[str, Any]) -> dict[str, list[str]]:
    """Return each warning with the generators that it concerns."""
    found = warnings_by_text(metrics["generators"])
    for name, tally in metrics["counts"]["generators"].items():
        if tally["failed"]:
            found.setdefault("some images could not be used: see the list at the end", []).append(name)
    return found


def _unequal(metrics: dict[str, Any]) -> list[str]:
    """The generators whose set differs much in size from the real one."""
    found = []
    for name, block in metrics["generators"].items():
        sizes = block["counts"][REAL], block["counts"][SYNTHETIC]
        if max(sizes) > _UNEQUAL * min(sizes):
            found.append(name)
    return found


def _failures(context: StageContext, counts: dict[str, int], redaction: Redaction) -> dict[str, Any]:
    names: dict[str, list[str]] = {reason: [] for reason in counts}
    if counts:
        table = context.read_columns("failures", ["id", "reason"])
        for reason, own in names.items():
            rows = table.filter(pc.equal(table.column("reason"), reason)).slice(0, _FAILURES)
            own += [redaction.name(name) for name in rows.column("id").to_pylist()]
    ordered = Counter(counts).most_common()
    return {reason: {"count": count, "names": names[reason]} for reason, count in ordered}


def _provenance(context: StageContext, metrics: dict[str, Any], redaction: Redaction) -> dict[str, Any]:
    config: Config = context.config
    radii: dict[str, list[str]] = {}
    for name, block in metrics["generators"].items():
        radius = block["neighbors"]["radius"]
        radii.setdefault("0 (exact copies alone)" if radius is None else f"{radius:.3g}", []).append(name)
    distances = (
        next(iter(radii)) if len(radii) == 1 else ", ".join(f"{r} ({', '.join(n)})" for r, n in radii.items())
    )
    made = "Vectors as they were given" if context.vectors is not None else f"Encoder {config.encoder.name}"
    markers = [context.run.completed(name) for name in STAGES[:-1]]
    stages = [
        {"name": marker.stage, "rows": marker.counts.get("rows", 0), "seconds": marker.seconds}
        for marker in markers
    ]
    versions = context.run.read_json("run.json").get("versions", {})
    return {
        "made": f"{made}; near-duplicates are closer than the cosine distance {distances}; "
        f"{config.classifier.folds}-fold {config.classifier.head} classifier, seed {config.classifier.seed}.",
        "stages": stages,
        "notes": [redaction.text(note) for note in context.run.completed("ingest").info["notes"]],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "settings": yaml.safe_dump(redaction.settings(config), sort_keys=False, allow_unicode=True),
    }
