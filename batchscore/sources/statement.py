"""SQL text as batchscore reads it: one query, its `:name` placeholders found, its values always bound."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby, pairwise

import sqlglot
from sqlglot import Token, TokenError, TokenType

from batchscore.database import Database
from batchscore.errors import SchemaMismatch, UsageError, nearest
from batchscore.interval import Interval
from batchscore.job import Value
from batchscore.schema import Column, TypeName

__all__ = [
    "INTERVAL_PARAMETERS",
    "SPAN_PARAMETERS",
    "Key",
    "Page",
    "Query",
    "Span",
    "Statement",
    "Wanted",
    "identifier",
]

Key = tuple[int | str | bool | date | datetime, ...]
Wanted = Mapping[str, TypeName | None] | None

INTERVAL_PARAMETERS = ("interval_start", "interval_end")
SPAN_PARAMETERS = ("batchscore_low", "batchscore_high")

# SQLAlchemy's names where sqlglot has another; what neither knows is read as standard SQL.
_SQLGLOT = {"postgresql": "postgres", "cockroachdb": "postgres", "mariadb": "mysql", "mssql": "tsql"}
_OPAQUE = {kind for kind in TokenType if kind.name.endswith("STRING")} | {TokenType.IDENTIFIER, TokenType.HINT}
_READS = ("SELECT", "FROM", "VALUES", "TABLE")
_WRITES = ("INSERT", "UPDATE", "DELETE", "MERGE")
# The rule of SQLAlchemy's text(), but `:name::type` is a placeholder too.
_PLACEHOLDER = re.compile(r"(?<![:\w\\]):([^\W\d]\w*)")


@dataclass(frozen=True, slots=True)
class Statement:
    """One query, without the semicolon or comment it may have ended with.

    Attributes:
        text: The SQL.
        where: The file, for messages: "flight_delay/rows.sql".
        placeholders: Each `:name` outside strings, quoted names and comments, with the position of its colon.
    """

    text: str
    where: str
    placeholders: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str, where: str, dialect: str) -> Statement:
        """Read one query, by the strings and comments of a dialect of SQLAlchemy's.

        Only its tokens are looked at, so what the database understands passes.

        Raises:
            UsageError: The text is empty, more than one statement, or no query.
        """
        text = text.removeprefix("\ufeff")
        tokens = _one_statement(_tokens(text, where, dialect), where)
        _refuse_writes(tokens, where)
        text = text[: tokens[-1].end + 1]
        found = _PLACEHOLDER.finditer(_code(text, tokens))
        return cls(text, where, tuple((match[1], match.start()) for match in found))

    @property
    def names(self) -> list[str]:
        """The placeholders' names, each once, as they first occur."""
        return list(dict.fromkeys(name for name, _ in self.placeholders))

    def render(self, replacement: Callable[[str], str]) -> str:
        """The SQL with each placeholder replaced by what `replacement` gives for its name."""
        parts, position = [], 0
        for name, start in self.placeholders:
            parts += [self.text[position:start], replacement(name)]
            position = start + 1 + len(name)
        return "".join([*parts, self.text[position:]])

    @property
    def caution(self) -> str | None:
        """What may be wrong where one bound of the interval is used, in words; None where both are, or neither is."""
        used = [name for name in INTERVAL_PARAMETERS if name in self.names]
        if len(used) != 1:
            return None
        unused, comparison = ("interval_start", ">=") if used == ["interval_end"] else ("interval_end", "<")
        return (
            f"{self.where}: the SQL uses :{used[0]} and not :{unused}, so a row may come in several intervals and be "
            "predicted in each. That is right where every interval scores all rows as they are by then, such as the "
            f"customers of a month; otherwise add <time> {comparison} :{unused}."
        )

    def require(self, parameters: Collection[str], *, tied: bool = True) -> None:
        """Check the placeholders against the job's own parameters and the interval's two.

        Args:
            parameters: The names the job gives.
            tied: Each interval must get rows of its own.

        Raises:
            UsageError: A placeholder has no parameter, a parameter no placeholder, or the interval is ignored.
        """
        known = [*INTERVAL_PARAMETERS, *parameters]
        # DuckDB and Postgres settings do not tell :Day from :day.
        folded = Counter(name.casefold() for name in (*known, *SPAN_PARAMETERS))
        if clash := [name for name in parameters if folded[name.casefold()] > 1]:
            raise UsageError(f"{self.where}: the parameter name {clash[0]} is taken twice, in any case. Rename it.")
        if unknown := [name for name in self.names if name not in known]:
            raise UsageError(_unknown(unknown[0], known, self.where))
        if unused := [name for name in parameters if name not in self.names]:
            raise UsageError(
                f"{self.where}: the job gives the parameter {unused[0]}, and the SQL never uses :{unused[0]}. "
                "Use it there, or take it out of parameters."
            )
        if tied and not set(INTERVAL_PARAMETERS) & set(self.names):
            raise UsageError(
                f"{self.where}: the SQL uses neither :interval_start nor :interval_end, so it would read the whole "
                "table for every interval. Add WHERE <time> >= :interval_start AND <time> < :interval_end."
            )


