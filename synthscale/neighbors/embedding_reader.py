"""Reads ``embeddings/`` shard by shard for the tasks of the neighbors stage, and saves their intermediate arrays.

Intermediate arrays lie under ``_neighbors/SPACE/`` in the run directory until the stage ends; a run that was
killed reuses them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.errors import SchemaError
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Codes
from synthscale.neighbors.search_space import SearchSpace
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import vector_matrix
from synthscale.tables.id_hashes import Hashes
from synthscale.tables.layout import Shard, VectorLayout
from synthscale.tables.plain_data import arrays_from_npz, arrays_to_npz
from synthscale.tables.schemas import REAL

FOLDER = "_neighbors"
"""Folder of intermediate arrays in the run directory."""


@dataclass(frozen=True)
class EmbeddingBlock:
    """n embedded rows, ascending: row numbers, codes of their sets, hashes of their ids, and vectors (n, d)."""

    row: Rows
    code: Codes
    id_hash: Hashes
    vectors: NDArray[np.floating]

    def take(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> "EmbeddingBlock":
        """Return the rows at some positions, or those of a mask."""
        return EmbeddingBlock(self.row[chosen], self.code[chosen], self.id_hash[chosen], self.vectors[chosen])

    def of_set(self, code: int) -> "EmbeddingBlock":
        """Return the rows of the set with this code."""
        return self.take(self.code == code)

    def in_space(self, space: SearchSpace) -> "EmbeddingBlock":
        """Return the rows with their stored vectors mapped to a search space."""
        return replace(self, vectors=space(self.vectors))


@dataclass(frozen=True)
class EmbeddingReader:
    """Reads a run's embeddings; picklable.

    Attributes:
        run: the run directory.
        layout: which dimensions of the vectors are searched.
        names: names of the sets; a set's code is its position, 0 is ``real``.
        space: the space that `block` maps vectors to, and whose results `save` and `load` access; None before the
            spaces are known.
    """

    run: RunDirectory
    layout: VectorLayout
    names: tuple[str, ...]
    space: SearchSpace | None = None

    def block(self, shards: Sequence[Shard], copies: Copies | None = None) -> EmbeddingBlock:
        """Read the rows of some shards, mapped to ``space``; only the distinct ones if the copies are given."""
        assert self.space is not None
        return self._block(shards, self.space, copies)

    def stored(self, shards: Sequence[Shard], copies: Copies | None = None) -> EmbeddingBlock:
        """Read the rows of some shards with all dimensions of their vectors; otherwise as `block`."""
        return self._block(shards, lambda vectors: vectors, copies)

    def _block(
        self,
        shards: Sequence[Shard],
        mapping: Callable[[NDArray[np.floating]], NDArray[np.floating]],
        copies: Copies | None,
    ) -> EmbeddingBlock:
        block = concatenate_blocks([self._shard(shard, mapping) for shard in shards])
        if copies is None:
            return block
        keep = copies.are_distinct(block.row)
        # Without copies the vectors, the bulk of the memory, are not copied.
        return block if keep.all() else block.take(keep)

    def rows(self, shards: Sequence[Shard]) -> EmbeddingBlock:
        """Read row numbers, set codes and hashes of ids, without vectors."""
        parts = [self._numbers(shard, self.run.read_shard("embeddings", shard, ["row"])) for shard in shards]
        return concatenate_blocks(
            [EmbeddingBlock(*part, np.empty((len(part[0]), 0), np.float32)) for part in parts]
        )

    def _shard(
        self, shard: Shard, mapping: Callable[[NDArray[np.floating]], NDArray[np.floating]]
    ) -> EmbeddingBlock:
        table = self.run.read_shard("embeddings", shard, ["row", "vector"])
        width = table.schema.field("vector").type.list_size
        if width != self.layout.dimensions:
            raise SchemaError(
                f"{self.run.path('embeddings', shard.name)}: vectors of {width} dimensions, the run's have "
                f"{self.layout.dimensions}; rerun with --redo-from embed"
            )
        return EmbeddingBlock(*self._numbers(shard, table), mapping(vector_matrix(table, (0, width))))

    def _numbers(self, shard: Shard, table: pa.Table) -> tuple[Rows, Codes, Hashes]:
        row = table.column("row").to_numpy()
        if len(row) and not (shard.start <= row[0] and row[-1] < shard.stop and (np.diff(row) > 0).all()):
            raise SchemaError(
                f"{self.run.path('embeddings', shard.name)}: holds rows of another shard; "
                "rerun with --redo-from embed"
            )
        codes = {name: number for number, name in enumerate(self.names)}
        manifest = self.run.read_shard("manifest", shard, ["generator", "id_hash"])
        generators = manifest.column("generator").to_pylist()
        code = np.array([codes[generators[r - shard.start] or REAL] for r in row.tolist()], np.int32)
        return row, code, manifest.column("id_hash").to_numpy()[row - shard.start]

    # Intermediate arrays; a file appears whole or not at all.

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Save arrays under a name, in the folder of the space."""
        fsys.write_bytes(self._path(name), arrays_to_npz(arrays), self.run.storage)

    def load(self, name: str) -> dict[str, NDArray[Any]]:
        """Load arrays that were saved under a name."""
        path = self._path(name)
        return arrays_from_npz(fsys.read_bytes(path, self.run.storage), path)

    def saved(self, folder: str) -> set[str]:
        """Return the names, ``folder/name``, that were saved in a folder."""
        path = self.path(folder)
        if not fsys.is_folder(path, self.run.storage):
            return set()
        files = fsys.list_files(path, self.run.storage)
        return {f"{folder}/{file.path.rsplit('/', 1)[-1].removesuffix('.npz')}" for file in files}

    def path(self, *parts: str) -> str:
        """Return the location of a file or folder of the space's intermediate results."""
        assert self.space is not None
        return self.run.path(FOLDER, self.space.name, *parts)

    def _path(self, name: str) -> str:
        return self.path(f"{name}.npz")


def concatenate_blocks(blocks: Sequence[EmbeddingBlock]) -> EmbeddingBlock:
    """Concatenate blocks, at least one, in their order."""
    columns = [[getattr(block, own.name) for block in blocks] for own in fields(EmbeddingBlock)]
    return EmbeddingBlock(*map(np.concatenate, columns))


def group_shards(shards: Sequence[Shard], rows: int) -> list[list[Shard]]:
    """Return consecutive shards in groups of at most ``rows`` rows (one shard at least)."""
    groups: list[list[Shard]] = []
    for shard in shards:
        if not groups or shard.stop - groups[-1][0].start > rows:
            groups.append([])
        groups[-1].append(shard)
    return groups
