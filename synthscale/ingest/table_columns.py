"""Names and roles of the columns of a user's table: which name means which, and what is a feature.

Works on names, types and arrays in memory; reads and writes no files.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from synthscale.config import InputConfig
from synthscale.errors import ConfigError, InputError
from synthscale.spelling import closest, did_you_mean

SPECIAL_COLUMNS = ("id", "uri", "image_filename", "real_or_synthetic", "label", "generator", "embedding")
"""Columns with a meaning. Their names are also recognized in another case, or with blanks or hyphens."""
IMAGE_COLUMNS = frozenset({"uri", "image_filename"})
"""Columns that say where an image is. A table with one of them is a table of images."""
_ALIASES = ("file_name", "image")
"""Names of Hugging Face for ``image_filename``, best first; used if a table has neither it nor ``uri``."""
_NOT_FEATURES = frozenset({*SPECIAL_COLUMNS, *_ALIASES, "row"}) - {"embedding"}
"""Columns that are not dimensions of a vector even if they are numeric."""
_INDEX_NAME = re.compile(r"index|level_\d+|__index_level_\d+__|Unnamed: \d+(_level_\d+)?")
"""Names of row numbers that pandas writes. Real and synthetic rows that were numbered one after the other are told
apart by them, and copies differ in them."""
_PATH_NAME = re.compile(
    r"((image|img|full|rel|relative|abs|absolute|file)_?)?(file_?names?|paths?|files?|uris?|urls?|imgs?|images?)"
)
"""Names that people give to columns of paths of images."""
_SIMILARITY = 0.7
"""Similarity of the name of a column, 0..1, from which it is taken for the one that is missing."""
_NAMES_SHOWN = 8
"""Columns named in a message; more are counted. A table of features may have thousands."""


def name_list(names: Sequence[str], most: int = _NAMES_SHOWN) -> str:
    """Return names separated by commas, of which the first ``most`` are shown and the others are counted."""
    # Names with blanks around or control characters within are shown as Python writes them; long ones are cut.
    shown = (name if len(name) <= 80 else f"{name[:77]}..." for name in names[:most])
    text = ", ".join(
        name if name and name == name.strip() and name.isprintable() else repr(name) for name in shown
    )
    return f"{text} and {len(names) - most:,} more" if len(names) > most else text


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def canonical_names(names: Sequence[str], source: str) -> tuple[list[str], list[str]]:
    """Return the names by which a table's columns are known, and notes on those that were changed.

    Blanks around names are removed. A name that differs from one of `SPECIAL_COLUMNS` or an alias in case, blanks
    or hyphens means that one, unless the table also has it as such. Without ``uri`` and ``image_filename``,
    Hugging Face's ``file_name`` or ``image`` is ``image_filename``. A column without a name, which is how pandas
    writes an index to CSV, is called ``Unnamed: N`` as pandas reads it.

    Raises:
        InputError: two columns have the same name.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if repeated:
        raise InputError(f"{source}: the column {repeated[0]!r} occurs more than once")
    result, renamed = list(names), list[str]()
    for i, name in enumerate(names):
        plain = _plain(name)
        wanted = plain if plain in {*SPECIAL_COLUMNS, *_ALIASES} else name.strip() or f"Unnamed: {i}"
        if wanted != name and wanted not in result:
            result[i] = wanted
            if name.strip():
                renamed.append(f"{name!r} as {wanted}")
    notes = [f"{source}: columns read by another name: {name_list(renamed)}"] if renamed else []
    alias = next((name for name in _ALIASES if name in result), None)
    if alias is not None and not IMAGE_COLUMNS & set(result):
        result[result.index(alias)] = "image_filename"
        notes.append(f"{source}: the column {alias} was read as image_filename")
    return result, notes


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().strip("\ufeff\"'")).casefold()


def missing_column(source: str, wanted: str, names: Sequence[str], hint: str = "") -> InputError:
    """Return the error that a table lacks a column, with the columns it has and what is likely wrong.

    Args:
        source: name of the table.
        wanted: the missing column, or text with its alternatives; the first word is compared to the others.
        names: columns of the table.
        hint: a cause known to the caller, which replaces a guess.
    """
    hint = hint or _likely_cause(wanted.split()[0].strip(","), names)
    return InputError(
        f"{source}: the column {wanted} is missing; its columns are {name_list(names)}{hint and '; '}{hint}"
    )


def _likely_cause(wanted: str, names: Sequence[str]) -> str:
    if len(names) == 1 and (found := re.search(r"[;\t|:]", names[0])) and wanted in _plain(names[0]):
        return f"the columns seem to be separated by {found.group()!r}; use commas, semicolons or tabs"
    if any(_plain(name) in {"real", "synthetic"} or re.fullmatch(r"[-+.\d]+", name) for name in names):
        return "the first line seems to be data; the first line must name the columns"
    guess = closest(wanted, names, _SIMILARITY)
    if wanted == "image_filename":
        guess = path_column(names) or guess
    others = {
        "real_or_synthetic": r"is_?(real|fake|synthetic)|class|kind|source|type|split|target|y",
        "id": r".*_id|key|name",
    }
    if not guess and wanted in others:
        guess = next((name for name in names if re.fullmatch(others[wanted], _plain(name))), "")
    return f"rename {guess!r} to {wanted}?" if guess else ""


