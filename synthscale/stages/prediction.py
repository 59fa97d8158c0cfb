"""A part of classify: every row is answered by the heads that did not see it; Ray Data writes ``predictions/``."""

import functools
import pickle
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray

from synthscale import filesystems as fsys
from synthscale.errors import StageError
from synthscale.metrics.classifier import ClassifierSums, sum_logits
from synthscale.model import Model
from synthscale.schemas import DIRECTIONS, PREDICTIONS, Shard
from synthscale.stages.context import StageContext
from synthscale.stages.fold_tables import FoldTables, Part, ShardRows
from synthscale.stages.train_run import model_path
from synthscale.storage import RunDirectory

_Deals = dict[str, list[ClassifierSums]]


def predict(context: StageContext, tables: FoldTables, parts: tuple[Part, ...]) -> tuple[dict[str, int], _Deals]:
    """Write ``predictions/``; return the rows written for each generator, and the sums over each of its deals."""
    items = ray.data.from_items(
        [{"shard": shard.index} for shard in context.shards], override_num_blocks=len(context.shards)
    )
    task = _PredictTask(tables, context.shards, parts)
    totals = dict.fromkeys(tables.deals, 0)
    sums: _Deals = {name: [ClassifierSums() for _ in range(deals)] for name, deals in tables.deals.items()}
    answers = items.map_batches(task, batch_size=1, batch_format="pyarrow").take_all()
    # In shard order, so that sums of floats do not depend on which task came first.
    answers.sort(key=lambda answer: answer["shard"])
    if [answer["shard"] for answer in answers] != [shard.index for shard in context.shards]:
        raise StageError("classify: not every shard was predicted exactly once; rerun with --redo-from classify")
    for answer in answers:
        for name, deals in pickle.loads(answer["sums"]).items():
            totals[name] += answer[f"rows:{name}"]
            sums[name] = [total + part for total, part in zip(sums[name], deals, strict=True)]
    return totals, sums


@dataclass(frozen=True)
class _PredictTask:
    """Shard number -> its rows of ``predictions/``; gives the rows and, for several deals, the sums of each."""

    tables: FoldTables
    shards: list[Shard]
    parts: tuple[Part, ...]

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        pieces, sums = [PREDICTIONS.empty_table()], {}
        answer = {"shard": shard.index}
        if self.tables.views:
            rows = {part: self.tables.read(shard, part) for part in self.parts}
            for name, deals in self.tables.deals.items():
                lines, logits = self._lines(name, deals, rows)
                pieces.append(lines)
                answer[f"rows:{name}"] = lines.num_rows
                is_real = rows["embedding"].of(name, deals)[1].column("is_real").to_numpy(zero_copy_only=False)
                sums[name] = (
                    [sum_logits(logit, is_real) for logit in logits.T] if deals > 1 else [ClassifierSums()]
                )
        self.tables.run.write_shard("predictions", shard, pa.concat_tables(pieces), PREDICTIONS)
        return pa.Table.from_pylist([{**answer, "sums": pickle.dumps(sums)}])

    def _lines(self, name: str, deals: int, rows: dict[Part, ShardRows]) -> tuple[pa.Table, NDArray[np.float64]]:
        """One generator's lines of ``predictions/``, and the logits of each deal."""
        shown = rows["embedding"]
        at, _, fold = shown.of(name, deals)
        model = _model(self.tables.run, "embedding")
        assert shown.vectors is not None
        vectors = torch.from_numpy(np.ascontiguousarray(shown.vectors[at]))
        logits = model.logits(name, model.feature_map(vectors), fold)
        nothing = pa.nulls(len(at))
        columns = {
            "generator": pa.array([name] * len(at), pa.string()),
            "row": shown.row[at],
            "fold": fold[:, 0],
            "logit_synthetic": logits.mean(1),
            "logit_deviation": logits.std(1, ddof=1) if deals > 1 else nothing,
            "logit_file_facts": nothing,
            "along": _along(model, name, vectors),
        }
        facts = rows.get("file_facts")
        if facts is not None and facts.vectors is not None:
            model = _model(self.tables.run, "file_facts")
            features = model.feature_map(torch.from_numpy(facts.vectors[at]))
            columns["logit_file_facts"] = model.logits(name, features, fold).mean(1)
        return pa.table(columns).cast(PREDICTIONS), logits


def _along(model: Model, name: str, vectors: torch.Tensor) -> pa.Array:
    """Places along the generator's directions, null where there are fewer than the table has room for."""
    places = model.directions[name].places(model.feature_map.standardise(vectors))
    padded = np.full((len(vectors), DIRECTIONS), np.nan)
    padded[:, : places.shape[1]] = places
    flat = pa.array(padded.ravel().astype(np.float32), mask=np.isnan(padded.ravel()))
    return pa.FixedSizeListArray.from_arrays(flat, DIRECTIONS)


@functools.lru_cache(maxsize=2)
def _model(run: RunDirectory, part: Part) -> Model:
    # One task process predicts many shards.
    return Model.from_bytes(fsys.read_bytes(model_path(run, part), run.storage))
