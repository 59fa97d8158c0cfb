"""What a person sees in the terminal: lines and tables; the command line prints them."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.metrics_json import warnings_by_text

if TYPE_CHECKING:
    from synthscale.metrics.comparison import Comparison
    from synthscale.pipeline import StageReport

GATE_MISSED = 3


def stage_line(report: "StageReport") -> str:
    """Return one line on a finished stage."""
    if report.skipped:
        return f"{report.stage:10} done before"
    rate = f"{report.rows / report.seconds:>9,.0f} rows/s" if report.seconds > 0 else ""
    return f"{report.stage:10} {report.rows:>9,} rows {report.failed:>6,} failed {report.seconds:>7.1f} s {rate}"


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Return the metrics of every generator as a table for the terminal, with 95 % intervals."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("generator", overflow="fold")
    for name in (*CORE_METRICS, "AUC"):
        # The longest name on two lines, so that all fit in 80 columns.
        table.add_column(name.replace("tative", "-\ntative") if len(name) > 12 else name, justify="right")
    for name, block in metrics["generators"].items():
        figures = [block["metrics"][metric] for metric in CORE_METRICS]
        # One without its interval, so that all fit in 80 columns.
        figures.append({"value": block["classifier"]["auc"]["value"]})
        # Names come from the user's data: no markup is read in them.
        table.add_row(name.replace("[", r"\["), *(_with_interval(own) for own in figures))
    return table


def _with_interval(figures: dict[str, Any]) -> str:
    """Return a value, and below it its 95 % interval."""
    if figures["value"] is None:
        return "n/a"
    if figures.get("low") is None:
        return f"{figures['value']:.3f}"
    return f"{figures['value']:.3f}\n[dim]{figures['low']:.2f}-{figures['high']:.2f}[/dim]"


def comparison_table(comparison: "Comparison") -> Table:
    """Return the differences of each pair of generators as a table for the terminal."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("one", "less two"):
        table.add_column(name, overflow="fold")
    for name in ("metric", "difference", "95 % interval", "better"):
        table.add_column(name, justify="right" if name in {"difference", "95 % interval"} else "left")
    last = None
    for found in comparison.differences:
        pair = (found.one.replace("[", r"\["), found.two.replace("[", r"\["))
        interval = "n/a" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"
        better = {None: "-", found.one: "one", found.two: "two"}[found.better]
        shown = pair if pair != last else ("", "")
        table.add_row(*shown, found.metric, f"{found.difference:+.3f}", interval, better)
        last = pair
    return table


def print_warnings(metrics: dict[str, Any], console: Console) -> None:
    """Print each warning once, with the generators that it concerns."""
    for warning, names in warnings_by_text(metrics["generators"]).items():
        console.print(f"warning ({', '.join(names)}): {warning}", markup=False)


def print_gates(metrics: dict[str, Any], console: Console) -> int:
    """Print each gate's decision; return the exit code: 3 where one was missed."""
    for gate in metrics["gates"]:
        found = "n/a" if gate["value"] is None else f"{gate['value']:.4g}"
        found += f" ({gate['reason']})" if "reason" in gate else ""
        word = "passed" if gate["passed"] else "missed"
        console.print(f"gate    {word}: {gate['generator']}: {gate['gate']}, is {found}", markup=False)
    return 0 if all(gate["passed"] for gate in metrics["gates"]) else GATE_MISSED