@dataclass(frozen=True, slots=True)
class Span:
    """A range of the first key column: from `low` to before `high`, integers or text; None has no bound there.

    A NULL, which no key may be and which somebody has to meet, is in the span that has no `high`.
    """

    low: int | str | None = None
    high: int | str | None = None

    @property
    def values(self) -> dict[str, Value]:
        """The bounds that there are, by the name of their parameter."""
        named = zip(SPAN_PARAMETERS, (self.low, self.high), strict=True)
        return {name: value for name, value in named if value is not None}

    def conditions(self, column: str, bound: Callable[[str], str]) -> list[str]:
        """What SQL asks of the column, where `bound` writes a parameter to compare it with."""
        low, high = SPAN_PARAMETERS
        conditions = []
        if self.low is not None:
            above = f"{column} >= {bound(low)}"
            conditions.append(above if self.high is not None else f"({above} OR {column} IS NULL)")
        if self.high is not None:
            conditions.append(f"{column} < {bound(high)}")
        return conditions


WHOLE = Span()


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows of a query, as `Source.batches` is asked for them.

    Attributes:
        keys: Whether the first column of `order` alone is asked for, of all rows, in any order.
    """

    order: Sequence[Column] = ()
    limit: int | None = None
    batch_rows: int = 50_000
    columns: Wanted = None
    span: Span = WHOLE
    keys: bool = False

    def sql(self, inner: str, text_order: str, marker: Callable[[str], str]) -> str:
        """The page of the query `inner`.

        Args:
            inner: The query, its own parameters rendered.
            text_order: SQL with `{}` in the place of a text value, that orders text by its UTF-8 bytes, as Polars
                does.
            marker: How a parameter is written.
        """
        wrap = [text_order if column.type == "string" else "{}" for column in self.order]
        keys = [form.format(identifier(column.name)) for form, column in zip(wrap, self.order, strict=True)]
        rows = f"(\n{inner}\n) AS batchscore_rows"
        if self.keys:
            return f"SELECT {identifier(self.order[0].name)} FROM {rows}"
        parts = [f"SELECT * FROM {rows}"]
        conditions = self.span.conditions(keys[0], lambda name: wrap[0].format(marker(name))) if keys else []
        if conditions:
            parts.append(f"WHERE {' AND '.join(conditions)}")
        if keys:
            parts.append(f"ORDER BY {', '.join(keys)}")
        if self.limit is not None:
            parts.append(f"LIMIT {self.limit:d}")
        return "\n".join(parts)

    def wants(self, column: str) -> bool:
        """Whether the values of a column are to be given."""
        return self.columns is None or column in self.columns or any(column == each.name for each in self.order)

    def given(self, columns: Sequence[str]) -> Sequence[str]:
        """The columns that the page of a query with these has."""
        return [self.order[0].name] if self.keys else columns

    def check(self, columns: Sequence[str], where: str) -> None:
        """Check the query's columns before the database is asked to order by them.

        Raises:
            SchemaMismatch: A name occurs twice, or a key column is missing.
        """
        if doubled := [name for name, n in Counter(columns).items() if n > 1]:
            raise SchemaMismatch(f"{where} gives column {doubled[0]} twice. Name every column once, with AS.")
        if missing := [column.name for column in self.order if column.name not in columns]:
            raise SchemaMismatch.missing(missing, columns, where)


@dataclass(frozen=True, slots=True)
class Query:
    """A statement, the database it runs on, the job's own parameters, the interval and which of the rows to give."""

    database: Database
    statement: Statement
    parameters: Mapping[str, Value]
    interval: Interval
    page: Page = Page()

    @property
    def where(self) -> str:
        """The file, for messages."""
        return self.statement.where

    def values(self) -> dict[str, Value]:
        """The values that the statement uses, by name."""
        given = {**self.parameters, "interval_start": self.interval.start, "interval_end": self.interval.end}
        return {name: given[name] for name in self.statement.names}

    def sql(self, marker: Callable[[str], str], text_order: str) -> str:
        """The SQL of the page, with `values()` to be bound."""
        return self.page.sql(self.statement.render(marker), text_order, marker)


