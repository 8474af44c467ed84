"""Views for dashboards: three over the ledger, and two over each job's output table.

The SQL stands in the files beside this one, and not in `sql/views`, for an installed package has to read it. A file
begins with what the view is and what each column means; its query is the same on every database, but for the few words
in braces that are filled in here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from batchscore.errors import UsageError
from batchscore.job import Job
from batchscore.sqltypes import MYSQL
from batchscore.warehouse import Transaction
from batchscore.warehouse.tables import LiveColumn

__all__ = ["OVER_JOBS", "OVER_LEDGER", "Text", "View", "apply", "of_job", "of_ledger", "statements", "text_of"]

OVER_LEDGER = ("batchscore_freshness", "batchscore_drift_over_time", "batchscore_performance_over_time")
"""The views over the ledger, in its schema."""
OVER_JOBS = ("_latest", "_daily")
"""What the views over an output table, beside it, are called behind its name."""

_FILES: Mapping[str, str] = {
    "batchscore_freshness": "freshness",
    "batchscore_drift_over_time": "drift",
    "batchscore_performance_over_time": "performance",
    "_latest": "latest",
    "_daily": "daily",
}
_HOURS_SINCE: Mapping[str, str] = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM now() - {0}) AS DOUBLE PRECISION) / 3600",
    "duckdb": "EXTRACT(EPOCH FROM now() - {0}) / 3600",
    "sqlite": "(julianday('now') - julianday({0})) * 24",
    **dict.fromkeys(MYSQL, "TIMESTAMPDIFF(MICROSECOND, {0}, UTC_TIMESTAMP(6)) / 3.6e9"),
}
# Of no number: for a task that gives none.
_NOTHING = "NULLIF(1.0, 1.0)"
# As many characters of a name as every database keeps.
_LONGEST = 63
# Where a database has no time zones, the clock's changes are written out until then.
_HORIZON = datetime(2050, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Text:
    """What a file says.

    Attributes:
        meaning: What the view is.
        columns: What each column means, by name, in order; `*` stands for those of the output table.
        query: The query, with places in braces.
    """

    meaning: str
    columns: Mapping[str, str]
    query: str


@dataclass(frozen=True, slots=True)
class View:
    """A view as one database takes it.

    Attributes:
        name: Its name, with its schema before a dot where it has one.
        text: What its file says.
        columns: The names of its columns, in order.
        query: What it selects.
    """

    name: str
    text: Text
    columns: Sequence[str]
    query: str


@cache
def text_of(name: str) -> Text:
    """The file of a view, one of `OVER_LEDGER` and `OVER_JOBS`."""
    text = resources.files(__name__).joinpath(f"{_FILES[name]}.sql").read_text("utf-8")
    comments, _, query = text.partition("SELECT")
    told = re.split(r"\n?--   (\S+): ", comments.rstrip("\n"))
    meaning, *words = (" ".join(part.replace("--", " ").split()) for part in told)
    return Text(meaning, dict(zip(words[::2], words[1::2], strict=True)), f"SELECT{query}".rstrip("\n"))


def of_ledger(dialect: sa.Dialect) -> list[View]:
    """The views over the ledger.

    Raises:
        UsageError: They are not written for such a database.
    """
    _check(dialect)
    words = {"hours_behind": _HOURS_SINCE[dialect.name].format("totals.published_until")}
    return [_view(name, text_of(name), list(text_of(name).columns), words) for name in OVER_LEDGER]


def of_job(job: Job, live: Mapping[str, LiveColumn], dialect: sa.Dialect) -> list[View]:
    """The views over a job's output table.

    Args:
        job: The job.
        live: The table's columns, as they are.
        dialect: The database's.

    Raises:
        UsageError: They are not written for such a database, or a name would be too long for one.
    """
    _check(dialect)
    quote = dialect.identifier_preparer.quote
    table = job.output.table
    if len(longest := f"{table.rpartition('.')[2]}_latest") > _LONGEST:
        raise UsageError(f"a view {longest} would have a name longer than {_LONGEST}. Shorten [output] table.")
    words = {
        "output": ".".join(quote(part) for part in table.split(".")),
        "columns": ", ".join(quote(name) for name in live),
        "key": ", ".join(quote(name) for name in job.source.key),
        "day": _day(dialect, job),
    }
    latest, daily = (text_of(name) for name in OVER_JOBS)
    query = "\nUNION ALL\n".join(
        daily.query.format(**words, name=f"'{name}'", score=quote(name) if measured else _NOTHING)
        for name, measured in _spread(live)
    )
    return [
        _view(f"{table}_latest", latest, list(live), words),
        View(f"{table}_daily", daily, list(daily.columns), query),
    ]


def _view(name: str, text: Text, columns: Sequence[str], words: Mapping[str, str]) -> View:
    return View(name, text, columns, text.query.format(**words))


def _check(dialect: sa.Dialect) -> None:
    if dialect.name not in _HOURS_SINCE:
        raise UsageError(
            f"the views are written for DuckDB, SQLite, Postgres, MariaDB and MySQL, and this is {dialect.name}. Take "
            "what `batchscore views show` prints with one of those, and make it yours."
        )


def _spread(live: Mapping[str, LiveColumn]) -> list[tuple[str, bool]]:
    """The columns whose values are spread, and whether they are numbers that can be."""
    if scores := [name for name in live if name == "score" or name.startswith("score_")]:
        return [(name, True) for name in scores]
    return [("prediction", any(dtype.is_float() for dtype in live["prediction"].dtypes))]


def _day(dialect: sa.Dialect, job: Job) -> str:
    """The local day of `interval_start`, in SQL."""
    if dialect.name in ("postgresql", "duckdb"):
        return f"CAST(interval_start AT TIME ZONE '{job.interval.timezone}' AS DATE)"
    *changes, (_, last) = _offsets(ZoneInfo(job.interval.timezone), job.start)
    cases = "".join(f" WHEN interval_start < '{until:%Y-%m-%d %H:%M:%S}' THEN {seconds}" for until, seconds in changes)
    seconds = f"CASE{cases} ELSE {last} END" if cases else f"{last}"
    if dialect.name == "sqlite":
        return f"date(interval_start, ({seconds}) || ' seconds')"
    return f"DATE(interval_start + INTERVAL ({seconds}) SECOND)"


def _offsets(zone: ZoneInfo, first: datetime) -> Iterator[tuple[datetime, int]]:
    """By how many seconds the zone's clock is ahead of UTC, and until when; the last one goes on."""

    def ahead(at: datetime) -> int:
        return round((at.astimezone(zone).utcoffset() or timedelta()).total_seconds())

    # No zone changes its clock twice within a day.
    day, now = timedelta(days=1), first
    while now < _HORIZON:
        if ahead(now) != ahead(now + day):
            before, behind = 0, 86_400
            while behind - before > 1:
                middle = (before + behind) // 2
                if ahead(now + timedelta(seconds=middle)) == ahead(now):
                    before = middle
                else:
                    behind = middle
            yield now + timedelta(seconds=behind), ahead(now)
        now += day
    yield _HORIZON, ahead(now)


