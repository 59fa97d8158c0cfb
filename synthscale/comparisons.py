"""Compare the generators of one run or of several: ``synthscale compare``.

Reads ``metrics.parquet``, ``metrics.json`` and ``run.json`` of each run and writes nothing. metrics/comparison.py
computes the differences; this module decides which generators are paired, and warns where runs differ in their
settings or real sets.
"""

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

_SETTINGS_WARNINGS: Final[Mapping[Section, str]] = {
    "encoder": "the runs used different encoders: their distances and scores are not on the same scale",
    "neighbors": "the runs have different near-duplicate settings",
    "classifier": "the runs have different classifier settings",
}
"""Warning for each section of the configuration that should be equal in all runs."""


def compare_runs(uris: Sequence[str], storage: StorageConfig) -> Comparison:
    """Compare the generators of one run with each other, or those of several runs between runs.

    Within a run all pairs are compared, and where a metric depends on the number of images, larger generators on
    matched subsamples. Between runs, differences are later run minus earlier run, for generators of the same name;
    if no name other than the control's occurs in two runs, all generators are compared.

    Args:
        uris: run directories, the earlier first.
        storage: S3 settings.

    Raises:
        InputError: a run is named twice, or a single run has one generator.
        StorageError: a run does not exist, is not finished or has an older ``metrics.parquet``.
        ResumeConflict: a run has another schema version.
    """
    runs = [RunDirectory.existing(uri, storage) for uri in uris]
    if len({run.uri for run in runs}) < len(runs):
        raise InputError("compare: the same run is named twice")
    names = _short_names([run.uri for run in runs])
    scored = [
        generator
        for run, name in zip(runs, names, strict=True)
        for generator in _scored_generators(run, name, len(runs) == 1)
    ]
    if len(runs) == 1:
        if len(scored) < 2:
            raise InputError(f"{runs[0].uri}: has one generator; name a second run to compare it with")
        whole, matched = (
            {generator.name: getattr(generator, part) for generator in scored} for part in ("figures", "matched")
        )
        return Comparison(scored, pairwise_differences(whole, matched))
    pairs = [(b, a) for a, b in itertools.combinations(scored, 2) if a.run != b.run]
    same_name = [(b, a) for b, a in pairs if a.generator == b.generator]
    if any(a.generator != CONTROL for _, a in same_name):
        pairs = same_name
    differences = [d for a, b in pairs for d in compare((a.name, a.figures), (b.name, b.figures))]
    different_sizes = [
        f"{a.name} and {b.name}"
        for a, b in pairs
        if not have_similar_sizes([*a.figures.values(), *b.figures.values()])
    ]
    compared = {generator.name for pair in pairs for generator in pair}
    unpaired = [generator.name for generator in scored if generator.name not in compared]
    notes = [f"no other run has a generator with this name: {', '.join(unpaired)}"] if unpaired else []
    if different_sizes:
        notes.append(
            f"different numbers of images: {', '.join(different_sizes)}; metrics that depend on them are left out"
        )
    return Comparison(scored, differences, [*_warnings(runs), *notes])


def _scored_generators(run: RunDirectory, name: str, is_only_run: bool) -> list[ScoredGenerator]:
    """Read the metrics of a run's generators over all images; with several runs, names are ``RUN/GENERATOR``."""
    run.completed("reduce")
    path = run.path("metrics.parquet")
    if not fsys.exists(path, run.storage):
        raise StorageError(f"{path}: not found; run synthscale score again with --redo-from reduce")
    lines = fsys.read_table(path, run.storage)
    if not set(METRICS.names) <= set(lines.column_names):
        raise StorageError(
            f"{path}: written by another version of synthscale; run synthscale score again with --redo-from reduce"
        )
    lines = lines.filter(pc.equal(lines.column("slice_by"), ""))
    by_generator: dict[str, tuple[MetricValues, MetricValues]] = {}
    for line in lines.to_pylist():
        whole, matched = by_generator.setdefault(line["generator"], ({}, {}))
        value = metric_value(line)
        if value is not None:
            (matched if line["family"] == "matched" else whole)[line["metric"]] = value
    return [
        ScoredGenerator(generator if is_only_run else f"{name}/{generator}", generator, run.uri, *figures)
        for generator, figures in by_generator.items()
    ]


def _short_names(uris: list[str]) -> list[str]:
    """Return the shortest path suffixes, of equal depth, that distinguish the runs."""
    for depth in range(1, max(uri.count("/") for uri in uris) + 2):
        names = ["/".join(uri.rstrip("/").split("/")[-depth:]) for uri in uris]
        if len(set(names)) == len(names):
            return names
    return [posixpath.normpath(uri) for uri in uris]


def _warnings(runs: list[RunDirectory]) -> list[str]:
    """Return warnings about settings and real sets that differ between runs."""
    configs = [parse_config(run.read_json("run.json")["config"], f"{run.uri}/run.json") for run in runs]
    warnings = []
    for section, text in _SETTINGS_WARNINGS.items():
        settings = [config.result_settings(section) for config in configs]
        if any(section_settings != settings[0] for section_settings in settings):
            warnings.append(text)
    real = [run.read_json("metrics.json")["counts"]["real"]["ok"] for run in runs]
    if len(set(real)) > 1:
        warnings.append(f"the real sets differ in size ({', '.join(f'{n:,}' for n in real)})")
    elif len({config.manifest or config.real for config in configs}) > 1:
        warnings.append("the real sets are in different places: differences may be due to the real images")
    return warnings