def identifier(name: str) -> str:
    """A column name as SQL quotes it."""
    return '"' + name.replace('"', '""') + '"'


def _tokens(text: str, where: str, dialect: str) -> list[Token]:
    name = _SQLGLOT.get(dialect, dialect)
    try:
        return sqlglot.tokenize(text, read=name if sqlglot.Dialect.get(name) else None)
    except TokenError:
        raise UsageError(f"{where}: a string, quoted name or comment is opened and never closed. Close it.") from None


def _one_statement(tokens: Iterable[Token], where: str) -> list[Token]:
    """The tokens of the only statement, without semicolons."""
    runs = groupby(tokens, key=lambda token: token.token_type is TokenType.SEMICOLON)
    statements = [list(run) for semicolon, run in runs if not semicolon]
    if not statements:
        raise UsageError(f"{where}: the file holds no SQL. Write the query that gives the rows.")
    if len(statements) > 1:
        line = statements[1][0].line
        raise UsageError(f"{where}: line {line} begins a second statement. Keep one query, and no semicolon inside it.")
    return statements[0]


def _word(token: Token) -> str:
    return "" if token.token_type in _OPAQUE else token.text.upper()


def _refuse_writes(tokens: Sequence[Token], where: str) -> None:
    if _word(tokens[0]) not in (*_READS, "WITH", "("):
        raise UsageError(
            f"{where}: the SQL begins with {tokens[0].text!r}. Write a query: SELECT … or WITH … SELECT …."
        )
    for token in _statement_words(tokens):
        if _word(token) in _WRITES:
            raise UsageError(
                f"{where}: line {token.line}: {_word(token)} changes data. A source only reads; take it out."
            )


def _statement_words(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens that a statement may begin with: one behind `AS (`, and one behind the list of WITH."""
    for before, opening, word in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if _word(opening) == "(" and _word(before) in ("AS", "MATERIALIZED"):
            yield word
    if _word(tokens[0]) != "WITH":
        return
    depth = 0
    for before, token in pairwise(tokens):
        depth += {"(": 1, ")": -1}.get(_word(before), 0)
        if depth == 0 and _word(token) in _READS:
            return
        if depth == 0 and _word(before) == ")":
            yield token


def _code(text: str, tokens: Iterable[Token]) -> str:
    """The text with strings, quoted names and comments blanked, every position kept."""
    code = [" "] * len(text)
    for token in tokens:
        if token.token_type not in _OPAQUE:
            code[token.start : token.end + 1] = text[token.start : token.end + 1]
    return "".join(code)


def _unknown(name: str, known: Sequence[str], where: str) -> str:
    guess = f" Did you mean :{near}?" if (near := nearest(name, known)) else ""
    return (
        f"{where}: the SQL uses :{name}, which is no parameter.{guess} Known: {', '.join(known)}. Add it to parameters "
        f"under [source] in the job file (for labels: under [labels]), or write a space behind a colon that is none."
    )
