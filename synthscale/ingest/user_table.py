"""A user's table, opened, and what the readers of its formats share: its source, and the errors of parsing.

Works with files through their openers; reads and writes nothing itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from synthscale.errors import InputError
from synthscale.ingest.table_columns import SPECIAL_COLUMNS, count_of
from synthscale.storage import filesystems as fsys

EMBEDDED = "\0embedded"
"""Column that a batch has besides those of a table whose images are within it: their URIs, or null."""
TEXT_COLUMNS = frozenset(SPECIAL_COLUMNS) - {"embedding"} | {"file_name", "image"}
"""Columns that are read as text whatever their values look like."""


@dataclass
class UserTable:
    """An open table.

    Attributes:
        source: name for messages: its URI, or that of a zip file and its member.
        names: canonical names of the columns.
        schema: types by canonical name, where the format declares them (Parquet); else None.
        batches: yields all rows, in order, as tables with the columns `names`, or with those of the given names
            that the table has. A column may have another type in another batch of JSON Lines. Call it as often as
            needed; raises InputError if the table is malformed.
        place: returns where the row of a number, from 0, is: "line 7", as an editor counts, or "row 5" in Parquet.
        notes: messages for the report; complete once all batches have been read.
        left_out: lines of a CSV that have too few or too many values; complete once all batches have been read.
        written: names as the file has them, by canonical name.
    """

    source: str
    names: list[str]
    schema: pa.Schema | None
    batches: Callable[..., Iterator[pa.Table]]
    place: Callable[[int], str]
    notes: list[str] = field(default_factory=list)
    left_out: int = 0
    written: dict[str, str] = field(default_factory=dict)

    def notes_of_lines(self, rows: int, limit: float) -> list[str]:
        """Return a note on the lines that were left out; raise InputError if they are more than a fraction of all.

        Args:
            rows: number of rows that were read.
            limit: largest fraction of lines that may be left out.
        """
        if not self.left_out:
            return []
        text = f"{count_of(self.left_out, 'line')} with more or fewer values than the {len(self.names)} columns"
        if self.left_out > limit * (rows + self.left_out):
            raise InputError(f"{self.source}: {text}; is a separator within values, or are quotes missing?")
        return [f"{self.source}: {text}: left out"]


@dataclass(frozen=True)
class Source:
    """A table's file before it is parsed.

    Attributes:
        name: for messages, as in `UserTable`.
        open_file: opens it for reading; called as often as needed.
        head: its first bytes.
        is_whole: whether they are all it has.
        suffix: of its name, in lower case.
    """

    name: str
    open_file: Callable[[], Any]
    head: bytes
    is_whole: bool
    suffix: str


@contextmanager
def parse_errors(source: str, what: str) -> Iterator[None]:
    """Convert the errors of a file that is no table, and those of storage, to SynthscaleErrors."""
    try:
        with fsys.storage_errors(source, "read"):
            yield
    except (pa.ArrowException, UnicodeError) as error:
        raise InputError(f"{source}: not a readable {what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def not_utf8(source: str, place: str, byte: int) -> InputError:
    """Return the error that a place of a text has a byte that is no UTF-8."""
    return InputError(
        f"{source}: {place} is not UTF-8 (byte 0x{byte:02X}); in Excel save it as CSV UTF-8, or convert it: "
        "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
    )
