"""Text and tables for the terminal. Reads ``metrics.json`` and comparisons; cli.py prints the results."""

import textwrap
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.metrics_json import notes, warnings_by_text

if TYPE_CHECKING:
    from synthscale.metrics.comparison import Comparison
    from synthscale.pipeline import StageReport

_SHOWN = tuple(name for name in CORE_METRICS if name != "unique_share")
"""Metrics in the table, which has to fit in 80 columns."""
GATE_MISSED = 3
"""Exit code of a finished run in which a quality gate was missed."""


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
        # Names come from the user's data, so rich's markup is escaped.
        table.add_row(name.replace("[", r"\["), *(_with_interval(figure) for figure in figures))
    return table


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
        console.print(textwrap.fill(f"note: {note}", 80, subsequent_indent="      "), markup=False)


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
        pair = (difference.one.replace("[", r"\["), difference.two.replace("[", r"\["))
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
