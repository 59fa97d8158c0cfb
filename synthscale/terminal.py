"""Text and tables for the terminal. Reads ``metrics.json`` and comparisons; cli.py prints the results.

Names, ids and paths come from the user's data and may contain anything: control characters are shown escaped, and
what the terminal's encoding lacks is replaced.
"""

import codecs
import sys
import textwrap
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.metrics_json import notes, warnings_by_text

if TYPE_CHECKING:
    from synthscale.metrics.comparison import Comparison
    from synthscale.pipeline import StageReport

_ESCAPED_CATEGORIES: Final = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories shown escaped: control characters, bytes that are no UTF-8, line and paragraph ends."""
_DIRECTION_MARKS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them, which could make a name look like another one."""
_REPLACEMENTS: Final = {"±": "+/-", "…": "..."}
"""Plain text for characters of our own that an encoding such as ASCII lacks."""
_SHOWN = tuple(name for name in CORE_METRICS if name != "unique_share")
"""Metrics in the table, which has to fit in 80 columns."""
GATE_MISSED = 3
"""Exit code of a finished run in which a quality gate was missed."""


def printable(text: str) -> str:
    """Return a text on one line, with characters that control a terminal as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _ESCAPED_CATEGORIES or character in _DIRECTION_MARKS
        else character
        for character in text
    )


class SafeConsole(Console):
    """A console that prints every text as one line, with control characters escaped; tables as they are."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects as `rich.console.Console.print` does, texts through `printable`."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)


def make_console(*, stderr: bool = False) -> SafeConsole:
    """Return a console of the process, and make its stream print what its encoding lacks as backslash escapes."""
    stream = sys.stderr if stderr else sys.stdout
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        codecs.register_error("synthscale", _replace_unknown)
        reconfigure(errors="synthscale")
    return SafeConsole(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)


def _replace_unknown(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks: our own by plain text, others by backslash escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    text = "".join(_REPLACEMENTS.get(c, c.encode("ascii", "backslashreplace").decode()) for c in characters)
    return text, error.end


def stage_line(report: "StageReport") -> str:
    """Return one line about a finished stage: rows, failed rows, seconds and rows per second."""
    if report.skipped:
        return f"{report.stage:10} already done"
    rate = f"{report.rows / report.seconds:>9,.0f} rows/s" if report.seconds > 0 else ""
    return f"{report.stage:10} {report.rows:>9,} rows {report.failed:>6,} failed {report.seconds:>7.1f} s {rate}"


def failure_lines(report: "StageReport") -> list[str]:
    """Return one line for each set of which rows could not be read: how many, of how many, and why."""
    return [
        f"           {sum(reasons.values()):,} of {rows:,} rows of {name} could not be read"
        + (f" ({', '.join(f'{why} {count:,}' for why, count in reasons.items())})" if "" not in reasons else "")
        for name, (rows, reasons) in report.failed_sets.items()
    ]


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Return a table of the core metrics and the AUC of each generator, with 95 % intervals and references.

    Args:
        metrics: the content of ``metrics.json``.
    """
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("generator", overflow="fold")
    for name in (*_SHOWN, "AUC"):
        # Break the longest name over two lines, so that the table fits in 80 columns.
        table.add_column(name.replace("tative", "-\ntative") if len(name) > 12 else name, justify="right")
    for name, block in metrics["generators"].items():
        figures = [block["metrics"][metric] for metric in _SHOWN]
        # The AUC is shown without its interval, so that the table fits in 80 columns.
        figures.append({"value": block["classifier"]["auc"]["value"]})
        table.add_row(_cell(name), *(_with_interval(figure) for figure in figures))
    return table


def _cell(name: str) -> str:
    """Return a name for a table's cell: printable, and with rich's markup escaped."""
    return escape(printable(name))


def _with_interval(figure: dict[str, Any]) -> str:
    """Format a value; on further lines its 95 % interval, and its reference unless that is 0.5 or 1."""
    if figure["value"] is None:
        return "n/a"
    lines = [f"{figure['value']:.3f}"]
    if figure.get("low") is not None:
        lines.append(f"[dim]{_interval(figure['low'], figure['high'])}[/dim]")
    reference = figure.get("reference")
    if reference is not None and f"{reference:.2f}" not in {"0.50", "1.00"}:
        lines.append(f"[dim]ref {reference:.2f}[/dim]")
    return "\n".join(lines)


def _interval(low: float, high: float) -> str:
    """Format an interval with two decimals, or by its half-width where both ends would look the same."""
    text = f"{low:.2f}-{high:.2f}"
    is_narrow = f"{low:.2f}" == f"{high:.2f}" and high - low < 0.005 and low > 0.01 and high < 0.99
    return f"±{(high - low) / 2:.1g}" if is_narrow else text


def print_notes(metrics: dict[str, Any], console: Console) -> None:
    """Print how distances were computed, and what the self-test of the radius says about strong edits."""
    for note in notes(metrics["generators"]):
        for line in textwrap.wrap(f"note: {note}", 80, subsequent_indent="      "):
            console.print(line, markup=False)


def comparison_table(comparison: "Comparison") -> Table:
    """Return a table of the differences of each pair of generators, A minus B, with 95 % intervals.

    The column ``better`` names A or B where the interval excludes 0, and is ``-`` otherwise.
    """
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("A", "B"):
        table.add_column(name, overflow="fold")
    for name in ("metric", "A minus B", "95 % interval", "better"):
        table.add_column(name, justify="right" if name in {"A minus B", "95 % interval"} else "left")
    previous = None
    for difference in comparison.differences:
        pair = (_cell(difference.one), _cell(difference.two))
        interval = "n/a" if difference.low is None else f"{difference.low:+.3f} to {difference.high:+.3f}"
        better = {None: "-", difference.one: "A", difference.two: "B"}[difference.better]
        shown = pair if pair != previous else ("", "")
        table.add_row(*shown, difference.metric, f"{difference.difference:+.3f}", interval, better)
        previous = pair
    return table


def print_warnings(metrics: dict[str, Any], console: Console) -> None:
    """Print each warning of ``metrics.json`` once, with the names of the generators that have it."""
    for warning, names in warnings_by_text(metrics["generators"]).items():
        console.print(f"warning ({', '.join(names)}): {warning}", markup=False)


def print_gates(metrics: dict[str, Any], console: Console) -> int:
    """Print whether each gate passed; return the exit code: 0, or `GATE_MISSED` if one was missed."""
    for gate in metrics["gates"]:
        value = "n/a" if gate["value"] is None else f"{gate['value']:.4g}"
        value += f" ({gate['reason']})" if "reason" in gate else ""
        word = "passed" if gate["passed"] else "missed"
        console.print(f"gate    {word}: {gate['generator']}: {gate['gate']}, is {value}", markup=False)
    return 0 if all(gate["passed"] for gate in metrics["gates"]) else GATE_MISSED
