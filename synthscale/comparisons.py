"""``synthscale compare``: the generators of a run, or of several, against one another, from metrics.parquet."""

import itertools
import posixpath
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow.compute as pc

from synthscale.config import Section, StorageConfig, parse_config
from synthscale.errors import InputError, StorageError
from synthscale.metrics.comparison import (
    Comparison,
    MetricValues,
    ScoredGenerator,
    compare,
    have_similar_sizes,
    metric_value,
    pairwise_differences,
)
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.schemas import CONTROL, METRICS

_SAME: Final[Mapping[Section, str]] = {
    "encoder": "embeddings are not of one encoder: distances and scores are not on one scale",
    "neighbors": "near-duplicates follow different rules",
    "classifier": "classifiers have different settings",
}


def compare_runs(uris: Sequence[str], storage: StorageConfig) -> Comparison:
    """Compare the generators of one run, or those of several runs, the later run less the earlier.

    Between runs it is generators of the same name; where there are none, all of them. Within a run, larger
    generators are compared on matched subsamples.

    Raises:
        InputError: a run is named twice, or a single run has one generator.
        StorageError: a run is not there, not finished, or of an older version.
    """
    runs = [RunDirectory.existing(uri, storage) for uri in uris]
    if len({run.uri for run in runs}) < len(runs):
        raise InputError("compare: the same run is named twice")
    names = _short_names([run.uri for run in runs])
    scored = [own for run, name in zip(runs, names, strict=True) for own in _scored(run, name, len(runs) == 1)]
    if len(runs) == 1:
        if len(scored) < 2:
            raise InputError(f"{runs[0].uri}: has one generator; name a second run to compare it with")
        whole, matched = ({own.name: getattr(own, part) for own in scored} for part in ("figures", "matched"))
        return Comparison(scored, pairwise_differences(whole, matched))
    pairs = [(b, a) for a, b in itertools.combinations(scored, 2) if a.run != b.run]
    same = [(b, a) for b, a in pairs if a.generator == b.generator]
    if any(a.generator != CONTROL for _, a in same):
        pairs = same
    differences = [d for a, b in pairs for d in compare((a.name, a.figures), (b.name, b.figures))]
    unlike = [
        f"{a.name} and {b.name}"
        for a, b in pairs
        if not have_similar_sizes([*a.figures.values(), *b.figures.values()])
    ]
    compared = {own.name for pair in pairs for own in pair}
    alone = [own.name for own in scored if own.name not in compared]
    notes = [f"no other run has a generator of these names: {', '.join(alone)}"] if alone else []
    if unlike:
        notes.append(f"different sizes: {', '.join(unlike)}; what depends on the size is left out")
    return Comparison(scored, differences, [*_warnings(runs), *notes])


def _scored(run: RunDirectory, name: str, is_one: bool) -> list[ScoredGenerator]:
    run.completed("reduce")
    path = run.path("metrics.parquet")
    if not fsys.exists(path, run.storage):
        raise StorageError(f"{path}: not found; repeat the run with --redo-from reduce")
    lines = fsys.read_table(path, run.storage)
    if not set(METRICS.names) <= set(lines.column_names):
        raise StorageError(f"{path}: of another version of synthscale; repeat the run with --redo-from reduce")
    lines = lines.filter(pc.equal(lines.column("slice_by"), ""))
    found: dict[str, tuple[MetricValues, MetricValues]] = {}
    for line in lines.to_pylist():
        whole, matched = found.setdefault(line["generator"], ({}, {}))
        own = metric_value(line)
        if own is not None:
            (matched if line["family"] == "matched" else whole)[line["metric"]] = own
    return [
        ScoredGenerator(own if is_one else f"{name}/{own}", own, run.uri, *figures)
        for own, figures in found.items()
    ]


def _short_names(uris: list[str]) -> list[str]:
    """The last parts of the runs' paths, as many as tell them apart."""
    for depth in range(1, max(uri.count("/") for uri in uris) + 2):
        names = ["/".join(uri.rstrip("/").split("/")[-depth:]) for uri in uris]
        if len(set(names)) == len(names):
            return names
    return [posixpath.normpath(uri) for uri in uris]


def _warnings(runs: list[RunDirectory]) -> list[str]:
    configs = [parse_config(run.read_json("run.json")["config"], f"{run.uri}/run.json") for run in runs]
    found = []
    for section, text in _SAME.items():
        settings = [config.result_settings(section) for config in configs]
        if any(own != settings[0] for own in settings):
            found.append(text)
    real = [run.read_json("metrics.json")["counts"]["real"]["ok"] for run in runs]
    if len(set(real)) > 1:
        found.append(f"the real sets differ in size ({', '.join(f'{n:,}' for n in real)})")
    elif len({config.manifest or config.real for config in configs}) > 1:
        found.append("the real sets are not from one place: what differs may be the real images")
    return found