def statements(view: View, dialect: sa.Dialect, *, fresh: bool = False) -> list[str]:
    """What makes a view, or puts it in the place of the one that is there, with all that is known of it as comments.

    Args:
        view: The view.
        dialect: The database's.
        fresh: Whether the one that is there has other columns and must go first, and with it what was granted on it.
    """
    quote = dialect.identifier_preparer.quote
    name = ".".join(quote(part) for part in view.name.split("."))
    made = [f"CREATE OR REPLACE VIEW {name} AS\n{view.query}"]
    if dialect.name == "sqlite" or fresh:
        made = [f"DROP VIEW IF EXISTS {name}", f"CREATE VIEW {name} AS\n{view.query}"]
    if dialect.name in ("postgresql", "duckdb"):
        made.append(f"COMMENT ON VIEW {name} IS {_literal(view.text.meaning)}")
        told = ((column, view.text.columns.get(column)) for column in view.columns)
        made += [f"COMMENT ON COLUMN {name}.{quote(column)} IS {_literal(text)}" for column, text in told if text]
    return made


def _literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def apply(tx: Transaction, views: Sequence[View]) -> dict[str, str]:
    """Make views, or put them in the place of those that are there.

    Returns:
        What was done, by name: `made`; `replaced`; `made anew`, where the columns are others than before, so that what
        was granted on it is gone.
    """
    tx.backend.lock_tables(tx.connection)
    done = {}
    for view in views:
        live = list(tx.columns(view.name))
        fresh = bool(live) and live != list(view.columns)
        for statement in statements(view, tx.connection.dialect, fresh=fresh):
            # A driver that formats parameters into a text reads a single % as the beginning of one.
            formats = tx.connection.dialect.paramstyle in ("format", "pyformat")
            tx.connection.exec_driver_sql(statement.replace("%", "%%") if formats else statement)
        done[view.name] = "made anew" if fresh else "replaced" if live else "made"
    return done