@dataclass
class Roles:
    """What the columns of a table are.

    Attributes:
        features: columns of the vectors: one of lists, or one for each dimension; empty for a table of images.
        metadata: columns that are kept beside the results.
        ignored: reason by name of the columns that are not read.
    """

    features: list[str]
    metadata: list[str]
    ignored: dict[str, str] = field(default_factory=dict)

    def ignore(self, name: str, reason: str) -> None:
        """Move a column to the ignored ones."""
        for names in (self.features, self.metadata):
            if name in names:
                names.remove(name)
        self.ignored[name] = reason

    def note(self, source: str) -> str:
        """Return one line that says what each column is."""
        parts = []
        if self.features:
            count = f"{len(self.features):,} columns " if len(self.features) > 1 else ""
            parts.append(
                f"features: {count}{'(' if count else ''}{name_list(self.features)}{')' if count else ''}"
            )
        others = [name for name in self.metadata if name not in SPECIAL_COLUMNS]
        parts.append(f"metadata: {name_list(others) if others else 'no other columns'}")
        if self.ignored:
            by_reason: dict[str, list[str]] = {}
            for name, reason in self.ignored.items():
                by_reason.setdefault(reason, []).append(name)
            parts.append(
                "ignored: " + ", ".join(f"{name_list(names)} ({reason})" for reason, names in by_reason.items())
            )
        return f"{source}: {'; '.join(parts)}"


def choose_roles(schema: pa.Schema, settings: InputConfig, source: str) -> Roles:
    """Decide what the columns of a table are, by their names and types.

    Vectors are ``settings.feature_columns``; or else the column ``embedding``; or else, in a table without a
    column that says where images are, all numeric columns. `drop_counters` then looks at their values.

    Args:
        schema: columns by their canonical names, with the metadata of pandas if there is any.
        settings: columns that the user chose.
        source: name of the table.

    Raises:
        ConfigError: a column of the settings does not exist.
        InputError: a feature is not numeric, or there are neither images nor vectors.
    """
    names: list[str] = schema.names
    ignored = dict.fromkeys(find_columns(settings.ignore_columns, names, "ignore_columns"), "input.ignore_columns")
    chosen = find_columns(settings.feature_columns, names, "feature_columns")
    for name in pandas_index(schema):
        if name in names and name not in {*chosen, *SPECIAL_COLUMNS, *_ALIASES}:
            ignored.setdefault(name, "the index of pandas")
    for name in names:
        if _INDEX_NAME.fullmatch(name) and name not in chosen:
            ignored.setdefault(name, "row numbers")
    left = [name for name in names if name not in ignored or name in chosen]
    features = chosen or _default_features(schema.empty_table().select(left).schema, source)
    roles = Roles(features, [name for name in left if name not in features], ignored)
    for name in chosen:
        ignored.pop(name, None)
    return roles


def _default_features(schema: pa.Schema, source: str) -> list[str]:
    if "embedding" in schema.names:
        return ["embedding"]
    if IMAGE_COLUMNS & set(schema.names):
        return []
    features = [f.name for f in schema if f.name not in _NOT_FEATURES and is_number(f.type)]
    if features and (path := path_column(schema.names)) is not None:
        raise InputError(
            f"{source}: are its rows images or vectors? If the column {path} says where images are, rename it to "
            "image_filename; if the numeric columns are vectors, name them with --feature-columns, or this one "
            "with --ignore-columns"
        )
    if features:
        return features
    lists = [f.name for f in schema if is_list(f.type)]
    hint = f"; if {lists[0]} holds the vectors, use --feature-columns {lists[0]}" if lists else ""
    raise InputError(
        f"{source}: found no column image_filename, file_name, uri or embedding, and no numeric columns; its "
        f"columns are {name_list(schema.names)}{hint}"
    )


def path_column(names: Iterable[str]) -> str | None:
    """Return a column that seems to say where images are, under a name without that meaning, or None."""
    plain = {name: _plain(name) for name in names}
    return next((name for name, text in plain.items() if _PATH_NAME.fullmatch(text) or _is_misspelt(text)), None)


def _is_misspelt(name: str) -> bool:
    return bool(difflib.get_close_matches(name, ["image_filename", "file_name"], 1, 0.8))


def find_columns(wanted: Sequence[str], names: Sequence[str], setting: str) -> list[str]:
    """Return the columns that a setting names, in its order; raise ConfigError if there is no such column."""
    found = []
    for name in wanted:
        match = name if name in names else next((other for other in names if _plain(other) == _plain(name)), None)
        if match is None:
            raise ConfigError(
                f"input.{setting}: the input has no column {name!r}{did_you_mean(name, names)}; its columns are "
                f"{name_list(names)}"
            )
        found.append(match)
    return list(dict.fromkeys(found))


def pandas_index(schema: pa.Schema) -> list[str]:
    """Return the columns that are an index according to the metadata that pandas wrote."""
    try:
        index = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    except (ValueError, AttributeError):
        return []
    return [name for name in index if isinstance(name, str)] if isinstance(index, list) else []


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes that columns number, by column, from the metadata of Hugging Face."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: list(map(str, feature["names"])) for name, feature in features.items() if "names" in feature}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_number(kind: pa.DataType) -> bool:
    """Return True for integers, floating-point numbers and decimals."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_list(kind: pa.DataType) -> bool:
    """Return True for lists, of variable or of fixed length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column of any type to strings, as a CSV file would have them; nulls and NaN are null.

    Floating-point numbers that are all whole, as pandas makes of integers with nulls, have no decimal point.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_integer(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
        try:
            return column.cast(pa.int64()).cast(pa.string())
        except pa.ArrowInvalid:
            pass
    return pa.chunked_array([pa.array(map(_text, column.to_pylist()), pa.string())])


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
