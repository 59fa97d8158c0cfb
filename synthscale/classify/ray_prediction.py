"""Predict every row out of fold on Ray Data.

Reads ``embeddings/`` and ``classifier/`` (folds and models), writes ``predictions/``: one task per shard.
"""

import functools
import json
import uuid
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.classify.evaluation import ClassifierSums, sum_classifier_errors
from synthscale.classify.model import FittedClassifier
from synthscale.classify.ray_fold_tables import ClassifierInput, ShardRows, TrainingReader
from synthscale.classify.ray_train import model_path
from synthscale.runtime.stage_context import StageContext
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import from_matrix
from synthscale.tables.layout import Shard
from synthscale.tables.plain_data import from_arrow, to_arrow
from synthscale.tables.schemas import BLOCKS, PREDICTIONS, REASSIGNMENTS

_RepeatSums = dict[str, list[ClassifierSums]]
"""Sums over the rows by generator and repeat."""


def predict(
    context: StageContext, tables: TrainingReader, sources: tuple[ClassifierInput, ...]
) -> tuple[dict[str, int], _RepeatSums]:
    """Write ``predictions/``.

    Returns:
        The number of rows written for each generator, and the sums over each repeat for generators with several.
    """
    task = _PredictTask(tables, context.shards, sources, uuid.uuid4().hex)
    totals = dict.fromkeys(tables.repeats, 0)
    sums: _RepeatSums = {name: [ClassifierSums() for _ in range(n)] for name, n in tables.repeats.items() if n > 1}
    for result in context.map_shards(task, "classify"):
        for name, count in json.loads(result["rows"].as_py()).items():
            totals[name] += count
        for name, repeats in from_arrow(_RepeatSums, result["sums"]).items():
            sums[name] = [total + part for total, part in zip(sums[name], repeats, strict=True)]
    return totals, sums


@dataclass(frozen=True)
class _PredictTask:
    """Ray Data task: writes the predictions of one shard; returns its row counts and sums by generator.

    Attributes:
        tables: the run's tables.
        shards: all shards; the task's input is an index into them.
        sources: inputs that classifiers were fitted on.
        fit: unique id of this fit, the key under which a process caches the models.
    """

    tables: TrainingReader
    shards: list[Shard]
    sources: tuple[ClassifierInput, ...]
    fit: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        pieces, counts, sums = [PREDICTIONS.empty_table()], {}, {}
        rows = {source: self.tables.read(shard, source) for source in self.sources} if self.tables.views else {}
        for name, repeats in self.tables.repeats.items():
            table, logits, is_real = self._predict(name, repeats, rows)
            pieces.append(table)
            counts[name] = table.num_rows
            if repeats > 1:
                sums[name] = [sum_classifier_errors(logit, is_real) for logit in logits.T]
        self.tables.run.write_shard("predictions", shard, pa.concat_tables(pieces), PREDICTIONS)
        return pa.table({"shard": [shard.index], "rows": [json.dumps(counts)], "sums": to_arrow(sums)})

    def _predict(
        self, name: str, repeats: int, rows: dict[ClassifierInput, ShardRows]
    ) -> tuple[pa.Table, NDArray[np.float64], NDArray[np.bool_]]:
        """Return one generator's rows of ``predictions/``, their logits (m, repeats), and their classes (m,)."""
        images, metadata = rows["embedding"], rows.get("file_facts")
        at, folds, fold = images.view_rows(name, repeats)
        assert images.vectors is not None
        logits, direction_coordinates = self._model("embedding").predict(name, images.vectors[at], fold)
        metadata_logits = np.full(len(at), np.nan)
        if metadata is not None and metadata.vectors is not None:
            metadata_logits = self._model("file_facts").predict(name, metadata.vectors[at], fold)[0].mean(1)
        deviation = logits.std(1, ddof=1) if repeats > 1 else np.full(len(at), np.nan)
        codes = self.tables.block_codes(name, folds)
        refitted = self._model("embedding").predict_refits(name, images.vectors[at], fold[:, 0], codes)
        columns = {
            "generator": pa.array([name] * len(at), pa.string()),
            "row": images.row[at],
            "fold": fold[:, 0],
            "logit_synthetic": logits.mean(1),
            "logit_deviation": pa.array(deviation, mask=np.isnan(deviation)),
            "logit_file_facts": pa.array(metadata_logits, mask=np.isnan(metadata_logits)),
            "direction_coordinates": from_matrix(direction_coordinates.astype(np.float32)),
            "logit_without": _float16_column(refitted.without, len(at), BLOCKS),
            "logit_matched": _float16_column(refitted.matched, len(at), 1 + BLOCKS),
            "logit_reassigned": _float16_column(refitted.reassigned, len(at), REASSIGNMENTS),
        }
        return pa.table(columns).cast(PREDICTIONS), logits, folds.column("is_real").to_numpy(zero_copy_only=False)

    def _model(self, source: ClassifierInput) -> FittedClassifier:
        return _model(self.tables.run, source, self.fit)


@functools.lru_cache(maxsize=2)
def _model(run: RunDirectory, source: ClassifierInput, fit: str) -> FittedClassifier:
    """Load a model, once in each process; ``fit`` separates the fits of a process that outlives one."""
    path = model_path(run, source)
    return FittedClassifier.from_bytes(fsys.read_bytes(path, run.storage), path)


def _float16_column(logits: NDArray[np.float64] | None, rows: int, width: int) -> pa.Array:
    """Return a float16 list column of logits, (rows, width); all null if the heads were not refitted."""
    return from_matrix(np.full((rows, width), np.nan, np.float16) if logits is None else logits.astype(np.float16))
