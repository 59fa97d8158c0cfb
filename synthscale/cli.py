"""Command line: ``synthscale score|demo|validate|status|compare|report``.

Parses arguments into a configuration, runs a command, prints its results (with terminal.py) and returns an exit
code. No other module prints. Commands import what they need, so that ``--help`` loads neither Ray nor torch.
"""

import argparse
import json
import logging
import os
import re
import signal
import sys
import threading
import webbrowser
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from rich.console import Console

from synthscale.config import Config, parse_config
from synthscale.config_files import apply_overrides, load_config
from synthscale.errors import ConfigError, SynthscaleError
from synthscale.generator_names import split_synthetic
from synthscale.spelling import did_you_mean
from synthscale.storage import filesystems as fsys
from synthscale.terminal import (
    comparison_table,
    failure_lines,
    make_console,
    metrics_table,
    print_gates,
    print_notes,
    print_warnings,
    printable,
    stage_line,
)

if TYPE_CHECKING:
    from synthscale.result import RunResult

DEMO_DATA, DEMO_OUTPUT = "runs/demo-data", "runs/demo"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: command and options; None for those of the process.

    Returns:
        0: done. 1: failed, and running the same command again continues. 2: input or configuration cannot be
        used. 3: done, but a quality gate was missed. 130: interrupted.
    """
    # Before the arguments are parsed, as argparse prints too.
    console, errors = make_console(), make_console(stderr=True)
    parsed = _parser().parse_args(arguments)
    _configure_logging(verbose=parsed.verbose)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        code: int = parsed.command(parsed, console)
        return code
    except SynthscaleError as error:
        _print_error(str(error), errors)
        return error.exit_code
    except KeyboardInterrupt:
        _print_error("interrupted; finished work is kept; run the same command again to continue", errors)
        return 130


def _print_error(text: str, console: Console) -> None:
    console.print(f"synthscale: {text}", markup=False)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    # Finished shards are on disk already, and a normal exit stops Ray's workers.
    raise SystemExit(128 + number)


def _configure_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s"
    )


# Commands.


def _score(parsed: argparse.Namespace, console: Console) -> int:
    return _run(config_from(parsed), parsed, console)


def _demo(parsed: argparse.Namespace, console: Console) -> int:
    from synthscale.demo import SETS, write_demo

    console.print("Writing the demo's images: scikit-learn's digits and five small generators")
    write_demo(Path(parsed.data))
    folders = {name: str(Path(parsed.data) / name) for name in SETS}
    values = {"real": folders.pop("real"), "synthetic": folders, "output": parsed.output or DEMO_OUTPUT}
    return _run(parse_config(apply_overrides(with_scoring(values, parsed), parsed.set)), parsed, console)


def _run(config: Config, parsed: argparse.Namespace, console: Console) -> int:
    from synthscale.pipeline import Options, score

    options = Options(
        ray_address=parsed.ray_address,
        redo_from=parsed.redo_from,
        retry_failed=getattr(parsed, "retry_failed", False),
        verbose=parsed.verbose,
        show_progress=console.is_terminal,
        on_input=lambda lines: _print_lines(lines, console),
        on_stage=lambda report: _print_lines([stage_line(report), *failure_lines(report)], console),
        on_progress=lambda text: console.print(f"           {text}", markup=False, highlight=False),
    )
    result = score(config, options)
    console.print()
    console.print(metrics_table(result.metrics))
    print_notes(result.metrics, console)
    print_warnings(result.metrics, console)
    _print_paths(result, console)
    return print_gates(result.metrics, console)


def _print_lines(lines: list[str], console: Console) -> None:
    for line in lines:
        console.print(line, markup=False)


def _validate(parsed: argparse.Namespace, console: Console) -> int:
    from synthscale.plan import validate

    config = config_from(parsed)
    plan = validate(config)
    _print_lines(plan.lines, console)
    for name, rows in plan.sets.items():
        tries = plan.tries[name]
        failed = f", {len(tries.faults)} could not be read" if tries.faults else ""
        console.print(f"{name:16} {rows:>12,} rows, {tries.rows} tried{failed}", markup=False)
    console.print(f"encoder          {plan.encoder}, {plan.dimensions} dimensions", markup=False)
    console.print(f"output           {config.output} can be written", markup=False)
    for line in plan.faults:
        console.print(f"  {line}", markup=False)
    if plan.seconds is not None:
        console.print(f"embedding        about {plan.seconds:,.0f} s on one core of this machine")
    console.print(f"disk             about {plan.disk_bytes / 2**20:,.0f} MiB at the output")
    plan.check_failures()
    return 0


def _status(parsed: argparse.Namespace, console: Console) -> int:
    from synthscale.plan import driver_line, status

    config = config_from(parsed)
    console.print(driver_line(parsed.run, config), markup=False)
    for line in status(parsed.run, config):
        console.print(f"{line.stage:10} {line.state:8} {line.detail}", markup=False)
    return 0


def _compare(parsed: argparse.Namespace, console: Console) -> int:
    from synthscale.comparisons import compare_runs
    from synthscale.report.compared import compare_page

    stem, suffix = os.path.splitext(parsed.output)
    if suffix not in {".json", ".html"}:
        raise ConfigError(
            f"--output {parsed.output}: must end with .json; the page is written next to it as .html"
        )
    storage = config_from(parsed).storage
    comparison = compare_runs(parsed.runs, storage)
    console.print(comparison_table(comparison))
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", markup=False)
    text = json.dumps(comparison.json(), indent=1, allow_nan=False)
    data, page = f"{stem}.json", f"{stem}.html"
    fsys.write_bytes(fsys.absolute(data), text.encode(), storage)
    fsys.write_bytes(fsys.absolute(page), compare_page(comparison).encode(), storage)
    console.print(f"written {data} and {page}", markup=False)
    return 0


def _report(parsed: argparse.Namespace, console: Console) -> int:
    from synthscale.pipeline import rewrite_report

    storage = config_from(parsed).storage
    result = rewrite_report(parsed.run, storage, shows_images=not parsed.no_images)
    _print_paths(result, console)
    if parsed.open:
        webbrowser.open(result.local_report().as_uri())
    return 0


def _print_paths(result: "RunResult", console: Console) -> None:
    console.print(f"report  {result.report_path}", markup=False)
    console.print(f"scores  {result.scores_path}", markup=False)
    console.print(f"metrics {result.run.path('metrics.json')}", markup=False)


# Arguments.


def config_from(parsed: argparse.Namespace) -> Config:
    """Build the configuration from ``--config``, the other options and ``--set``, each overriding the former.

    Raises:
        ConfigError: the configuration is invalid, or two synthetic sets have the same name.
        StorageError: the configuration file cannot be read.
    """
    values: dict[str, Any] = load_config(parsed.config) if parsed.config else {}
    for name in ("real", "manifest", "output"):
        if getattr(parsed, name, None) is not None:
            values[name] = getattr(parsed, name)
    given: dict[str, str] = {}
    for text in getattr(parsed, "synthetic", None) or []:
        name, uri = split_synthetic(text)
        if name in given and given[name] != uri:
            raise ConfigError(f"--synthetic {text}: two sets are named {name}; give each a name with NAME=FOLDER")
        given[name] = uri
    if given:
        from_file = values.get("synthetic") or {}
        if not isinstance(from_file, dict):
            raise ConfigError(f"{parsed.config}: synthetic must map names to folders")
        values["synthetic"] = {**from_file, **given}
    values = with_columns(with_scoring(values, parsed), parsed)
    return parse_config(apply_overrides(values, parsed.set), parsed.config or "arguments", _origins(parsed))


def _origins(parsed: argparse.Namespace) -> dict[str, str]:
    """Return the option that gave each key of the configuration, for messages."""
    sections = {
        "feature_columns": "input.feature_columns",
        "ignore_columns": "input.ignore_columns",
        "families": "metrics.families",
        "slice_by": "metrics.slice_by",
        "gate": "gates",
    }
    options = ("real", "synthetic", "manifest", "output", "control", *sections)
    origins = {
        sections.get(name, name): f"--{name.replace('_', '-')}" for name in options if getattr(parsed, name, None)
    }
    return origins | {override.partition("=")[0]: "--set" for override in parsed.set}


def with_scoring(values: dict[str, Any], parsed: argparse.Namespace) -> dict[str, Any]:
    """Return ``values`` overridden by ``--families``, ``--slice-by``, ``--gate`` and ``--control``."""
    given = {"families": getattr(parsed, "families", None), "slice_by": getattr(parsed, "slice_by", None)}
    from_file = values.get("metrics") or {}
    if not isinstance(from_file, dict):
        raise ConfigError(f"{parsed.config}: metrics must be a section of keys and values")
    metrics = {**from_file, **{name: value for name, value in given.items() if value}}
    result = {**values, "metrics": metrics} if metrics else dict(values)
    if getattr(parsed, "gate", None):
        result["gates"] = parsed.gate
    if getattr(parsed, "control", False):
        result["control"] = True
    return result


def with_columns(values: dict[str, Any], parsed: argparse.Namespace) -> dict[str, Any]:
    """Return ``values`` overridden by ``--feature-columns`` and ``--ignore-columns``."""
    names = ("feature_columns", "ignore_columns")
    given = {name: value for name in names if (value := getattr(parsed, name, None)) is not None}
    if not given:
        return values
    from_file = values.get("input") or {}
    if not isinstance(from_file, dict):
        raise ConfigError(f"{parsed.config}: input must be a section of keys and values")
    return {**values, "input": {**from_file, **given}}


def _shared_options() -> tuple[argparse.ArgumentParser, ...]:
    """Return the options that commands share: file, shared, data, work and output."""
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--config", metavar="FILE", help="YAML configuration, local or s3://")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="section.key=value")
    shared.add_argument("--verbose", action="store_true", help="show Ray's logs and progress")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--real", metavar="URI", help="folder of real images; a sub-folder is a label")
    data.add_argument("--synthetic", action="append", metavar="[NAME=]URI", help="folder of a generator's images")
    data.add_argument("--manifest", metavar="URI", help="metadata.csv, Parquet, a Studio-style zip or folder")
    data.add_argument(
        "--feature-columns", metavar="NAMES", help="columns of a table that are the vectors, separated by commas"
    )
    data.add_argument("--ignore-columns", metavar="NAMES", help="columns of a table that are not read")
    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--output", metavar="URI", help="the run directory")
    work.add_argument(
        "--ray-address",
        default="local",
        metavar="ADDRESS",
        help="local (default), auto or the address of a cluster",
    )
    work.add_argument(
        "--families", metavar="NAMES", help="optional metric families: all, or names separated by commas"
    )
    work.add_argument("--slice-by", metavar="COLUMNS", help="columns by whose values metrics are also computed")
    work.add_argument(
        "--gate",
        action="append",
        metavar="GATE",
        help="for example fidelity>=0.3; replaces the gates in FILE; exit code 3 if missed",
    )
    work.add_argument("--control", action="store_true", help="also score a held-out half of the real set")
    work.add_argument("--redo-from", metavar="STAGE", help="repeat this stage and all later ones")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", metavar="URI", help="the run directory")
    return file, shared, data, work, output


class _Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the option or command that was meant, and are printable."""

    names: ClassVar[set[str]] = set()
    """Options and commands of all parsers."""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse of Python 3.11 makes an empty list of the value in --real=--.
        if action.nargs is None and arg_strings == ["--"]:
            self.error(f"argument {'/'.join(action.option_strings) or action.metavar}: expected one argument")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Print usage and the error, and exit with 2."""
        word = re.search(r"unrecognized arguments: (-\S+?)(=|\s|$)|invalid choice: '(\S+)'", message)
        given = (word[1] or word[3]) if word else None
        # An option of another command is no misspelt one.
        hint = "" if given is None or given in self.names else did_you_mean(given, self.names)
        super().error(printable(message + hint))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="synthscale",
        description="Score the quality of synthetic images against real ones, with evidence for each number.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    file, shared, data, work, output = _shared_options()
    score = _command(
        commands, "score", _score, "score synthetic sets against a real set", [file, shared, data, work]
    )
    score.add_argument(
        "--retry-failed",
        action="store_true",
        help="try the images in failures/ again, and recompute what depends on those that can be read now",
    )
    demo = _command(
        commands, "demo", _demo, "score five small generators of digits, without a download", [shared, work]
    )
    demo.add_argument("--data", default=DEMO_DATA, metavar="DIR", help="where the demo's images are written")
    _command(
        commands,
        "validate",
        _validate,
        "check input, output and settings without starting a cluster",
        [file, shared, data, output],
    )
    compare = _command(
        commands, "compare", _compare, "compare the generators of one run or of several", [file, shared]
    )
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument(
        "--output",
        default="compare.json",
        metavar="FILE",
        help="JSON file to write; the page is written next to it as .html",
    )
    status = _command(commands, "status", _status, "show the progress of a run", [file, shared])
    report = _command(commands, "report", _report, "write the report of a finished run again", [file, shared])
    for command in (status, report):
        command.add_argument("run", metavar="RUN")
    report.add_argument("--open", action="store_true", help="open the report in the browser")
    report.add_argument(
        "--no-images", action="store_true", help="leave out all pictures, so that the report can be shared"
    )
    return parser


def _command(
    commands: Any, name: str, function: Any, help_text: str, parents: list[argparse.ArgumentParser]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, parents=parents
    )
    parser.set_defaults(command=function)
    _Parser.names |= {name, *(option for action in parser._actions for option in action.option_strings)}
    return parser


if __name__ == "__main__":
    sys.exit(main())
