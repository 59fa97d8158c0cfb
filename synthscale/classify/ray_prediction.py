"""A part of classify: every row is answered by the heads that did not see it; Ray Data writes ``predictions/``."""

import functools
import json
import pickle
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
from synthscale.tables.schemas import BLOCKS, PREDICTIONS, REASSIGNMENTS

_Deals = dict[str, list[ClassifierSums]]


def predict(
    context: StageContext, tables: TrainingReader, parts: tuple[ClassifierInput, ...]
) -> tuple[dict[str, int], _Deals]:
    """Write ``predictions/``; return the rows written for each generator, and the sums over each of its deals."""
    task = _PredictTask(tables, context.shards, parts, uuid.uuid4().hex)
    totals = dict.fromkeys(tables.repeats, 0)
    sums: _Deals = {name: [ClassifierSums() for _ in range(n)] for name, n in tables.repeats.items() if n > 1}
    for answer in context.on_every_shard(task, "classify"):
        for name, count in json.loads(answer["rows"]).items():
            totals[name] += count
        for name, repeats in pickle.loads(answer["sums"]).items():
            sums[name] = [total + part for total, part in zip(sums[name], repeats, strict=True)]
    return totals, sums


@dataclass(frozen=True)
class _PredictTask:
    """Shard number -> its rows of ``predictions/``; gives the rows and, for several deals, the sums of each.

    Attributes:
        fit: names the fit that the models are of.
    """

    tables: TrainingReader
    shards: list[Shard]
    parts: tuple[ClassifierInput, ...]
    fit: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        pieces, counts, sums = [PREDICTIONS.empty_table()], {}, {}
        rows = {part: self.tables.read(shard, part) for part in self.parts} if self.tables.views else {}
        for name, repeats in self.tables.repeats.items():
            lines, logits, is_real = self._lines(name, repeats, rows)
            pieces.append(lines)
            counts[name] = lines.num_rows
            if repeats > 1:
                sums[name] = [sum_classifier_errors(logit, is_real) for logit in logits.T]
        self.tables.run.write_shard("predictions", shard, pa.concat_tables(pieces), PREDICTIONS)
        return pa.table(
            {
                "shard": [shard.index],
                "rows": [json.dumps(counts)],
                "sums": pa.array([pickle.dumps(sums)], pa.binary()),
            }
        )

    def _lines(
        self, name: str, repeats: int, rows: dict[ClassifierInput, ShardRows]
    ) -> tuple[pa.Table, NDArray[np.float64], NDArray[np.bool_]]:
        """One generator's lines of ``predictions/``, the logits of each deal, and the rows' classes."""
        shown, facts = rows["embedding"], rows.get("file_facts")
        at, own, fold = shown.of(name, repeats)
        assert shown.vectors is not None
        logits, direction_coordinates = self._model("embedding").answers(name, shown.vectors[at], fold)
        by_facts = np.full(len(at), np.nan)
        if facts is not None and facts.vectors is not None:
            by_facts = self._model("file_facts").answers(name, facts.vectors[at], fold)[0].mean(1)
        deviation = logits.std(1, ddof=1) if repeats > 1 else np.full(len(at), np.nan)
        codes = self.tables.codes(name, own)
        refitted = self._model("embedding").refitted(name, shown.vectors[at], fold[:, 0], codes)
        columns = {
            "generator": pa.array([name] * len(at), pa.string()),
            "row": shown.row[at],
            "fold": fold[:, 0],
            "logit_synthetic": logits.mean(1),
            "logit_deviation": pa.array(deviation, mask=np.isnan(deviation)),
            "logit_file_facts": pa.array(by_facts, mask=np.isnan(by_facts)),
            "direction_coordinates": from_matrix(direction_coordinates.astype(np.float32)),
            "logit_without": _kept(refitted.without, len(at), BLOCKS),
            "logit_matched": _kept(refitted.matched, len(at), 1 + BLOCKS),
            "logit_reassigned": _kept(refitted.reassigned, len(at), REASSIGNMENTS),
        }
        return pa.table(columns).cast(PREDICTIONS), logits, own.column("is_real").to_numpy(zero_copy_only=False)

    def _model(self, part: ClassifierInput) -> FittedClassifier:
        return _model(self.tables.run, part, self.fit)


@functools.lru_cache(maxsize=2)
def _model(run: RunDirectory, part: ClassifierInput, fit: str) -> FittedClassifier:
    # One task process predicts many shards, and may live on to predict with another fit.
    return FittedClassifier.from_bytes(fsys.read_bytes(model_path(run, part), run.storage))


def _kept(logits: NDArray[np.float64] | None, rows: int, width: int) -> pa.Array:
    """Logits as the table holds them; null where there are none."""
    return from_matrix(np.full((rows, width), np.nan, np.float16) if logits is None else logits.astype(np.float16))
