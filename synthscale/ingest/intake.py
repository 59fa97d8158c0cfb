"""What of each set was found, taken and passed over, and where its labels come from: counts and first names.

Works on names and counts; reads no files.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthscale.ingest.file_kinds import Kind, suffix_of
from synthscale.tables.image_formats import RARE_SUFFIXES
from synthscale.tables.schemas import REAL

_FIRST = 3
"""Names that a note shows."""
_MOST_LABELS = 10_000
"""Distinct labels that are kept for a comparison of the sets."""


@dataclass
class Tally:
    """A number of items, the first names among them, and how many have each file name extension."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    by_suffix: Counter[str] = field(default_factory=Counter)

    def add(self, name: str) -> None:
        """Count one item."""
        self.count += 1
        self.by_suffix[suffix_of(name) or "no extension"] += 1
        if len(self.first) < _FIRST:
            self.first.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in name))

    def suffixes(self) -> str:
        """Return the most frequent extensions with their counts."""
        shown = ", ".join(f"{suffix} {count:,}" for suffix, count in self.by_suffix.most_common(6))
        return shown + (", ..." if len(self.by_suffix) > 6 else "")

    def names(self) -> str:
        """Return the first names."""
        return ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")


@dataclass
class Intake:
    """What one set gave.

    Attributes:
        name: ``real`` or the generator's name.
        source: folder, prefix, archive or table.
        found: number of files, or of members of archives.
        taken: number of images or rows.
        label_source: where labels come from, in words; empty if there are none.
        labels: the distinct labels, at most ``_MOST_LABELS``.
        passed: what was passed over, by kind.
        remarks: counts of other things that are worth a line, by their words.
    """

    name: str
    source: str
    found: int = 0
    taken: int = 0
    label_source: str = ""
    labels: list[str] = field(default_factory=list)
    passed: dict[Kind, Tally] = field(default_factory=dict)
    remarks: dict[str, Tally] = field(default_factory=dict)

    def pass_over(self, kind: Kind, name: str) -> None:
        """Count a file that is not taken."""
        self.passed.setdefault(kind, Tally()).add(name)

    def remark(self, words: str, name: str) -> None:
        """Count something that is worth a line; ``words`` follow its count."""
        self.remarks.setdefault(words, Tally()).add(name)

    def count_rare(self, name: str) -> None:
        """Count an image with a rare extension as worth a line."""
        self.remark(f"with rare extensions are read as {RARE_SUFFIXES[suffix_of(name)]}", name)

    def count_sniffed(self, name: str) -> None:
        """Count an image that only its first bytes show to be one."""
        self.remark("whose names do not say so are images by their first bytes", name)

    def set_labels(self, labels: Iterable[str], source: str) -> None:
        """Record the distinct labels and where they come from."""
        self.labels = sorted(labels)[:_MOST_LABELS]
        self.label_source = source if self.labels else ""

    def summary(self) -> str:
        """Return a line: what was found and taken, and the labels."""
        labels = "no labels"
        if self.labels:
            shown = ", ".join(self.labels[:5]) + (", ..." if len(self.labels) > 5 else "")
            number = f"{len(self.labels):,} label{'s' if len(self.labels) > 1 else ''}"
            labels = f"{number} from {self.label_source} ({shown})"
        what = f"{self.taken:,} of {self.found:,} files" if self.found else f"{self.taken:,} rows"
        return f"{self.name}: {what} in {self.source}; {labels}"

    def to_json(self) -> dict[str, Any]:
        """Return the set for ``run.json``."""
        passed = {kind.name.lower(): tally.count for kind, tally in self.passed.items()}
        return {
            "name": self.name,
            "source": self.source,
            "found": self.found or None,
            "taken": self.taken,
            "labels": len(self.labels),
            "label_source": self.label_source or None,
            "passed_over": passed,
        }

    def notes(self) -> list[str]:
        """Return a line for everything that was passed over, or that is worth a line."""
        lines = []
        for kind, tally in self.passed.items():
            shown = tally.names() if kind in {Kind.SYSTEM, Kind.NOT_UTF8} else tally.suffixes()
            lines.append(f"{self.source}: passed over: {tally.count:,} {kind.value} ({shown})")
        for words, tally in self.remarks.items():
            lines.append(f"{self.source}: {tally.count:,} {words} ({tally.names()})")
        return lines


def intakes_of_table(rows: pa.Table, source: str) -> list[Intake]:
    """Return what each set gave of the rows of a table, by generator and the real set first."""
    if not rows.num_rows:
        return []
    names = pc.fill_null(rows.column("generator").cast(pa.string()), REAL)
    labels = pa.table({"name": names, "label": rows.column("label")})
    counted = labels.group_by("name").aggregate([([], "count_all"), ("label", "distinct")]).to_pylist()
    sets = []
    for own in sorted(counted, key=lambda own: own["name"] != REAL):
        sets.append(Intake(own["name"], source, taken=own["count_all"]))
        sets[-1].set_labels((text for text in own["label_distinct"] if text is not None), "the column label")
    return sets


def label_notes(sets: Iterable[Intake]) -> list[str]:
    """Return a line for each synthetic set whose labels have nothing to do with those of the real set."""
    real, others = None, list[Intake]()
    for own in sets:
        if own.name == REAL:
            real = own
        else:
            others.append(own)
    lines = list[str]()
    if real is None:
        return lines
    for other in others:
        if bool(real.labels) != bool(other.labels):
            one, two = (real, other) if real.labels else (other, real)
            lines.append(
                f"{one.name} has labels ({one.label_source}), {two.name} has none: no metric is given by label"
            )
        elif real.labels and not set(real.labels) & set(other.labels):
            shown = "; ".join(f"{own.name}: {', '.join(own.labels[:3])}" for own in (real, other))
            lines.append(f"real and {other.name} have no label in common ({shown}): no metric is given by label")
    return lines
