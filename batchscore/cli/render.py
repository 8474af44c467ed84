"""What people see: tables, progress, errors. In a container the log lines say the same as JSON."""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum

import structlog
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from batchscore import stop
from batchscore.errors import BatchscoreError, Terminated
from batchscore.logs import Event, configure, log, redacted, told_apart

__all__ = [
    "Aside",
    "Cell",
    "Format",
    "instant",
    "intervals_progress",
    "on_terminal",
    "print_json",
    "say",
    "show",
    "show_bug",
    "show_error",
    "show_stop",
    "step",
]

# Of a table that is only measured.
_WIDEST = 10_000

Cell = str | int | float | bool | datetime | None
_COLORS = {
    "published": "green",
    "ok": "green",
    "steady": "green",
    "failed": "red",
    "moved": "yellow",
    "stale-model": "yellow",
    "unfinished": "yellow",
    "missing": "cyan",
}


class Format(StrEnum):
    """How a list is printed."""

    table = "table"
    json = "json"


class Aside(io.TextIOBase):
    """Standard output for code that is not ours to answer for: what it prints goes to standard error."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return False


def on_terminal() -> bool:
    """Whether a person watches standard output."""
    return sys.stdout.isatty()


def say(text: str) -> None:
    """A sentence for the person at the terminal; a container's log has its own events."""
    if on_terminal():
        Console().print(escape(redacted(text)), highlight=False)


def step(text: str) -> None:
    """What is being done now."""
    if on_terminal():
        Console().print(f"[dim]{escape(redacted(text))} …[/dim]", highlight=False)
    else:
        log.info(Event.TRAINING, doing=text)


def show(
    rows: Sequence[Mapping[str, Cell]],
    format_: Format,
    *,
    title: str = "",
    empty: str = "nothing",
    spare: Sequence[str] = (),
) -> None:
    """Print rows: a table, or JSON with the very same names.

    Args:
        rows: One mapping a row, all with the same names in the same order. An instant is aware.
        format_: `table`, or `json`: a list of objects, an instant in ISO 8601.
        title: Above the table.
        empty: What to say when there is no row.
        spare: Columns that a terminal too narrow for all goes without, the first one first.
    """
    if format_ is Format.json:
        print_json(list(rows))
        return
    if not rows:
        print(empty)
        return
    if title:
        print(title)
    names = list(rows[0])
    table = _table(rows, names)
    if on_terminal():
        console = Console()
        for name in spare:
            if Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum <= console.width:
                break
            names.remove(name)
            table = _table(rows, names)
        console.print(table)
        return
    # Off a terminal rich would guess 80 columns and fold; the reader of a pipe wants whole lines.
    text = io.StringIO()
    Console(file=text, width=240).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def _table(rows: Sequence[Mapping[str, Cell]], names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        numbers = any(isinstance(row[name], (int, float)) and not isinstance(row[name], bool) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(redacted(row[name])) for name in names))
    return table


def print_json(content: object) -> None:
    """Print an answer as JSON; an instant as ISO 8601."""
    print(json.dumps(redacted(content), default=_iso, indent=2, allow_nan=False))


def _iso(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def instant(value: datetime) -> str:
    """An aware instant as every table shows it: `2013-10-01 04:00Z`."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def _cell(value: Cell) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case int():
            return f"{value:,}"
        case datetime():
            return instant(value)
        case str():
            text = escape(value)
            return f"[{_COLORS[value]}]{text}[/]" if value in _COLORS else text


@contextmanager
def intervals_progress(total: int, what: str) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A progress bar over intervals on a terminal, nothing elsewhere.

    Yields:
        A function that starts the next interval by its label, and one that adds rows scored.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(), disable=not on_terminal(), transient=False) as bar:
        task = bar.add_task(what, total=total, rows=0)
        started = 0
        scored = 0

        def next_interval(label: str) -> None:
            nonlocal started
            bar.update(task, description=f"{what} {label}", completed=started)
            started += 1

        def more_rows(count: int) -> None:
            nonlocal scored
            scored += count
            bar.update(task, rows=scored)

        yield next_interval, more_rows
        bar.update(task, description=what, completed=started)


def show_error(error: BatchscoreError) -> None:
    """Tell what stopped the command, once: in words to a person, as one event to a log."""
    if told_apart():
        told = escape(redacted(str(error)))
        Console(stderr=True).print(f"[bold red]error[/] {told}", highlight=False, soft_wrap=True)
    else:
        log.error(
            Event.COMMAND_FAILED,
            error=str(error),
            error_type=type(error).__name__,
            exit_code=error.exit_code,
            retryable=error.retryable,
            **{f"error_{name}": value for name, value in error.context.items()},
        )


def show_stop(request: Terminated) -> None:
    """Tell that somebody stopped the command, and what is left of it."""
    told = f"{request}: {stop.KEPT}"
    if not structlog.is_configured():
        configure("auto")
    if told_apart():
        Console(stderr=True).print(f"[bold]{told}[/]", highlight=False, soft_wrap=True)
    else:
        log.error(
            Event.COMMAND_FAILED,
            error=told,
            error_type=type(request).__name__,
            exit_code=request.exit_code,
            retryable=True,
        )


def show_bug(bug: BaseException) -> None:
    """A traceback: this is ours to mend."""
    if told_apart():
        # As it is: rich would fold its lines, and a secret with them, past being known for one.
        lines = "".join(traceback.format_exception(bug))
        Console(stderr=True).print(escape(redacted(lines)), highlight=False, soft_wrap=True)
        Console(stderr=True).print("[bold red]bug[/] This is batchscore's own fault. Please report the lines above.")
    else:
        log.critical(Event.COMMAND_FAILED, error=str(bug), error_type=type(bug).__name__, exit_code=70, exc_info=bug)
