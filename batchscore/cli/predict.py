"""`batchscore predict`: what the model says of rows that somebody types."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from batchscore.cli.render import Cell, Format, show
from batchscore.cli.session import Session
from batchscore.errors import InputError, SchemaMismatch, UsageError, nearest
from batchscore.model.bundle import Bundle
from batchscore.model.scorer import score
from batchscore.rounding import rounded
from batchscore.schema import Column, Schema, TypeName

__all__ = ["predict", "rows_of"]

_WRITTEN: dict[TypeName, str] = {
    "boolean": "true or false",
    "integer": "a whole number",
    "float": "a number",
    "string": "text in quotes",
    "date": '"2013-10-01"',
    "timestamp": '"2013-10-01T08:00:00"',
    "timestamp_tz": '"2013-10-01T08:00:00Z"',
}
_MOST_INTEGER = 2**63


def predict(session: Session, name: str, given: str, format_: Format) -> None:
    """Print the key, the prediction and the scores of rows, from the bundle that the job uses. Writes nothing.

    Raises:
        UsageError: What is given is not JSON, or no rows.
        SchemaMismatch: See `rows_of`.
        InputError: A row cannot be scored: it holds what training never saw, or the features or the pipeline fail.
    """
    job = session.job(name)
    records = _records(_text(given))
    # What the job's own code prints is not the answer.
    with contextlib.redirect_stdout(sys.stderr):
        bundle = session.bundle(job)
        rows = rows_of(bundle.schema, records)
        scored = score(bundle, rows)
    if scored.rejects.height:
        _refuse(bundle, rows)
    told = scored.predictions.to_dicts()
    shown: list[dict[str, Cell]] = [{name: _cell(value) for name, value in row.items()} for row in told]
    show(shown, format_, title=_title(bundle), columns=True)


def _title(bundle: Bundle) -> str:
    predictor = bundle.predictor
    if predictor.threshold is None:
        return str(bundle)
    return f"{bundle}, which predicts {predictor.classes[1]} from a score of {rounded(predictor.threshold)} on"


def rows_of(schema: Schema, records: list[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as the schema declares them, from JSON objects; shape `(records, columns)`.

    A column that may be NULL may be left out. Dates and timestamps are ISO text.

    Raises:
        SchemaMismatch: A row lacks a column, has one that the schema does not, or holds a value that is not of its
            column's type.
    """
    return pl.concat([_row(schema, record, f"row {number}") for number, record in enumerate(records, 1)])


def _row(schema: Schema, record: Mapping[str, Any], where: str) -> pl.DataFrame:
    for name in record:
        if name not in schema.names:
            guess = f" Did you mean {near}?" if (near := nearest(name, schema.names)) else ""
            raise SchemaMismatch(
                f"{where}: column {name} is none of the bundle's.{guess} It takes: {_told(schema)}.", column=name
            )
    lacking = [column for column in schema if column.name not in record and not column.nullable]
    if lacking:
        wanted = ", ".join(f"{column.name} ({column.type})" for column in lacking)
        raise SchemaMismatch(
            f"{where} lacks {len(lacking)} column(s) that the bundle needs: {wanted}. It takes: {_told(schema)}.",
            missing=[column.name for column in lacking],
        )
    given = pl.DataFrame([_series(column, record.get(column.name), where) for column in schema])
    try:
        return schema.conform(given, where)
    except SchemaMismatch as error:
        column = schema[str(error.context["column"])]
        raise _not_of_type(column, record[column.name], where) from error


def _told(schema: Schema) -> str:
    return ", ".join(f"{column.name} ({column.type}{', may be NULL' * column.nullable})" for column in schema)


def _series(column: Column, value: Any, where: str) -> pl.Series:
    """One value as JSON has it, in a column of the type that it has there."""
    if isinstance(value, (list, dict)) or (type(value) is int and not -_MOST_INTEGER <= value < _MOST_INTEGER):
        raise _not_of_type(column, value, where)
    try:
        return pl.Series(column.name, [value])
    except UnicodeEncodeError as error:
        # JSON can write half a character.
        raise _not_of_type(column, value, where) from error


def _not_of_type(column: Column, value: Any, where: str) -> SchemaMismatch:
    return SchemaMismatch.type_of(
        column.name, column.type, json.dumps(value), where, f"Write {_WRITTEN[column.type]}, as JSON has it."
    )


def _text(given: str) -> str:
    """What is given on the command line, in a file after `@`, or on standard input where it is `-`."""
    if given != "-" and not given.startswith("@"):
        return given
    where = "standard input" if given == "-" else given[1:]
    try:
        return sys.stdin.read() if given == "-" else Path(where).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--row: {where} cannot be read: {error}.") from error


def _records(text: str) -> list[Mapping[str, Any]]:
    try:
        parsed = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--row is not JSON: {error}. Write an object in quotes, or @FILE, or - for standard input: "
            """--row '{"column": 1}'."""
        ) from error
    records = parsed if isinstance(parsed, list) else [parsed]
    if not records or not all(isinstance(record, dict) for record in records):
        raise UsageError("--row wants one JSON object, or a list of them: column names and values.")
    return records


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON; write null for a value that is missing")


def _refuse(bundle: Bundle, rows: pl.DataFrame) -> None:
    """Say which row cannot be scored, and why: the first that cannot."""
    for number, row in enumerate(rows.iter_slices(1), 1):
        for reject in score(bundle, row).rejects.to_dicts():
            raise InputError(
                f"row {number} cannot be scored: {reject['reason']} in {reject['stage']} ({reject['detail']}). "
                f"{bundle} was trained on: {_told(bundle.schema)}."
            )


def _cell(value: Any) -> Cell:
    return value.isoformat() if isinstance(value, date) else value
