"""What people see: tables, progress, errors. In a container the log lines say the same as JSON."""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

import structlog
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

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

# Of a cell that is only measured.
_WIDEST = 10_000
# A longer word, such as a digest, may be folded itself.
_LONG_WORD = 20
# Between two columns.
_GAP = 2

Cell = str | int | float | bool | datetime | None
Format = Literal["table", "json"]
"""How a list is printed."""
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
    format_: Format = "table",
    *,
    title: str = "",
    empty: str = "nothing",
    columns: bool = False,
    spare: Sequence[str | tuple[str, ...]] = (),
    below: str = "",
) -> None:
    """Print rows: a table, or JSON with the very same names.

    At a terminal that is too narrow cells are folded between words, and of a table that does not fit even so each row
    becomes lines of its own, one for each column.

    Args:
        rows: One mapping a row, all with the same names in the same order. An instant is aware.
        format_: `table`, or `json`: a list of objects, an instant in ISO 8601.
        title: Above the table.
        empty: What to say when there is no row.
        columns: Whether the names are a table's columns, and so stay as they are.
        spare: Names that a terminal does without where it is too narrow for all, the first of them first; those of a
            tuple go together.
        below: A name whose text a terminal shows below each row, in the terminal's whole width.
    """
    if format_ == "json":
        print_json(list(rows))
        return
    if not rows:
        print(empty)
        return
    if title:
        print(title)
    if on_terminal():
        kept, gone = _fitting(Console(), rows, columns, spare, below)
        _show_at(Console(), kept, columns, below)
        if gone:
            say(f"Left out for want of room: {', '.join(_header(name, columns) for name in gone)}.")
        return
    # Off a terminal rich would guess 80 columns and fold; the reader of a pipe wants whole lines.
    text = io.StringIO()
    Console(file=text, width=240).print(_table(rows, columns))
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def _fitting(
    console: Console,
    rows: Sequence[Mapping[str, Cell]],
    columns: bool,
    spare: Sequence[str | tuple[str, ...]],
    below: str,
) -> tuple[Sequence[Mapping[str, Cell]], Sequence[str]]:
    """The rows without so many of the spare columns that no cell of theirs is folded, and what was left out."""
    gone: list[str] = []
    for names in ((each,) if isinstance(each, str) else each for each in spare):
        widths = [_range(console, column)[1] for column in _table(_without(rows, below), columns).columns]
        if sum(widths) + _GAP * (len(widths) - 1) <= console.width:
            break
        gone += [name for name in names if name in rows[0]]
        rows = [{name: value for name, value in row.items() if name not in names} for row in rows]
    return rows, gone


def _show_at(console: Console, rows: Sequence[Mapping[str, Cell]], columns: bool, below: str) -> None:
    table = _table(_without(rows, below), columns)
    ranges = [_range(console, column) for column in table.columns]
    widths = [longest for _, longest in ranges]
    room = console.width - _GAP * (len(widths) - 1)
    if sum(shortest for shortest, _ in ranges) > room:
        for i, row in enumerate(rows):
            lines = Table("name", Column(overflow="fold"), box=None, pad_edge=False, show_header=False)
            for name, value in row.items():
                lines.add_row(f"[bold]{_header(name, columns)}[/]", _cell(redacted(value)))
            if i:
                console.print()
            console.print(lines)
        return
    while sum(widths) > room:
        # The widest of those that can still be folded.
        place = max((i for i, (shortest, _) in enumerate(ranges) if widths[i] > shortest), key=widths.__getitem__)
        widths[place] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    if not below:
        console.print(table)
        return
    shown = zip(rows, zip(*(column.cells for column in table.columns), strict=True), strict=True)
    for i, (row, cells) in enumerate(shown):
        # A table of its own for each row, of the widths of them all.
        heads = (column.copy() for column in table.columns)
        one = Table(*heads, box=None, pad_edge=False, header_style="bold", show_header=i == 0)
        one.add_row(*cells)
        console.print(one)
        console.print(
            Padding(Text.from_markup(_cell(redacted(row[below])), overflow="fold"), (0, 0, 0, _GAP), expand=False)
        )


def _without(rows: Sequence[Mapping[str, Cell]], below: str) -> Sequence[Mapping[str, Cell]]:
    return [{name: value for name, value in row.items() if name != below} for row in rows] if below else rows


def _range(console: Console, column: Column) -> tuple[int, int]:
    """The widths of a column with its cells folded between words, and with none folded."""
    options = console.options.update(max_width=_WIDEST)
    cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    longest = max(cell.maximum for cell in cells)
    return min(longest, max(cell.minimum for cell in cells), _LONG_WORD), longest


def _table(rows: Sequence[Mapping[str, Cell]], columns: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        numbers = any(isinstance(row[name], (int, float)) and not isinstance(row[name], bool) for row in rows)
        table.add_column(_header(name, columns), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(redacted(value)) for value in row.values()))
    return table


def _header(name: str, column: bool) -> str:
    return escape(name if column else name.replace("_", " "))


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
    told = stop.told(request)
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
